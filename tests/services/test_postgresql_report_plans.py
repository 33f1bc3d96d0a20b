"""No report reads a large table as a whole, on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest_twisted

from tests.admin.database_client import Client
from tests.admin.report_plans import fill, scans_of_reports
from twisted_vllm.storage.database import Database


@pytest_twisted.ensureDeferred
async def test_no_report_reads_a_large_table_as_a_whole(reactor: Any, postgresql_database: Database) -> None:
    await postgresql_database.run(fill, writes=True)
    scans = await scans_of_reports(Client(reactor, postgresql_database), postgresql_database)
    assert scans == [], "\n".join(map(str, scans))
