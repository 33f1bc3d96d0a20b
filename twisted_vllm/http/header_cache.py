"""Caches parsed heads, so that the next request or response with the same head is not parsed again.

A client library repeats the same head: target, key and headers. Only a few values change per request: the body's
length, and the ids of a traced client. A server's responses vary as little. A head that equals an accepted one in all
other bytes has the same meaning. Only whole messages in one TCP segment are looked up; llhttp parses the rest.
"""

from __future__ import annotations

import re
from typing import Generic, TypeVar

from twisted_vllm.config.settings import Limits
from twisted_vllm.http.headers import BODILESS, PER_REQUEST_HEADERS, RequestHead, ResponseHead

#: cached heads for all connections together, and the maximum length of one in bytes
MOST_HEADS = 256
LONGEST_HEAD = 2_048

#: a length in the spelling that the cache writes
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,8})\r\n")

#: a header of `PER_REQUEST_HEADERS`: group 1 is a length, group 2 the value of another. A value of visible ASCII means
#: the same to every parser, with nothing to trim around it.
_PER_REQUEST = re.compile(
    rb"\r\n(?:content-length: (0|[1-9][0-9]{0,8})|(?:traceparent|tracestate|x-request-id): ([\x21-\x7e]{1,256}))"
    rb"(?=\r\n)",
    re.IGNORECASE,
)

#: heads with these headers are not cached: what they announce is not in the same segment
_NEVER_KEPT = frozenset((b"expect", b"transfer-encoding"))

Head = TypeVar("Head")


class _HeaderCache(Generic[Head]):
    """Heads, keyed by their bytes without the values that vary. A full cache evicts its oldest entry."""

    def __init__(self, longest: int) -> None:
        self._heads: dict[tuple[bytes, ...], Head] = {}
        self._longest = longest

    def __len__(self) -> int:
        return len(self._heads)

    def _keep(self, key: tuple[bytes, ...], head: Head) -> None:
        if len(self._heads) >= MOST_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[key] = head


class RequestTemplate:
    """The common part of the heads of one cache entry.

    Attributes:
        head: the first of them.
    """

    __slots__ = ("_at", "head")

    def __init__(self, head: RequestHead) -> None:
        """Create the template of `head`, which has each of `PER_REQUEST_HEADERS` at most once."""
        self.head = head
        # the indexes of the varying headers in the header list, in order
        self._at = tuple(at for at, name in enumerate(head.names) if name in PER_REQUEST_HEADERS)

    def with_values(self, length: int, values: list[bytes]) -> RequestHead:
        """Return the head with other values of `PER_REQUEST_HEADERS`, in order; `length` is the body's."""
        first = self.head
        head: RequestHead = RequestHead.__new__(RequestHead)
        head.method = first.method
        head.target = first.target
        head.version = first.version
        head.names = names = first.names
        head.length = length
        head.keep_alive = True
        head.protocols = first.protocols
        head.template = self
        head.headers = headers = first.headers
        head.first = indexed = first.first
        if values:
            head.headers = headers = headers.copy()
            head.first = indexed = indexed.copy()
            for at, value in zip(self._at, values, strict=True):
                headers[at] = (headers[at][0], value)
                indexed[names[at]] = value
        return head


class RequestHeaderCache(_HeaderCache[RequestTemplate]):
    """The heads of requests, shared by all connections of a site."""

    def __init__(self, limits: Limits) -> None:
        """Create an empty cache; every head that it learns was within `limits`."""
        # the recalled length may have more digits than the cached one
        super().__init__(min(LONGEST_HEAD, limits.max_head_bytes - 32))
        self._most_bytes = limits.max_body_bytes

    def recall(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """Return head and body of `data`, if it is one whole request with a cached head; otherwise None.

        Args:
            data: received bytes at the start of a request.
        """
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0:
            return None
        key, length, values = _split(data, end)
        template = self._heads.get(key)
        start = end + 4
        if template is None or len(data) - start != length or length > self._most_bytes:
            return None
        return template.with_values(length, values), data[start:]

    def learn(self, data: bytes, head: RequestHead) -> None:
        """Cache `head`, which llhttp accepted, if `data` is its whole request and such a head may be repeated."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if (
            end < 0
            or len(data) - end - 4 != head.length
            or not head.keep_alive
            or head.protocols
            or head.version != b"HTTP/1.1"
            or not _NEVER_KEPT.isdisjoint(head.first)
        ):
            return
        key, length, values = _split(data, end)
        present = [name for name in head.names if name in PER_REQUEST_HEADERS]
        # each of them must be cut out of the key: in the usual spelling, and not repeated
        if length == head.length and len(values) == len(present) == len(set(present)):
            self._keep(key, RequestTemplate(head))


class ResponseHeaderCache(_HeaderCache[ResponseHead]):
    """The heads of responses, shared by all connections of an agent."""

    def __init__(self) -> None:
        super().__init__(LONGEST_HEAD)

    def recall(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Return head and body of `data`, if it is one whole response with a cached head; otherwise None."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0:
            return None
        found = _LENGTH.search(data, 0, end + 2)
        if found is None:
            return None
        first, last = found.span(1)
        known = self._heads.get((data[:first], data[last : end + 4]))
        length = int(found[1])
        if known is None or len(data) - end - 4 != length:
            return None
        return known.of_length(length), data[end + 4 :]

    def learn(self, data: bytes, head: ResponseHead) -> None:
        """Cache `head` if `data` is its whole response and such a head may be repeated."""
        end = data.find(b"\r\n\r\n", 0, self._longest)
        if end < 0 or head.has_request_id or head.relayed is not head.headers or head.status in BODILESS:
            return
        found = _LENGTH.search(data, 0, end + 2)
        # without a length in the usual spelling, the bytes do not identify the head
        if found is not None and int(found[1]) == head.length == len(data) - end - 4:
            first, last = found.span(1)
            self._keep((data[:first], data[last : end + 4]), head.as_template())


def _split(data: bytes, end: int) -> tuple[tuple[bytes, ...], int, list[bytes]]:
    """Return the key of a request's head, its body's length, and the varying values in order.

    The key consists of the bytes around those values. Each piece but the last ends with the name of the header whose
    value follows, so equal keys have the same headers in the same positions.
    """
    pieces: list[bytes] = []
    values: list[bytes] = []
    length = at = 0
    for found in _PER_REQUEST.finditer(data, 0, end + 2):
        group = found.lastindex or 0
        first, last = found.span(group)
        value = data[first:last]
        if group == 1:
            length = int(value)
        pieces.append(data[at:first])
        values.append(value)
        at = last
    pieces.append(data[at : end + 4])
    return tuple(pieces), length, values
