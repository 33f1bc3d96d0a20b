"""The spool's segments as a queue: one thread writes at its end, another takes from its front and says what is done.

Rows that were just written are also kept in memory, by their place in the file: the thread that moves them to the
database need not read and decode them again. After an outage, or a restart, it reads the files.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import msgspec
from twisted.logger import Logger

from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.lines import head_line, read_lines
from twisted_vllm.usage.spool.segment import Segment

#: the age at which a segment is followed by another, in seconds
SEGMENT_SECONDS = 60.0
#: rows kept in memory beside the files, of about half a kilobyte each
CACHED_ROWS = 10_000

#: where a file's first row stands
_BEGIN = len(head_line())


@attrs.frozen(eq=False)
class Batch:
    """Rows on their way to the database.

    Attributes:
        rows: them.
        damaged: lines that could not be read.
        segment: the number of the segment that they end in; None where no file has them.
        end: where they end in it, in bytes.
        own: whether this process wrote them.
    """

    rows: Sequence[UsageRow]
    damaged: Sequence[bytes] = ()
    segment: int | None = None
    end: int = 0
    own: bool = True


@attrs.frozen
class Backlog:
    """What is not committed.

    Attributes:
        rows: how many rows.
        bytes: how many bytes of files.
        oldest: when the request of the first of them ended, about, in microseconds since 1970; None without any.
    """

    rows: int
    bytes: int
    oldest: int | None


class _Cached(msgspec.Struct, frozen=True, gc=False):
    """Rows of one write, and where it stands."""

    segment: int
    start: int
    end: int
    rows: list[UsageRow]


class SegmentQueue:
    """The segments that hold what is not committed, the first to read first.

    Attributes:
        lock: what the two threads share is changed under it.
        current: the last one, while it is written to. Whoever asks holds the lock.
        pending: how many rows are not committed.
        in_hand: how many of them no file has: they were taken while the disk took none.
        lost: how many rows were lost with files that somebody removed.
        written_rows: how many rows were written.
        enough: from how many pending rows on `on_enough` is called, once each time that they become as many.
        on_enough: is called under the lock, by the thread that writes.
    """

    _log = Logger()

    def __init__(self, directory: Path, monotonic: Callable[[], float]) -> None:
        """Begin without any.

        Args:
            directory: where the files are.
            monotonic: the clock, in seconds.
        """
        self.lock = threading.Lock()
        self.current: Segment | None = None
        self.pending = 0
        self.in_hand = 0
        self.lost = 0
        self.written_rows = 0
        self.enough = 0
        self.on_enough: Callable[[], None] = _nothing
        self._directory = directory
        self._monotonic = monotonic
        self._segments: deque[Segment] = deque()
        #: those that are not written to any more, for the thread that syncs them
        self._closing: list[Segment] = []
        self._is_directory_dirty = False
        #: how far the first segment was read and committed, in bytes
        self._read_to = self._committed_to = _BEGIN
        self._cache: deque[_Cached] = deque()
        self._cached_rows = 0
        self._oldest = 0

    # the thread that writes; it holds the lock

    def begin(self, segment: Segment) -> None:
        """Take a new segment as the one that is written to."""
        self.current = segment
        self._segments.append(segment)
        self._is_directory_dirty = True

    def leave(self) -> None:
        """Write no more to the current segment."""
        segment, self.current = self.current, None
        if segment is not None:
            self._closing.append(segment)

    def written(self, segment: Segment, start: int, rows: list[UsageRow]) -> None:
        """Note what was just written to a segment."""
        before, count = self.pending, len(rows)
        if not before:
            self._oldest = ended(rows[0])
        self.pending = before + count
        self.written_rows += count
        segment.rows += count
        self._cached_rows += count
        self._cache.append(_Cached(segment.number, start, segment.end, rows))
        if self._cached_rows > CACHED_ROWS:
            self.forget_cached()
        if before < self.enough <= before + count:
            self.on_enough()

    def forget_cached(self) -> None:
        """Have everything read from the files."""
        self._cache.clear()
        self._cached_rows = 0

    def backlog(self) -> Backlog:
        """Return what is not committed; whoever asks holds the lock."""
        held = sum(segment.end for segment in self._segments)
        if self._segments:
            held -= self._committed_to + (len(self._segments) - 1) * _BEGIN
        return Backlog(self.pending, held, self._oldest if self.pending else None)

    # the thread that reads

    def take(self, max_rows: int) -> Batch | None:
        """Return the next rows, about so many at most; None where there are none.

        Raises:
            OSError: a file cannot be read.
        """
        self.forget_finished()
        with self.lock:
            segment = self._segments[0] if self._segments else None
            if segment is None or self._read_to >= segment.end:
                return None
            cached = self._take_cached(segment, max_rows)
            if cached is not None:
                return cached
            first = self._cache[0] if self._cache else None
            end = first.start if first is not None and first.segment == segment.number else segment.end
        try:
            lines = read_lines(segment.path, self._read_to, end, max_rows)
        except FileNotFoundError:
            self._gone(segment)
            return None
        self._read_to = lines.end
        return Batch(lines.rows, lines.damaged, segment=segment.number, end=lines.end)

    def _take_cached(self, segment: Segment, max_rows: int) -> Batch | None:
        rows: list[UsageRow] = []
        cache = self._cache
        while cache and cache[0].segment == segment.number and cache[0].start == self._read_to and len(rows) < max_rows:
            found = cache.popleft()
            rows += found.rows
            self._cached_rows -= len(found.rows)
            self._read_to = found.end
        return Batch(rows, segment=segment.number, end=self._read_to) if rows else None

    def _gone(self, segment: Segment) -> None:
        self._log.critical("{path} is gone: {rows} rows are lost", path=str(segment.path), rows=segment.rows)
        with self.lock:
            self.lost += segment.rows
            if segment is self.current:
                self.leave()
            self._read_to = self._committed_to = segment.end
        self.forget_finished()

    def handed(self, rows: Sequence[UsageRow]) -> None:
        """Note rows that were taken and that no file has; whoever calls holds the lock."""
        if not self.pending:
            self._oldest = ended(rows[0])
        self.pending += len(rows)
        self.in_hand += len(rows)

    def handed_back(self, rows: Sequence[UsageRow]) -> None:
        """Note that such rows are not committed, and wait where they were; whoever calls holds the lock."""
        self.pending -= len(rows)
        self.in_hand -= len(rows)

    def commit(self, batch: Batch) -> None:
        """Note that the database has a batch."""
        with self.lock:
            self.pending -= len(batch.rows)
            if batch.rows:
                self._oldest = ended(batch.rows[-1])
            if batch.segment is not None:
                self._committed_to = batch.end
                self._segments[0].rows -= len(batch.rows)
            else:
                self.in_hand -= len(batch.rows)
        self.forget_finished()

    def forget_finished(self) -> None:
        """Remove the segments at the front that are not written to any more and hold nothing that is not committed.

        One that is old counts as well, though no other has followed it: at the next start its rows would be read again,
        and be new where they were deleted for their age meanwhile.
        """
        finished: list[Segment] = []
        with self.lock:
            while self._segments and self._committed_to >= self._segments[0].end:
                segment = self._segments[0]
                if segment is self.current:
                    if segment.end == _BEGIN or self._monotonic() - segment.opened < SEGMENT_SECONDS:
                        break
                    self.leave()
                finished.append(self._segments.popleft())
                # those of damaged lines, which are not known before
                self.pending -= segment.rows
                self._read_to = self._committed_to = _BEGIN
        # without the lock: removing a file takes a disk some milliseconds, and the reactor's thread may want to flush
        for segment in finished:
            segment.remove()

    # the thread that syncs

    def sync(self) -> None:
        """Have the disk keep what was written, and close what is not written to any more.

        Raises:
            OSError: the disk failed; the next call tries again.
        """
        with self.lock:
            current, closing = self.current, list(self._closing)
            is_directory_dirty, self._is_directory_dirty = self._is_directory_dirty, False
        if is_directory_dirty:
            _sync_directory(self._directory)
        if current is not None:
            current.sync()
        for segment in closing:
            try:
                segment.sync()
            finally:
                segment.close()
                with self.lock:
                    self._closing.remove(segment)


def _nothing() -> None:
    """Where nobody waits for rows, nobody is told."""


def ended(row: UsageRow) -> int:
    """Return when a row's request ended, in microseconds since 1970."""
    return row.time + row.total_us


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
