"""A body in memory as the pieces that arrived, and what is sent of it: never joined, never copied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

#: smaller pieces are joined up to this size in bytes: tiny ones would take a multiple of their size
JOINED = 65_536


class HeldPieces:
    """The pieces of one body. ``len()`` is their size in bytes."""

    __slots__ = ("_length", "_pieces", "_small", "_starts")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._starts: list[int] = []
        self._small = bytearray()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, data: bytes) -> None:
        """Add a piece at the end."""
        if not data:
            return
        self._length += len(data)
        if len(data) * 4 >= JOINED and not self._small:
            self._add(data)
            return
        self._small += data
        if len(self._small) >= JOINED:
            small, self._small = self._small, bytearray()
            self._add(bytes(small))

    def _add(self, piece: bytes) -> None:
        pieces, starts = self._pieces, self._starts
        starts.append(starts[-1] + len(pieces[-1]) if pieces else 0)
        pieces.append(piece)

    def slices(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes between two offsets; whole pieces are not copied."""
        if self._small:
            small, self._small = self._small, bytearray()
            self._add(bytes(small))
        number = max(bisect_right(self._starts, start) - 1, 0)
        while start < end and number < len(self._pieces):
            piece, first = self._pieces[number], self._starts[number]
            last = min(end - first, len(piece))
            yield piece if start == first and last == len(piece) else piece[start - first : last]
            start = first + last
            number += 1

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes between two offsets; they are copied, so they should be few."""
        return b"".join(self.slices(start, end))


class Rope:
    """What is sent of a held body: parts of it, and what edits put between them. ``len()`` is its size in bytes.

    Attributes:
        commas: the commas in the body.
        media: the media in it: long texts in base64.
        media_size: their size in bytes.
    """

    __slots__ = ("_length", "_parts", "_pieces", "commas", "media", "media_size")

    def __init__(
        self,
        pieces: HeldPieces,
        parts: tuple[bytes | tuple[int, int], ...],
        commas: int = 0,
        media: int = 0,
        media_size: int = 0,
    ) -> None:
        """Make a rope.

        Args:
            pieces: the body.
            parts: new bytes, and spans of the body by their offsets.
            commas: see above, and so the others.
        """
        self._pieces = pieces
        self._parts = parts
        self._length = sum(len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts)
        self.commas = commas
        self.media = media
        self.media_size = media_size

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes in pieces, none of them empty; each call begins anew."""
        for part in self._parts:
            if isinstance(part, bytes):
                if part:
                    yield part
            else:
                yield from self._pieces.slices(*part)
