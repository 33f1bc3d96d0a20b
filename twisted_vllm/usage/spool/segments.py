"""The spool's files, and which process may read and remove them.

A process writes segments under a name of its own, ``NAME-000001.spool`` and so on, and holds a lock (``flock``) on
``NAME.lock`` until it ends, even by a crash. The process that gets a name's lock may read and remove its segments.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from twisted_vllm.usage.spool.format import header_line

#: the size of a note
NOTE_BYTES = 64
#: begins the note of a name whose segments another process reads
_FOLLOWED = b"followed by "
#: likewise of a process that is one of several
_MEMBER = b"member of "

_SEGMENT = re.compile(r"([0-9a-z]+)-([0-9]+)\.spool")
_LOCK = re.compile(r"([0-9a-z]+)\.lock")


class Segment:
    """An append-only file of this process. Up to ``end`` it contains whole lines.

    Attributes:
        number: its number in the sequence.
        path: its path.
        end: the offset up to which it was written without an error.
        rows: how many of its rows are not acknowledged.
        opened: when it was created, in seconds of the caller's clock.
        is_open: whether it is open.
        is_dirty: whether a part of it may not be synced yet.
        is_lost: whether it was removed from outside.
    """

    def __init__(self, number: int, path: Path, opened: float) -> None:
        """Create the file.

        Raises:
            OSError: it cannot be created.
        """
        self.number = number
        self.path = path
        self.end = 0
        self.rows = 0
        self.opened = opened
        self.is_open = True
        self.is_dirty = False
        self.is_lost = False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self.write(header_line())
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    @property
    def is_removed(self) -> bool:
        """Whether the file has no name any more."""
        return os.fstat(self._descriptor).st_nlink == 0

    def write(self, data: bytes) -> None:
        """Append all of `data`, or nothing that a reader sees: data is one line, and a reader ignores half of one.

        Raises:
            OSError: it could not be written.
        """
        written = os.write(self._descriptor, data)
        if written != len(data):
            self._write_rest(data, written)
        self.end += len(data)
        # After the write, so that a concurrent sync does not clear it.
        self.is_dirty = True

    def _write_rest(self, data: bytes, written: int) -> None:
        """Continue after a short write: a nearly full disk accepts a part before it fails."""
        rest = memoryview(data)[written:]
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            # Otherwise the next line would follow half of this one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.end)
            raise

    def sync(self) -> None:
        """Sync what was written to the disk; from any thread.

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
        """Close the file, after its last `sync`."""
        if self.is_open:
            self.is_open = False
            os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the file."""
        self.is_dirty = False
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


class Claim:
    """The right to the segments of one name.

    Attributes:
        name: the name.
        directory: where the segments are.
    """

    def __init__(self, directory: Path, name: str, descriptor: int) -> None:
        """Own the lock on this descriptor."""
        self.directory = directory
        self.name = name
        self._descriptor: int | None = descriptor

    def segment(self, number: int) -> Path:
        """Return the path of a segment."""
        return path_of(self.directory, self.name, number)

    def segments(self) -> list[Path]:
        """Return the segments that exist, in their order."""
        found = [match for entry in os.listdir(self.directory) if (match := _SEGMENT.fullmatch(entry))]
        ours = sorted((int(match[2]), match[0]) for match in found if match[1] == self.name)
        return [self.directory / entry for _, entry in ours]

    def note(self, text: bytes) -> None:
        """Write a note of at most `NOTE_BYTES` into the lock's file, for the process that claims the name next.

        Raises:
            OSError: it could not be written.
        """
        if self._descriptor is not None:
            os.pwrite(self._descriptor, text.ljust(NOTE_BYTES), 0)

    def read_note(self) -> bytes:
        """Return the last note of the name; empty without one.

        Raises:
            OSError: it could not be read.
        """
        return b"" if self._descriptor is None else os.pread(self._descriptor, NOTE_BYTES, 0).rstrip()

    def follow(self, name: str) -> None:
        """Note that the process which holds another name reads and removes the segments.

        Raises:
            OSError: it could not be written.
        """
        self.note(_FOLLOWED + name.encode("ascii"))

    def join_group(self, group: str) -> None:
        """Note that the process belongs to some, until it is known which of them reads the segments.

        Raises:
            OSError: it could not be written.
        """
        self.note(_MEMBER + group.encode("ascii"))

    @property
    def follower(self) -> str:
        """The name of the process that reads the segments; empty if it is the owner.

        Raises:
            OSError: it could not be read.
        """
        found = self.read_note()
        return found[len(_FOLLOWED) :].decode("ascii", "replace") if found.startswith(_FOLLOWED) else ""

    def release(self) -> None:
        """Release the lock. If no segment is left, its file is removed as well."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                if not self.segments():
                    # While the lock is held: a process that opened the file meanwhile notices the removal in `claim`.
                    (self.directory / f"{self.name}.lock").unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def number_of(path: Path) -> int:
    """Return the number of a segment."""
    found = _SEGMENT.fullmatch(path.name)
    assert found is not None
    return int(found[2])


def claim(directory: Path, name: str) -> Claim | None:
    """Claim a name; return None if another process holds it.

    Raises:
        OSError: the directory cannot be written to.
    """
    path = directory / f"{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return Claim(directory, name, descriptor)
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def claim_new(directory: Path, randbytes: Callable[[int], bytes]) -> Claim:
    """Claim a new name.

    Raises:
        OSError: the directory cannot be written to.
    """
    while True:
        claimed = claim(directory, randbytes(8).hex())
        if claimed is not None:
            return claimed


def claim_orphans(directory: Path, skipped: Iterable[str], own: str = "") -> list[Claim]:
    """Claim every name whose process has ended, except those to skip and those that another process follows.

    Args:
        directory: where the segments are.
        skipped: names to skip.
        own: the name of the process that asks.

    Raises:
        OSError: the directory cannot be read or written to.
    """
    matches = (_SEGMENT.fullmatch(entry) or _LOCK.fullmatch(entry) for entry in os.listdir(directory))
    names = {match[1] for match in matches if match} - set(skipped)
    found = [claimed for name in sorted(names) if (claimed := claim(directory, name)) is not None]
    ours = {own, *(claimed.name for claimed in found)}
    return [claimed for claimed in found if not _is_left_to_another(claimed, ours)]


def _is_left_to_another(claimed: Claim, ours: Container[str]) -> bool:
    """Return whether another process follows a name that was just claimed; then the claim is released."""
    follower = claimed.follower
    if not follower or follower in ours or not _is_held(claimed.directory / f"{follower}.lock"):
        return False
    claimed.release()
    return True


def segments_by_name(directory: Path) -> dict[str, list[int]]:
    """Return the numbers of the segments of each name, in their order.

    Raises:
        OSError: the directory cannot be read.
    """
    found: dict[str, list[int]] = {}
    for entry in os.listdir(directory):
        if match := _SEGMENT.fullmatch(entry):
            found.setdefault(match[1], []).append(int(match[2]))
    for numbers in found.values():
        numbers.sort()
    return found


def path_of(directory: Path, name: str, number: int) -> Path:
    """Return the path of a segment."""
    return directory / f"{name}-{number:06d}.spool"


def count_other_owners(directory: Path, own: str, group: str = "") -> int:
    """Return how many names other processes hold, but for those of this process's group.

    Args:
        directory: where the segments are.
        own: the name of this process.
        group: its group; empty if it is alone.

    Raises:
        OSError: the directory cannot be read.
    """
    names = {match[1] for entry in os.listdir(directory) if (match := _LOCK.fullmatch(entry))}
    ours = {_FOLLOWED + own.encode("ascii"), _MEMBER + group.encode("ascii")} if group else set()
    count = 0
    for name in names - {own}:
        path = directory / f"{name}.lock"
        if _is_held(path):
            with contextlib.suppress(FileNotFoundError):
                count += path.read_bytes().rstrip() not in ours
    return count


def is_used(directory: Path) -> bool:
    """Return whether a process writes to a spool, or reads what another left.

    Raises:
        OSError: the directory cannot be read.
    """
    return directory.is_dir() and any(
        _LOCK.fullmatch(each) and _is_held(directory / each) for each in os.listdir(directory)
    )


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A shared lock, so that two checking processes do not mistake each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
