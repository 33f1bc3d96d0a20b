"""The spool: what requests used, in files beside the process until the database has it.

A row is encoded when it is appended and written with the others of its turn by one ``os.write``: from then on the end
of the process does not lose it. The machine's end may lose what a thread did not sync yet, a second's worth.

Rows that were just written are also kept in memory, by their place in the file: the thread that moves them to the
database need not read and decode them again. After an outage, or a restart, it reads the files.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_vllm.ledger.spool_claims import Claim, claim_new
from twisted_vllm.ledger.spool_lines import encode_line, head_line, read_lines
from twisted_vllm.ledger.spool_segment import Segment
from twisted_vllm.ledger.values import UsageRow

#: when a segment is followed by another: its size in bytes, its age in seconds
SEGMENT_BYTES = 4_000_000
SEGMENT_SECONDS = 60.0
#: rows kept in memory beside the file, of about a kilobyte each
CACHED_ROWS = 10_000
#: rows kept in memory while the disk takes nothing; more are lost, which is logged and counted
UNSAVED_ROWS = 20_000
#: seconds between two attempts to write to a disk that failed
RETRY_SECONDS = 0.5

#: where a file's first row stands
_BEGIN = len(head_line())


@attrs.frozen(eq=False)
class Batch:
    """Rows on their way to the database.

    Attributes:
        rows: them.
        damaged: lines that could not be read.
        dropped: how many of those were dealt with already.
        segment: the number of the segment that they end in; None where no file has them.
        end: where they end in it, in bytes.
        own: whether this process wrote them.
    """

    rows: Sequence[UsageRow]
    damaged: Sequence[bytes] = ()
    dropped: int = 0
    segment: int | None = None
    end: int = 0
    own: bool = True

    @property
    def count(self) -> int:
        """How many lines it came from."""
        return len(self.rows) + len(self.damaged) + self.dropped


@attrs.frozen
class Backlog:
    """What is not committed.

    Attributes:
        rows: how many rows.
        bytes: how many bytes of files.
        oldest: when the request of the first of them ended, about, in microseconds since 1970.
    """

    rows: int
    bytes: int
    oldest: int | None


def _ended(row: UsageRow) -> int:
    return row.time + row.total_us


@attrs.frozen
class _Cached:
    """Rows of one write, and where it stands."""

    segment: int
    start: int
    end: int
    rows: list[UsageRow]


class Spool:
    """The segments of one process. `append` and `flush` belong to the reactor's thread, `take` and `commit` to another.

    Attributes:
        lost: how many rows were dropped because the disk took nothing for too long.
        failures: how many writes failed.
    """

    _log = Logger()

    def __init__(
        self,
        directory: Path,
        *,
        randbytes: Callable[[int], bytes] = os.urandom,
        monotonic: Callable[[], float] = time.monotonic,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Prepare; nothing is opened before `open`.

        Args:
            directory: where the files are; several processes may share it.
            randbytes: for the name of this process's files.
            monotonic: the clock, in seconds.
            segment_bytes: the size from which on a segment is followed by another.
        """
        self.directory = directory
        self.lost = 0
        self.failures = 0
        self._randbytes = randbytes
        self._monotonic = monotonic
        self._segment_bytes = segment_bytes
        self._claim: Claim | None = None
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._rows: list[UsageRow] = []
        self._current: Segment | None = None
        #: those that hold what is not committed, the current one included
        self._segments: deque[Segment] = deque()
        #: those that were written to, for the thread that syncs them
        self._closing: list[Segment] = []
        self._number = 0
        #: how far the first segment was read and committed, in bytes
        self._read_to = self._committed_to = _BEGIN
        self._cache: deque[_Cached] = deque()
        self._cached_rows = 0
        self._failed_at: float | None = None
        self._pending = 0
        self._oldest = 0
        self._is_directory_dirty = False

    def open(self) -> None:
        """Make the directory and the first segment.

        Raises:
            OSError: it cannot be written to.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim = claim_new(self.directory, self._randbytes)
        self._open_segment()

    @property
    def healthy(self) -> bool:
        """Whether what is appended reaches the disk."""
        return self._failed_at is None

    @property
    def name(self) -> str:
        """What this process's files are called."""
        return "" if self._claim is None else self._claim.name

    def backlog(self) -> Backlog:
        """Return what is not committed, of this process's own."""
        with self._lock:
            held = sum(segment.end for segment in self._segments)
            if self._segments:
                held -= self._committed_to + (len(self._segments) - 1) * _BEGIN
            return Backlog(self._pending + len(self._lines), held, self._oldest if self._pending else None)

    # the reactor's thread

    def append(self, row: UsageRow) -> None:
        """Take a row; the next `flush` writes it."""
        self._rows.append(row)
        self._lines.append(encode_line(row))

    def flush(self) -> None:
        """Write what was appended. A disk that fails is logged, and tried again with the later calls."""
        if not self._lines:
            return
        if self._failed_at is not None and self._monotonic() - self._failed_at < RETRY_SECONDS:
            with self._lock:
                self._drop_surplus()
            return
        with self._lock:
            self._write()

    def _write(self) -> None:
        lines, rows = self._lines, self._rows
        data = b"".join(lines)
        try:
            segment = self._current or self._open_segment()
            start = segment.end
            segment.write(data)
        except OSError as error:
            self._failed(error)
            return
        self._lines, self._rows = [], []
        if not self._pending:
            self._oldest = _ended(rows[0])
        self._pending += len(rows)
        segment.rows += len(rows)
        self._cached_rows += len(rows)
        self._cache.append(_Cached(segment.number, start, segment.end, rows))
        if self._cached_rows > CACHED_ROWS:
            self._cache.clear()
            self._cached_rows = 0
        if self._failed_at is not None:
            self._recovered()
        if segment.end > self._segment_bytes or self._monotonic() - segment.opened > SEGMENT_SECONDS:
            self._leave_segment()

    def _open_segment(self) -> Segment:
        assert self._claim is not None, "the spool is not open"
        self._number += 1
        segment = Segment(self._number, self._claim.segment(self._number), self._monotonic())
        self._current = segment
        self._segments.append(segment)
        self._is_directory_dirty = True
        return segment

    def _leave_segment(self) -> None:
        segment, self._current = self._current, None
        if segment is not None:
            self._closing.append(segment)

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        is_first, self._failed_at = self._failed_at is None, self._monotonic()
        # Nothing more is written to a file whose end is not certain.
        self._leave_segment()
        if is_first:
            self._log.critical(
                "The ledger's spool cannot be written: {reason}. What requests use is kept in memory meanwhile.",
                reason=f"{error.strerror} ({self.directory})",
            )
        self._drop_surplus()

    def _drop_surplus(self) -> None:
        surplus = len(self._lines) - UNSAVED_ROWS
        if surplus > 0:
            if not self.lost:
                self._log.critical("The ledger loses rows: the spool cannot be written, and memory for it is full")
            self.lost += surplus
            del self._rows[UNSAVED_ROWS:], self._lines[UNSAVED_ROWS:]

    def _recovered(self) -> None:
        self._failed_at = None
        self._log.warn("The ledger's spool is written again; {lost} rows were lost in all", lost=self.lost)

    # the writer's thread

    def take(self, max_rows: int) -> Batch | None:
        """Return the next rows that are in the files, about so many at most; None where there are none.

        What is taken must be committed before more is taken.

        Raises:
            OSError: a file cannot be read.
        """
        with self._lock:
            self._forget_finished()
            segment = self._segments[0] if self._segments else None
            if segment is None or self._read_to >= segment.end:
                return self._take_unsaved(max_rows)
            cached = self._take_cached(segment, max_rows)
            if cached is not None:
                return cached
            first = self._cache[0] if self._cache else None
            end = first.start if first is not None and first.segment == segment.number else segment.end
            start = self._read_to
        try:
            lines = read_lines(segment.path, start, end, max_rows)
        except FileNotFoundError:
            self._gone(segment)
            return None
        self._read_to = lines.end
        return Batch(lines.rows, lines.damaged, segment=segment.number, end=lines.end)

    def _gone(self, segment: Segment) -> None:
        self._log.critical("{path} is gone: {rows} rows are lost", path=str(segment.path), rows=segment.rows)
        with self._lock:
            self.lost += segment.rows
            self._pending -= segment.rows
            if segment is self._current:
                self._leave_segment()
            self._read_to = self._committed_to = segment.end
            self._forget_finished()

    def _take_cached(self, segment: Segment, max_rows: int) -> Batch | None:
        rows: list[UsageRow] = []
        cache = self._cache
        while cache and cache[0].segment == segment.number and cache[0].start == self._read_to and len(rows) < max_rows:
            found = cache.popleft()
            rows += found.rows
            self._cached_rows -= len(found.rows)
            self._read_to = found.end
        return Batch(rows, segment=segment.number, end=self._read_to) if rows else None

    def _take_unsaved(self, max_rows: int) -> Batch | None:
        """Take rows that the disk does not: the database may."""
        count = min(len(self._lines), max_rows) if self._failed_at is not None else 0
        if not count:
            return None
        rows = self._rows[:count]
        del self._rows[:count], self._lines[:count]
        self._pending += count
        return Batch(rows)

    def commit(self, batch: Batch) -> None:
        """Note that the database has a batch that `take` returned; a file that holds nothing else is removed."""
        with self._lock:
            self._pending -= batch.count
            if batch.rows:
                self._oldest = _ended(batch.rows[-1])
            if batch.segment is not None:
                self._committed_to = batch.end
                self._segments[0].rows -= batch.count
                self._forget_finished()

    def put_back(self, batch: Batch) -> None:
        """Take a batch back that no file has and the database did not take."""
        if batch.segment is None:
            with self._lock:
                self._pending -= len(batch.rows)
                self._rows[:0] = batch.rows
                self._lines[:0] = [encode_line(row) for row in batch.rows]

    def _forget_finished(self) -> None:
        """Remove the segments at the front that are not written to any more and hold nothing that is not committed."""
        while self._segments:
            segment = self._segments[0]
            if segment is self._current or self._committed_to < segment.end:
                return
            self._segments.popleft()
            self._read_to = self._committed_to = _BEGIN
            segment.remove()

    # the thread that syncs

    def sync(self) -> None:
        """Have the disk keep what was written, and close what is not written to any more.

        Raises:
            OSError: the disk failed; the next call tries again.
        """
        with self._lock:
            current, closing = self._current, list(self._closing)
            is_directory_dirty, self._is_directory_dirty = self._is_directory_dirty, False
        if is_directory_dirty:
            _sync_directory(self.directory)
        if current is not None:
            current.sync()
        for segment in closing:
            try:
                segment.sync()
            finally:
                segment.close()
                with self._lock:
                    self._closing.remove(segment)

    # the end

    def close(self) -> None:
        """Write and sync what there is; what the database has not taken stays, for whoever comes next."""
        self._failed_at = None if self._failed_at is None else self._failed_at - RETRY_SECONDS
        self.flush()
        if self._lines:
            self._log.critical("{rows} rows of the ledger are lost: the spool cannot be written", rows=len(self._lines))
        with self._lock:
            self._leave_segment()
        with contextlib.suppress(OSError):
            self.sync()
        with self._lock:
            self._forget_finished()
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
