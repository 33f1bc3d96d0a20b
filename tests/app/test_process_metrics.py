"""What the process says of itself, and of what it depends on."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from twisted_vllm.app.telemetry.process_metrics import ProcessCollector

PREFIX = "vllm_passthrough_"


class Surrounded:
    """The collector among components that a test changes."""

    def __init__(self) -> None:
        self.accounting = SimpleNamespace(shares_limits=None)
        self.reload = SimpleNamespace(
            results={"succeeded": 2, "invalid": 1, "failed": 0}, last_failed=True, succeeded_at=7.0, restart_needed=()
        )
        self.is_draining = False
        surroundings: Any = SimpleNamespace(
            accounting=self.accounting,
            reloader=lambda: self.reload,
            draining=lambda: self.is_draining,
            observer=None,
        )
        self.registry = CollectorRegistry()
        self.registry.register(ProcessCollector(surroundings))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(PREFIX + name, labels)


@pytest.fixture
def surrounded() -> Surrounded:
    return Surrounded()


def test_redis_is_up_or_away_or_not_configured(surrounded: Surrounded) -> None:
    found = []
    for state in (None, True, False):
        surrounded.accounting.shares_limits = state
        found.append(surrounded.value("limits_redis_up"))
    assert found == [None, 1, 0]


def test_an_open_file_is_counted(surrounded: Surrounded) -> None:
    before = surrounded.value("open_files")
    assert before is not None
    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        assert surrounded.value("open_files") == before + 1
    finally:
        os.close(descriptor)
    limit = surrounded.value("open_files_limit")
    assert limit is not None and limit > before


def test_reloads_are_told_by_their_results(surrounded: Surrounded) -> None:
    results = {name: surrounded.value("reloads_total", result=name) for name in ("succeeded", "invalid", "failed")}
    assert results == {"succeeded": 2, "invalid": 1, "failed": 0}
    assert surrounded.value("last_reload_failed") == 1
    assert surrounded.value("last_reload_success_timestamp_seconds") == 7
    surrounded.reload.restart_needed = ("passthrough.listen",)
    assert surrounded.value("restart_needed") == 1


def test_a_drain_is_seen(surrounded: Surrounded) -> None:
    assert surrounded.value("draining") == 0
    surrounded.is_draining = True
    assert surrounded.value("draining") == 1
