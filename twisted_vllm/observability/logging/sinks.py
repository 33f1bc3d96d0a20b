"""Where log lines end: a stream, a rotated file, syslog. All of them may block; only the writer's thread calls them."""

from __future__ import annotations

import contextlib
import os
import select
import syslog
import time
from collections.abc import Callable
from typing import IO

from zope.interface import Interface, implementer

#: how often, in seconds, a file is compared with what stands under its name
INODE_CHECK_SECONDS = 1.0
#: how long, in seconds, one wait for a non-blocking stream lasts
STREAM_WAIT_SECONDS = 1.0


class ISink(Interface):
    """Takes finished lines, on one thread."""

    def write(data: bytes) -> None:
        """Write whole lines; may block; raises OSError where it cannot."""

    def reopen() -> None:
        """Open the target anew before the next write; any thread may ask, a signal handler too."""

    def close() -> None:
        """Let go of the target; a later write takes it up again."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, also to a descriptor that another program made non-blocking.

    Raises:
        OSError: the target is gone or full; a part of the data may have been written.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [], STREAM_WAIT_SECONDS)


@implementer(ISink)
class StreamSink:
    """Standard output, or another stream with a descriptor that is not ours to close."""

    def __init__(self, stream: IO[str]) -> None:
        # Later on sys.stdout is twistd's own and leads back into the log, so keep the descriptor.
        self._descriptor = stream.fileno()

    def write(self, data: bytes) -> None:
        write_all(self._descriptor, data)

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


@implementer(ISink)
class RotatedFile:
    """A log file that is rotated by size, and that notices when a tool such as logrotate moved it away.

    ``FILE`` becomes ``FILE.1``, ``FILE.1`` becomes ``FILE.2``, and so on. New files have mode 0600; the mode of a file
    that exists is the operator's and stays.
    """

    def __init__(
        self, path: str, *, rotate_bytes: int, keep_files: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Open the file, so that a wrong name is known at start.

        Args:
            path: the file's name; a relative one is resolved now, before twistd changes its directory.
            rotate_bytes: the size in bytes that a file does not grow beyond, unless a single write is larger.
            keep_files: how many rotated files are kept.
            monotonic: the clock, in seconds.

        Raises:
            OSError: the file cannot be opened for writing.
        """
        self.path = os.path.abspath(path)
        self._rotate_bytes = rotate_bytes
        self._keep_files = keep_files
        self._monotonic = monotonic
        self._descriptor: int | None = None
        self._size = 0
        self._torn = False
        self._next_check = 0.0
        self._open()

    def write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._open()
        elif self._monotonic() >= self._next_check:
            self._next_check = self._monotonic() + INODE_CHECK_SECONDS
            self._follow_name()
        if self._size and self._size + len(data) > self._rotate_bytes:
            self._rotate()
        assert self._descriptor is not None
        # A write that failed half-way left a line without an end; the next one must not be glued to it.
        whole = b"\n" + data if self._torn else data
        self._torn = True
        write_all(self._descriptor, whole)
        self._torn = False
        self._size += len(whole)

    def reopen(self) -> None:
        self._next_check = 0.0

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        """Open what stands under the name, and only then let go of the old file."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        self.close()
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._torn = False
        self._next_check = self._monotonic() + INODE_CHECK_SECONDS

    def _follow_name(self) -> None:
        """Open the file anew if its name now stands for another file, or for none."""
        # Without permission (privileges were shed since) the old file is still better than none.
        if not self._is_current():
            with contextlib.suppress(OSError):
                self._open()

    def _is_current(self) -> bool:
        assert self._descriptor is not None
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return os.path.samestat(named, os.fstat(self._descriptor))

    def _rotate(self) -> None:
        """Move the files on by one; where that is not permitted, go on with the file that is open."""
        with contextlib.suppress(OSError):
            # Another process that writes to the same file may have rotated it already.
            if self._is_current():
                names = [self.path, *(f"{self.path}.{number}" for number in range(1, self._keep_files + 1))]
                for older, newer in reversed(list(zip(names[1:], names, strict=False))):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(newer, older)
                if not self._keep_files:
                    os.unlink(self.path)
            self._open()


@implementer(ISink)
class SyslogSink:
    """The system's log, as twistd's ``--syslog`` asks for it."""

    def __init__(self, prefix: str) -> None:
        syslog.openlog(prefix, 0, syslog.LOG_DAEMON)

    def write(self, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            syslog.syslog(syslog.LOG_INFO, line.replace("\0", "\\0"))

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass
