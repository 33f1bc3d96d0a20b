"""Metrics of further attempts that were not made, and of the queues."""

from __future__ import annotations

from collections.abc import Iterator, Sized

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.proxy.forwarding import Forwarder


class AttemptCollector(Collector):
    """Reads on each scrape what was not sent again, and what waits."""

    def __init__(self, forwarder: Forwarder, queued: Sized) -> None:
        """Collect from these; `queued` has the number of requests that wait for room as its length."""
        self._forwarder = forwarder
        self._queued = queued

    def collect(self) -> Iterator[Metric]:
        """Return the current counts."""
        yield CounterMetricFamily(
            f"{PREFIX}_retries_denied",
            "Attempts that the budget of retries did not allow.",
            value=self._forwarder.retries_denied,
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_queued_requests", "Requests that wait for a server of their model.", len(self._queued)
        )
