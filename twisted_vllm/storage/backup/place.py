"""Where a backup is put back: whether somebody uses it, what is there, and where that goes."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import attrs

from twisted_vllm.storage.backup.journal import IN_SPOOL, Move, journal_of
from twisted_vllm.storage.backup.manifest import DUMP, MAIN, SPOOL, USAGE, BackupError
from twisted_vllm.storage.backup.spool_copy import BACKGROUND
from twisted_vllm.storage.usage.partitions import directory_of, files_beside
from twisted_vllm.usage.spool.segments import is_used

#: SQLite's locks of a file: the first byte that readers share, and how many there are (sqlite.org/src: os.h)
_SHARED_FIRST, _SHARED_BYTES = 0x40000002, 510
#: begins the names of directories in which a restore prepares files
STAGE = ".restoring-"
#: what a spool may have that is no record of anything
_LOCK = re.compile(r"[0-9a-z]+\.lock")
#: between the name of what was moved aside and when
ASIDE = ".before-restore-"


@attrs.frozen
class Place:
    """The files of a gateway.

    Attributes:
        main: SQLite's main file, by its real name; None for PostgreSQL.
        spool: the directory of the spool, by its real name; None without a ledger.
    """

    main: Path | None
    spool: Path | None

    @classmethod
    def of(cls, main: Path | None, spool: Path | None) -> Place:
        """Return the place of files that may be named by links."""
        return cls(*(None if each is None else Path(os.path.realpath(each)) for each in (main, spool)))

    @property
    def usage(self) -> Path | None:
        """The directory of the ledger's rows; None for PostgreSQL."""
        return None if self.main is None else Path(os.path.realpath(directory_of(self.main)))

    @property
    def journal(self) -> Path | None:
        """Where the journal of a restore is; None where nothing is put into files."""
        if self.main is not None:
            return journal_of(self.main)
        return None if self.spool is None else self.spool / IN_SPOOL

    def target_of(self, name: str) -> Path | None:
        """Return where a file of a backup goes; None if it goes into no file."""
        if name == MAIN:
            return self.main
        if name.startswith(USAGE):
            return None if self.usage is None else self.usage / name.removeprefix(USAGE)
        if name.startswith(SPOOL) and self.spool is not None:
            return self.spool / name.removeprefix(SPOOL)
        return None

    def stages(self, stamp: str) -> dict[str, Path]:
        """Return where a restore prepares files, on the file system on which each goes: by the prefix of names."""
        found = {}
        if self.main is not None and self.usage is not None:
            found[MAIN] = self.main.parent / f"{STAGE}{self.main.name}-{stamp}"
            found[USAGE] = self.usage / f"{STAGE}{stamp}"
        else:
            found[DUMP] = Path(tempfile.gettempdir()) / f"{STAGE}{stamp}"
        if self.spool is not None:
            found[SPOOL] = self.spool / f"{STAGE}{stamp}"
        return found

    def left_over(self) -> Iterator[Path]:
        """Yield what restores have left that were killed before anything counted."""
        for directory, start in (
            (self.main and self.main.parent, f"{STAGE}{self.main.name}-" if self.main else ""),
            (self.usage, STAGE),
            (self.spool, STAGE),
        ):
            if directory is not None and directory.is_dir():
                yield from (directory / entry for entry in os.listdir(directory) if entry.startswith(start))

    def user(self) -> str:
        """Return who uses the files; empty if nobody does.

        Raises:
            OSError: that cannot be found out.
        """
        if self.main is not None and self.main.exists():
            pid = holder_of(self.main)
            if pid is not None:
                return f"{self.main} is in use" + (f" by the process {pid}" if pid > 0 else "")
        if self.spool is not None and is_used(self.spool):
            return f"{self.spool} is in use"
        return ""

    def contents(self) -> list[Path]:
        """Return the files that are there, without locks and what restores have left."""
        found = []
        if self.main is not None and self.usage is not None:
            found += [each for each in (self.main, *files_beside(self.main)) if os.path.lexists(each)]
            found += _entries(self.usage)
        if self.spool is not None:
            found += _entries(self.spool)
            found += _entries(self.spool / BACKGROUND)
        return [each for each in found if each.name != BACKGROUND]

    def is_empty(self) -> bool:
        """Return whether nothing is there that anybody may miss."""
        return all(each == self.main and each.stat().st_size == 0 for each in self.contents())

    def asides(self, when: datetime) -> list[Move]:
        """Return the moves that take what is there aside: beside each place, under the same new name.

        What was the database can be used under its new name.
        """
        number = 1
        while True:
            moves = self._asides(f"{ASIDE}{when:%Y%m%dT%H%M%SZ}" + (f"-{number}" if number > 1 else ""))
            # A move never replaces a file.
            if not any(os.path.lexists(target) for _, target in moves):
                return moves
            number += 1

    def _asides(self, end: str) -> list[Move]:
        moves = []
        for each in self.contents():
            if self.main is not None and self.usage is not None and each.parent == self.usage:
                moves.append((each, _beside(self.usage, f"{self.main.name}{end}-usage") / each.name))
            elif self.spool is not None and self.spool in each.parents:
                moves.append((each, _beside(self.spool, f"{self.spool.name}{end}") / each.relative_to(self.spool)))
            elif self.main is not None:
                moves.append((each, each.with_name(f"{self.main.name}{end}{each.name.removeprefix(self.main.name)}")))
        return [(str(source), str(target)) for source, target in moves]


def holder_of(path: Path) -> int | None:
    """Return the process that has a SQLite file open, or another number if it cannot be seen from here; None if none.

    With a write-ahead log, a connection holds a shared lock of the file as long as it is open.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        form = "hhqqi4x"
        asked = struct.pack(form, fcntl.F_WRLCK, os.SEEK_SET, _SHARED_FIRST, _SHARED_BYTES, 0)
        kind, _, _, _, pid = struct.unpack(form, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        # this process has no lock of the file, which closing would drop
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else int(pid)


def owner_of(directory: Path) -> tuple[int, int] | None:
    """Return who is to own what root makes in a directory; None if whoever runs this is to."""
    if os.geteuid() != 0:
        return None
    status = os.stat(directory)
    return status.st_uid, status.st_gid


def check_writable(directory: Path) -> None:
    """Check that files can be made in a directory, which may have to be made too.

    Raises:
        BackupError: they cannot.
    """
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise BackupError(f"{existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BackupError(f"Nothing can be written to {existing}: Permission denied (run this as the gateway's user)")


def _beside(directory: Path, name: str) -> Path:
    """Return where files of a directory go: beside it, or in it if that is on another disk."""
    is_same = os.stat(directory).st_dev == os.stat(directory.parent).st_dev and not os.path.ismount(directory)
    return (directory.parent if is_same else directory) / name


def _entries(directory: Path) -> list[Path]:
    try:
        found = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    return [
        directory / entry
        for entry in found
        if not entry.startswith(STAGE) and ASIDE not in entry and not _LOCK.fullmatch(entry) and entry != IN_SPOOL
    ]
