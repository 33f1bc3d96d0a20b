"""Reports are read on connections of their own, and stopped when they take too long or nobody wants them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from zope.interface.verify import verifyObject

from tests.admin.admin_harness import StoreReports
from tests.builders import usage_row
from tests.storage.ledger_filler import keep
from tests.storage.memory_database import MemoryDatabase
from tests.storage.store_contract import all_keys, key_record, put
from twisted_vllm.auth.records import MASTER, Principal
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import ReportsBusy, ReportTimeout, StoreUnavailable, TooManyReports
from twisted_vllm.storage import write_ahead_log
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.interfaces import IReports
from twisted_vllm.storage.report_queue import ReportCaller, ReportLimits
from twisted_vllm.storage.reports import ReportReader
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.lookups import RowFilter
from twisted_vllm.storage.usage.queries.rows import count_rows
from twisted_vllm.storage.usage.tables import DAY_US

ADMINISTRATOR = ReportCaller.of(MASTER)
TENANT = ReportCaller.of(Principal("key", "name", key_id="key-1"))
LIMITS = ReportLimits(running=2, running_per_key=1, waiting=8)

#: a statement that runs for hours
ENDLESS = text("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")

Make = Callable[..., ReportReader]


@pytest.fixture
def make(reactor: Any, tmp_path: Path, database: Database) -> Iterator[Make]:
    """Makes readers of the reports of `database`."""
    made: list[ReportReader] = []

    def make(seconds: float = 60.0) -> ReportReader:
        made.append(ReportReader(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"), LIMITS, seconds))
        made[-1].open()
        return made[-1]

    yield make
    for each in made:
        pytest_twisted.blockon(each.stop())


def endless(transaction: Transaction) -> Any:
    return transaction.connection.execute(ENDLESS).scalar()


def count(transaction: Transaction) -> int:
    return len(transaction.keys.find())


class Held:
    """A report that goes on when the test lets it."""

    def __init__(self) -> None:
        self.runs, self.go_on = threading.Event(), threading.Event()

    def __call__(self, transaction: Transaction) -> int:
        self.runs.set()
        assert self.go_on.wait(30)
        return count(transaction)


async def until(reactor: Any, is_so: Callable[[], object]) -> None:
    for _ in range(3_000):
        if is_so():
            return
        await deferLater(reactor, 0.01)
    pytest.fail("still not so after 30 seconds")


def test_readers_of_reports_keep_their_interface(make: Make) -> None:
    assert verifyObject(IReports, make())
    assert verifyObject(IReports, StoreReports(Store(MemoryDatabase())))


@pytest_twisted.ensureDeferred
async def test_a_report_sees_what_was_committed_and_cannot_change_it(database: Database, make: Make) -> None:
    await put(Store(database), key_record(1))
    reports = make()
    assert await reports.read(ADMINISTRATOR, count) == 1

    def change(transaction: Transaction) -> None:
        with pytest.raises(OperationalError, match="readonly"):
            transaction.connection.execute(text("DELETE FROM vllm_passthrough_keys"))

    await reports.read(ADMINISTRATOR, change)
    assert await all_keys(Store(database)) == [key_record(1)]


@pytest_twisted.ensureDeferred
async def test_no_file_of_a_partition_stays_open_after_a_report(database: Database, make: Make, tmp_path: Path) -> None:
    rows = [usage_row(number, time=DAY_US * 31 * number) for number in range(12)]
    await database.run(lambda connection: keep(connection, rows), writes=True)
    reports = make()

    def read(transaction: Transaction) -> tuple[int, int]:
        return count_rows(transaction.connection, RowFilter()), len(open_partitions(tmp_path))

    before = len(open_partitions(tmp_path))
    found, opened = await reports.read(ADMINISTRATOR, read)
    assert found == len(rows)
    assert opened > before
    assert len(open_partitions(tmp_path)) == before


def open_partitions(directory: Path) -> list[str]:
    """Return the files of partitions that this process has open."""
    files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return [file for file in files if file.startswith(f"{directory}/keys.sqlite-usage/")]


@pytest_twisted.ensureDeferred
async def test_changes_do_not_wait_for_a_report_that_runs(reactor: Any, database: Database, make: Make) -> None:
    reports, held = make(), Held()
    running = reports.read(ADMINISTRATOR, held)
    await until(reactor, held.runs.is_set)
    store = Store(database)
    await put(store, key_record(1))
    assert await all_keys(store) == [key_record(1)]
    held.go_on.set()
    # its transaction began before
    assert await running in (0, 1)


@pytest_twisted.ensureDeferred
async def test_a_report_that_takes_too_long_is_stopped_and_the_error_names_the_setting(make: Make) -> None:
    reports = make(seconds=0.3)
    began = time.monotonic()
    with pytest.raises(ReportTimeout, match=r"timeouts\.report") as refused:
        await reports.read(ADMINISTRATOR, endless)
    assert refused.value.status == 504
    assert time.monotonic() - began < 5
    assert (reports.stopped, reports.queue.running) == (1, 0)
    assert await reports.read(ADMINISTRATOR, count) == 0


@pytest_twisted.ensureDeferred
async def test_a_report_whose_client_has_gone_is_stopped(reactor: Any, make: Make) -> None:
    reports = make()
    running = reports.read(TENANT, endless)
    waiting = reports.read(TENANT, endless)
    await deferLater(reactor, 0.1)
    assert (reports.queue.running, reports.queue.waiting) == (1, 1)
    for each in (waiting, running):
        each.cancel()
        with pytest.raises(CancelledError):
            await each
    await until(reactor, lambda: reports.queue.running == 0)
    assert reports.queue.waiting == 0
    assert await reports.read(TENANT, count) == 0


@pytest_twisted.ensureDeferred
async def test_one_key_has_its_places_and_another_passes(reactor: Any, make: Make) -> None:
    reports, held = make(), Held()
    first = reports.read(TENANT, held)
    await until(reactor, held.runs.is_set)
    own = [reports.read(TENANT, count) for _ in range(2)]
    with pytest.raises(TooManyReports):
        await reports.read(TENANT, count)
    assert await reports.read(ReportCaller.of(Principal("key", "name", key_id="key-2")), count) == 0
    assert not any(each.called for each in own)
    held.go_on.set()
    assert [await each for each in (first, *own)] == [0, 0, 0]


@pytest_twisted.ensureDeferred
async def test_a_report_that_waits_too_long_is_refused_and_the_next_part_of_one_is_not(
    reactor: Any, make: Make
) -> None:
    reports, held = make(seconds=2.0), Held()
    first = reports.read(TENANT, held)
    await until(reactor, held.runs.is_set)
    part: Deferred[int] = reports.read(TENANT, count, begun=True)
    with pytest.raises(ReportsBusy, match=r"timeouts\.report"):
        await reports.read(TENANT, count)
    assert not part.called
    held.go_on.set()
    with pytest.raises(ReportTimeout):
        await first
    assert await part == 0


@pytest_twisted.ensureDeferred
async def test_what_a_report_raises_is_passed_on(make: Make) -> None:
    def fail(_transaction: Transaction) -> None:
        raise ZeroDivisionError

    reports = make()
    with pytest.raises(ZeroDivisionError):
        await reports.read(ADMINISTRATOR, fail)
    assert reports.queue.running == 0


@pytest_twisted.ensureDeferred
async def test_a_report_of_a_database_whose_file_is_lost_says_so(tmp_path: Path, make: Make) -> None:
    reports = make()
    (tmp_path / "keys.sqlite").rename(tmp_path / "aside.sqlite")
    with pytest.raises(StoreUnavailable, match="file was removed or replaced"):
        await reports.read(ADMINISTRATOR, count)


@pytest_twisted.ensureDeferred
async def test_a_stop_ends_what_runs_and_refuses_what_waits(make: Make) -> None:
    reports = make()
    running, waiting = reports.read(TENANT, endless), reports.read(TENANT, count)
    began = time.monotonic()
    await reports.stop()
    assert time.monotonic() - began < 2
    for each in (running, waiting, reports.read(TENANT, count)):
        with pytest.raises((StoreUnavailable, ReportTimeout)):
            await each


@pytest_twisted.ensureDeferred
async def test_reports_without_a_gap_do_not_let_the_write_ahead_log_grow(
    reactor: Any, tmp_path: Path, database: Database, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_ahead_log, "WAL_LIMIT", 1_000_000)
    monkeypatch.setattr(write_ahead_log, "WAL_INTERVAL", 0.1)
    reports, log = make(), tmp_path / "keys.sqlite-wal"
    ended = False
    read = largest = 0

    def look(transaction: Transaction) -> None:
        transaction.connection.execute(text("SELECT count(*) FROM vllm_passthrough_keys")).all()
        time.sleep(0.02)

    async def read_on(caller: ReportCaller) -> None:
        nonlocal read
        while not ended:
            await reports.read(caller, look)
            read += 1

    readers = [Deferred.fromCoroutine(read_on(ADMINISTRATOR)) for _ in range(4)]
    for number in range(1, 150):
        await put(Store(database), key_record(number, metadata={"note": "x" * 200_000}))
        largest = max(largest, log.stat().st_size)
        # as the ledger's writer leaves the lock free between two batches
        await deferLater(reactor, 0.01)
    ended = True
    for each in readers:
        await each
    assert read > 20
    # all 30 MB of the changes, if reports do not pause
    assert largest < 10_000_000
    print(f"{read} reports, write-ahead log of {largest / 1e6:.1f} MB at most")
