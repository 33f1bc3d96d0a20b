"""Old rows on SQLite, whose partitions are files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select
from twisted.logger import capturedLogs as captured_logs
from twisted.logger import eventAsText

from tests.builders import usage_row
from tests.conftest import LoggedFailures
from tests.storage.retention_contract import RetentionContract, Store, at
from tests.storage.retention_contract import test_partitions_are_found_by_their_names as test_names  # noqa: F401
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import make_engine
from twisted_vllm.storage.transacting import Failed, Fault, transact
from twisted_vllm.storage.usage import retention
from twisted_vllm.storage.usage.partition_files import make_missing_files
from twisted_vllm.storage.usage.partitions import PartitionLost, partitions_of, rows_in
from twisted_vllm.storage.usage.tables import usage
from twisted_vllm.usage.interfaces import DatabaseUnavailable


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
    yield store
    store.close()


class TestOnSqlite(RetentionContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
        yield store
        store.close()


def files_of(store: Store) -> list[str]:
    directory = Path(f"{store.engine.url.database}-usage")
    return sorted(each.name for each in directory.iterdir() if each.suffix == ".db" or "dropped" in each.name)


def test_the_files_go_with_their_logs(store: Store) -> None:
    store.write("2026-02-02", "2026-06-15")
    store.database.drop_before(at("2026-03-01"))
    directory = Path(f"{store.engine.url.database}-usage")
    assert {each.name.partition(".")[0] for each in directory.iterdir()} == {"2026-06"}


@pytest.mark.parametrize("left", ["2026-02.db", "2026-02.db-wal", "2026-02.db.dropped", "2026-02.db-shm.dropped"])
def test_what_a_crash_left_goes_with_the_next_call(store: Store, left: str) -> None:
    store.write("2026-06-15")
    directory = Path(f"{store.engine.url.database}-usage")
    (directory / left).write_bytes(b"rest")
    (directory / "notes.txt").write_bytes(b"an operator's")
    store.database.drop_before(at("2026-03-01"))
    assert not (directory / left).exists()
    assert (directory / "notes.txt").exists()


@pytest.mark.parametrize("step", ["_set_aside", "_names_of_files", "check_file"])
def test_a_drop_that_failed_is_done_by_the_next_call(store: Store, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("2026-02-02", "2026-06-15")

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(retention, step, fail)
        with pytest.raises(DatabaseUnavailable, match="Input/output error"):
            store.database.drop_before(at("2026-03-01"))
    store.database.drop_before(at("2026-03-01"))
    assert store.partitions == ["2026-06"]
    assert files_of(store) == ["2026-06.db"]
    assert len(store.rows) == 1


def test_newer_files_that_a_restored_main_file_does_not_know_stay(store: Store) -> None:
    """They are known again with the next row of their time."""
    store.write("2026-06-15")
    with store.engine.begin() as connection:
        retention._forget(connection, 2**62)
    store.database.close()
    store.database.drop_before(at("2026-03-01"))
    assert files_of(store) == ["2026-06.db"]
    store.write_rows([usage_row(3, time=at("2026-06-16"))])
    assert len(store.rows) == 2


def test_a_log_without_its_file_is_not_applied_to_a_new_one(store: Store) -> None:
    store.write("2026-05-05")
    directory = Path(f"{store.engine.url.database}-usage")
    log = directory / "2026-06.db-wal"
    log.write_bytes((directory / "2026-05.db-wal").read_bytes())
    store.write("2026-06-15")
    assert sorted(store.rows) == [at("2026-05-05"), at("2026-06-15")]


def test_a_file_that_somebody_removed_is_reported_and_not_made_anew(store: Store) -> None:
    store.write("2026-06-15")
    path = Path(f"{store.engine.url.database}-usage/2026-06.db")
    aside = path.with_name("aside")
    os.rename(path, aside)
    with pytest.raises(
        DatabaseUnavailable, match=r"2026-06\.db, which has rows of the ledger, was removed while the gateway runs"
    ):
        store.database.write([usage_row(5, time=at("2026-06-16"))])
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match=r"2026-06\.db.*is missing\. Put the former file"):
            store.database.write([usage_row(5, time=at("2026-06-16"))])
    with store.engine.connect() as connection, pytest.raises(PartitionLost, match="is missing"):
        rows_in(connection, partitions_of(connection)[0]).execute(select(usage)).all()
    assert not path.exists()
    os.rename(aside, path)
    store.write_rows([usage_row(5, time=at("2026-06-16"))])
    assert len(store.rows) == 2


def test_a_restart_goes_on_without_a_file_that_is_lost(store: Store, logged_failures: LoggedFailures) -> None:
    store.write("2026-06-15")
    store.database.close()
    path = Path(f"{store.engine.url.database}-usage/2026-06.db")
    for each in path.parent.iterdir():
        each.unlink()
    with captured_logs() as events:
        make_missing_files(store.engine)
    [told] = [event for event in events if event["log_level"].name == "critical"]
    assert logged_failures.flush() == [None]
    assert "2026-06.db is missing, and is made anew" in eventAsText(told)
    # before anybody wrote a row
    assert store.rows == []
    assert path.stat().st_mode & 0o777 == 0o600
    other = store.another()
    store.write_rows([usage_row(5, time=at("2026-06-16"))], other)
    assert store.rows == [at("2026-06-16")]
    other.close()


def test_a_file_that_cannot_be_made_anew_does_not_keep_the_gateway_from_starting(
    store: Store, logged_failures: LoggedFailures
) -> None:
    store.write("2026-06-15")
    store.database.close()
    directory = Path(f"{store.engine.url.database}-usage")
    for each in directory.iterdir():
        each.unlink()
    directory.rmdir()
    # a disk that is not mounted
    directory.symlink_to("/nonexistent/disk")
    with captured_logs() as events:
        make_missing_files(store.engine)
    assert "2026-06.db is missing, and cannot be made anew: File exists" in eventAsText(events[-1])
    assert logged_failures.flush() == [None]


def test_a_file_that_could_not_be_written_is_opened_again(store: Store) -> None:
    """As a read-only file that its owner made writable meanwhile: SQLite opened it for reading."""
    store.write("2026-06-15")
    with store.database._rows._engines["2026-06"].connect() as connection:  # type: ignore[attr-defined]
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(DatabaseUnavailable, match=r"2026-06\.db: attempt to write a readonly database"):
        store.database.write([usage_row(5, time=at("2026-06-16"))])
    store.write_rows([usage_row(5, time=at("2026-06-16"))])
    assert len(store.rows) == 2


def test_a_damaged_file_is_named_to_who_writes_and_who_reads(store: Store) -> None:
    store.write("2026-02-02", "2026-06-15")
    store.database.close()
    path = Path(f"{store.engine.url.database}-usage/2026-06.db")
    path.write_bytes(b"not a database" * 1_000)
    with pytest.raises(DatabaseUnavailable, match=r"2026-06\.db: file is not a database"):
        store.database.write([usage_row(5, time=at("2026-06-16"))])
    engine = make_engine(store.engine.url, connections=1, read_only=True)

    def read(connection: Connection) -> None:
        rows_in(connection, partitions_of(connection)[0]).execute(select(usage)).all()

    failed = transact(engine, Secret(str(store.engine.url)), read, Deadline(5.0), writes=False)
    assert isinstance(failed, Failed)
    assert failed.fault is Fault.ROWS_LOST
    assert "2026-06.db, which has rows of the ledger, cannot be opened" in failed.reason
    engine.dispose()


def test_a_partition_on_another_disk_is_dropped_there(store: Store, tmp_path: Path) -> None:
    store.write("2026-02-02", "2026-06-15")
    store.database.close()
    path = Path(f"{store.engine.url.database}-usage/2026-02.db")
    (tmp_path / "slow").mkdir()
    os.rename(path, tmp_path / "slow" / "february.db")
    path.symlink_to(tmp_path / "slow" / "february.db")
    store.database.drop_before(at("2026-03-01"))
    assert not path.is_symlink()
    assert list((tmp_path / "slow").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_reported_and_tried_again(store: Store) -> None:
    path = Path(f"{store.engine.url.database}-usage")
    path.write_text("in the way")
    with pytest.raises(DatabaseUnavailable, match=r"keys\.sqlite-usage: File exists"):
        store.database.write([usage_row(1, time=at("2026-06-06"))])
    path.unlink()
    store.write("2026-06-06")
    assert len(store.rows) == 1


def test_a_partition_that_could_not_be_made_whole_is_made_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: the file is there, without its tables, and no list has it."""

    def fail(_connection: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("twisted_vllm.storage.usage.partition_files.create_rows_tables", fail)
        with pytest.raises(DatabaseUnavailable, match="No space left on device"):
            store.database.write([usage_row(1, time=at("2026-06-06"))])
    assert store.partitions == []
    store.write("2026-06-06")
    assert len(store.rows) == 1
