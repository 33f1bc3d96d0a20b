"""The usage spool of a process that writes its own rows to the database."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs

from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.spool.followed import SEGMENT_BYTES, FollowedSpool
from twisted_vllm.usage.spool.queue import CACHED_ROWS, Backlog, Batch, SegmentQueue, ended
from twisted_vllm.usage.spool.segments import Claim, claim_new


class Spool(FollowedSpool):
    """The segments of one process, which it reads itself.

    The reactor's thread calls `append` and `flush`; another takes batches, acknowledges or requeues them.
    """

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
            directory: as for `FollowedSpool`, likewise `randbytes`, `monotonic` and `segment_bytes`.
            randbytes: as there.
            monotonic: as there.
            segment_bytes: as there.
            cached_rows: how many written rows to cache in memory.
        """
        super().__init__(directory, randbytes=randbytes, monotonic=monotonic, segment_bytes=segment_bytes)
        self._files = self._queue = SegmentQueue(directory, monotonic, cached_rows)

    @property
    def unsaved(self) -> int:
        """How many rows are only in memory because the disk fails, including those in a batch."""
        return self._queue.unsaved + super().unsaved

    @property
    def cached_rows(self) -> int:
        """How many rows are cached in memory."""
        return self._queue.cached_rows

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
            self._files = self._queue = old.successor()
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

    def _closed(self) -> None:
        self._queue.remove_finished()
