"""What looks on at an answer to read what it used, and the same for one that is compressed."""

from __future__ import annotations

import zlib
from typing import Protocol

from twisted_vllm.usage.records import Usage

#: bytes that are decompressed at a time
_STEP = 65_536
#: bytes that one piece may decompress to; beyond, the answer is not read any more
MAX_INFLATED = 4_194_304


class UsageReader(Protocol):
    """Looks on at one answer.

    Attributes:
        stream: whether the answer is a stream of events.
    """

    @property
    def stream(self) -> bool: ...

    def feed(self, data: bytes) -> None:
        """Take what comes next."""

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used, where the server did not say."""


class GzipReader:
    """Reads an answer that a server in between compressed; what does not decompress is not read."""

    __slots__ = ("_inflate", "_reader")

    def __init__(self, reader: UsageReader) -> None:
        """Give what is decompressed to `reader`."""
        self._reader = reader
        # gzip or zlib, whichever its first bytes say
        self._inflate: zlib._Decompress | None = zlib.decompressobj(wbits=47)

    @property
    def stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return self._reader.stream

    def feed(self, data: bytes) -> None:
        """Take what comes next."""
        inflate = self._inflate
        left = MAX_INFLATED
        more = bool(data)
        while inflate is not None and more:
            try:
                piece = inflate.decompress(data, _STEP)
            except zlib.error:
                self._inflate = None
                return
            left -= len(piece)
            if left < 0:
                self._inflate = None
                return
            self._reader.feed(piece)
            data = inflate.unconsumed_tail
            # a full step may have left something inside
            more = bool(data) or len(piece) == _STEP

    def usage(self) -> Usage | None:
        """Return what the server said that it used, or None where it did not."""
        return self._reader.usage()

    def estimate(self, prompt_tokens: int, answers: int = 1) -> Usage:
        """Return what it probably used, where the server did not say."""
        return self._reader.estimate(prompt_tokens, answers)
