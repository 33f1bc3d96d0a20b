"""Where the log is written: a stream, a rotated file, syslog. They may block; only the writer's thread calls them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import syslog
import time
from collections.abc import Callable, Iterator
from typing import IO

from zope.interface import Interface, implementer

#: how often to check whether a log file was moved, in seconds
INODE_CHECK_SECONDS = 1.0
#: how often another process may rotate a shared log before a line is written in any case
_MOST_FILES = 8
#: how long to wait at a time for a non-blocking stream, in seconds
STREAM_WAIT_SECONDS = 1.0


class ISink(Interface):
    """Writes lines, on one thread."""

    def write(data: bytes) -> None:
        """Write whole lines. May block; raises OSError on failure."""

    def reopen() -> None:
        """Reopen the target before the next write. Any thread or signal handler may call it."""

    def close() -> None:
        """Close the target; a later write reopens it."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write all data, even if another program made the descriptor non-blocking.

    Raises:
        OSError: the target is gone or full; part of the data may have been written.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [], STREAM_WAIT_SECONDS)


@implementer(ISink)
class StreamSink:
    """Writes to standard output, or to another stream that stays open."""

    def __init__(self, stream: IO[str], *, is_shared: bool = False) -> None:
        """Write to a stream.

        Args:
            stream: the stream.
            is_shared: whether other processes of the gateway write to it: lines of several must not mix.
        """
        self._is_shared = is_shared
        # Keep the descriptor: twistd replaces sys.stdout by one that leads back into the log.
        self._descriptor = stream.fileno()

    def write(self, data: bytes) -> None:
        if not self._is_shared:
            write_all(self._descriptor, data)
            return
        # A pipe takes more than 4096 bytes in pieces. The kernel ends the lock of a process that is killed.
        with _locked(self._descriptor, fcntl.lockf):
            write_all(self._descriptor, data)

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _locked(descriptor: int, lock: Callable[[int, int], None]) -> Iterator[None]:
    """Hold a lock that other processes respect. What cannot be locked is written without.

    Args:
        descriptor: what is locked.
        lock: ``lockf``, of a process, for what several inherited; ``flock`` for what each has opened for itself.
    """
    try:
        lock(descriptor, fcntl.LOCK_EX)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock(descriptor, fcntl.LOCK_UN)


@implementer(ISink)
class RotatedFile:
    """A log file that is rotated by size, and reopened when a tool such as logrotate moved it.

    ``FILE`` becomes ``FILE.1``, ``FILE.1`` becomes ``FILE.2``, and so on. New files have mode 0600; the mode of an
    existing file is kept.
    """

    def __init__(
        self,
        path: str,
        *,
        rotate_bytes: int,
        keep_files: int,
        is_shared: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the file, so that a wrong name fails the start.

        Args:
            path: the file's name; a relative one is resolved now, before twistd changes its directory.
            rotate_bytes: the largest size of a file in bytes, unless a single write is larger.
            keep_files: how many rotated files to keep.
            is_shared: whether other processes of the gateway write to it: then each write has the file for itself, one
                process rotates it, and the others follow.
            monotonic: the clock, in seconds.

        Raises:
            OSError: the file cannot be opened for writing.
        """
        self.path = os.path.abspath(path)
        self._rotate_bytes = rotate_bytes
        self._keep_files = keep_files
        self._is_shared = is_shared
        self._monotonic = monotonic
        self._descriptor: int | None = None
        self._size = 0
        self._partial_line = False
        self._next_check = 0.0
        self._open()

    def write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._open()
        if self._is_shared:
            self._write_shared(data)
            return
        if self._monotonic() >= self._next_check:
            self._next_check = self._monotonic() + INODE_CHECK_SECONDS
            self._reopen_if_moved()
        if self._is_full(data):
            self._rotate()
        self._append(data)

    def _write_shared(self, data: bytes) -> None:
        """Write while no other process does, into the file that has the name by then."""
        may_rotate = True
        for _ in range(_MOST_FILES):
            assert self._descriptor is not None
            with _locked(self._descriptor, fcntl.flock):
                if self._is_current():
                    self._size = os.fstat(self._descriptor).st_size
                    if not (may_rotate and self._is_full(data)):
                        self._append(data)
                        return
                    # the next file is locked like this one; without permission, this one goes on
                    may_rotate = False
                    self._rotate()
            # another process rotated it while this one waited for the lock
            self._reopen_if_moved()
        self._append(data)

    def _is_full(self, data: bytes) -> bool:
        return bool(self._size) and self._size + len(data) > self._rotate_bytes

    def _append(self, data: bytes) -> None:
        assert self._descriptor is not None
        # A write that failed half-way left a line without its end: begin a new line.
        data = b"\n" + data if self._partial_line else data
        self._partial_line = True
        write_all(self._descriptor, data)
        self._partial_line = False
        self._size += len(data)

    def reopen(self) -> None:
        self._next_check = 0.0

    def give_to(self, user: int, group: int) -> None:
        """Make another user the owner of the open file.

        Raises:
            OSError: this user may not.
        """
        if self._descriptor is not None:
            os.fchown(self._descriptor, user, group)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        """Close a file that was opened for settings that did not come into effect."""
        with contextlib.suppress(Exception):
            self.close()

    def _open(self) -> None:
        """Open the file, and then close the old one."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        self.close()
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._partial_line = False
        self._next_check = self._monotonic() + INODE_CHECK_SECONDS

    def _reopen_if_moved(self) -> None:
        """Reopen the file if another one has its name, or none; learn what other processes wrote there."""
        # Without permission, after privileges were dropped, go on with the old file.
        if not self._is_current():
            with contextlib.suppress(OSError):
                self._open()
        elif self._descriptor is not None:
            self._size = os.fstat(self._descriptor).st_size

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
        """Rename the files; if that is not permitted, go on with the open file."""
        with contextlib.suppress(OSError):
            # Another process that shares the file may rotate it now, or have done so already. Closing unlocks.
            assert self._descriptor is not None
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Writes to syslog, for twistd's ``--syslog``."""

    def __init__(self, prefix: str) -> None:
        syslog.openlog(prefix, 0, syslog.LOG_DAEMON)

    def write(self, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            syslog.syslog(syslog.LOG_INFO, line.replace("\0", "\\0"))

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass
