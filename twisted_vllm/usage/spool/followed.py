"""The files in which a process keeps its usage rows, until the database has them.

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

from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.format import LINE_ROWS, encode_rows, header_line
from twisted_vllm.usage.spool.segment_files import SEGMENT_SECONDS, SegmentFiles
from twisted_vllm.usage.spool.segments import Claim, Segment, claim_new, count_other_owners

#: the size at which a segment is followed by the next, in bytes
SEGMENT_BYTES = 4_000_000
#: rows to keep in memory while the disk fails; more are lost, which is logged and counted
UNSAVED_ROWS = 20_000
#: seconds between attempts to write to a failing disk
RETRY_SECONDS = 0.5


class FollowedSpool:
    """The segments of one process, which another one reads and removes; nothing of what was written stays in memory.

    The reactor's thread calls `append` and `flush`; another calls `sync`.

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
        group: str = "",
    ) -> None:
        """Set up; `open` creates the first segment.

        Args:
            directory: where the segments are; several processes may share it.
            randbytes: for the name of this process's segments.
            monotonic: the clock, in seconds.
            segment_bytes: the size at which a segment is followed by the next.
            group: what the processes have in common to which this one belongs; empty if it is alone.
        """
        self.directory = directory
        self._group = group
        self._follower = ""
        self.failures = 0
        self._randbytes = randbytes
        self._monotonic = monotonic
        self._segment_bytes = segment_bytes
        self._claim: Claim | None = None
        self._files = SegmentFiles(directory)
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
        if self._group:
            self._claim.join_group(self._group)
        self._open_segment()

    @property
    def healthy(self) -> bool:
        """Whether rows can be written to the disk."""
        return self._failed_at is None

    @property
    def lost(self) -> int:
        """How many rows were lost: the disk failed for too long, or a segment was removed from outside."""
        return self._dropped + self._files.lost

    @property
    def written(self) -> int:
        """How many rows were written."""
        return self._files.written

    @property
    def unsaved(self) -> int:
        """How many rows are only in memory because the disk fails."""
        return 0 if self._failed_at is None else len(self._buffer)

    @property
    def name(self) -> str:
        """The name of this process's segments."""
        return "" if self._claim is None else self._claim.name

    @property
    def end(self) -> Position:
        """Where the rows end that were written."""
        with self._files.lock:
            current = self._files.current
            return Position(self._number + 1, 0) if current is None else Position(current.number, current.end)

    def other_processes(self) -> int:
        """Return how many other living processes share the directory, but for those of the group.

        Raises:
            OSError: it cannot be read.
        """
        return count_other_owners(self.directory, self.name, self._group)

    def followed_by(self, name: str) -> None:
        """Leave the segments to the process whose segments have this name, also after this process has ended."""
        if self._claim is not None and name not in (self._follower, self.name):
            try:
                self._claim.follow(name)
                self._follower = name
            except OSError as error:
                # Then any process may take them over, as it may those of one that nobody follows.
                self._log.warn("{directory} cannot be written: {reason}", directory=str(self.directory), reason=error)

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
        with self._files.lock:
            if self._failed_at is not None and self._monotonic() - self._failed_at < RETRY_SECONDS:
                self._drop_surplus()
            else:
                self._write()

    def _probe(self) -> None:
        """Retry a failed disk: if requests are refused meanwhile, no row would retry it."""
        with self._files.lock:
            if self._failed_at is None or self._monotonic() - self._failed_at < RETRY_SECONDS:
                return
            try:
                self._open_segment()
            except OSError as error:
                self._failed(error)
            else:
                self._recovered()

    def _write(self) -> None:
        files, buffer = self._files, self._buffer
        while buffer:
            # One line at a time: if half of it is taken back, nobody has read it.
            rows = buffer[:LINE_ROWS]
            try:
                segment = files.current or self._open_segment()
                start = segment.end
                segment.write(encode_rows(rows))
            except OSError as error:
                self._failed(error)
                return
            del buffer[:LINE_ROWS]
            files.rows_written(segment, start, rows)
            if self._failed_at is not None:
                self._recovered()
            if segment.end > self._segment_bytes or self._monotonic() - segment.opened > SEGMENT_SECONDS:
                files.close_segment()

    def _open_segment(self) -> Segment:
        if self._claim is None:
            raise OSError(errno.EBADF, "it is closed")
        self._number += 1
        segment = Segment(self._number, self._claim.segment(self._number), self._monotonic())
        self._files.add_segment(segment)
        return segment

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        is_first, self._failed_at = self._failed_at is None, self._monotonic()
        # The end of the file is uncertain: write no more to it.
        self._files.close_segment()
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

    # the thread that syncs

    def sync(self) -> None:
        """Sync what was written to the disk, and close segments that are no longer written to.

        An old segment is followed by a new one, so that it can be removed.

        Raises:
            OSError: the disk failed; the next call tries again.
        """
        self._files.drop_removed()
        with self._files.lock:
            current = self._files.current
            is_old = current is not None and self._monotonic() - current.opened > SEGMENT_SECONDS
            if current is not None and is_old and current.end > len(header_line()) and self._failed_at is None:
                self._files.close_segment()
                # At once: that there is a later one tells that the former does not grow.
                self._open_segment()
        self._files.sync()

    # the end

    def finish(self) -> bool:
        """Write no more to the current segment; return whether no row is left that is in none."""
        with self._files.lock:
            self._files.close_segment()
        return not self._buffer

    def close(self) -> None:
        """Write and sync the rest, and leave the segments to another process."""
        if self._buffer:
            with self._files.lock:
                self._write()
        if self._buffer:
            self._log.critical(
                "{rows} rows of the ledger are lost: the spool cannot be written", rows=len(self._buffer)
            )
            self._dropped += len(self._buffer)
            self._buffer.clear()
        with self._files.lock:
            current = self._files.current
            self._files.close_segment()
        with contextlib.suppress(OSError):
            self._files.sync()
        if current is not None and current.end == len(header_line()):
            current.remove()
        self._closed()
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()

    def _closed(self) -> None:
        """Do what is left to do before the segments belong to another process."""
