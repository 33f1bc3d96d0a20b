"""Bounds the temporary files of large forms: their number and their bytes, of all requests together."""

from __future__ import annotations

import os
import sys
import tempfile
import threading

from twisted_vllm.errors import FormSpoolFull

#: what Retry-After says to a request whose form found no room
RETRY_AFTER = 1


class FormFile:
    """The file of one form, and what it takes of the bounds.

    Attributes:
        descriptor: its descriptor; -1 before the first write.
        size: bytes that may be written to it.
    """

    def __init__(self, size: int) -> None:
        self.descriptor = -1
        self.size = size

    def write(self, data: bytes, at: int) -> None:
        """Write at an offset; the first write opens the file, which has no name.

        Raises:
            OSError: the file cannot be opened or written.
        """
        if self.descriptor < 0:
            with tempfile.TemporaryFile(buffering=0) as file:
                self.descriptor = os.dup(file.fileno())
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, at)
            at += written
            view = view[written:]


class FormFiles:
    """The bounds; safe in any thread.

    Attributes:
        count: files at present.
        bytes: their bytes.
    """

    def __init__(self, max_bytes: int = sys.maxsize, max_files: int = sys.maxsize) -> None:
        """Start without files.

        Args:
            max_bytes: the most bytes in all files together.
            max_files: the most files at a time.
        """
        self.count = 0
        self.bytes = 0
        self._lock = threading.Lock()
        self.reconfigure(max_bytes, max_files)

    def reconfigure(self, max_bytes: int, max_files: int) -> None:
        """Use other bounds from now on; files that exist stay."""
        self._max_bytes = max_bytes
        self._max_files = max_files

    def take(self, size: int, file: FormFile | None) -> FormFile:
        """Take room for `size` bytes more, in `file` or in a new one.

        Raises:
            FormSpoolFull: there is none.
        """
        with self._lock:
            if self.bytes + size > self._max_bytes or (file is None and self.count >= self._max_files):
                raise full()
            self.bytes += size
            if file is None:
                self.count += 1
                return FormFile(size)
            file.size += size
            return file

    def give_back(self, file: FormFile) -> None:
        """Close a file and free its room."""
        try:
            if file.descriptor >= 0:
                os.close(file.descriptor)
        finally:
            with self._lock:
                self.count -= 1
                self.bytes -= file.size


def full() -> FormSpoolFull:
    """Return the error of a form that cannot be buffered."""
    return FormSpoolFull(
        "The gateway has no room to buffer this form; send its field model first, or send it again later.",
        retry_after=RETRY_AFTER,
    )
