"""The ledger's spool as it was at one moment, while processes write to it and remove what the database has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

from twisted_vllm.storage.backup.archive import PIECE
from twisted_vllm.storage.backup.manifest import SPOOL, may_be_named

#: the directory in it with the background responses that are not charged yet
BACKGROUND = "background"
_SEGMENT = re.compile(r"([0-9a-z]+)-([0-9]+)\.spool")
#: bytes that are searched at once for the last line's end
_SEARCHED = 65_536


class SegmentsMissed(Exception):
    """A segment came and went unseen."""


@attrs.frozen
class SpoolFile:
    """A file of the spool.

    Attributes:
        name: its name in the archive.
        size: its bytes, up to the end of its last whole line.
    """

    name: str
    size: int
    _content: int | bytes

    def pieces(self) -> Iterator[bytes]:
        """Yield what it holds.

        Raises:
            OSError: it cannot be read.
        """
        if isinstance(self._content, bytes):
            yield self._content
            return
        offset = 0
        while offset < self.size:
            piece = os.pread(self._content, min(PIECE, self.size - offset), offset)
            if not piece:
                return
            offset += len(piece)
            yield piece


class HeldSpool:
    """The files of a spool, kept open: what is removed from the directory can still be read.

    Call `hold` before the database is read and `freeze` after it: whatever the database lacks is in between.
    """

    def __init__(self, directory: Path | None) -> None:
        """Set up; None for no spool."""
        self._directory = directory
        self._held: dict[str, int] = {}

    def hold(self) -> None:
        """Open what there is now and is not open yet.

        Raises:
            OSError: it cannot be read.
        """
        for entry in self._entries(""):
            is_wanted = _SEGMENT.fullmatch(entry) or entry.endswith(".damaged")
            if is_wanted and entry not in self._held and may_be_named(SPOOL + entry) and self._directory is not None:
                try:
                    self._held[entry] = os.open(self._directory / entry, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    # the database has all of it since
                    continue

    def freeze(self) -> list[SpoolFile]:
        """Return the files up to what they have now.

        Raises:
            OSError: one cannot be read.
            SegmentsMissed: one is missing between two others.
        """
        # First: a response is in one of its files, or its row is in a segment, or both.
        waiting = list(self._background())
        before = self._numbers()
        self.hold()
        for name, numbers in self._numbers().items():
            last = before[name][-1] if name in before else numbers[0] - 1
            if numbers[-1] - last != sum(each > last for each in numbers):
                raise SegmentsMissed
        files = [
            SpoolFile(SPOOL + entry, _whole_lines(descriptor), descriptor)
            for entry, descriptor in sorted(self._held.items())
        ]
        return [each for each in files if each.size] + waiting

    def close(self) -> None:
        """Close the files; idempotent."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _numbers(self) -> dict[str, list[int]]:
        """Return the numbers of the segments that are open, by their process's name."""
        found: dict[str, list[int]] = {}
        for entry in self._held:
            if match := _SEGMENT.fullmatch(entry):
                found.setdefault(match[1], []).append(int(match[2]))
        for numbers in found.values():
            numbers.sort()
        return found

    def _background(self) -> Iterator[SpoolFile]:
        for entry in sorted(self._entries(BACKGROUND)):
            name = f"{SPOOL}{BACKGROUND}/{entry}"
            if self._directory is None or not may_be_named(name):
                continue
            try:
                content = (self._directory / BACKGROUND / entry).read_bytes()
            except FileNotFoundError:
                continue
            if content:
                yield SpoolFile(name, len(content), content)

    def _entries(self, below: str) -> list[str]:
        if self._directory is None:
            return []
        try:
            return os.listdir(self._directory / below)
        except FileNotFoundError:
            return []


def _whole_lines(descriptor: int) -> int:
    """Return where the last whole line of a file ends: the rest is being written."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(end - _SEARCHED, 0)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
