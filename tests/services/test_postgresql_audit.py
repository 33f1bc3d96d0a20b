"""The months of the audit log, on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import pytest_twisted
from sqlalchemy import Connection, text
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.audit_entries import entry, times, write
from tests.storage.migrations import upgrade
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.audit_months import drop_months, make_month
from twisted_vllm.storage.audit_retention import AuditRetention
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.transaction import Transaction

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
DAY = 86_400


def months_of(connection: Connection) -> list[str]:
    """Return the tables of the audit log besides the parent."""
    found = connection.execute(
        text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'vllm_passthrough_audit_%' ORDER BY 1")
    )
    return [name.removeprefix("vllm_passthrough_audit_") for name in found.scalars()]


async def settled(reactor: Any, database: Database, expected: list[str]) -> None:
    """Wait until the audit log has these months."""
    for _ in range(500):
        found = await database.run(months_of, writes=False)
        if found == expected:
            break
        await deferLater(reactor, 0.01)
    assert found == expected


async def written(database: Database, *moments: datetime) -> None:
    entries = [entry(moment, number) for number, moment in enumerate(moments)]
    await database.run(lambda connection: write(Transaction(connection), entries), writes=True)


def drop(database: Database, now: datetime = NOW) -> Deferred[int]:
    return database.run(lambda connection: drop_months(connection, timedelta(days=90), now), writes=False)


async def read(database: Database) -> list[datetime]:
    return await database.run(lambda connection: times(Transaction(connection)), writes=False)


@pytest_twisted.ensureDeferred
async def test_months_are_made_before_they_begin_and_dropped_when_they_are_too_old(
    reactor: Any, postgresql_database: Database
) -> None:
    database = postgresql_database
    old = [NOW - timedelta(days=days) for days in (200, 130, 61)]
    await written(database, NOW, *old)
    assert await read(database) == [NOW, *reversed(old)]
    retention = AuditRetention(database, Clock(), lambda: NOW, 90 * DAY)
    retention.start()
    # September is kept as a whole: a day of it is not too old yet
    await settled(reactor, database, ["2026_09", "2026_11", "2026_12"])
    retention.stop()
    assert await read(database) == [NOW, old[2]]


@pytest_twisted.ensureDeferred
async def test_changes_go_on_while_somebody_reads_a_month_that_goes(
    postgresql_url: str, postgresql_database: Database, reactor: Any
) -> None:
    """The month waits for the reader, and entries are written and read meanwhile."""
    database = postgresql_database
    await written(database, NOW, NOW - timedelta(days=200))
    engine = make_engine(parse_url(Secret(postgresql_url)))
    try:
        with engine.connect() as reader, reader.begin():
            assert reader.execute(text("SELECT count(*) FROM vllm_passthrough_audit")).scalar() == 2
            dropping = drop(database)
            await written(database, NOW + timedelta(seconds=1), NOW + timedelta(days=40))
            assert NOW + timedelta(seconds=1) in await read(database)
            assert await dropping == 0
            assert len(await read(database)) == 3
            # Nobody is told that the database is away.
            assert database.reachable
    finally:
        engine.dispose()
    assert await drop(database) == 1
    assert len(await read(database)) == 3


@pytest_twisted.ensureDeferred
async def test_a_month_that_is_half_detached_goes_before_the_others(
    postgresql_url: str, postgresql_database: Database
) -> None:
    """PostgreSQL detaches no other month of the table before."""
    database = postgresql_database
    # made in this order, so that the half detached one is found last
    await written(database, NOW, NOW - timedelta(days=250), NOW - timedelta(days=200))
    await database.run(months_of, writes=False)
    engine = make_engine(parse_url(Secret(postgresql_url)))
    name = f"vllm_passthrough_audit_{(NOW - timedelta(days=200)):%Y_%m}"
    with engine.connect() as reader, psycopg.connect(postgresql_url, autocommit=True) as other:
        assert reader.execute(text("SELECT count(*) FROM vllm_passthrough_audit")).scalar() == 3
        other.execute("SET statement_timeout = 300")
        with pytest.raises(psycopg.errors.QueryCanceled):
            other.execute(f"ALTER TABLE vllm_passthrough_audit DETACH PARTITION {name} CONCURRENTLY")
    engine.dispose()
    assert await drop(database) == 2
    assert await database.run(months_of, writes=False) == ["2026_11"]


@pytest_twisted.ensureDeferred
async def test_a_machine_whose_clock_is_ahead_drops_no_entries(postgresql_database: Database) -> None:
    database = postgresql_database
    now = datetime.now(UTC)
    await written(database, now)
    later = now + timedelta(days=4_000)
    assert await drop(database, later) == 0
    assert await read(database) == [now]


@pytest_twisted.ensureDeferred
async def test_a_month_that_was_detached_and_not_dropped_goes_at_the_next_look(postgresql_database: Database) -> None:
    database = postgresql_database
    await written(database, NOW, NOW - timedelta(days=200))

    def detach(connection: Connection) -> None:
        [old] = [name for name in months_of(connection) if name != "2026_11"]
        name = f"vllm_passthrough_audit_{old}"
        connection.execute(text(f"ALTER TABLE vllm_passthrough_audit DETACH PARTITION {name}"))

    await database.run(detach, writes=True)
    assert await drop(database) == 1
    assert await database.run(months_of, writes=False) == ["2026_11"]


@pytest_twisted.ensureDeferred
async def test_a_month_is_made_once(postgresql_database: Database) -> None:
    for _ in range(2):
        await postgresql_database.run(lambda connection: make_month(connection, NOW), writes=True)
    assert await postgresql_database.run(months_of, writes=False) == ["2026_11"]


def test_the_entries_of_an_older_database_are_the_first_part(postgresql: PrivatePostgresql) -> None:
    engine = make_engine(parse_url(Secret(postgresql.make_database())))
    with engine.begin() as connection:
        upgrade(connection, "0009_log_bodies")
        for number in range(3):
            connection.execute(
                text(
                    "INSERT INTO vllm_passthrough_audit (at, actor, actor_name, action, object_type, object_id, "
                    "request_id, client) VALUES (:at, 'master', 'master', 'key/update', 'key', 'k', 'r', 'c')"
                ),
                {"at": NOW - timedelta(days=number * 40)},
            )
        upgrade(connection)
        assert len(times(Transaction(connection))) == 3
        later = datetime.now(UTC) + timedelta(days=400)
        write(Transaction(connection), [entry(NOW), entry(later)])
        assert times(Transaction(connection))[:2] == [later, NOW]
        ids = connection.execute(text("SELECT id FROM vllm_passthrough_audit ORDER BY id")).scalars().all()
        assert ids == [1, 2, 3, 4, 5]
    with engine.connect() as connection, connection.begin():
        assert drop_months(connection, timedelta(days=-340), datetime.now(UTC)) == 1
    with engine.connect() as connection:
        assert times(Transaction(connection)) == [later]
    engine.dispose()
