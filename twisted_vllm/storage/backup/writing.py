"""Makes a backup: holds everything at one moment, copies it, and reads the archive back."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import attrs
import msgspec

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.backup import seals
from twisted_vllm.storage.backup.archive import PIECE, ArchiveWriter, check_suffix
from twisted_vllm.storage.backup.checking import check
from twisted_vllm.storage.backup.journal import sync_directory
from twisted_vllm.storage.backup.manifest import (
    FORMAT,
    HEADER,
    MAIN,
    MANIFEST,
    SQLITE,
    USAGE,
    BackupError,
    File,
    Manifest,
    encode,
)
from twisted_vllm.storage.backup.snapshots import Snapshot
from twisted_vllm.storage.backup.spool_copy import HeldSpool, SegmentsMissed, SpoolFile
from twisted_vllm.storage.schema import HEAD
from twisted_vllm.storage.schema_steps import number_of
from twisted_vllm.storage.tables import VERSION_TABLE, models
from twisted_vllm.storage.usage.partitions import directory_of, partition_named
from twisted_vllm.storage.usage.tables import usage_partitions

#: how often everything is held anew, if a partition or a segment goes in between
_ATTEMPTS = 5
#: files that are open beside those of the spool and of the database
_OTHER_FILES = 64
#: what of the files' size an archive takes at least: less room than that is refused before anything is written
_LEAST_SHARE = 0.1


#: hears how many bytes are done, and of how many
Progress = Callable[[int, int], None]


@attrs.frozen
class Source:
    """What is backed up.

    Attributes:
        spool: the directory of the ledger's spool; None without a ledger.
        secret: what the keys of servers are encrypted with; None for none.
        version: of the gateway.
        now: returns the time.
    """

    spool: Path | None
    secret: Secret | None
    version: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class SqliteParts:
    """The files of a SQLite database and of the spool, held at one moment; a context manager."""

    def __init__(self, main: Path, source: Source) -> None:
        self._main = main
        self._source = source
        self._stack = ExitStack()
        self.header: Manifest
        self.snapshots: list[tuple[str, Snapshot]] = []
        self.spool: Sequence[SpoolFile] = ()

    def __enter__(self) -> SqliteParts:
        for attempt in range(_ATTEMPTS):
            try:
                self._hold(is_last=attempt == _ATTEMPTS - 1)
                return self
            except (_PartitionDropped, SegmentsMissed):
                self._stack.close()
            except BaseException:
                self._stack.close()
                raise
        raise BackupError("Files of the ledger come and go too quickly to be held: try again")

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _hold(self, *, is_last: bool) -> None:
        """Hold the spool, the main file, the files of rows, and the spool again, in this order.

        A row is stored before it is added up, and leaves the spool after that. So whatever the main file has added up
        is in the files of rows, which are held later, and all else is in the spool, which was held before and is read
        to its end after. What a restore adds up from the spool is then exactly what the main file lacks.
        """
        self.snapshots = []
        held = HeldSpool(self._source.spool)
        self._stack.callback(held.close)
        held.hold()
        main = self._snapshot(MAIN, self._main)
        try:
            names = _partitions(main)
            schema, works_with = _schema(main, self._main)
            sealed = _sealed(main)
        except sqlite3.Error as error:
            raise BackupError(f"{self._main} cannot be read: {error}") from None
        allow_files(2 * len(names))
        missing = []
        directory = directory_of(self._main)
        for name in names:
            try:
                self._snapshot(f"{USAGE}{name}.db", directory / f"{name}.db")
            except FileNotFoundError:
                # dropped since, or lost
                if not is_last:
                    raise _PartitionDropped from None
                missing.append(f"{name}.db")
        self.spool = held.freeze()
        self.header = Manifest(
            format=FORMAT,
            version=self._source.version,
            database=SQLITE,
            schema=schema,
            works_with=works_with,
            taken_at=in_utc(self._source.now()),
            files=tuple(
                File(name, size)
                for name, size in (
                    *((name, each.bytes) for name, each in self.snapshots),
                    *((each.name, each.size) for each in self.spool),
                )
            ),
            sealed=sealed,
            seal=seals.seal(self._source.secret) if sealed else "",
            missing=tuple(missing),
        )

    def _snapshot(self, name: str, path: Path) -> Snapshot:
        found = Snapshot(path)
        self._stack.callback(found.close)
        self.snapshots.append((name, found))
        return found

    @property
    def room(self) -> int:
        """The bytes that copies take beside the archive, at most at one time."""
        busy: int = sum(each.bytes for name, each in self.snapshots if self._is_first(name, each))
        others = [each.bytes for name, each in self.snapshots if not self._is_first(name, each)]
        return busy + max(others, default=0)

    def copied(self, directory: Path, progress: Callable[[int], None]) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Yield the name, the size and the content of each file.

        Files that others write to are copied before anything is compressed: until then their logs grow.

        Args:
            directory: for copies, which are removed when they were read.
            progress: called with bytes that are done.
        """
        first = {name for name, each in self.snapshots if self._is_first(name, each)}
        for name, each in self.snapshots:
            if name in first:
                each.copy(directory / _flat(name), progress)
        for name, each in self.snapshots:
            copy = directory / _flat(name)
            if name not in first:
                each.copy(copy, progress)
            yield name, each.bytes, read_pieces(copy, progress)
            copy.unlink()
        for file in self.spool:
            yield file.name, file.size, file.pieces()

    def _is_first(self, name: str, snapshot: Snapshot) -> bool:
        return name == MAIN or snapshot.is_busy


class _PartitionDropped(Exception):
    """A file of rows went between the main file and it."""


class Parts(Protocol):
    """What a backup is made of; see `SqliteParts`."""

    header: Manifest

    @property
    def room(self) -> int:
        """The bytes that copies take beside the archive, at most at one time."""

    def copied(self, directory: Path, progress: Callable[[int], None]) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Yield the name, the size and the content of each file."""


def check_target(target: Path) -> None:
    """Check that a backup can be written under a name, before anything is held.

    Raises:
        BackupError: it cannot.
    """
    check_suffix(target)
    if os.path.lexists(target):
        raise BackupError(f"{target} exists already: a backup replaces nothing; name another file")
    if not target.parent.is_dir():
        raise BackupError(f"The directory {target.parent} does not exist: make it, or name another file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise BackupError(f"Nothing can be written to {target.parent}: Permission denied")


def write(parts: Parts, source: Source, target: Path, progress: Progress) -> Manifest:
    """Write what is held into an archive, read it back, and only then give it its name.

    Args:
        parts: what is held.
        source: where it is from.
        target: the archive; there is nothing of this name.
        progress: hears of the bytes that were copied, written and read back.

    Raises:
        BackupError: it cannot be written, or was not read back as it was written. Nothing is left.
    """
    header = parts.header
    _check_room(target, header.bytes, parts.room)
    # each byte is copied, read for the archive, and read back
    total, done = 3 * header.bytes, 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        progress(min(done, total), total)

    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
            partial = Path(place) / target.name
            manifest = _write_archive(parts, source, partial, Path(place), count)
            _read_back(partial, manifest, count)
            _give_name(partial, target)
            sync_directory(target.parent)
            return manifest
    except FileExistsError:
        raise BackupError(f"{target} was made by somebody else meanwhile; nothing was replaced") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BackupError(f"{target.parent} has no room left for the backup; nothing of it is kept") from None
        raise BackupError(f"{target} cannot be written: {error.strerror or error}; nothing of it is kept") from None


def _read_back(partial: Path, manifest: Manifest, progress: Callable[[int], None]) -> None:
    try:
        problem = "" if check(partial, progress) == manifest else "it says something else"
    except BackupError as error:
        problem = str(error)
    if problem:
        raise BackupError(
            f"{partial.name} was not read back as it was written: {problem}; nothing of it is kept. Check the disk"
        )


def _write_archive(parts: Parts, source: Source, path: Path, place: Path, progress: Callable[[int], None]) -> Manifest:
    header = parts.header
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        archive = ArchiveWriter(file, path.name, int(datetime.fromisoformat(header.taken_at).timestamp()))
        text = encode(header)
        archive.add(HEADER, len(text), iter((text,)))
        sums: list[str] = []
        for name, size, pieces in parts.copied(place, progress):
            digest = hashlib.sha256()
            archive.add(name, size, _hashed(pieces, digest.update))
            sums.append(digest.hexdigest())
        files = [msgspec.structs.replace(each, sha256=sum) for each, sum in zip(header.files, sums, strict=True)]
        manifest = msgspec.structs.replace(header, files=tuple(files), finished_at=in_utc(source.now()))
        text = encode(manifest)
        archive.add(MANIFEST, len(text), iter((text,)))
        archive.close()
        file.flush()
        os.fsync(file.fileno())
    return manifest


def _give_name(partial: Path, target: Path) -> None:
    try:
        # a link, unlike a rename, replaces nothing
        os.link(partial, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # a file system without links
        if os.path.lexists(target):
            raise FileExistsError from None
        partial.rename(target)


def _hashed(pieces: Iterator[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for piece in pieces:
        update(piece)
        yield piece


def read_pieces(path: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    """Yield what a file holds, and tell how many bytes that are."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            progress(len(piece))
            yield piece


def _check_room(target: Path, size: int, copies: int) -> None:
    free = shutil.disk_usage(target.parent).free
    needed = copies + int(size * _LEAST_SHARE)
    if free < needed:
        raise BackupError(
            f"{target.parent} has {free:,} bytes free, and the backup needs {needed:,} or more there: "
            f"{copies:,} for copies, which are removed again, and a part of {size:,} for itself"
        )


def allow_files(number: int) -> None:
    """Allow this process so many open files more than it needs anyway.

    Raises:
        BackupError: the system refuses.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(FileNotFoundError):
        number += len(os.listdir("/proc/self/fd"))
    wanted = number + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BackupError(f"The backup needs {wanted} open files, and {hard} are allowed: raise `ulimit -n`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def in_utc(moment: datetime) -> str:
    """Return a moment as it stands in a manifest."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _flat(name: str) -> str:
    return name.replace("/", "-")


def _partitions(main: Snapshot) -> list[str]:
    """Return the names of the partitions, newest first."""
    if not main.has_table(usage_partitions.name):
        # before revision 0010
        return []
    found = main.rows(f'SELECT name FROM "{usage_partitions.name}" ORDER BY "start" DESC')
    return [str(name) for (name,) in found if partition_named(str(name)) is not None]


def _schema(main: Snapshot, path: Path) -> tuple[str, str]:
    if not main.has_table(VERSION_TABLE):
        raise BackupError(f"{path} is not a database of vllm-passthrough: it has no table {VERSION_TABLE}")
    revision = str(main.one(f'SELECT version_num FROM "{VERSION_TABLE}"'))
    works_with = revision
    if "works_with" in main.columns(VERSION_TABLE):
        works_with = str(main.one(f'SELECT works_with FROM "{VERSION_TABLE}"') or revision)
    check_revision(revision, works_with)
    return revision, works_with


def check_revision(revision: str, works_with: str) -> None:
    """Check that this version knows where a database of a schema has its rows.

    Raises:
        BackupError: the schema is a newer version's.
    """
    if number_of(works_with) > number_of(HEAD):
        raise BackupError(
            f"The database has the schema {revision}, which is newer than {HEAD} of this version: make the backup with "
            "the version that runs on it"
        )


def _sealed(main: Snapshot) -> int:
    if not main.has_table(models.name):
        return 0
    return int(str(main.one(f'SELECT count(*) FROM "{models.name}" WHERE api_key IS NOT NULL')))
