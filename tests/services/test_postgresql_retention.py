"""Old rows on PostgreSQL, whose partitions are tables."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from twisted.logger import capturedLogs as captured_logs
from twisted.logger import eventAsText

from tests.builders import usage_row
from tests.conftest import LoggedFailures
from tests.storage.retention_contract import RetentionContract, Store, at
from twisted_vllm.storage.usage import retention


@pytest.fixture
def store(postgresql_url: str) -> Iterator[Store]:
    store = Store(postgresql_url)
    yield store
    store.close()


class TestOnPostgresql(RetentionContract):
    @pytest.fixture
    def store(self, postgresql_url: str) -> Iterator[Store]:
        store = Store(postgresql_url)
        yield store
        store.close()


def tables_of(store: Store) -> list[str]:
    statement = text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '_20[0-9_]+$' ORDER BY 1")
    with store.engine.connect() as connection:
        return [name.removeprefix("vllm_passthrough_usage_") for name in connection.execute(statement).scalars()]


def test_the_tables_go(store: Store) -> None:
    store.write("2026-03-02", "2026-06-15")
    store.database.drop_before(at("2026-04-01"))
    assert tables_of(store) == ["2026_06", "lookups_2026_06"]


def test_a_reader_s_long_transaction_delays_the_drop_and_nobody_else(store: Store) -> None:
    """The half detached partition blocks neither rows nor new partitions, and a later call finishes it."""
    store.write("2026-03-02", "2026-06-15")
    with store.engine.connect() as reader:
        reader.execute(text("SELECT COUNT(*) FROM vllm_passthrough_usage"))
        assert store.database.drop_before(at("2026-04-01")) == 1
        assert "2026_03" in tables_of(store)
        store.write("2026-05-05", "2026-06-16")
        assert len(store.rows) == 3
    store.database.drop_before(at("2026-04-01"))
    store.database.drop_before(at("2026-04-01"))
    assert tables_of(store) == ["2026_05", "2026_06", "lookups_2026_05", "lookups_2026_06"]


def test_a_table_that_a_crash_left_detached_is_dropped(store: Store) -> None:
    store.write("2026-03-02", "2026-06-15")
    with store.engine.begin() as connection:
        retention._forget(connection, at("2026-04-01"))
        connection.execute(text("ALTER TABLE vllm_passthrough_usage DETACH PARTITION vllm_passthrough_usage_2026_03"))
    store.database.drop_before(at("2026-04-01"))
    assert tables_of(store) == ["2026_06", "lookups_2026_06"]


@pytest.mark.parametrize(
    ("statement", "kept"),
    [
        ("DROP TABLE vllm_passthrough_usage_2026_06, vllm_passthrough_usage_lookups_2026_06", 1),
        ("ALTER TABLE vllm_passthrough_usage DETACH PARTITION vllm_passthrough_usage_2026_06", 2),
    ],
)
def test_a_table_that_somebody_took_away_is_made_anew_and_rows_are_kept(
    store: Store, statement: str, kept: int, logged_failures: LoggedFailures
) -> None:
    store.write("2026-06-15")
    with store.engine.begin() as connection:
        connection.execute(text(statement))
    with captured_logs() as events:
        store.write_rows([usage_row(5, time=at("2026-06-16"))])
    assert logged_failures.flush() == [None]
    assert len(store.rows) == kept
    [told] = [event for event in events if event["log_level"].name == "critical"]
    assert "Somebody dropped or detached tables" in eventAsText(told)
    assert "vllm_passthrough_usage_2026_06" in eventAsText(told)


def test_a_machine_whose_clock_is_ahead_drops_nothing(store: Store) -> None:
    """It believes that all rows of the others are too old; the server's clock decides."""
    store.time = int(time.time() * 1e6)
    store.write_rows([usage_row(1, time=store.time)])
    store.time += 20 * 365 * 86_400_000_000
    assert store.database.drop_before(store.time - 90 * 86_400_000_000) == 0
    assert len(store.partitions) in (1, 2)
