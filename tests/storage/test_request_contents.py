"""Kept prompts and answers in SQLite, and files of partitions that older gateways made."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.builders import usage_row
from tests.storage.contents_contract import ContentsContract
from tests.storage.partitions_migration_contract import rows_of
from tests.storage.retention_contract import Store, at
from twisted_vllm.storage.usage import partitions


class TestOnSqlite(ContentsContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
        yield store
        store.close()


@pytest.mark.parametrize("reads_first", [True, False])
def test_a_file_of_an_older_gateway_gets_the_columns_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads_first: bool
) -> None:
    monkeypatch.setattr(partitions, "_complete", set())
    store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
    store.write("2026-06-01")
    store.close()
    (file,) = tmp_path.glob("*-usage/2026-06.db")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("ALTER TABLE vllm_passthrough_usage DROP COLUMN details")
    partitions._complete.clear()
    store = Store(store.url)
    if reads_first:
        assert [row["details"] for row in rows_of(store.engine)] == [None]
    store.write_rows([usage_row(7, time=at("2026-06-02"), details='{"queued_us":5}')])
    assert [row["details"] for row in rows_of(store.engine)] == [None, '{"queued_us":5}']
    store.close()


def test_what_is_no_partition_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "_complete", set())
    damaged, missing = tmp_path / "damaged.db", tmp_path / "missing.db"
    damaged.write_bytes(b"no database" * 100)
    for path in (damaged, missing):
        partitions.complete_file(path)
    assert damaged.read_bytes() == b"no database" * 100
    assert not missing.exists()
    assert partitions._complete == set()
