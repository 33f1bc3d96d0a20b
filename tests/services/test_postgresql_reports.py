"""Twenty wide reports of one tenant on PostgreSQL, and what reads and stops them there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from tests.end_to_end.test_reports_beside_administration import check_that_acts_are_quick
from twisted_vllm.auth.records import MASTER
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import ReportTimeout
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.report_queue import ReportCaller, ReportLimits
from twisted_vllm.storage.reports import ReportReader
from twisted_vllm.storage.transaction import Transaction

ADMINISTRATOR = ReportCaller.of(MASTER)
SLEEP = text("SELECT pg_sleep(60)")
SLEEPING = text("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'")


@pytest.fixture
def reports(reactor: Any, postgresql_url: str, postgresql_database: Database) -> Iterator[ReportReader]:
    reports = ReportReader(reactor, Secret(postgresql_url), ReportLimits(), 1.0)
    reports.open()
    yield reports
    pytest_twisted.blockon(reports.stop())


def sleep(transaction: Transaction) -> None:
    transaction.connection.execute(SLEEP)


def test_a_key_is_blocked_within_100_ms_beside_twenty_wide_reports_of_a_tenant(
    tmp_path: Path, postgresql_url: str
) -> None:
    check_that_acts_are_quick(tmp_path, postgresql_url)


@pytest_twisted.ensureDeferred
async def test_a_report_cannot_change_anything(reports: ReportReader) -> None:
    def change(transaction: Transaction) -> None:
        with pytest.raises(DBAPIError, match="read-only transaction"):
            transaction.connection.execute(text("DELETE FROM vllm_passthrough_keys"))

    await reports.read(ADMINISTRATOR, change)


@pytest_twisted.ensureDeferred
async def test_a_report_that_takes_too_long_is_stopped_in_the_server(
    reports: ReportReader, postgresql_database: Database
) -> None:
    began = time.monotonic()
    with pytest.raises(ReportTimeout, match=r"timeouts\.report"):
        await reports.read(ADMINISTRATOR, sleep)
    assert time.monotonic() - began < 5
    sleeping = await postgresql_database.run(lambda connection: connection.execute(SLEEPING).scalar(), writes=False)
    assert sleeping == 0


@pytest_twisted.ensureDeferred
async def test_a_report_whose_client_has_gone_is_stopped_in_the_server(
    reactor: Any, postgresql_url: str, postgresql_database: Database
) -> None:
    reports = ReportReader(reactor, Secret(postgresql_url), ReportLimits(), 60.0)
    reports.open()

    async def sleeping() -> Any:
        return await postgresql_database.run(lambda connection: connection.execute(SLEEPING).scalar(), writes=False)

    running = reports.read(ADMINISTRATOR, sleep)
    while not await sleeping():
        await deferLater(reactor, 0.02)
    began = time.monotonic()
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    while reports.queue.running or await sleeping():
        assert time.monotonic() - began < 5
        await deferLater(reactor, 0.02)
    await reports.stop()
