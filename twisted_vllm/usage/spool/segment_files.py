"""The segments that a process writes: one thread appends rows, another syncs."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.segments import Segment

#: the age at which a segment is followed by the next, in seconds
SEGMENT_SECONDS = 60.0


class SegmentFiles:
    """The segments of one process, which another reads and removes.

    It writes to the newest alone. So whoever finds a later one knows that the others do not grow any more.

    Attributes:
        lock: guards what the threads share.
        current: the segment that is written to, if any. Hold the lock to read it.
        lost: how many rows were in segments that were removed from outside.
        written: how many rows were written.
    """

    _log = Logger()

    def __init__(self, directory: Path, lock: threading.Lock | None = None) -> None:
        """Set up without a segment.

        Args:
            directory: where the segments are.
            lock: the lock of what this one takes the place of; None for a new one.
        """
        self.lock = threading.Lock() if lock is None else lock
        self.current: Segment | None = None
        self.lost = 0
        self.written = 0
        self._directory = directory
        #: segments that are no longer written to, for the thread that syncs them
        self._closing: list[Segment] = []
        self._is_directory_dirty = False

    # the thread that writes, which holds the lock

    def add_segment(self, segment: Segment) -> None:
        """Make a new segment the current one."""
        self.current = segment
        self._is_directory_dirty = True

    def close_segment(self) -> None:
        """Write no more to the current segment."""
        segment, self.current = self.current, None
        if segment is not None:
            self._closing.append(segment)

    def rows_written(self, segment: Segment, start: int, rows: list[UsageRow]) -> None:
        """Note rows that were just written to a segment, from an offset on."""
        self.written += len(rows)
        segment.rows += len(rows)

    # the thread that syncs

    def drop_removed(self) -> None:
        """Write no more to the current segment if it was removed from outside."""
        with self.lock:
            segment = self.current
            if segment is None or not segment.is_removed:
                return
            self.close_segment()
            self.lost += segment.rows
        self._log.critical(
            "{path} is gone while it was written to: up to {rows} rows are lost",
            path=str(segment.path),
            rows=segment.rows,
            **LEDGER_ALERT,
        )

    def sync(self) -> None:
        """Sync what was written to the disk, and close segments that are no longer written to.

        Raises:
            OSError: the disk failed; the next call tries again.
        """
        with self.lock:
            current = self.current
            # taken, since two threads may sync
            closing, self._closing = self._closing, []
            is_directory_dirty, self._is_directory_dirty = self._is_directory_dirty, False
        try:
            if is_directory_dirty:
                _sync_directory(self._directory)
            if current is not None:
                current.sync()
        finally:
            failure: OSError | None = None
            for segment in closing:
                try:
                    segment.sync()
                except OSError as error:
                    failure = error
                segment.close()
        if failure is not None:
            raise failure


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
