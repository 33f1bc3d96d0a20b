"""No list reads a large table as a whole, on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest_twisted

from tests.admin.database_client import Client
from tests.admin.list_plans import scans_of_lists
from tests.storage.filled_database import SMALL, fill
from twisted_vllm.storage.database import Database


@pytest_twisted.ensureDeferred
async def test_no_list_reads_a_large_table_as_a_whole(reactor: Any, postgresql_database: Database) -> None:
    await postgresql_database.run(lambda connection: fill(connection, SMALL), writes=True)
    scans = await scans_of_lists(Client(reactor, postgresql_database), postgresql_database)
    assert scans == []
