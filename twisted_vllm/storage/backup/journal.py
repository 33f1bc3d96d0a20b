"""Puts many files in place as one step: what a crash interrupts, the next start or restore completes.

The moves are written to a file beside the database first. From then on they count as done: whoever finds the file makes
those that are missing. Before, nothing was moved.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: the end of the journal's name, after that of SQLite's main file
SUFFIX = ".restoring"
#: its name in a spool, where the database is PostgreSQL
IN_SPOOL = "restoring.json"

#: a file, and where it goes
Move = tuple[str, str]


def journal_of(main: Path) -> Path:
    """Return where the journal of a SQLite database is, by the real name of its file."""
    return Path(f"{os.path.realpath(main)}{SUFFIX}")


def unwritten(journal: Path) -> Path:
    """Return the name under which a journal is written: of one that is there, nothing counts."""
    return Path(f"{journal}.new")


def begin(
    journal: Path, moves: Sequence[Move], directories: Sequence[str], owner: tuple[int, int] | None, token: str = ""
) -> None:
    """Write the journal: from its return on, the moves count as done.

    Args:
        journal: where.
        moves: each once, in their order; what is in the way of a later one goes first.
        directories: to remove at the end, with nothing in them but empty directories.
        owner: who is to own it; None for who runs this.
        token: what else must be somewhere for the moves to count.

    Raises:
        OSError: it cannot be written; nothing counts as done.
    """
    text = json.dumps({"moves": moves, "directories": directories, "token": token}).encode()
    new = unwritten(journal)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if owner is not None:
            os.fchown(descriptor, *owner)
        view = memoryview(text)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(journal)
    sync_directory(journal.parent)


def complete_at_once(journal: Path) -> None:
    """Do what `complete` does, also if Ctrl-C comes in between: what was begun takes milliseconds.

    Raises:
        OSError: a file cannot be moved; the next call goes on.
    """
    try:
        complete(journal)
    except KeyboardInterrupt:
        complete(journal)


def complete(journal: Path) -> bool:
    """Make the moves of a journal that are not made, and remove it; return whether there was one.

    Several processes may call it at once.

    Raises:
        OSError: a file cannot be moved; the next call goes on.
    """
    with _locked(journal) as text:
        if text is None:
            return False
        written = json.loads(text)
        moves: list[Move] = [(source, target) for source, target in written["moves"]]
        for source, target in moves:
            # Each source was there at first, and each target was not, or was moved away before.
            if os.path.lexists(source) and not os.path.lexists(target):
                os.rename(source, target)
        sync_directories(each for move in moves for each in move)
        for directory in written["directories"]:
            _remove_empty(directory)
        journal.unlink()
        sync_directory(journal.parent)
        return True


def sync_directory(directory: Path | str) -> None:
    """Sync the names of a directory to the disk.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directories(paths: Iterable[str]) -> None:
    """Sync the directories in which some files are."""
    for directory in sorted({os.path.dirname(path) for path in paths}):
        with contextlib.suppress(FileNotFoundError):
            sync_directory(directory)


@contextmanager
def _locked(journal: Path) -> Iterator[bytes | None]:
    """Yield the text of a journal while nobody else completes it; None if it is gone."""
    try:
        descriptor = os.open(journal, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        is_gone = os.fstat(descriptor).st_nlink == 0
        yield None if is_gone else os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _remove_empty(directory: str) -> None:
    """Remove a directory that has nothing but empty directories."""
    for path, _, _ in os.walk(directory, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
