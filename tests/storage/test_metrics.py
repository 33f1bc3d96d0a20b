"""The database's metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client import CollectorRegistry

from tests.storage.test_reports import ADMINISTRATOR, LIMITS, endless
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import ReportsBusy, ReportTimeout, StoreUnavailable
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.metrics import AuditCollector, DatabaseCollector
from twisted_vllm.storage.records import AuditRecord
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.reports import ReportReader
from twisted_vllm.storage.store import Store
from twisted_vllm.storage.transaction import Transaction


@pytest_twisted.ensureDeferred
async def test_reports_that_run_wait_are_refused_and_are_stopped_are_counted(
    reactor: Any, tmp_path: Path, database: Database
) -> None:
    reports = ReportReader(reactor, Secret(f"sqlite:///{tmp_path}/keys.sqlite"), LIMITS, 0.5)
    reports.open()
    registry = CollectorRegistry()
    registry.register(DatabaseCollector(database, reports))

    def counts() -> dict[str, float | None]:
        names = ("reports_running", "reports_waiting", "reports_refused_total", "reports_stopped_total", "database_up")
        return {name: registry.get_sample_value(f"vllm_passthrough_{name}") for name in names}

    asked = [reports.read(ADMINISTRATOR, endless) for _ in range(LIMITS.running + LIMITS.waiting + 1)]
    with pytest.raises(ReportsBusy):
        await asked.pop()
    before = {"reports_running": 2, "reports_waiting": 8, "reports_refused_total": 1, "reports_stopped_total": 0}
    assert counts() == {**before, "database_up": 1}
    for each in asked[:2]:
        with pytest.raises(ReportTimeout):
            await each
    assert counts()["reports_stopped_total"] == 2
    await reports.stop()
    for each in asked[2:]:
        each.addErrback(lambda failure: None)


@pytest_twisted.ensureDeferred
async def test_transactions_and_their_waits_are_measured_by_kind(reactor: Any, tmp_path: Path) -> None:
    seconds = 0.0

    def monotonic() -> float:
        nonlocal seconds
        # each look at the clock is half a second after the last
        seconds += 0.5
        return seconds

    database = Database(reactor, Secret(f"sqlite:///{tmp_path}/measured.sqlite"), monotonic=monotonic)
    database.open()
    registry = CollectorRegistry()
    registry.register(DatabaseCollector(database, ReportReader(reactor, Secret("sqlite:///none"), LIMITS, 0.5)))

    def value(name: str, kind: str) -> float | None:
        return registry.get_sample_value(f"vllm_passthrough_database_{name}", {"kind": kind})

    running = database.run(lambda connection: None, writes=True)
    assert value("unfinished", "write") == 1
    await running
    with pytest.raises(ZeroDivisionError):
        await database.run(lambda connection: 1 / 0, writes=False)
    assert value("unfinished", "write") == 0
    for kind in ("read", "write"):
        assert value("transaction_seconds_count", kind) == value("queue_seconds_count", kind) == 1
        assert value("transaction_seconds_sum", kind) == value("queue_seconds_sum", kind) == 0.5
    await database.stop()


@pytest_twisted.ensureDeferred
async def test_entries_of_the_audit_log_are_counted_by_what_became_of_them(database: Database) -> None:
    keys = Registry(Store(database), KeyIndex())
    registry = CollectorRegistry()
    registry.register(AuditCollector(keys))

    def counts() -> dict[str, float]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {sample.labels["result"]: sample.value for sample in samples if sample.name.endswith("_total")}

    def work(transaction: Transaction) -> None:
        for number in range(2):
            transaction.write_audit(
                AuditRecord(
                    datetime.now(UTC), "master", "master", "key/update", "key", str(number), None, None, "r", "c"
                )
            )

    assert counts() == {"written": 0, "failed": 0}
    await keys.change(work)
    assert counts() == {"written": 2, "failed": 0}
    await database.stop()
    with pytest.raises(StoreUnavailable):
        await keys.change(work)
    assert counts() == {"written": 2, "failed": 1}
