from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Connection, text
from twisted.logger import LogEvent, eventAsText
from twisted.logger import capturedLogs as captured_logs

from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.asking import answers
from tests.storage.migrations import differences, downgrade, upgrade
from tests.storage.start_race import start_together
from tests.storage.store_contract import StoreContract, all_keys, key_record, put
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.tables import VERSION_TABLE


def texts(events: Sequence[LogEvent]) -> str:
    return "\n".join(eventAsText(event) + repr(event) for event in events)


class TestPostgresqlStore(StoreContract):
    @pytest.fixture
    def store(self, postgresql_database: Database) -> Store:
        return Store(postgresql_database)


def test_processes_that_start_at_the_same_moment_all_start(postgresql_url: str) -> None:
    assert start_together(postgresql_url, 4) == ["started"] * 4


@pytest_twisted.ensureDeferred
async def test_the_migrations_make_the_tables_that_the_code_knows(postgresql_database: Database) -> None:
    assert await postgresql_database.run(downgrade, writes=True) == [VERSION_TABLE]
    await postgresql_database.run(upgrade, writes=True)
    assert await postgresql_database.run(differences, writes=False) == []


@pytest_twisted.ensureDeferred
async def test_a_database_whose_migrations_were_undone_gets_its_tables_again(postgresql_database: Database) -> None:
    await postgresql_database.run(downgrade, writes=True)
    await postgresql_database.stop()
    postgresql_database.open()
    assert await postgresql_database.run(differences, writes=False) == []


@pytest_twisted.ensureDeferred
async def test_times_come_back_in_utc_whatever_zone_the_database_has(postgresql_database: Database) -> None:
    def work(connection: Connection) -> None:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Kathmandu'")

    await postgresql_database.run(work, writes=True)
    await postgresql_database.stop()
    postgresql_database.open()
    store = Store(postgresql_database)
    await put(store, key_record(1))
    [found] = await all_keys(store)
    assert found.created_at.isoformat() == "2026-03-01T12:30:15.123456+00:00"


@pytest_twisted.ensureDeferred
async def test_a_newer_schema_is_refused(reactor: Any, postgresql_url: str, postgresql_database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))

    await postgresql_database.run(work, writes=True)
    with pytest.raises(StoreError, match="'9999', which is newer than"):
        Database(reactor, Secret(postgresql_url)).open()


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_refused_and_not_shown(reactor: Any, postgresql: PrivatePostgresql) -> None:
    url = postgresql.url("postgres", password="wr:ng/P@ss")
    with captured_logs() as events, pytest.raises(StoreError) as refused:
        Database(reactor, Secret(url)).open()
    message = str(refused.value)
    assert "password authentication failed" in message
    assert "wr:ng" not in message + texts(events)
    assert "wr%3Ang" not in message + texts(events)


@pytest_twisted.ensureDeferred
async def test_a_schema_named_as_prisma_does_holds_the_tables(
    reactor: Any, postgresql_url: str, postgresql_database: Database
) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text('CREATE SCHEMA "Tenant_1"'))

    await postgresql_database.run(work, writes=True)
    database = Database(reactor, Secret(f"{postgresql_url}&schema=Tenant_1&connection_limit=3"))
    database.open()
    await put(Store(database), key_record(1))
    await database.stop()
    assert await all_keys(Store(postgresql_database)) == []
    count = text('SELECT count(*) FROM "Tenant_1".vllm_passthrough_keys')
    assert await postgresql_database.run(lambda connection: connection.execute(count).scalar(), writes=False) == 1


@pytest_twisted.ensureDeferred
async def test_an_outage_refuses_and_the_database_is_used_again_when_it_is_back(
    postgresql: PrivatePostgresql, postgresql_database: Database
) -> None:
    store = Store(postgresql_database)
    await put(store, key_record(1))
    with captured_logs() as events:
        postgresql.stop()
        try:
            assert await answers(postgresql_database) is False
            with pytest.raises(StoreUnavailable):
                await put(store, key_record(2))
        finally:
            postgresql.start()
        assert await answers(postgresql_database) is True
        assert await all_keys(store) == [key_record(1)]
    assert [event["log_level"].name for event in events] == ["error", "debug", "info"]
    assert postgresql.password not in texts(events)
    assert key_record(2).token not in texts(events)
