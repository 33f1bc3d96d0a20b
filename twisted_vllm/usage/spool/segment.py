"""One file of the spool that this process writes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from twisted_vllm.usage.spool.lines import head_line


class Segment:
    """A file that is written at its end, and holds whole lines only up to ``end``.

    Attributes:
        number: its place in the order.
        path: where it is.
        end: up to where it was written without fault, in bytes.
        rows: how many rows it holds that are not committed.
        opened: when it was made, in seconds of the caller's clock.
        is_open: whether it is still written to.
        is_dirty: whether the disk may not have all of it yet.
    """

    def __init__(self, number: int, path: Path, opened: float) -> None:
        """Make the file.

        Raises:
            OSError: it cannot be made.
        """
        self.number = number
        self.path = path
        self.end = 0
        self.rows = 0
        self.opened = opened
        self.is_open = True
        self.is_dirty = False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self.write(head_line())
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def write(self, data: bytes) -> None:
        """Write at the end: everything, or nothing that a reader would see.

        Raises:
            OSError: it could not be written.
        """
        written = os.write(self._descriptor, data)
        if written != len(data):
            self._write_rest(data, written)
        self.end += len(data)
        # after the write: a sync in between must not take it for done
        self.is_dirty = True

    def _write_rest(self, data: bytes, written: int) -> None:
        """Write what a short write left: a disk that is nearly full takes a part first and fails then."""
        rest = memoryview(data)[written:]
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            # without this the next line would stand behind half of another
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.end)
            raise

    def sync(self) -> None:
        """Have the disk keep what was written; it may be called from another thread.

        Raises:
            OSError: the disk failed.
        """
        if self.is_dirty:
            self.is_dirty = False
            try:
                os.fsync(self._descriptor)
            except OSError:
                self.is_dirty = True
                raise

    def close(self) -> None:
        """Close the file, once `sync` has no use for it any more."""
        if self.is_open:
            self.is_open = False
            os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the file, of which nothing is needed any more."""
        self.is_dirty = False
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
