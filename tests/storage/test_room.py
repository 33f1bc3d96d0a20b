"""What takes room in SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import usage_row, usage_rows
from tests.storage.retention_contract import Store, at
from tests.storage.room_contract import RoomContract, room_of
from twisted_vllm.storage.usage import room as room_module


class TestOnSqlite(RoomContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
        yield store
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
    yield store
    store.close()


def test_a_large_table_is_estimated_from_a_few_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_rows([usage_row(number, key_id=f"k{number}", time=at("2026-06-06")) for number in range(6000)])
    exact = {each.name: each for each in room_of(store).tables}["vllm_passthrough_usage_sums"]
    assert not exact.estimated
    monkeypatch.setattr(room_module, "_PAGES", 30)
    [about] = [each for each in room_of(store).tables if each.name == exact.name]
    assert about.estimated
    assert about.bytes == pytest.approx(exact.bytes, rel=0.25)
    assert about.rows == pytest.approx(exact.rows, rel=0.25)


def test_a_file_that_is_missing_is_told(store: Store) -> None:
    store.write_rows(usage_rows(2, time=at("2026-06-06")))
    os.unlink(f"{store.engine.url.database}-usage/2026-06.db")
    assert room_of(store).partitions[0].missing


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--database-url", "sqlite:////nowhere/keys.sqlite"], "There is no file /nowhere/keys.sqlite."),
        (["--database-url", "mysql://x:secret@y/z"], "names a database that is not supported"),
        (["--config", "/nowhere/config.yaml"], "/nowhere/config.yaml"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], told: str) -> None:
    command = [sys.executable, "-m", "twisted_vllm.storage.room", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
