"""Which process may read which of the spool's files: several share a directory, and one finishes what another left.

A process writes files of one name, ``NAME-000001.spool`` and so on, and holds a lock (``flock``) on ``NAME.lock`` for
as long as it lives, however it ends. Whoever gets the lock of a name may read its files and remove them.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

_SEGMENT = re.compile(r"([0-9a-z]+)-([0-9]+)\.spool")
_LOCK = re.compile(r"([0-9a-z]+)\.lock")


class Claim:
    """The right to the files of one name.

    Attributes:
        name: the name.
        directory: where they are.
    """

    def __init__(self, directory: Path, name: str, descriptor: int) -> None:
        """Hold a lock that was taken, by its descriptor."""
        self.directory = directory
        self.name = name
        self._descriptor: int | None = descriptor

    def segment(self, number: int) -> Path:
        """Return the path of a segment."""
        return self.directory / f"{self.name}-{number:06d}.spool"

    def segments(self) -> list[Path]:
        """Return the segments that there are, in their order."""
        found = [match for entry in os.listdir(self.directory) if (match := _SEGMENT.fullmatch(entry))]
        ours = sorted((int(match[2]), match[0]) for match in found if match[1] == self.name)
        return [self.directory / entry for _, entry in ours]

    def release(self) -> None:
        """Give the files up; nothing of the name is left where there are none."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            try:
                if not self.segments():
                    # while it is held: whoever opened it meanwhile sees that it is not the directory's any more
                    (self.directory / f"{self.name}.lock").unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def claim(directory: Path, name: str) -> Claim | None:
    """Take a name, or return None where another process has it.

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
    """Take a name that nobody had.

    Raises:
        OSError: the directory cannot be written to.
    """
    while True:
        taken = claim(directory, randbytes(8).hex())
        if taken is not None:
            return taken


def count_living(directory: Path, own: str) -> int:
    """Return how many names other processes hold.

    Raises:
        OSError: the directory cannot be read.
    """
    names = {match[1] for entry in os.listdir(directory) if (match := _LOCK.fullmatch(entry))}
    return sum(_is_held(directory / f"{name}.lock") for name in names - {own})


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # shared: two that look at the same time do not take each other for the holder
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def claim_abandoned(directory: Path, known: Iterable[str]) -> list[Claim]:
    """Take every name whose process is gone, but for those known to be of no use.

    Raises:
        OSError: the directory cannot be read or written to.
    """
    matches = (_SEGMENT.fullmatch(entry) or _LOCK.fullmatch(entry) for entry in os.listdir(directory))
    names = {match[1] for match in matches if match} - set(known)
    return [taken for name in sorted(names) if (taken := claim(directory, name)) is not None]
