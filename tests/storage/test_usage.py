"""The ledger in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import usage_row, usage_rows
from tests.storage.usage_contract import Ledger, UsageContract, check_sums, flush_all
from twisted_vllm.storage import engine as engine_module
from twisted_vllm.usage.interfaces import DatabaseUnavailable, Position


class TestUsageInSqlite(UsageContract):
    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Iterator[Ledger]:
        ledger = Ledger(f"sqlite:///{tmp_path}/usage.sqlite")
        yield ledger
        ledger.close()


def test_a_database_that_another_holds_is_away_and_takes_the_sums_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LOCK_SECONDS", 0.05)
    ledger = Ledger(f"sqlite:///{tmp_path}/usage.sqlite")
    ledger.write(usage_row(0))
    other = sqlite3.connect(tmp_path / "usage.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    rows = usage_rows(2, 1)
    ledger.accounts().add([ledger.database.write(rows)], Position(1, 500))
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable, match="locked"):
            flush_all(ledger.accounts())
        with pytest.raises(DatabaseUnavailable, match="locked"):
            # who pays is new
            ledger.database.write([usage_row(3, key_id="k2")])
    other.execute("ROLLBACK")
    other.close()
    flush_all(ledger.accounts())
    check_sums(ledger, usage_rows(3))
    ledger.close()
