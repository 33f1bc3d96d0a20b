"""Buffers a form: the first part in memory, the rest in an unnamed file that a thread writes and reads.

The file is in the directory that Python's ``tempfile`` chooses (``TMPDIR``).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.python.failure import Failure

from twisted_vllm.errors import BodyTooLarge, in_mib
from twisted_vllm.proxy.form_files import FormFile, FormFiles

#: bytes kept in memory; as many again may be waiting for the file
IN_MEMORY = 524_288
#: bytes of one form in memory, with those that arrive meanwhile
MOST_IN_MEMORY = 2 * IN_MEMORY
#: bytes per read of the file
PIECE = 262_144

#: runs a function in another thread
InThread = Callable[..., Deferred[Any]]


class FormSpool:
    """Stores what is written to it and returns it once, in order.

    The writer should pause while the file is written; data written meanwhile stays in memory.

    Attributes:
        size: bytes written.
    """

    def __init__(self, in_thread: InThread, limit: int, files: FormFiles) -> None:
        """Make an empty spool; it opens a file when it needs one.

        Args:
            in_thread: runs a function in another thread.
            limit: the maximum number of bytes.
            files: bounds the files of all spools.
        """
        self.size = 0
        self._in_thread = in_thread
        self._limit = limit
        self._memory: list[bytes] = []
        self._in_memory = 0
        self._files = files
        self._file: FormFile | None = None
        self._close_file: weakref.finalize[..., Any] | None = None
        self._in_file = self._read_to = 0
        self._busy: Deferred[Any] | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether the file is being written or read."""
        return self._busy is not None

    def write(self, data: bytes) -> Deferred[None] | None:
        """Store `data`; return None, or a Deferred that fires when more may be written. After `close` it is dropped.

        Raises:
            BodyTooLarge: the limit is exceeded.
            FormSpoolFull: there is no room for the file.
        """
        if self._closed:
            return None
        self.size += len(data)
        if self.size > self._limit:
            raise BodyTooLarge(
                f'This form names its model after more than {in_mib(self._limit)}: send the field "model" first, or '
                "ask the operator to raise passthrough.limits.max_held_body_bytes."
            )
        self._memory.append(data)
        self._in_memory += len(data)
        if self._busy is not None or self._in_memory < IN_MEMORY:
            return None
        return self._flush()

    def _flush(self) -> Deferred[None]:
        taken, self._file = self._file, self._files.take(self._in_memory, self._file)
        if taken is None:
            # gives it back even if close() is never called
            self._close_file = weakref.finalize(self, self._files.give_back, self._file)
        data = b"".join(self._memory)
        self._memory.clear()
        self._in_memory = 0
        done: Deferred[None] = Deferred()
        at, self._in_file = self._in_file, self._in_file + len(data)
        self._busy = self._in_thread(self._file.write, data, at)
        self._busy.addCallbacks(lambda _: self._written(done), lambda failure: self._failed(failure, done))
        return done

    def _written(self, done: Deferred[None]) -> None:
        self._busy = None
        if self._closed:
            self._discard_file()
            done.callback(None)
        elif self._in_memory >= IN_MEMORY:
            maybeDeferred(self._flush).chainDeferred(done)
        else:
            done.callback(None)

    def _failed(self, failure: Failure, done: Deferred[None]) -> None:
        self._busy = None
        self.close()
        done.errback(failure)

    def read(self) -> Deferred[bytes]:
        """Return the next piece, empty after the last. Do not write after the first call, nor call it while `busy`."""
        if self._file is not None and self._read_to < self._in_file:
            self._busy = self._in_thread(os.pread, self._file.descriptor, PIECE, self._read_to)
            return self._busy.addBoth(self._was_read)
        data = b"".join(self._memory)
        self._memory.clear()
        return succeed(data)

    def _was_read(self, data: bytes | Failure) -> bytes | Failure:
        self._busy = None
        if self._closed:
            self._discard_file()
        if isinstance(data, bytes):
            self._read_to += len(data)
        return data

    def close(self) -> None:
        """Drop everything."""
        self._closed = True
        self._memory.clear()
        self._in_memory = 0
        if self._busy is None:
            self._discard_file()

    def _discard_file(self) -> None:
        # in a thread: freeing the blocks of a large file takes time
        close_file, self._close_file = self._close_file, None
        if close_file is not None:
            self._in_thread(close_file)
