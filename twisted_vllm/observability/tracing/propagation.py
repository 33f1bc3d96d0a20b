"""Reads and writes the headers of W3C Trace Context (https://www.w3.org/TR/trace-context/), strictly and bounded.

``baggage`` is not read: it goes to the server as it came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from twisted_vllm.http.headers import HeaderList

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
#: the headers that another span replaces
TRACE_HEADERS = frozenset((TRACEPARENT, TRACESTATE))

#: bytes of a ``tracestate`` that go on; §3.3.1.5 asks for 512 at least
LONGEST_STATE = 512
#: entries of it (§3.3.1.1), and bytes of one that is dropped first where all are too long (§3.3.1.5)
MOST_ENTRIES = 32
LONG_ENTRY = 128
#: bytes of a ``tracestate`` that are read at all
_MOST_READ = 8_192

#: §3.2.2: a later version may have more after another hyphen; version 00 may not, and ff is invalid
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-[\x21-\x7e]{0,256})?")
_LENGTH = 55
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16

#: §3.3.1.3: a key, perhaps with a tenant before it, and a value that does not end with a space
_ENTRY = re.compile(
    rb"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class Incoming(NamedTuple):
    """What a caller says of its trace.

    Attributes:
        trace_id: the id of the trace, 32 hex digits.
        parent_id: the id of the caller's span, 16 hex digits.
        sampled: whether the caller records the trace.
        state: its ``tracestate``; empty without one, or if it is malformed.
    """

    trace_id: str
    parent_id: str
    sampled: bool
    state: bytes


def read(first: Mapping[bytes, bytes], names: Sequence[bytes], headers: HeaderList) -> Incoming | None:
    """Return the trace that a request continues; None without one, or if ``traceparent`` is malformed or repeated.

    Args:
        first: the first value of each header, by lower-case name.
        names: the lower-case names of all headers, in order.
        headers: the headers, in the same order.
    """
    value = first.get(TRACEPARENT)
    if value is None:
        return None
    found = _PARENT.fullmatch(value)
    if found is None or names.count(TRACEPARENT) > 1:
        return None
    version, trace_id, parent_id, flags = found.groups()
    if version == b"ff" or (version == b"00" and len(value) != _LENGTH):
        return None
    if trace_id == _NO_TRACE or parent_id == _NO_SPAN:
        return None
    state = b""
    if TRACESTATE in first:
        state = read_state([pair[1] for name, pair in zip(names, headers, strict=True) if name == TRACESTATE])
    return Incoming(trace_id.decode("ascii"), parent_id.decode("ascii"), bool(int(flags, 16) & 1), state)


def read_state(values: Sequence[bytes]) -> bytes:
    """Return ``tracestate`` as it goes on; empty if it is malformed.

    Args:
        values: the values of its headers, in order: together they are one list.
    """
    joined = b",".join(values)
    if len(joined) > _MOST_READ:
        return b""
    # empty entries are allowed (§3.3.1.2)
    entries = [entry for each in joined.split(b",") if (entry := each.strip(b" \t"))]
    if len(entries) > MOST_ENTRIES or not all(map(_ENTRY.fullmatch, entries)):
        return b""
    length = sum(map(len, entries)) + max(0, len(entries) - 1)
    if length > LONGEST_STATE:
        entries = [entry for entry in entries if len(entry) <= LONG_ENTRY]
        while entries and sum(map(len, entries)) + len(entries) - 1 > LONGEST_STATE:
            entries.pop()
    return b",".join(entries)


def write_parent(trace_id: str, span_id: str, *, sampled: bool) -> bytes:
    """Return the value of ``traceparent``."""
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}".encode("ascii")
