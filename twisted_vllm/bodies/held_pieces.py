"""A body in memory, and what is sent of it: never joined into one, so that it takes little more than its size."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

#: bytes of a block. Blocks are memory of their own: it goes back to the system when a body is dropped, and a heap with
#: small objects between the pieces would keep it
BLOCK = 1_048_576

#: bytes of a piece that is sent
PIECE = 65_536


class HeldPieces:
    """The bytes of one body, which grows at its end. ``len()`` is their number."""

    __slots__ = ("_blocks", "_length")

    def __init__(self) -> None:
        self._blocks: list[mmap] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        view = memoryview(data)
        while view:
            offset = self._length % BLOCK
            if not offset:
                self._blocks.append(mmap(-1, BLOCK, MAP_PRIVATE | MAP_ANONYMOUS))
            part = view[: BLOCK - offset]
            self._blocks[-1][offset : offset + len(part)] = part
            self._length += len(part)
            view = view[len(part) :]

    def slices(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes between two offsets, in pieces of at most `PIECE`."""
        while start < end:
            number, offset = divmod(start, BLOCK)
            piece = self._blocks[number][offset : min(offset + PIECE, offset + end - start)]
            yield piece
            start += len(piece)

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
