"""The export's metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.usage.days import DAY_US
from twisted_vllm.usage_export.service import UsageExport

_PREFIX = "vllm_passthrough_usage_export"


class UsageExportCollector(Collector):
    """Reads on each scrape how far the export is, in the reactor's thread."""

    def __init__(self, export: UsageExport) -> None:
        """Collect from an export; there are no metrics while nothing is exported."""
        self._export = export

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics."""
        export = self._export
        if not export.enabled:
            return
        until = export.state.exported_until
        gauges = (
            (
                "last_day_timestamp_seconds",
                "The end of the last day up to which all days are exported; 0 before the first.",
                0.0 if until is None else (until + 1) * DAY_US / 1e6,
            ),
            (
                "overdue_seconds",
                "For how long the oldest day that is missing is overdue; 0 if none is.",
                export.overdue,
            ),
        )
        counters = (
            ("rows", "Rows that this process exported.", export.rows),
            ("days", "Days that this process exported.", export.days),
            ("failures", "Attempts of this process to export a day that failed.", export.failures),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)
        for name, text, count in counters:
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=count)
