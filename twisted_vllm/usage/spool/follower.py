"""Reads the spool of another process while that process writes to it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.usage.interfaces import BEGINNING, Position
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.format import NewerFormat, header_line, read_lines
from twisted_vllm.usage.spool.segments import Claim, claim, path_of

_BEGIN = len(header_line())


@attrs.frozen
class Part:
    """Some rows of a spool.

    Attributes:
        rows: the rows.
        damaged: lines that could not be decoded.
        end: where they end in the spool.
        size: how many bytes they take there.
    """

    rows: Sequence[UsageRow]
    damaged: Sequence[bytes]
    end: Position
    size: int


class SpoolFollower:
    """Reads one spool, and removes the segments that are not needed any more. It belongs to one thread.

    Its process writes to the newest segment alone. Until that process has ended, the newest is never removed, and half
    a line at its end is left for later.

    Attributes:
        name: the spool's name.
        position: how far it was read.
        bytes_left: how many bytes were not read at the last look.
        has_ended: whether its process writes no more.
    """

    _log = Logger()

    def __init__(self, directory: Path, name: str) -> None:
        """Read from the beginning; nothing is read before `look`."""
        self.name = name
        self.position = BEGINNING
        self.bytes_left = 0
        self.has_ended = False
        self._directory = directory
        self._claim: Claim | None = None
        #: the segments that are not read to their ends, as of the last look
        self._unread: list[int] = []
        #: their sizes then: what came since is left for the next look
        self._sizes: dict[int, int] = {}
        #: the others, each with its size
        self._read: deque[tuple[int, int]] = deque()
        self._is_skipped = False

    @property
    def is_read(self) -> bool:
        """Whether its process has ended, and all that it wrote was read as of the last look."""
        return self.has_ended and not self._unread

    def begin(self, start: Position) -> None:
        """Read from a position on: what is before it is not needed."""
        while self._unread and self._unread[0] < start.segment:
            self._read.append((self._unread.pop(0), 0))
        # Its segment is removed once all of it is moved.
        is_left = bool(self._unread) and self._unread[0] == start.segment
        self.position = start if is_left else Position(start.segment + 1 if start.offset else start.segment, 0)

    def again(self) -> SpoolFollower:
        """Return another that reads the same from the beginning, and takes the place of this one."""
        found = SpoolFollower(self._directory, self.name)
        found.has_ended, found._claim = self.has_ended, self.give_claim()
        return found

    def look(self, numbers: Sequence[int]) -> None:
        """Find out what there is to read.

        Args:
            numbers: the segments that exist, in their order.
        """
        known = {number for number, _ in self._read}
        at = self.position.segment
        if self.position.offset > _BEGIN and at not in numbers and at not in known:
            self._log.critical("{path} is gone: rows at its end may be lost", path=str(self._path(at)), **LEDGER_ALERT)
            self.position = Position(at + 1, 0)
        self._unread = [number for number in numbers if number >= self.position.segment and number not in known]
        for number in numbers:
            # of a former run, and not needed: its rows are in the database
            if number < self.position.segment and number not in known:
                self._read.appendleft((number, 0))
        self._sizes.clear()
        for number in self._unread:
            with contextlib.suppress(OSError):
                self._sizes[number] = self._path(number).stat().st_size
        self.bytes_left = max(sum(self._sizes.values()) - (self.position.offset if at in self._sizes else 0), 0)

    def read(self, max_rows: int, until: Position | None = None) -> Part | None:
        """Return the next rows as of the last look; None without any.

        Args:
            max_rows: about how many at most.
            until: where to end at the latest: a place between two lines.
        """
        while self._unread and not self._is_skipped:
            number = self._unread[0]
            if number > self.position.segment:
                self.position = Position(number, 0)
            start = self.position.offset
            path = self._path(number)
            is_growing = len(self._unread) == 1 and not self.has_ended
            try:
                end = size = self._sizes[number] if number in self._sizes else path.stat().st_size
                if until is not None and until.segment <= number:
                    end = min(size, until.offset) if until.segment == number else 0
                if start < end:
                    lines = read_lines(path, start, end, max_rows, is_growing=is_growing)
                    self.position = Position(number, lines.end)
                    self.bytes_left = max(self.bytes_left - (lines.end - start), 0)
                    if lines.rows or lines.damaged:
                        return Part(lines.rows, lines.damaged, self.position, lines.end - start)
            except FileNotFoundError:
                self._log.critical("{path} is gone: rows in it may be lost", path=str(path), **LEDGER_ALERT)
                self._next()
                continue
            except NewerFormat as error:
                self._log.critical(
                    "{path} has the format {version} of a newer version: it is left for that version",
                    path=str(path),
                    version=error.args[0],
                )
                self._is_skipped = True
                return None
            except OSError as error:
                self._log.error("{path} cannot be read: {reason}", path=str(path), reason=error.strerror)
                return None
            if is_growing or self.position.offset < size:
                # half a line, or the end that was asked for
                return None
            self._read.append((number, size))
            self._next()
        return None

    def release(self, position: Position) -> None:
        """Remove the segments that were read, and end before a position or at it: nothing in them is needed."""
        while self._read and (Position(*self._read[0]) <= position or self._read[0][1] <= _BEGIN):
            self._path(self._read.popleft()[0]).unlink(missing_ok=True)

    def try_to_claim(self) -> bool:
        """Find out whether its process has ended; if so, nobody else gets the spool.

        Raises:
            OSError: the directory cannot be written to.
        """
        if self._claim is None:
            self._claim = claim(self._directory, self.name)
            self.has_ended = self.has_ended or self._claim is not None
        return self._claim is not None

    def give_claim(self) -> Claim | None:
        """Leave the spool to another reader in this process; return the right to it, if it was claimed."""
        found, self._claim = self._claim, None
        return found

    def remove_all(self) -> None:
        """Remove the segments, which were read to their ends."""
        while self._read:
            self._path(self._read.popleft()[0]).unlink(missing_ok=True)

    def close(self) -> None:
        """Release the right to the spool, if it was claimed."""
        found = self.give_claim()
        if found is not None:
            with contextlib.suppress(OSError):
                found.release()

    def _next(self) -> None:
        self.position = Position(self._unread.pop(0) + 1, 0)

    def _path(self, number: int) -> Path:
        return path_of(self._directory, self.name, number)
