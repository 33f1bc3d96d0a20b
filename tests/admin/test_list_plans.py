"""No list reads a large table as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import Connection

from tests.admin.database_client import Client
from tests.admin.list_plans import scans_of_lists
from tests.storage.filled_database import SMALL, fill
from tests.storage.plans import Plans
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.database import Database


@pytest.fixture
def database(reactor: Any, tmp_path: Path) -> Iterator[Database]:
    # a machine that runs other tests as well may be slow
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"), seconds=60.0)
    database.open()
    yield database
    pytest_twisted.blockon(database.stop())


@pytest_twisted.ensureDeferred
async def test_no_list_reads_a_large_table_as_a_whole(reactor: Any, database: Database) -> None:
    await database.run(lambda connection: fill(connection, SMALL), writes=True)
    scans = await scans_of_lists(Client(reactor, database), database)
    assert scans == []


@pytest_twisted.ensureDeferred
async def test_a_scan_is_found(database: Database) -> None:
    await database.run(lambda connection: fill(connection, SMALL), writes=True)
    table = "vllm_passthrough_users"
    with Plans() as plans, plans.during("here"):
        for where in ("metadata = 'x'", "user_id = 'user-1'", "user_email LIKE '%x%' ORDER BY created_at LIMIT 5"):
            statement = f"SELECT user_id FROM {table} WHERE {where}"
            await database.run(partial(Connection.exec_driver_sql, statement=statement), writes=False)
    found = await database.run(lambda connection: plans.scans(connection, [table]), writes=False)
    assert [each.text.partition("WHERE ")[2].split(" ")[0] for each in found] == ["metadata", "user_email"]
