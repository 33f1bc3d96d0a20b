"""The spool: usage rows in files of this process, until the database has them.

The rows of one reactor turn are written with one ``os.write``; from then on they survive a crash of the process. A
crash of the machine may lose the rows that were not synced yet, about one second's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.format import encode_rows
from twisted_vllm.usage.spool.queue import CACHED_ROWS, SEGMENT_SECONDS, Backlog, Batch, SegmentQueue, ended
from twisted_vllm.usage.spool.segments import Claim, Segment, claim_new, count_other_owners

#: the size at which a segment is followed by the next, in bytes
SEGMENT_BYTES = 4_000_000
#: rows to keep in memory while the disk fails; more are lost, which is logged and counted
UNSAVED_ROWS = 20_000
#: seconds between attempts to write to a failing disk
RETRY_SECONDS = 0.5


class Spool:
    """The segments of one process.

    The reactor's thread calls `append` and `flush`; another takes batches, acknowledges or requeues them.

    Attributes:
        append: adds a row, which the next `flush` writes.
        doubtful: ids of appended rows that may be stored already; the writer's thread removes them.
        directory: where the segments are.
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
        cached_rows: int = CACHED_ROWS,
    ) -> None:
        """Set up; `open` creates the first segment.

        Args:
            directory: where the segments are; several processes may share it.
            randbytes: for the name of this process's segments.
            monotonic: the clock, in seconds.
            segment_bytes: the size at which a segment is followed by the next.
            cached_rows: how many written rows to cache in memory.
        """
        self.directory = directory
        self.failures = 0
        self._randbytes = randbytes
        self._monotonic = monotonic
        self._segment_bytes = segment_bytes
        self._claim: Claim | None = None
        self._queue = SegmentQueue(directory, monotonic, cached_rows)
        #: rows that are not written yet
        self._buffer: list[UsageRow] = []
        self.append = self._buffer.append
        self.doubtful: set[str] = set()
        self._number = 0
        self._dropped = 0
        self._failed_at: float | None = None

    def open(self) -> None:
        """Create the directory and the first segment.

        Raises:
            OSError: the directory cannot be written to.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim = claim_new(self.directory, self._randbytes)
        self._open_segment()

    @property
    def healthy(self) -> bool:
        """Whether rows can be written to the disk."""
        return self._failed_at is None

    @property
    def lost(self) -> int:
        """How many rows were lost: the disk failed for too long, or a segment was removed from outside."""
        return self._dropped + self._queue.lost

    @property
    def written(self) -> int:
        """How many rows were written."""
        return self._queue.written

    @property
    def unsaved(self) -> int:
        """How many rows are only in memory because the disk fails, including those in a batch."""
        return self._queue.unsaved + (0 if self._failed_at is None else len(self._buffer))

    @property
    def cached_rows(self) -> int:
        """How many rows are cached in memory."""
        return self._queue.cached_rows

    @property
    def name(self) -> str:
        """The name of this process's segments."""
        return "" if self._claim is None else self._claim.name

    def other_processes(self) -> int:
        """Return how many other living processes share the directory.

        Raises:
            OSError: it cannot be read.
        """
        return count_other_owners(self.directory, self.name)

    def backlog(self) -> Backlog:
        """Return the unacknowledged rows of this process."""
        with self._queue.lock:
            found = self._queue.backlog()
            rows = self._buffer
            oldest = ended(rows[0]) if rows and found.oldest is None else found.oldest
            return attrs.evolve(found, rows=found.rows + len(rows), oldest=oldest)

    def notify_at(self, rows: int, notify: Callable[[], None]) -> None:
        """Call `notify` each time that the pending rows reach `rows`. It must be quick and not use the spool."""
        self._queue.notify_at, self._queue.notify = rows, notify

    # the reactor's thread

    def append_doubtful(self, row: UsageRow) -> None:
        """Add a row that another process may have stored already: then it does not count again."""
        self.doubtful.add(row.id)
        self.append(row)

    def flush(self) -> None:
        """Write what was appended. A failure is logged, and later calls try again."""
        if not self._buffer:
            if self._failed_at is not None:
                self._probe()
            return
        with self._queue.lock:
            if self._failed_at is not None and self._monotonic() - self._failed_at < RETRY_SECONDS:
                self._drop_surplus()
            else:
                self._write()

    def _probe(self) -> None:
        """Retry a failed disk: if requests are refused meanwhile, no row would retry it."""
        with self._queue.lock:
            if self._failed_at is None or self._monotonic() - self._failed_at < RETRY_SECONDS:
                return
            try:
                self._open_segment()
            except OSError as error:
                self._failed(error)
            else:
                self._recovered()

    def _write(self) -> None:
        queue, rows = self._queue, self._buffer.copy()
        try:
            segment = queue.current or self._open_segment()
            start = segment.end
            segment.write(encode_rows(rows))
        except OSError as error:
            self._failed(error)
            return
        self._buffer.clear()
        queue.rows_written(segment, start, rows)
        if self._failed_at is not None:
            self._recovered()
        if segment.end > self._segment_bytes or self._monotonic() - segment.opened > SEGMENT_SECONDS:
            queue.close_segment()

    def _open_segment(self) -> Segment:
        if self._claim is None:
            raise OSError(errno.EBADF, "it is closed")
        self._number += 1
        segment = Segment(self._number, self._claim.segment(self._number), self._monotonic())
        self._queue.add_segment(segment)
        return segment

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        is_first, self._failed_at = self._failed_at is None, self._monotonic()
        # The end of the file is uncertain: write no more to it.
        self._queue.close_segment()
        if is_first:
            self._log.critical(
                "The ledger's spool cannot be written: {reason}. What requests use is kept in memory meanwhile.",
                reason=f"{error.strerror} ({self.directory})",
                **LEDGER_ALERT,
            )
        self._drop_surplus()

    def _recovered(self) -> None:
        self._failed_at = None
        self._log.warn(
            "The ledger's spool is written again; {lost} rows were lost in all", lost=self.lost, **LEDGER_ALERT
        )

    def _drop_surplus(self) -> None:
        surplus = len(self._buffer) - UNSAVED_ROWS
        if surplus > 0:
            if not self._dropped:
                self._log.critical(
                    "The ledger loses rows: the spool cannot be written, and memory for it is full", **LEDGER_ALERT
                )
            self._dropped += surplus
            del self._buffer[UNSAVED_ROWS:]

    # the writer's thread

    def next_batch(self, max_rows: int) -> Batch | None:
        """Return the next rows that were flushed, about `max_rows` at most; None without any.

        Acknowledge or requeue a batch before you ask for the next.

        Raises:
            OSError: a segment cannot be read.
        """
        return self._queue.next_batch(max_rows) or self._next_unsaved(max_rows)

    def _next_unsaved(self, max_rows: int) -> Batch | None:
        """Take rows that the disk does not accept; the database may."""
        with self._queue.lock:
            count = min(len(self._buffer), max_rows) if self._failed_at is not None else 0
            if not count:
                return None
            rows = self._buffer[:count]
            del self._buffer[:count]
            self._queue.unsaved_taken(rows)
            return Batch(rows)

    def acknowledge(self, batch: Batch) -> None:
        """Note that the database has a batch. Segments with nothing else are removed."""
        self._queue.acknowledge(batch)

    def requeue(self, batch: Batch) -> None:
        """Put back a batch that the database did not take, if it is in no segment."""
        if batch.segment is None:
            with self._queue.lock:
                self._queue.unsaved_requeued(batch.rows)
                self._buffer[:0] = batch.rows

    def release(self, position: Position) -> None:
        """Note that nothing before a position of the segments is needed any more. They are removed up to it."""
        self._queue.release(position)

    def finish(self) -> bool:
        """Write no more to the current segment; return whether no segment is left, and no row."""
        with self._queue.lock:
            self._queue.close_segment()
        self._queue.remove_finished()
        return self._queue.is_empty and not self._buffer

    def begin_anew(self) -> Claim | None:
        """Leave all segments to be taken over like those of another run, and write others under a new name.

        Returns:
            The right to the former segments; None if there were none.

        Raises:
            OSError: the directory cannot be written to. Nothing was changed.
        """
        claim = claim_new(self.directory, self._randbytes)
        with self._queue.lock:
            former, self._claim = self._claim, claim
            old = self._queue
            old.close_segment()
            self._queue = old.successor()
            self._number = 0
        with contextlib.suppress(OSError):
            old.sync()
        return former

    # the thread that syncs

    def sync(self) -> None:
        """Sync what was written to the disk, and close segments that are no longer written to.

        Raises:
            OSError: the disk failed; the next call tries again.
        """
        self._queue.sync()

    # the end

    def close(self) -> None:
        """Write and sync the rest. What is not acknowledged stays in the segments, for another process."""
        if self._buffer:
            with self._queue.lock:
                self._write()
        if self._buffer:
            self._log.critical(
                "{rows} rows of the ledger are lost: the spool cannot be written", rows=len(self._buffer)
            )
            self._dropped += len(self._buffer)
            self._buffer.clear()
        with self._queue.lock:
            self._queue.close_segment()
        with contextlib.suppress(OSError):
            self._queue.sync()
        self._queue.remove_finished()
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()
