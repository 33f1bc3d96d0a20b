"""The metrics of the pass-through for Prometheus. No label: a stranger would choose its values."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.observability.logging.unsent_lines import UnsentLines
from twisted_vllm.observability.metrics import PREFIX
from twisted_vllm.proxy.accounting import Accounting


class PreflightCollector(Collector):
    """Reads on each scrape how many preflights were admitted."""

    def __init__(self, accounting: Accounting) -> None:
        """Collect from the accounting."""
        self._accounting = accounting

    def collect(self) -> Iterator[Metric]:
        """Return the current count."""
        yield CounterMetricFamily(
            f"{PREFIX}_preflights",
            "CORS preflights without a key that went to a server. They have no ledger row and spend no limit.",
            value=self._accounting.preflights,
        )


class AbuseCollector(Collector):
    """Reads on each scrape how much was refused or left out of the log because it came too often."""

    def __init__(self, uncounted: UncountedRequests, unsent: UnsentLines) -> None:
        """Collect from what counts it."""
        self._uncounted = uncounted
        self._unsent = unsent

    def collect(self) -> Iterator[Metric]:
        """Return the current counts."""
        yield CounterMetricFamily(
            f"{PREFIX}_uncounted_requests_refused",
            "Requests over limits.max_uncounted_requests, answered 429.",
            value=self._uncounted.refused,
        )
        yield CounterMetricFamily(
            f"{PREFIX}_log_lines_left_out",
            "Lines over log.max_unsent_lines, of requests that reached no server.",
            value=self._unsent.left_out,
        )
