"""How long the audit log is kept, on SQLite."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.task import Clock, deferLater

from tests.storage.audit_entries import NEWEST_FIRST, entry, times, write
from tests.storage.memory_database import MemoryDatabase
from twisted_vllm.storage.audit_months import DELETED_AT_ONCE, after_month, month_of
from twisted_vllm.storage.audit_retention import INTERVAL, AuditRetention
from twisted_vllm.storage.counts import Counts
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.transaction import Transaction

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY = 86_400


def kept(database: MemoryDatabase) -> list[datetime]:
    return database.run_now(lambda connection: times(Transaction(connection)))


def fill(database: MemoryDatabase, count: int, age: timedelta) -> None:
    entries = [entry(NOW - age - timedelta(seconds=number), number) for number in range(count)]
    database.run_now(lambda connection: write(Transaction(connection), entries))


def test_entries_are_kept_for_ever_unless_a_setting_says_how_long() -> None:
    database = MemoryDatabase()
    fill(database, 3, timedelta(days=4_000))
    AuditRetention(database, Clock(), lambda: NOW, None).start()
    assert len(kept(database)) == 3


def test_what_is_too_old_goes_at_the_start_and_then_each_hour() -> None:
    database, clock = MemoryDatabase(), Clock()
    fill(database, 2 * DELETED_AT_ONCE + 1, timedelta(days=91))
    fill(database, 3, timedelta(days=89))
    now = NOW
    retention = AuditRetention(database, clock, lambda: now, 90 * DAY)
    retention.start()
    assert len(kept(database)) == 3
    now += timedelta(days=2)
    clock.advance(INTERVAL)
    assert kept(database) == []
    retention.stop()
    assert clock.getDelayedCalls() == []


def test_a_reload_changes_how_long() -> None:
    database, clock = MemoryDatabase(), Clock()
    fill(database, 3, timedelta(days=10))
    retention = AuditRetention(database, clock, lambda: NOW, None)
    retention.start()
    retention.reconfigure(7 * DAY)
    clock.advance(INTERVAL)
    assert kept(database) == []


@pytest_twisted.ensureDeferred
async def test_the_space_goes_back_to_the_file_system(reactor: Any, database: Database, tmp_path: Path) -> None:
    file = tmp_path / "keys.sqlite"
    entries = [entry(NOW - timedelta(days=100), number, "x" * 64) for number in range(6_000)]
    await database.run(lambda connection: write(Transaction(connection), entries), writes=True)

    async def size() -> int:
        await database.run(lambda connection: connection.exec_driver_sql("PRAGMA user_version").all(), writes=False)
        pages = await database.run(
            lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar_one(), writes=False
        )
        return int(pages)

    before = await size()
    retention = AuditRetention(database, reactor, lambda: NOW, 90 * DAY)
    retention.start()
    tries = 0
    while (await size()) > before // 4:
        tries += 1
        assert tries < 500
        await deferLater(reactor, 0.01)
    retention.stop()
    assert file.exists()


def test_a_month_is_one_of_utc() -> None:
    moment = datetime.fromisoformat("2026-12-31T23:30:00-02:00")
    assert month_of(moment) == datetime(2027, 1, 1, tzinfo=UTC)
    assert after_month(datetime(2026, 12, 1, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)


def test_counts_of_the_log_follow_what_is_written_and_dropped() -> None:
    database, counts = MemoryDatabase(), Counts()

    def count(actor: str = "") -> int:
        query = PageQuery(size=1, sort_by="at", equals={"actor": actor} if actor else {})
        return database.run_now(
            lambda connection: Transaction(connection, counts=counts).page_of_audit(query, None, None).total_count
        )

    assert (count(), count("ada")) == (0, 0)
    fill(database, 5, timedelta(days=10))
    assert (count(), count("ada")) == (5, 0)
    # its request began before that of an entry which was written earlier
    late = entry(NOW - timedelta(days=10, minutes=5), 7, "ada")
    database.run_now(lambda connection: write(Transaction(connection), [late]))
    assert (count(), count("ada")) == (6, 1)
    clock = Clock()
    AuditRetention(database, clock, lambda: NOW + timedelta(days=1), 11 * DAY - 2).start()
    assert (count(), count("ada")) == (len(kept(database)), 0)
    assert NEWEST_FIRST.descending
