"""``GET /metrics``: what the gateway says of itself to Prometheus."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from admin_harness import Gateway
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text
from spool_rows import MemoryUsageStore, make_row, make_rows

from twisted_vllm.ledger.metrics import LedgerCollector
from twisted_vllm.ledger.spool import Spool
from twisted_vllm.ledger.writer import LedgerWriter
from twisted_vllm.observe.metrics import Metrics

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def test_it_is_prometheus_text_with_what_the_process_says() -> None:
    answer = Gateway().get("/metrics", key=None)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {family.name: family for family in prometheus_text(answer.body.decode())}
    assert {"process_cpu_seconds", "process_open_fds", "python_info", "python_gc_collections"} <= set(families)
    assert families["vllm_passthrough_info"].samples[0].labels == {"version": version("twisted-vllm")}


def test_it_is_openmetrics_where_the_client_takes_that() -> None:
    answer = Gateway().get("/metrics", key=None, headers={"Accept": OPENMETRICS})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert "vllm_passthrough" in {family.name for family in openmetrics(answer.body.decode())}


def test_the_operator_may_close_it_to_all_but_administrators() -> None:
    gateway = Gateway(metrics_are_open=False)
    tenant = gateway.make_key()["key"]
    manager = gateway.make_key(allowed_routes=["management"])["key"]
    assert gateway.get("/metrics", key=None).status == 401
    assert gateway.get("/metrics", key=tenant).status == 403
    assert gateway.get("/metrics", key=manager).status == gateway.get("/metrics").status == 200


def test_two_gateways_in_one_process_do_not_share_metrics() -> None:
    assert Gateway().get("/metrics").status == Gateway().get("/metrics").status == 200


class Scraped:
    """The ledger's metrics by their names, less what all begin with."""

    def __init__(self, directory: Path) -> None:
        self.spool = Spool(directory / "spool", monotonic=lambda: 0.0)
        self.store = MemoryUsageStore()
        self.writer = LedgerWriter(None, self.spool, self.store, lambda spent: None, now=lambda: 1_764_072_010.0)
        self.spool.open()
        self._metrics = Metrics()
        self._metrics.add(LedgerCollector(self.spool, self.writer))

    def __call__(self) -> dict[str, float]:
        text, _ = self._metrics.expose("")
        begin = "vllm_passthrough_ledger_"
        return {
            sample.name.removeprefix(begin): sample.value
            for family in prometheus_text(text.decode())
            for sample in family.samples
            if sample.name.startswith(begin)
        }

    def move(self) -> None:
        """Move what there is to the database."""
        batch = self.spool.take(1000)
        assert batch is not None
        self.store.write(batch.rows, batch.own)
        self.spool.commit(batch)


@pytest.fixture
def scraped(tmp_path: Path) -> Scraped:
    return Scraped(tmp_path)


def test_an_idle_ledger_is_well(scraped: Scraped) -> None:
    assert scraped() == {
        "spool_rows": 0,
        "spool_bytes": 0,
        "spool_oldest_row_seconds": 0,
        "spool_writable": 1,
        "unsaved_rows": 0,
        "database_up": 1,
        "rows_spooled_total": 0,
        "rows_committed_total": 0,
        "rows_lost_total": 0,
        "set_aside_total": 0,
        "spool_write_failures_total": 0,
    }


def test_rows_that_wait_are_told_with_their_age(scraped: Scraped) -> None:
    for row in make_rows(3):
        scraped.spool.append(row)
    scraped.spool.flush()
    found = scraped()
    assert (found["spool_rows"], found["rows_spooled_total"]) == (3, 3)
    assert found["spool_bytes"] > 100
    assert found["spool_oldest_row_seconds"] == pytest.approx(10.0, abs=0.01)
    scraped.move()
    found = scraped()
    assert (found["spool_rows"], found["spool_bytes"], found["spool_oldest_row_seconds"]) == (0, 0, 0)


def test_a_disk_that_takes_nothing_is_told(scraped: Scraped, logged_failures: Any) -> None:
    scraped.spool.close()
    scraped.spool.append(make_row(1))
    scraped.spool.flush()
    found = scraped()
    assert (found["spool_writable"], found["unsaved_rows"], found["spool_write_failures_total"]) == (0, 1, 1)
    scraped.spool._rows.clear()
    assert len(logged_failures.take_texts()) == 1
