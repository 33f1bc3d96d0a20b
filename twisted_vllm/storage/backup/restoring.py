"""Puts a backup back: all of it is unpacked and checked before anything that is there is touched."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import attrs

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.backup import journal, seals
from twisted_vllm.storage.backup.checking import Sink, read, read_header
from twisted_vllm.storage.backup.journal import Move
from twisted_vllm.storage.backup.manifest import MAIN, SPOOL, SQLITE, BackupError, Manifest
from twisted_vllm.storage.backup.place import Place, check_writable, owner_of
from twisted_vllm.storage.backup.snapshots import fault_of
from twisted_vllm.storage.backup.writing import Progress
from twisted_vllm.storage.schema import HEAD
from twisted_vllm.storage.schema_steps import number_of
from twisted_vllm.storage.tables import VERSION_TABLE


@attrs.frozen
class Wish:
    """How a backup is put back.

    Attributes:
        secret: what the gateway's keys of servers are encrypted with; None for none.
        force: whether what is there is moved aside, and another salt key than the backup's is accepted.
        keep_spool: whether files of the spool stay that are there, and those that are missing are added.
        warn: called with what to know.
        now: returns the time.
    """

    secret: Secret | None
    force: bool
    keep_spool: bool
    warn: Callable[[str], None]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


def check_header(header: Manifest, database: str, wish: Wish) -> None:
    """Check that a backup fits the gateway.

    Args:
        header: of the backup.
        database: what the configuration names: `manifest.SQLITE` or `manifest.POSTGRESQL`.
        wish: how it is put back.

    Raises:
        BackupError: it does not.
    """
    if header.database != database:
        names = {SQLITE: "SQLite"}
        raise BackupError(
            f"it is of {names.get(header.database, 'PostgreSQL')}, and the configuration names "
            f"{names.get(database, 'PostgreSQL')}"
        )
    if number_of(header.works_with) > number_of(HEAD) or number_of(header.schema) < 0:
        raise BackupError(
            f"it has the schema {header.schema} of version {header.version}, which is newer than {HEAD}, the last one "
            "that this version knows: use that version, or a later one"
        )
    if header.seal and not seals.opens(wish.secret, header.seal):
        text = (
            f"it has {header.sealed} keys of servers that are encrypted with another salt key (or, where none was set, "
            "another master key) than this configuration has"
        )
        if not wish.force:
            raise BackupError(f"{text}: set VLLM_PASSTHROUGH_SALT_KEY to that of the backup, or add --force")
        wish.warn(f"the backup{text.removeprefix('it')}: send each api_key again with POST /model/update")


def restore(backup: Path, place: Place, wish: Wish, progress: Progress) -> tuple[Manifest, list[Move]]:
    """Put a backup of SQLite in place; return its manifest, and what was moved aside.

    Raises:
        BackupError: that is not possible; all is as it was.
        OSError: likewise, unless the journal was written: then the next start or restore completes it.
    """
    assert place.main is not None and place.usage is not None and place.journal is not None
    header = read_header(backup)
    check_header(header, SQLITE, wish)
    if place.spool is None and header.count_of(SPOOL):
        raise BackupError("it has rows of the ledger's spool, and the ledger of this configuration is switched off")
    check_free(place, wish)
    check_writable(place.main.parent)
    with prepared(place, wish, header) as stages:
        manifest = unpack(backup, stages, progress)
        _check_database(manifest, stages)
        check_free(place, wish)
        asides = [] if not wish.force else kept(place.asides(wish.now()), place, wish)
        moves = [*asides, *placements(manifest, place, stages, wish, {source for source, _ in asides})]
        put_directories(place, moves)
        journal.begin(place.journal, moves, [str(each) for each in stages.values()], owner_of(place.main.parent))
        journal.complete_at_once(place.journal)
    return manifest, asides


def put_directories(place: Place, moves: Sequence[Move]) -> None:
    """Make the directories into which files are moved."""
    assert place.journal is not None or not moves
    for _, target in moves:
        parent = Path(target).parent
        _make_directory(parent, owner_of(_existing(parent)))


def finish_interrupted(place: Place) -> bool:
    """Complete a restore of SQLite that was interrupted; return whether there was one.

    Raises:
        OSError: a file cannot be moved.
    """
    return place.main is not None and place.journal is not None and journal.complete(place.journal)


@contextmanager
def prepared(place: Place, wish: Wish, header: Manifest) -> Iterator[dict[str, Path]]:
    """Make the directories in which files are prepared, and remove them at the end, unless the journal needs them.

    Raises:
        BackupError: there is no room, or they cannot be made.
        OSError: the disk failed.
    """
    for each in place.left_over():
        shutil.rmtree(each, ignore_errors=True)
    if place.journal is not None:
        journal.unwritten(place.journal).unlink(missing_ok=True)
    stages = place.stages(secrets.token_hex(4))
    for stage in stages.values():
        check_writable(stage.parent)
        beside = [prefix for prefix, each in stages.items() if _disk(each) == _disk(stage)]
        _check_room(_existing(stage.parent), header, beside)
    try:
        for stage in stages.values():
            _make_directory(stage, owner_of(_existing(stage.parent)))
        yield stages
    except BaseException:
        if place.journal is None or not place.journal.exists():
            for stage in stages.values():
                shutil.rmtree(stage, ignore_errors=True)
        raise


def unpack(backup: Path, stages: dict[str, Path], progress: Progress) -> Manifest:
    """Unpack the files of a backup that go into files, check all, and sync them to the disk.

    Raises:
        BackupError, OSError: see `read`.
    """
    size = backup_bytes = 0

    def begin(header: Manifest) -> Callable[[str], Sink]:
        nonlocal backup_bytes
        backup_bytes = header.bytes
        return lambda name: _writer(staged(name, stages))

    def count(number: int) -> None:
        nonlocal size
        size += number
        progress(size, backup_bytes)

    manifest = read(backup, begin, count)
    for stage in stages.values():
        for path, _, _ in os.walk(stage):
            journal.sync_directory(path)
    return manifest


def staged(name: str, stages: dict[str, Path]) -> Path:
    """Return where a file of a backup is prepared.

    Raises:
        BackupError: it goes nowhere.
    """
    for prefix, stage in stages.items():
        if name.startswith(prefix):
            return stage / (name.removeprefix(prefix) or Path(name).name)
    raise BackupError(f"{name} in it has no place in this configuration")


def placements(
    manifest: Manifest, place: Place, stages: dict[str, Path], wish: Wish, moved: set[str]
) -> Iterator[Move]:
    """Yield the moves that put the files in place; files of the spool that are there stay, if that is wished.

    Args:
        manifest: of the backup.
        place: where they go.
        stages: where they are.
        wish: how.
        moved: what is moved away before.
    """
    for file in manifest.files:
        target = place.target_of(file.name)
        if target is None:
            continue
        source = staged(file.name, stages)
        if os.path.lexists(target) and str(target) not in moved:
            if wish.keep_spool and file.name.startswith(SPOOL):
                # It is the same segment, and has as much or more.
                source.unlink()
                continue
            if target == place.main and target.stat().st_size == 0:
                target.unlink()
            else:
                raise BackupError(f"{target} was made by somebody else meanwhile")
        yield str(source), str(target)


def kept(asides: Sequence[Move], place: Place, wish: Wish) -> list[Move]:
    """Return the moves without those of the spool, if its files are to stay."""
    if not wish.keep_spool or place.spool is None:
        return list(asides)
    return [(source, target) for source, target in asides if place.spool not in Path(source).parents]


def check_free(place: Place, wish: Wish) -> None:
    """Check that nobody uses the place, and that it is empty or may be cleared.

    Raises:
        BackupError: it is not.
    """
    user = place.user()
    if user:
        raise BackupError(f"{user}: stop the gateway first")
    if wish.force or place.is_empty():
        return
    found = [each for each in place.contents() if not wish.keep_spool or place.spool not in each.parents]
    if found:
        raise BackupError(
            f"{found[0]} is there already{f', and {len(found) - 1} more files' if found[1:] else ''}: name another "
            "place in the configuration, or add --force, which moves what is there aside and deletes nothing"
        )


def _check_room(directory: Path, header: Manifest, prefixes: Sequence[str]) -> None:
    needed = sum(header.bytes_of(prefix) for prefix in prefixes)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise BackupError(f"{directory} has {free:,} bytes free, and the backup needs {needed:,}")


def _check_database(manifest: Manifest, stages: dict[str, Path]) -> None:
    for file in manifest.files:
        fault = "" if file.name.startswith(SPOOL) else fault_of(staged(file.name, stages))
        if fault:
            raise BackupError(f"{file.name} in it is damaged: {fault}")
    path = staged(MAIN, stages)
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as connection:
        try:
            found = connection.execute(f'SELECT version_num FROM "{VERSION_TABLE}"').fetchone()
        except sqlite3.Error:
            found = None
    if found is None or found[0] != manifest.schema:
        raise BackupError("its database has another schema than it says")


def _writer(path: Path) -> Sink:
    _make_directory(path.parent, owner_of(_existing(path.parent)))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    owner = owner_of(path.parent)
    if owner is not None:
        os.fchown(descriptor, *owner)

    def take(piece: bytes | None) -> None:
        if piece is None:
            os.fsync(descriptor)
            os.close(descriptor)
            return
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]

    return take


def _make_directory(directory: Path, owner: tuple[int, int] | None) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.parent, owner)
    directory.mkdir(mode=0o700)
    if owner is not None:
        os.chown(directory, *owner)


def _existing(directory: Path) -> Path:
    while not directory.exists():
        directory = directory.parent
    return directory


def _disk(path: Path) -> int:
    return os.stat(_existing(path)).st_dev
