"""Finds the usage in a JSON value that arrives in pieces, with bounded memory.

A response may have any size (embeddings, log probabilities). A small one is kept whole; of a large one, only the values
of certain keys are kept, a few hundred bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

import msgspec

#: a value up to this many bytes is kept whole
MAX_WHOLE = 65_536
#: the maximum bytes of a captured value; vLLM's ``usage`` has a few hundred
MAX_VALUE = 16_384
#: pieces of a value to join when there are more: many small ones take a multiple of their size
MAX_PIECES = 64
#: keys and quotes to look at in one piece of a large value, which takes up to 15 ms. The 64 KiB that are read from a
#: connection at once have fewer, whatever they are; only decompressed pieces may have more.
MAX_KEYS, MAX_QUOTES = 9_216, 98_304
# all bytes that neither begin nor end a string, an object or a list
_INERT = bytes(set(range(256)) - set(b'"[]{}'))
_STEP_OF = {b"{": 1, b"[": 1, b"}": -1, b"]": -1, b'""': 0}
# what a few brackets change of the depth, with strings that have none; a match after them is outside of all strings
_STEPS = {
    b"".join(parts): sum(_STEP_OF[part] for part in parts)
    for number in range(4)
    for parts in product(_STEP_OF, repeat=number)
}
# no possessive group here: Python before 3.11.5 matches it wrongly. A quote alone begins a string that has no end.
_PIECE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_SCALAR = re.compile(rb'[^\s\[\]{}",]++(?=[\s,}\]])')
_SPACE = re.compile(rb"[ \t\r\n]+")
_COMPOUND = (b"{", b"[", b'"')


class Shape(msgspec.Struct, frozen=True, gc=False):
    """The values to keep of a document that is too large to be kept whole.

    Attributes:
        keys: their keys.
        outer: the member of the outermost object that contains them; empty if they are in the outermost object itself.
    """

    keys: tuple[bytes, ...]
    outer: bytes = b""


class Document:
    """Collects a JSON value that arrives in pieces."""

    __slots__ = ("_parts", "_scanner", "_shape", "_size")

    def __init__(self, shape: Shape) -> None:
        """Start empty; `shape` names the values to keep if the document becomes too large."""
        self._shape = shape
        self._parts: list[bytes] = []
        self._size = 0
        self._scanner: ValueScanner | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self._scanner is not None:
            self._scanner.feed(data)
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_WHOLE:
            self._scanner = ValueScanner(self._shape.keys, 2 if self._shape.outer else 1)
            self._scanner.feed(b"".join(self._parts))
            self._parts = []
        elif len(self._parts) > MAX_PIECES:
            self._parts = [b"".join(self._parts)]

    @property
    def is_whole(self) -> bool:
        """Whether the whole value is kept."""
        return self._scanner is None

    def read(self) -> bytes:
        """Return the value or, if it was too large, an object with the `Shape.keys` that were found.

        Of a value that is too costly to search, return the end.
        """
        if self._scanner is None:
            return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if self._scanner.gave_up:
            return self._scanner.end
        members = b",".join(b'"%b":%b' % pair for pair in self._scanner.found.items())
        return b'{"%b":{%b}}' % (self._shape.outer, members) if self._shape.outer else b"{%b}" % members


class ValueScanner:
    """Finds the values of keys at one depth of a JSON value, without keeping the value.

    It searches for the key with its quotes: inside a JSON string the first quote would have a backslash before it. So a
    match is a whole string, and the depth shows whether it is the key. Of equal keys the last counts.

    `MAX_KEYS` and `MAX_QUOTES` bound the time of each piece. Beyond them, or if the value is certainly not JSON, the
    search ends, and only the end of the value is kept.

    Attributes:
        found: the raw values, by key.
        gave_up: whether the search has ended.
        end: the last `MAX_VALUE` bytes of the value, if the search has ended.
    """

    def __init__(self, keys: Sequence[bytes], depth: int = 1) -> None:
        """Start to search.

        Args:
            keys: the keys.
            depth: the depth of the objects that contain them; 1 is the outermost object.
        """
        self.found: dict[bytes, bytes] = {}
        self.gave_up = False
        self.end = b""
        self._names = [b'"' + key + b'"' for key in keys]
        # a key, and its colon unless that is in the next piece
        self._keys = re.compile(rb'("(?:' + b"|".join(map(re.escape, keys)) + rb')")[ \t\r\n]*(:|\Z)')
        self._longest = max(map(len, keys)) + 2
        self._target = depth
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._carry = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self.gave_up:
            self.end = (self.end + data)[-MAX_VALUE:]
            return
        if self._carry:
            data = self._carry + data
            self._carry = b""
        if len(data) > MAX_QUOTES and data.count(b'"') > MAX_QUOTES:
            self._give_up(data)
            return
        # without a match this is several times faster than the pattern
        if any(name in data for name in self._names):
            self._search(data)
        else:
            self._skip_rest(data)

    def _give_up(self, data: bytes) -> None:
        self.gave_up = True
        self.found = {}
        self._carry = b""
        self.end = data[-MAX_VALUE:]

    def _search(self, data: bytes) -> None:
        """Find the last of each key in a piece, and its value if that is complete."""
        last: dict[bytes, tuple[int, int]] = {}
        offset, incomplete = 0, -1
        # inside a string, a quote at the very beginning ends that string
        for keys, match in enumerate(self._keys.finditer(data, 1 if self._in_string else 0)):
            position, end = match.span(1)
            if position and data[position - 1] == 0x5C:
                # within a string
                continue
            # most keys are close to each other where there are many: this takes half the time of `_skip`
            step = _STEPS.get(data[offset:position].translate(None, _INERT))
            if step is None or self._in_string or self._escaped:
                self._skip(data[offset:position])
            else:
                self._depth += step
            offset = end
            if self._in_string or keys >= MAX_KEYS:
                # it is not JSON, or too much
                self._give_up(data)
                return
            if self._depth == self._target:
                if match[2]:
                    last[match[1]] = match.span()
                else:
                    # what comes next shows whether it is a key or a value
                    incomplete = position
        for name, (position, start) in last.items():
            end = _value_end(data, start)
            if end >= 0:
                self.found[name[1:-1]] = data[start:end].strip()
            elif len(data) - position < MAX_VALUE:
                # at most one of them is incomplete, and what follows its key is its value
                incomplete = position
        if incomplete >= 0 and len(data) - incomplete < MAX_VALUE:
            # continue at the key once there is more
            self._depth, self._in_string, self._escaped = self._target, False, False
            self._carry = data[incomplete:]
        else:
            self._skip_rest(data[offset:])

    def _skip_rest(self, part: bytes) -> None:
        """Skip all of `part`, but carry over the beginning of a string that may become a key."""
        last = part.rfind(b'"', max(0, len(part) - self._longest))
        if last >= 0 and b"\\" not in part[max(0, last - 1) :]:
            self._skip(part[:last])
            if not self._in_string:
                self._carry = part[last:]
                return
            part = part[last:]
        self._skip(part)

    def _skip(self, part: bytes) -> None:
        """Skip bytes without a key: update the depth and whether the scan is inside a string."""
        if not part:
            return
        if self._escaped:
            self._escaped = False
            part = part[1:]
        ends_escaped = False
        if b"\\" in part:
            ends_escaped = (len(part) - len(part.rstrip(b"\\"))) % 2 == 1
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        part = part.translate(None, _INERT)
        if b'"' in part:
            # the pieces between quotes are alternately outside and inside of strings
            pieces = part.split(b'"')
            part = b"".join(pieces[1::2] if self._in_string else pieces[::2])
            if len(pieces) % 2 == 0:
                self._in_string = not self._in_string
        elif self._in_string:
            part = b""
        if part:
            count = part.count
            self._depth += count(b"{") + count(b"[") - count(b"}") - count(b"]")
        self._escaped = ends_escaped and self._in_string


def _value_end(data: bytes, offset: int) -> int:
    """Return the end of the value at `offset`; -1 if it is not complete, or longer than `MAX_VALUE`."""
    limit = offset + MAX_VALUE
    space = _SPACE.match(data, offset, limit)
    start = offset if space is None else space.end()
    if data.startswith(_COMPOUND, start):
        depth = 0
        for piece in _PIECE.finditer(data, start, limit):
            first = data[piece.start()]
            if first in b"{[":
                depth += 1
            elif first in b"}]":
                depth -= 1
            elif piece.end() - piece.start() == 1:
                return -1
            if depth == 0:
                return piece.end()
        return -1
    scalar = _SCALAR.match(data, start, limit)
    return -1 if scalar is None else scalar.end()
