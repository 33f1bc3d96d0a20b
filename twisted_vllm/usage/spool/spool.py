"""The spool: what requests used, in files beside the process until the database has it.

The rows of a turn are encoded together and written by one ``os.write``: from then on the end of the process does not
lose them. The machine's end may lose what a thread did not sync yet, a second's worth.
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

from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.claims import Claim, claim_new, count_living
from twisted_vllm.usage.spool.lines import encode_rows
from twisted_vllm.usage.spool.queue import SEGMENT_SECONDS, Backlog, Batch, SegmentQueue, ended
from twisted_vllm.usage.spool.segment import Segment

#: the size from which on a segment is followed by another, in bytes
SEGMENT_BYTES = 4_000_000
#: rows kept in memory while the disk takes nothing; more are lost, which is logged and counted
UNSAVED_ROWS = 20_000
#: seconds between two attempts to write to a disk that failed
RETRY_SECONDS = 0.5


class Spool:
    """The segments of one process. `append` and `flush` belong to the reactor's thread, `take` and `commit` to another.

    Attributes:
        directory: where the files are.
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
        self.failures = 0
        self._randbytes = randbytes
        self._monotonic = monotonic
        self._segment_bytes = segment_bytes
        self._claim: Claim | None = None
        self._queue = SegmentQueue(directory, monotonic)
        self._rows: list[UsageRow] = []
        #: takes a row; the next `flush` writes it
        self.append = self._rows.append
        self._number = 0
        self._surplus = 0
        self._failed_at: float | None = None

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
    def lost(self) -> int:
        """How many rows were lost: the disk took nothing for too long, or somebody removed a file."""
        return self._surplus + self._queue.lost

    @property
    def written(self) -> int:
        """How many rows were written to files."""
        return self._queue.written_rows

    @property
    def unsaved(self) -> int:
        """How many rows are in memory alone, as the disk takes none: those that wait, and those that were taken."""
        return self._queue.in_hand + (0 if self._failed_at is None else len(self._rows))

    @property
    def name(self) -> str:
        """What this process's files are called."""
        return "" if self._claim is None else self._claim.name

    def neighbours(self) -> int:
        """Return how many other living processes share the directory.

        Raises:
            OSError: it cannot be read.
        """
        return count_living(self.directory, self.name)

    def backlog(self) -> Backlog:
        """Return what is not committed, of this process's own."""
        with self._queue.lock:
            found = self._queue.backlog()
            rows = self._rows
            oldest = ended(rows[0]) if rows and found.oldest is None else found.oldest
            return attrs.evolve(found, rows=found.rows + len(rows), oldest=oldest)

    # the reactor's thread

    def flush(self) -> None:
        """Write what was appended. A disk that fails is logged, and tried again with the later calls."""
        if not self._rows:
            if self._failed_at is not None:
                self._probe()
            return
        with self._queue.lock:
            if self._failed_at is not None and self._monotonic() - self._failed_at < RETRY_SECONDS:
                self._drop_surplus()
            else:
                self._write()

    def _probe(self) -> None:
        """Find out whether a disk that failed takes something again: where requests are refused, no row would."""
        with self._queue.lock:
            if self._failed_at is None or self._monotonic() - self._failed_at < RETRY_SECONDS:
                return
            try:
                self._open_segment()
            except OSError as error:
                self._failed(error)
            else:
                self._recovered()

    def _recovered(self) -> None:
        self._failed_at = None
        self._log.warn("The ledger's spool is written again; {lost} rows were lost in all", lost=self.lost)

    def _write(self) -> None:
        queue, rows = self._queue, self._rows.copy()
        try:
            segment = queue.current or self._open_segment()
            start = segment.end
            segment.write(encode_rows(rows))
        except OSError as error:
            self._failed(error)
            return
        self._rows.clear()
        queue.written(segment, start, rows)
        if self._failed_at is not None:
            self._recovered()
        if segment.end > self._segment_bytes or self._monotonic() - segment.opened > SEGMENT_SECONDS:
            queue.leave()

    def _open_segment(self) -> Segment:
        if self._claim is None:
            raise OSError(errno.EBADF, "it is closed")
        self._number += 1
        segment = Segment(self._number, self._claim.segment(self._number), self._monotonic())
        self._queue.begin(segment)
        return segment

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        is_first, self._failed_at = self._failed_at is None, self._monotonic()
        # Nothing more is written to a file whose end is not certain.
        self._queue.leave()
        if is_first:
            self._log.critical(
                "The ledger's spool cannot be written: {reason}. What requests use is kept in memory meanwhile.",
                reason=f"{error.strerror} ({self.directory})",
            )
        self._drop_surplus()

    def _drop_surplus(self) -> None:
        surplus = len(self._rows) - UNSAVED_ROWS
        if surplus > 0:
            if not self._surplus:
                self._log.critical("The ledger loses rows: the spool cannot be written, and memory for it is full")
            self._surplus += surplus
            del self._rows[UNSAVED_ROWS:]

    def call_at(self, rows: int, call: Callable[[], None]) -> None:
        """Have `call` called whenever so many rows wait; it must be quick, and use no method of the spool's."""
        self._queue.enough, self._queue.on_enough = rows, call

    # the writer's thread

    def take(self, max_rows: int) -> Batch | None:
        """Return the next rows that were flushed, about so many at most; None where there are none.

        What is taken must be committed before more is taken.

        Raises:
            OSError: a file cannot be read.
        """
        return self._queue.take(max_rows) or self._take_unsaved(max_rows)

    def _take_unsaved(self, max_rows: int) -> Batch | None:
        """Take rows that the disk does not: the database may."""
        with self._queue.lock:
            count = min(len(self._rows), max_rows) if self._failed_at is not None else 0
            if not count:
                return None
            rows = self._rows[:count]
            del self._rows[:count]
            self._queue.handed(rows)
            return Batch(rows)

    def commit(self, batch: Batch) -> None:
        """Note that the database has a batch that `take` returned; a file that holds nothing else is removed."""
        self._queue.commit(batch)

    def put_back(self, batch: Batch) -> None:
        """Take a batch back that no file has and the database did not take."""
        if batch.segment is None:
            with self._queue.lock:
                self._queue.handed_back(batch.rows)
                self._rows[:0] = batch.rows

    # the thread that syncs

    def sync(self) -> None:
        """Have the disk keep what was written, and close what is not written to any more.

        Raises:
            OSError: the disk failed; the next call tries again.
        """
        self._queue.sync()

    # the end

    def close(self) -> None:
        """Write and sync what there is; what the database has not taken stays, for whoever comes next."""
        if self._rows:
            with self._queue.lock:
                self._write()
        if self._rows:
            self._log.critical("{rows} rows of the ledger are lost: the spool cannot be written", rows=len(self._rows))
        with self._queue.lock:
            self._queue.leave()
        with contextlib.suppress(OSError):
            self._queue.sync()
        self._queue.forget_finished()
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()
