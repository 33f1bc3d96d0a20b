"""The database's metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client import CollectorRegistry

from tests.storage.test_reports import ADMINISTRATOR, LIMITS, endless
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import ReportsBusy, ReportTimeout
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.metrics import DatabaseCollector
from twisted_vllm.storage.reports import ReportReader


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
