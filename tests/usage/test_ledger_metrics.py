"""The ledger's metrics reveal a full disk, an unavailable database and lost rows."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.builders import NOON, usage_row, usage_rows
from tests.conftest import LoggedFailures
from tests.usage.memory_usage_store import MemoryUsageStore
from twisted_vllm.usage.metrics import LedgerCollector
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.spool.segments import Segment
from twisted_vllm.usage.spool.spool import Spool
from twisted_vllm.usage.spool.writer import LedgerWriter

BEGIN = "vllm_passthrough_ledger_"
WELL = {
    "spool_rows": 0,
    "spool_bytes": 0,
    "spool_oldest_row_seconds": 0,
    "spool_writable": 1,
    "unsaved_rows": 0,
    "gathered_rows": 0,
    "gathered_oldest_row_seconds": 0,
    "database_up": 1,
    "rows_spooled_total": 0,
    "rows_committed_total": 0,
    "rows_lost_total": 0,
    "set_aside_total": 0,
    "spool_write_failures_total": 0,
}


class AtOnce:
    """In place of the reactor: runs calls from other threads in those threads."""

    def callFromThread(self, function: Callable[..., object], *args: object) -> None:
        function(*args)


class Ledger:
    """A spool and its writer, ten seconds after noon, whose turns the test takes."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.seconds = 0.0
        self.spool = Spool(directory / "spool", monotonic=lambda: self.seconds, **options)
        self.spool.open()
        self.store = MemoryUsageStore()
        self.writer = LedgerWriter(AtOnce(), self.spool, self.store, lambda spent: None, now=lambda: NOON + 10.0)
        self._registry = CollectorRegistry()
        self._registry.register(LedgerCollector(self.spool, self.writer))

    def scrape(self) -> dict[str, float]:
        """Return the metrics by their names, less what all begin with."""
        families = text_string_to_metric_families(generate_latest(self._registry).decode())
        samples = [sample for family in families for sample in family.samples]
        assert all(sample.name.startswith(BEGIN) and not sample.labels.keys() - {"le"} for sample in samples)
        found = {sample.name.removeprefix(BEGIN): sample.value for sample in samples}
        return {name: value for name, value in found.items() if not name.startswith("batch_seconds")}

    def put(self, *rows: UsageRow) -> None:
        for row in rows:
            self.spool.append(row)
        self.spool.flush()

    def move(self) -> bool:
        """Take a turn of the writer's thread; return whether the database took what there was."""
        return self.writer.move_all()


@pytest.fixture
def make_ledger(tmp_path: Path, logged_failures: LoggedFailures) -> Iterator[Callable[..., Ledger]]:
    """Ledgers may log what would fail a test: these tests make them do so."""
    ledgers: list[Ledger] = []

    def make(**options: Any) -> Ledger:
        ledgers.append(Ledger(tmp_path, **options))
        return ledgers[-1]

    yield make
    for ledger in ledgers:
        ledger.spool.close()
    logged_failures.flush()


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger]) -> Ledger:
    return make_ledger()


@pytest.fixture
def uncached(make_ledger: Callable[..., Ledger]) -> Ledger:
    """A ledger that reads all rows from the spool's files."""
    return make_ledger(cached_rows=0)


@pytest.fixture
def full_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A disk that takes no more of the ledger, until it is undone."""

    def write(segment: Segment, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Segment, "write", write)
        yield patched


def test_an_idle_ledger_is_well(ledger: Ledger) -> None:
    assert ledger.scrape() == WELL


def test_pending_rows_are_reported_with_their_age_and_counted_once_moved(ledger: Ledger) -> None:
    ledger.put(*usage_rows(3))
    waiting = ledger.scrape()
    assert waiting.pop("spool_bytes") > 100
    assert waiting.pop("spool_oldest_row_seconds") == pytest.approx(10.0, abs=0.01)
    others = {name: WELL[name] for name in waiting}
    assert waiting == others | {"spool_rows": 3, "rows_spooled_total": 3}
    assert ledger.move()
    assert ledger.scrape() == WELL | {"rows_spooled_total": 3, "rows_committed_total": 3}


def test_rows_whose_sums_are_gathered_are_reported_until_these_are_written(ledger: Ledger) -> None:
    ledger.store.flushes = False
    ledger.put(*usage_rows(3))
    assert ledger.move()
    found = ledger.scrape()
    assert (found["spool_rows"], found["gathered_rows"], found["rows_committed_total"]) == (0, 3, 3)
    assert found["gathered_oldest_row_seconds"] > 0
    ledger.store.flushes = True
    assert ledger.move()
    assert ledger.scrape()["gathered_rows"] == 0


def test_an_unavailable_database_is_reported_until_it_accepts_rows_again(ledger: Ledger) -> None:
    ledger.store.unavailable = True
    ledger.put(*usage_rows(3))
    assert not ledger.move()
    away = ledger.scrape()
    assert (away["database_up"], away["spool_rows"], away["rows_committed_total"]) == (0, 3, 0)
    ledger.store.unavailable = False
    assert ledger.move()
    assert ledger.scrape() == WELL | {"rows_spooled_total": 3, "rows_committed_total": 3}


def test_a_failing_disk_is_reported_until_it_accepts_rows_again(ledger: Ledger, full_disk: pytest.MonkeyPatch) -> None:
    ledger.put(*usage_rows(3))
    full = ledger.scrape()
    assert (full["spool_writable"], full["unsaved_rows"], full["spool_write_failures_total"]) == (0, 3, 1)
    assert (full["spool_rows"], full["rows_spooled_total"]) == (3, 0)
    full_disk.undo()
    ledger.seconds += 1
    ledger.put(usage_row(3))
    well = ledger.scrape()
    assert (well["spool_writable"], well["unsaved_rows"], well["rows_spooled_total"]) == (1, 0, 4)
    assert (well["spool_write_failures_total"], well["rows_lost_total"]) == (1, 0)


@pytest.mark.usefixtures("full_disk")
def test_rows_that_neither_disk_nor_database_accepts_are_reported_with_their_age(ledger: Ledger) -> None:
    ledger.store.unavailable = True
    ledger.put(*usage_rows(3))
    assert not ledger.move()
    found = ledger.scrape()
    assert (found["spool_writable"], found["database_up"], found["unsaved_rows"], found["spool_rows"]) == (0, 0, 3, 3)
    assert found["spool_oldest_row_seconds"] == pytest.approx(10.0, abs=0.01)
    ledger.store.unavailable = False
    assert ledger.move()
    found = ledger.scrape()
    assert (found["unsaved_rows"], found["spool_rows"], found["spool_oldest_row_seconds"]) == (0, 0, 0)
    # no file ever had them
    assert (found["rows_spooled_total"], found["rows_committed_total"]) == (0, 3)


@pytest.mark.usefixtures("full_disk")
def test_rows_for_which_memory_has_no_room_either_are_lost(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_vllm.usage.spool.followed.UNSAVED_ROWS", 10)
    ledger.put(*usage_rows(15))
    found = ledger.scrape()
    assert (found["unsaved_rows"], found["rows_lost_total"]) == (10, 5)
    assert ledger.move()
    assert ledger.scrape()["rows_committed_total"] == 10


def test_rows_of_a_removed_file_are_lost(uncached: Ledger) -> None:
    ledger = uncached
    ledger.put(*usage_rows(3))
    [file] = ledger.spool.directory.glob("*.spool")
    file.unlink()
    assert ledger.move()
    found = ledger.scrape()
    assert (found["rows_lost_total"], found["spool_rows"], found["rows_committed_total"]) == (3, 0, 0)


def test_rows_that_the_database_refuses_are_set_aside_and_not_taken(ledger: Ledger) -> None:
    ledger.store.rejected = {"request-1"}
    ledger.put(*usage_rows(3))
    assert ledger.move()
    assert ledger.scrape() == WELL | {"rows_spooled_total": 3, "rows_committed_total": 2, "set_aside_total": 1}


def test_damaged_lines_are_set_aside(uncached: Ledger) -> None:
    ledger = uncached
    ledger.put(usage_row(0))
    ledger.put(usage_row(1))
    [file] = ledger.spool.directory.glob("*.spool")
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    assert ledger.move()
    found = ledger.scrape()
    assert (found["set_aside_total"], found["rows_committed_total"]) == (1, 1)


def test_batches_are_measured(ledger: Ledger) -> None:
    ledger.put(usage_row(1))
    assert ledger.move()
    assert ledger.writer.batch_writer.durations.count == 1
