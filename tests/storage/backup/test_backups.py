"""Backups of SQLite: what is in them, what is refused, and that nothing is left of one that failed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.builders import usage_rows
from tests.storage.backup.making import Files, fill, requests_of, unread
from tests.storage.retention_contract import Store, at
from twisted_vllm.storage.backup import writing
from twisted_vllm.storage.backup.archive import ArchiveWriter
from twisted_vllm.storage.backup.checking import check
from twisted_vllm.storage.backup.manifest import BackupError, Manifest
from twisted_vllm.storage.backup.snapshots import Snapshot
from twisted_vllm.storage.backup.spool_copy import HeldSpool, SegmentsMissed
from twisted_vllm.storage.schema import HEAD


@pytest.fixture
def gateway(tmp_path: Path) -> Files:
    return fill(tmp_path / "gateway")


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_backup_has_the_database_its_rows_and_the_spool_and_says_so(gateway: Files, tmp_path: Path) -> None:
    manifest = gateway.back_up(tmp_path / "b.tar.gz")
    assert [each.name for each in manifest.files] == [
        *("database/main.sqlite3", "database/usage/2026-06.db", "database/usage/2026-05.db"),
        "spool/f00d-000002.spool",
    ]
    assert (manifest.version, manifest.schema, manifest.database) == ("0.1.0", HEAD, "sqlite")
    assert (manifest.taken_at, manifest.finished_at) == ("2026-06-15T12:00:00.000Z", "2026-06-15T12:00:00.000Z")
    assert check(tmp_path / "b.tar.gz", unread) == manifest
    assert all(len(each.sha256) == 64 for each in manifest.files)


def test_a_backup_is_as_private_as_the_files_and_nothing_is_left_beside_it(gateway: Files, tmp_path: Path) -> None:
    gateway.back_up(tmp_path / "b.tar.gz")
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["b.tar.gz", "gateway"]
    assert names(gateway.directory) == ["keys.sqlite", "keys.sqlite-usage", "keys.sqlite.spool"]


def test_half_a_line_at_the_end_of_the_spool_is_left_out(gateway: Files, tmp_path: Path) -> None:
    whole = (gateway.spool / "f00d-000002.spool").read_bytes()
    with (gateway.spool / "f00d-000002.spool").open("ab") as file:
        file.write(b"0badc0de [" + b"x" * 200_000)
    other = Files(tmp_path / "other")
    other.directory.mkdir()
    gateway.back_up(tmp_path / "b.tar.gz")
    other.restore(tmp_path / "b.tar.gz")
    assert (other.spool / "f00d-000002.spool").read_bytes() == whole


def test_background_responses_and_what_was_set_aside_are_in_it_and_strangers_files_are_not(
    gateway: Files, tmp_path: Path
) -> None:
    (gateway.spool / "background").mkdir()
    (gateway.spool / "background" / "f00d-resp_1.pending").write_bytes(b"0 {}\n")
    (gateway.spool / "background" / "f00d.lock").touch()
    (gateway.spool / "f00d.damaged").write_bytes(b"lines\n")
    (gateway.spool / "notes.txt").write_text("mine")
    (gateway.usage / "2026-07.db").write_bytes(b"a partition that the database does not know")
    manifest = gateway.back_up(tmp_path / "b.tar.gz")
    found = [each.name for each in manifest.files if not each.name.startswith("database/usage/2026-0")]
    assert found == [
        *("database/main.sqlite3", "spool/f00d-000002.spool", "spool/f00d.damaged"),
        "spool/background/f00d-resp_1.pending",
    ]


def test_a_database_without_a_ledger_is_backed_up_too(tmp_path: Path) -> None:
    files = fill(tmp_path / "gateway")
    shutil.rmtree(files.spool)
    manifest = files.back_up(tmp_path / "b.tar.gz")
    assert manifest.count_of("spool/") == 0


def test_a_partition_that_is_missing_is_named_and_does_not_stop_the_backup(gateway: Files, tmp_path: Path) -> None:
    (gateway.usage / "2026-05.db").unlink()
    assert gateway.back_up(tmp_path / "b.tar.gz").missing == ("2026-05.db",)


def test_a_partition_that_is_dropped_meanwhile_has_everything_held_anew(
    gateway: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    class Dropping(Snapshot):
        def __init__(self, path: Path) -> None:
            held.append(path.name)
            if len(held) == 2:
                store = Store(gateway.url)
                store.time = at("2026-11-11")
                assert store.database.drop_before(at("2026-06-01")) == 1
                store.close()
            super().__init__(path)

    monkeypatch.setattr(writing, "Snapshot", Dropping)
    manifest = gateway.back_up(tmp_path / "b.tar.gz")
    assert held == ["keys.sqlite", "2026-06.db", "2026-05.db", "keys.sqlite", "2026-06.db"]
    assert (manifest.missing, manifest.count_of("database/usage/")) == ((), 1)


def test_a_segment_that_came_and_went_while_others_were_held_is_noticed(gateway: Files) -> None:
    held = HeldSpool(gateway.spool)
    held.hold()
    (gateway.spool / "f00d-000004.spool").write_bytes(b"later\n")
    with pytest.raises(SegmentsMissed):
        held.freeze()
    held.close()


def test_a_segment_that_is_removed_while_it_is_held_is_in_the_backup(gateway: Files) -> None:
    held = HeldSpool(gateway.spool)
    held.hold()
    content = (gateway.spool / "f00d-000002.spool").read_bytes()
    (gateway.spool / "f00d-000002.spool").unlink()
    [file] = held.freeze()
    assert b"".join(file.pieces()) == content
    held.close()


def test_what_is_written_while_a_file_is_copied_is_not_in_the_copy(gateway: Files, tmp_path: Path) -> None:
    snapshot = Snapshot(gateway.main)
    with closing(sqlite3.connect(gateway.main)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE later (a)")
        other.executemany("INSERT INTO later VALUES (?)", [("x" * 500,)] * 5_000)
        other.commit()
    snapshot.copy(tmp_path / "copy", unread)
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'later'").fetchone() == (0,)
    assert (tmp_path / "copy").stat().st_size == snapshot.bytes


def refused(files: Files, target: Path) -> str:
    with pytest.raises(BackupError) as error:
        writing.check_target(target)
        files.back_up(target)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_target_that_cannot_be_is_refused_before_anything_is_read(gateway: Files, tmp_path: Path) -> None:
    taken = tmp_path / "taken.tar.gz"
    taken.write_bytes(b"mine")
    assert refused(gateway, taken) == f"{taken} exists already: a backup replaces nothing; name another file"
    assert "ends neither in .tar.zst nor in .tar.gz" in refused(gateway, tmp_path / "b.tar")
    assert "does not exist: make it" in refused(gateway, tmp_path / "nowhere" / "b.tar.gz")
    assert taken.read_bytes() == b"mine"


def test_a_directory_that_is_not_writable_is_named(
    gateway: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may write anywhere
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert refused(gateway, tmp_path / "b.tar.gz") == f"Nothing can be written to {tmp_path}: Permission denied"


def test_zstd_without_its_package_says_what_to_install(
    gateway: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twisted_vllm.storage.backup.archive._zstd", lambda: None)
    said = refused(gateway, tmp_path / "b.tar.zst")
    assert "pip install 'twisted-vllm[zstd]'" in said
    assert "or name a .tar.gz" in said


def test_a_file_that_is_no_gateway_s_database_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with closing(sqlite3.connect(files.main)) as other:
        other.execute("CREATE TABLE a (b)")
        other.commit()
    assert "is not a database of vllm-passthrough" in refused(files, tmp_path / "b.tar.gz")
    files.main.write_bytes(b"hello" * 1_000)
    assert f"{files.main} cannot be read: file is not a database" in refused(files, tmp_path / "b.tar.gz")


def test_a_damaged_database_is_no_backup(gateway: Files, tmp_path: Path) -> None:
    data = bytearray((gateway.usage / "2026-06.db").read_bytes())
    data[4096 + 8 : 4096 + 200] = b"\xff" * 192
    (gateway.usage / "2026-06.db").write_bytes(bytes(data))
    assert "is damaged" in refused(gateway, tmp_path / "b.tar.gz")
    assert names(tmp_path) == ["gateway"]


def test_a_newer_schema_is_refused_unless_it_works_with_this_version(gateway: Files, tmp_path: Path) -> None:
    with closing(sqlite3.connect(gateway.main)) as other:
        other.execute("UPDATE vllm_passthrough_schema SET version_num = '0999_later', works_with = '0998_later'")
        other.commit()
    assert "has the schema 0999_later, which is newer than" in refused(gateway, tmp_path / "b.tar.gz")
    with closing(sqlite3.connect(gateway.main)) as other:
        other.execute("UPDATE vllm_passthrough_schema SET works_with = ?", (HEAD,))
        other.commit()
    assert gateway.back_up(tmp_path / "b.tar.gz").schema == "0999_later"


def test_too_little_room_is_said_before_anything_is_written(
    gateway: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 50_000))
    said = refused(gateway, tmp_path / "b.tar.gz")
    assert "has 50,000 bytes free, and the backup needs" in said
    assert names(tmp_path) == ["gateway"]


def failing(error: BaseException, after: int) -> Callable[..., None]:
    original = ArchiveWriter.add
    calls = 0

    def add(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        original(*arguments)

    return add


@pytest.mark.parametrize("after", range(6))
def test_a_disk_that_fills_leaves_no_half_backup(
    gateway: Files, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArchiveWriter, "add", failing(OSError(errno.ENOSPC, "No space left on device"), after))
    assert refused(gateway, tmp_path / "b.tar.gz").endswith("has no room left for the backup; nothing of it is kept")
    assert names(tmp_path) == ["gateway"]


def test_ctrl_c_at_any_moment_leaves_no_half_backup(gateway: Files, tmp_path: Path) -> None:
    total = 0

    def count(done: int, _total: int) -> None:
        nonlocal total
        total += 1

    def backed_up(progress: Callable[[int, int], None], target: str) -> Manifest:
        source = gateway.source()
        with writing.SqliteParts(gateway.main, source) as parts:
            return writing.write(parts, source, tmp_path / target, progress)

    backed_up(count, "whole.tar.gz")
    for at_call in range(total):
        left = at_call

        def interrupt(_done: int, _total: int) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1

        with pytest.raises(KeyboardInterrupt):
            backed_up(interrupt, "b.tar.gz")
        assert names(tmp_path) == ["gateway", "whole.tar.gz"]
    assert total > 8


def test_an_archive_that_the_disk_did_not_keep_gets_no_name(
    gateway: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(partial: Path, progress: Callable[[int], None]) -> Manifest:
        with partial.open("r+b") as file:
            file.seek(1_000)
            file.write(b"\0" * 64)
        return check(partial, progress)

    monkeypatch.setattr(writing, "check", spoiled)
    assert "b.tar.gz was not read back as it was written: " in refused(gateway, tmp_path / "b.tar.gz")
    assert names(tmp_path) == ["gateway"]


def test_somebody_who_takes_the_name_meanwhile_keeps_it(gateway: Files, tmp_path: Path) -> None:
    def take(_done: int, _total: int) -> None:
        (tmp_path / "b.tar.gz").write_bytes(b"mine")

    source = gateway.source()
    with writing.SqliteParts(gateway.main, source) as parts, pytest.raises(BackupError, match="nothing was replaced"):
        writing.write(parts, source, tmp_path / "b.tar.gz", take)
    assert (tmp_path / "b.tar.gz").read_bytes() == b"mine"


def test_a_backup_of_rows_of_a_year_of_days_needs_no_more_open_files_than_are_allowed(tmp_path: Path) -> None:
    files = Files(tmp_path / "gateway")
    files.directory.mkdir()
    store = Store(files.url)
    store.periods.reconfigure(10.0 * 86_400)
    store.time = at("2026-01-01")
    store.database.write(
        [row for day in range(60) for row in usage_rows(1, day, time=at("2026-01-01") + day * 86_400_000_000)]
    )
    store.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 70, hard))
    try:
        assert files.back_up(tmp_path / "b.tar.gz").count_of("database/usage/") == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_files_are_as_before_for_the_gateway(gateway: Files, tmp_path: Path) -> None:
    before = gateway.contents()
    gateway.back_up(tmp_path / "b.tar.gz")
    assert gateway.contents() == before
    assert requests_of(gateway) == 20
