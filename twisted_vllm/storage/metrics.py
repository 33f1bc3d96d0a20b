"""The database's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.storage.database import Database
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.reports import ReportReader

_PREFIX = "vllm_passthrough"


class DatabaseCollector(Collector):
    """Reads the database's state and its reports on each scrape, in the reactor's thread."""

    def __init__(self, database: Database, reports: ReportReader) -> None:
        """Collect from a database and its reports."""
        self._database = database
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics."""
        queue = self._reports.queue
        gauges: tuple[tuple[str, str, float], ...] = (
            ("database_up", "1 if the database answered the last time, 0 if not.", self._database.reachable),
            ("reports_running", "Reports that read the database.", queue.running),
            ("reports_waiting", "Reports that wait for others.", queue.waiting),
        )
        counters = (
            ("reports_refused", "Reports that were refused because too many waited.", queue.refused),
            ("reports_stopped", "Reports that were stopped because they took too long.", self._reports.stopped),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)
        for name, text, value in counters:
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=value)
        histograms = (
            ("transaction_seconds", "Seconds of transactions.", self._database.durations),
            ("queue_seconds", "Seconds that transactions waited for a thread.", self._database.waits),
        )
        for name, text, by_kind in histograms:
            family = HistogramMetricFamily(f"{_PREFIX}_database_{name}", text, labels=["kind"])
            for kind, each in by_kind.items():
                family.add_metric([kind], each.buckets(), each.sum)
            yield family
        unfinished = GaugeMetricFamily(
            f"{_PREFIX}_database_unfinished", "Transactions that run or wait for a thread.", labels=["kind"]
        )
        for kind, count in self._database.unfinished.items():
            unfinished.add_metric([kind], count)
        yield unfinished


class AuditCollector(Collector):
    """Reads on each scrape what became of entries of the audit log."""

    def __init__(self, registry: Registry) -> None:
        """Collect from what runs the transactions that they are part of."""
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Return the current counts."""
        family = CounterMetricFamily(
            f"{_PREFIX}_audit_events",
            "Entries of the audit log: written, or failed together with the change that they are part of.",
            labels=["result"],
        )
        for result, count in self._registry.audited.items():
            family.add_metric([result], count)
        yield family
