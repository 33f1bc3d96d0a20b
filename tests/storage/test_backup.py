"""A copy of SQLite's files that is put back: partitions first, then the main file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.builders import usage_rows
from tests.storage.retention_contract import Store, at
from twisted_vllm.storage.usage.database import UsageDatabase
from twisted_vllm.usage.interfaces import Position
from twisted_vllm.usage.records import UsageRow


def copy(source: Path, target: Path) -> None:
    """Copy as ``.backup`` of the sqlite3 shell does."""
    target.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def test_a_copy_that_is_put_back_counts_nothing_twice_and_forgets_nothing_that_is_in_the_spool(tmp_path: Path) -> None:
    """Between the copies of rows and sums requests came, and the spool has those after the last copy."""
    store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
    accounts = store.database.open_accounts("spool", own=True)

    def write(database: UsageDatabase, rows: list[UsageRow], end: int) -> None:
        written = database.write(rows)
        assert written is not None
        accounts.add([written], Position(1, end))
        while accounts.flush(force=True)[0]:
            pass

    first, second, third = (usage_rows(10, number * 10, time=at("2026-06-06")) for number in range(3))
    write(store.database, first, 100)
    copy(tmp_path / "keys.sqlite-usage" / "2026-06.db", tmp_path / "copy.sqlite-usage" / "2026-06.db")
    write(store.database, second, 200)
    copy(tmp_path / "keys.sqlite", tmp_path / "copy.sqlite")
    write(store.database, third, 300)
    store.close()

    restored = Store(f"sqlite:///{tmp_path}/copy.sqlite")
    accounts = restored.database.open_accounts("spool", own=True)
    assert accounts.kept_from == Position(1, 200)
    write(restored.database, third, 300)
    assert restored.requests == 30
    assert len(restored.rows) == 20
    restored.close()
