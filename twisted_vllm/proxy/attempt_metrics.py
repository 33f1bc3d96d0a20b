"""Metrics of further attempts, of other models in a model's place, and of the queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sized

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.proxy.forwarding import Forwarder


class AttemptMetrics(RequestObserver):
    """Counts the failed attempts of requests that are over.

    Attributes:
        retries: attempts that another followed, by the reason for which they failed.
        fallbacks: requests for which another model was asked.
    """

    def __init__(self) -> None:
        """Begin at zero."""
        self.retries: Counter[str] = Counter()
        self.fallbacks = 0

    def finished(self, context: RequestContext) -> None:
        """Count a request."""
        for attempt in context.attempts:
            self.retries[attempt.reason] += 1
        if context.fallback:
            self.fallbacks += 1


class AttemptCollector(Collector):
    """Reads the counts on each scrape."""

    def __init__(self, counted: AttemptMetrics, forwarder: Forwarder, queued: Sized) -> None:
        """Collect from what counts; `queued` has the number of requests that wait for room as its length."""
        self._counted = counted
        self._forwarder = forwarder
        self._queued = queued

    def collect(self) -> Iterator[Metric]:
        """Return the current counts."""
        retries = CounterMetricFamily(
            f"{PREFIX}_retries",
            "Attempts that failed before the first byte of an answer reached the client, and that another followed.",
            labels=["reason"],
        )
        for reason, count in self._counted.retries.items():
            retries.add_metric([reason], count)
        yield retries
        yield CounterMetricFamily(
            f"{PREFIX}_retries_denied",
            "Attempts that the budget of retries did not allow.",
            value=self._forwarder.retries_denied,
        )
        yield CounterMetricFamily(
            f"{PREFIX}_fallbacks", "Requests for which another model was asked.", value=self._counted.fallbacks
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_queued_requests", "Requests that wait for a server of their model.", len(self._queued)
        )
