"""The spool in front of PostgreSQL: killed processes, and an outage under load."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import LoopingCall, deferLater

from tests.builders import usage_row
from tests.services.private_postgresql import PrivatePostgresql
from tests.storage.usage_contract import Ledger, check_sums
from tests.usage.test_spool_crash import kill_and_check
from twisted_vllm.usage.interfaces import SpendUpdate
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter

OUTAGE_SECONDS = 60.0 if os.environ.get("FULL_LOAD") == "1" else 1.0
#: how long after its return the database has everything, in seconds
CATCH_UP_SECONDS = 10.0
ROWS_A_TURN = 10


@pytest.fixture
def ledger(postgresql_url: str) -> Iterator[Ledger]:
    ledger = Ledger(postgresql_url)
    yield ledger
    ledger.close()


@pytest_twisted.ensureDeferred
async def test_killed_processes_lose_no_row_and_double_none_in_postgresql(
    reactor: Any, tmp_path: Path, ledger: Ledger
) -> None:
    await kill_and_check(reactor, tmp_path / "spool", ledger, ledger.url)


@pytest_twisted.ensureDeferred
async def test_an_outage_under_load_loses_nothing_and_is_caught_up(
    reactor: Any, tmp_path: Path, postgresql: PrivatePostgresql, ledger: Ledger
) -> None:
    """Rows come at a thousand a second before, during and after it."""
    told: list[SpendUpdate] = []
    rows: list[UsageRow] = []
    slowest = 0.0
    spool = Spool(tmp_path, segment_bytes=200_000)
    spool.open()
    writer = LedgerWriter(reactor, spool, ledger.another(), told.extend, interval=0.05)
    writer.start()

    def turn() -> None:
        nonlocal slowest
        began = time.monotonic()
        for _ in range(ROWS_A_TURN):
            rows.append(usage_row(len(rows), key_id=f"k{len(rows) % 3}"))
            spool.append(rows[-1])
        spool.flush()
        slowest = max(slowest, time.monotonic() - began)

    load = LoopingCall(turn)
    load.start(ROWS_A_TURN / 1000)
    await deferLater(reactor, 0.3)
    postgresql.stop()
    try:
        await deferLater(reactor, OUTAGE_SECONDS)
    finally:
        postgresql.start()
    began = time.monotonic()
    assert not writer.batch_writer.reachable
    await deferLater(reactor, 0.1)
    load.stop()
    while writer.pending().rows:
        assert time.monotonic() - began < CATCH_UP_SECONDS
        await deferLater(reactor, 0.02)
    await writer.stop()
    check_sums(ledger, rows)
    # the limiter heard of every row once, whatever became of the transaction that the outage broke
    assert sum(spent.amount for spent in told) == sum(row.cost for row in rows)
    assert slowest < 0.5
    assert list(tmp_path.iterdir()) == []
