"""One JSON value that comes in pieces, kept only as far as needed to read what it used."""

from __future__ import annotations

import msgspec

from twisted_vllm.usage.readers.scan import ValueScanner

#: bytes up to which the value is kept whole, and read at once at its end
MAX_WHOLE = 65_536


class Shape(msgspec.Struct, frozen=True, gc=False):
    """What is looked for in a value that is too large to be kept.

    Attributes:
        keys: the names.
        outer: the name of the object that they are in; empty where they stand in the outermost.
    """

    keys: tuple[bytes, ...]
    outer: bytes = b""


class Document:
    """Takes pieces and gives JSON that holds what was looked for."""

    __slots__ = ("_parts", "_scanner", "_shape", "_size")

    def __init__(self, shape: Shape) -> None:
        """Look for `shape` where the value becomes too large."""
        self._shape = shape
        self._parts: list[bytes] = []
        self._size = 0
        self._scanner: ValueScanner | None = None

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
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

    def read(self) -> bytes:
        """Return the value, or an object with those of its keys that were looked for."""
        if self._scanner is None:
            return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        members = b",".join(b'"%b":%b' % pair for pair in self._scanner.found.items())
        return b'{"%b":{%b}}' % (self._shape.outer, members) if self._shape.outer else b"{%b}" % members
