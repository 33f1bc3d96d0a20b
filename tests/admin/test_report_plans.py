"""No report reads a large table as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.admin.database_client import Client
from tests.admin.report_plans import fill, scans_of_reports
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.database import Database


@pytest.fixture
def database(reactor: Any, tmp_path: Path) -> Iterator[Database]:
    # a machine that runs other tests as well may be slow
    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"), seconds=240.0)
    database.open()
    yield database
    pytest_twisted.blockon(database.stop())


@pytest_twisted.ensureDeferred
async def test_no_report_reads_a_large_table_as_a_whole(reactor: Any, database: Database) -> None:
    await database.run(fill, writes=True)
    scans = await scans_of_reports(Client(reactor, database), database)
    assert scans == [], "\n".join(map(str, scans))
