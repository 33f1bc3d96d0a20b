"""The database's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.storage.database import Database
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
