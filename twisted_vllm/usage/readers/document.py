"""Finds the usage in a JSON value that arrives in pieces, with bounded memory.

A response may have any size (embeddings, log probabilities). A small one is kept whole; of a large one, only the values
of certain keys are kept, a few hundred bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

#: a value up to this many bytes is kept whole
MAX_WHOLE = 65_536
#: the maximum bytes of a captured value; vLLM's ``usage`` has a few hundred
MAX_VALUE = 16_384
#: the maximum whitespace between a key and its colon, in bytes
_MAX_GAP = 64

# no possessive group here: Python before 3.11.5 matches it wrongly
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
# complete strings and the text between them, as many as possible
_WHOLE = re.compile(rb'(?:[^"]+|' + _STRING + rb")*", re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:")
_GAP = re.compile(rb"[ \t\r\n]*\Z")
_PIECE = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_SCALAR = re.compile(rb'[^\s\[\]{}",]++(?=[\s,}\]])')
_SPACE = re.compile(rb"[ \t\r\n]*")


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
            scanner = ValueScanner(self._shape.keys, 2 if self._shape.outer else 1)
            for part in self._parts:
                scanner.feed(part)
            self._scanner = scanner
            self._parts = []

    @property
    def is_whole(self) -> bool:
        """Whether the whole value is kept."""
        return self._scanner is None

    def read(self) -> bytes:
        """Return the value or, if it was too large, an object with the `Shape.keys` that were found."""
        if self._scanner is None:
            return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        members = b",".join(b'"%b":%b' % pair for pair in self._scanner.found.items())
        return b'{"%b":{%b}}' % (self._shape.outer, members) if self._shape.outer else b"{%b}" % members


class ValueScanner:
    """Finds the values of keys at one depth of a JSON value, without keeping the value.

    It searches for the key with its quotes: inside a JSON string the first quote would have a backslash before it. So a
    match is a whole string, and the depth shows whether it is the key. Of equal keys the last counts.

    Attributes:
        found: the raw values, by key.
    """

    def __init__(self, keys: Sequence[bytes], depth: int = 1) -> None:
        """Start to search.

        Args:
            keys: the keys.
            depth: the depth of the objects that contain them; 1 is the outermost object.
        """
        self.found: dict[bytes, bytes] = {}
        self._names = [(b'"' + key + b'"', key) for key in keys]
        self._longest = max(map(len, keys)) + 2
        self._target = depth
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._carry = b""
        self._capturing: bytes | None = None

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        if self._carry:
            data = self._carry + data
            self._carry = b""
        offset = 0
        while offset < len(data):
            offset = self._search(data, offset) if self._capturing is None else self._capture(data, offset)

    def _search(self, data: bytes, offset: int) -> int:
        """Continue to the next string that may be a key; return the offset after it."""
        position, name, key = self._candidate(data, offset)
        if position < 0:
            self._skip_rest(data[offset:])
            return len(data)
        self._skip(data[offset:position])
        end = position + len(name)
        if self._in_string:
            # then it is not JSON
            self._skip(data[position:end])
            return end
        if self._depth != self._target:
            return end
        colon = _COLON.match(data, end)
        if colon is not None:
            self._capturing = key
            return colon.end()
        if _GAP.match(data, end) is not None and len(data) - end < _MAX_GAP:
            self._carry = data[position:]
            return len(data)
        return end

    def _candidate(self, data: bytes, offset: int) -> tuple[int, bytes, bytes]:
        """Return the offset of the next string that equals a key, the quoted key and the key; -1 if there is none."""
        nearest = (-1, b"", b"")
        # inside a string, a quote at the very beginning ends that string
        first = offset + 1 if self._in_string else offset
        for name, key in self._names:
            position = data.find(name, first)
            while position > offset and data[position - 1] == 0x5C:
                position = data.find(name, position + 1)
            if position >= 0 and (nearest[0] < 0 or position < nearest[0]):
                nearest = (position, name, key)
        return nearest

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
        # the pieces between quotes are alternately outside and inside of strings
        pieces = part.split(b'"')
        outside = pieces[1::2] if self._in_string else pieces[::2]
        if len(pieces) % 2 == 0:
            self._in_string = not self._in_string
        self._escaped = ends_escaped and self._in_string
        if outside:
            count = b"".join(outside).count
            self._depth += count(b"{") + count(b"[") - count(b"}") - count(b"]")

    def _capture(self, data: bytes, offset: int) -> int:
        """Store the value at `offset` once it is complete; return the offset to continue at."""
        end = _value_end(data, offset)
        key, self._capturing = self._capturing, None
        if end >= 0 and key is not None:
            self.found[key] = data[offset:end].strip()
            return end
        if len(data) - offset < MAX_VALUE:
            self._carry = data[offset:]
            self._capturing = key
            return len(data)
        return offset


def _value_end(data: bytes, offset: int) -> int:
    """Return the end of the value at `offset`, or -1 if it is not complete yet."""
    space = _SPACE.match(data, offset)
    start = offset if space is None else space.end()
    if start == len(data):
        return -1
    if data[start : start + 1] in (b"{", b"[", b'"'):
        depth = 0
        whole = _WHOLE.match(data, start)
        for piece in _PIECE.finditer(data, start, start if whole is None else whole.end()):
            first = data[piece.start()]
            if first in b"{[":
                depth += 1
            elif first in b"}]":
                depth -= 1
            if depth == 0:
                return piece.end()
        return -1
    scalar = _SCALAR.match(data, start)
    return -1 if scalar is None else scalar.end()
