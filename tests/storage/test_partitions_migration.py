"""The migration to partitions on SQLite, whose partitions are files."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from twisted.logger import capturedLogs as captured_logs
from twisted.logger import eventAsText

from tests.storage.partitions_migration_contract import (
    PartitionsMigrationContract,
    engine_of,
    lookups_of,
    make_former,
    make_new,
    rows_of,
    some_rows,
    sums_of,
)
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.migrations import moved_rows
from twisted_vllm.storage.schema import migrate


class TestOnSqlite(PartitionsMigrationContract):
    @pytest.fixture
    def urls(self, tmp_path: Path) -> list[str]:
        return [f"sqlite:///{tmp_path}/{name}.sqlite" for name in ("one", "two", "three")]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    yield f"sqlite:///{tmp_path}/keys.sqlite"


def test_files_are_private_and_no_journal_is_left(tmp_path: Path, url: str) -> None:
    engine = make_former(url, some_rows())
    migrate(engine)
    engine.dispose()
    directory = tmp_path / "keys.sqlite-usage"
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    found = sorted(directory.iterdir())
    assert [each.suffix for each in found] == [".db"] * len(found)
    assert {stat.S_IMODE(os.stat(each).st_mode) for each in found} == {0o600}
    for each in found:
        with closing(sqlite3.connect(each)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("step", ["_add_lookups", "_sync"])
def test_a_migration_that_was_interrupted_is_begun_anew(
    url: str, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file fails, so the first is complete."""
    rows = some_rows()
    engine = make_former(url, rows)
    calls: list[object] = []
    real = getattr(moved_rows, step)

    def fail(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(moved_rows, step, fail)
    with pytest.raises(StoreError, match=r"cannot be moved to .*: No space left on device\. Nothing is lost"):
        migrate(engine)
    monkeypatch.undo()
    migrate(engine)
    fresh = make_new(f"sqlite:///{tmp_path}/fresh.sqlite", rows)
    assert rows_of(engine) == rows_of(fresh)
    assert lookups_of(engine) == lookups_of(fresh)
    assert sums_of(engine) == sums_of(fresh)
    assert not list((tmp_path / "keys.sqlite-usage").glob("*.new*"))
    for each in (engine, fresh):
        each.dispose()


@pytest.mark.parametrize(("free", "level"), [(10**12, "info"), (0, "warn")])
def test_the_log_says_first_what_the_migration_needs(
    url: str, free: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_former(url, some_rows())
    found = os.statvfs("/")
    values = list(found)
    values[0], values[1], values[4] = 4096, 1, free
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    with captured_logs() as events:
        migrate(engine)
    engine.dispose()
    first, *others = [event for event in events if event["log_namespace"].endswith("moved_rows")]
    assert first["log_level"].name == level
    assert f"MB of disk, of which {free // 10**6:,} MB are free" in eventAsText(first)
    assert eventAsText(others[-1]).endswith(f"{len(others)} of {len(others)} months")


def test_rows_that_came_after_an_interrupted_migration_are_moved_too(url: str) -> None:
    """The former release ran on: the files of the first attempt are behind the table."""
    rows = some_rows()
    other = make_former(f"{url}-other", rows[:300])
    migrate(other)
    other.dispose()
    path = Path(url.removeprefix("sqlite:///"))
    os.rename(f"{path}-other-usage", f"{path}-usage")
    engine = make_former(url, rows)
    migrate(engine)
    assert len(rows_of(engine)) == len(rows)
    engine.dispose()


def test_the_main_file_gives_its_space_back(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_vllm.storage.schema._FREE_BYTES", 4096)
    path = Path(url.removeprefix("sqlite:///"))
    engine = make_former(url, some_rows(5000))
    before = path.stat().st_size
    migrate(engine)
    engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)
    assert path.stat().st_size < before / 2


def test_partitions_of_a_linked_database_are_beside_the_real_file(tmp_path: Path) -> None:
    """Where the link leads elsewhere, or another process uses the real name, the rows are the same."""
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "data" / "real.sqlite", tmp_path / "link.sqlite")
    rows = some_rows(20)
    engine = make_former(f"sqlite:///{tmp_path}/link.sqlite", rows)
    migrate(engine)
    engine.dispose()
    assert (tmp_path / "data" / "real.sqlite-usage").is_dir()
    real = engine_of(f"sqlite:///{tmp_path}/data/real.sqlite")
    assert len(rows_of(real)) == 20
    real.dispose()
