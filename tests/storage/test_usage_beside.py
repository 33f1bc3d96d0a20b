"""The ledger's writer beside everything else that uses the database."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest_twisted
from sqlalchemy import select
from twisted.internet.task import deferLater

from tests.builders import usage_rows
from tests.storage.store_contract import key_record, put
from tests.storage.usage_contract import Ledger, check_sums
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.store import Store
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter

#: the longest that an administrative act may wait for the ledger's transactions, in seconds
LONGEST_WAIT = 1.0


@pytest_twisted.ensureDeferred
async def test_an_administrative_act_does_not_wait_for_a_backlog_to_end(
    reactor: Any, tmp_path: Path, database: Database
) -> None:
    """SQLite has one lock for all that write."""
    ledger = Ledger(f"sqlite:///{tmp_path}/keys.sqlite")
    spool = Spool(tmp_path / "spool")
    spool.open()
    rows = usage_rows(50_000)
    for row in rows:
        spool.append(row)
    spool.flush()
    writer = LedgerWriter(reactor, spool, ledger.another(), lambda spent: None, interval=0.01)
    writer.start()
    waits: list[float] = []
    while writer.pending().rows:
        began = time.monotonic()
        await put(Store(database), key_record(len(waits)))
        waits.append(time.monotonic() - began)
        await deferLater(reactor, 0.01)
    await writer.stop()
    assert len(waits) > 1  # the first one did not wait for the last row
    assert max(waits) < LONGEST_WAIT
    check_sums(ledger, rows)
    ledger.close()


@pytest_twisted.ensureDeferred
async def test_a_database_that_another_program_holds_delays_the_rows_and_nothing_else(
    reactor: Any, tmp_path: Path, database: Database
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/keys.sqlite")
    spool = Spool(tmp_path / "spool")
    spool.open()
    writer = LedgerWriter(reactor, spool, ledger.another(), lambda spent: None, interval=0.01)
    writer.start()
    other = sqlite3.connect(tmp_path / "keys.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for row in usage_rows(10):
        spool.append(row)
    spool.flush()
    for _ in range(10):
        await deferLater(reactor, 0.02)
        # what only reads goes on, in the thread that administrative acts have
        assert await database.run(lambda connection: connection.execute(select(1)).scalar(), writes=False) == 1
    assert writer.pending().rows == 10
    other.execute("ROLLBACK")
    other.close()
    while writer.pending().rows:
        await deferLater(reactor, 0.01)
    await writer.stop()
    check_sums(ledger, usage_rows(10))
    ledger.close()
