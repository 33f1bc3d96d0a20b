"""The metrics of the pass-through for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.retries import StaleRequest
from twisted_vllm.observability.metrics import PREFIX
from twisted_vllm.proxy.accounting import Accounting


class PreflightCollector(Collector):
    """Reads on each scrape how many preflights were admitted. No label: a stranger would choose its values."""

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


class StaleConnectionCollector(Collector):
    """Reads on each scrape what became of requests on reused connections that their server closed."""

    def __init__(self, agent: UpstreamAgent) -> None:
        """Collect from the agent."""
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        """Return the current counts."""
        family = CounterMetricFamily(
            f"{PREFIX}_stale_connections",
            "Requests on a reused connection that their server closed without an answer, by what became of them.",
            labels=["request"],
        )
        for decision in StaleRequest:
            family.add_metric([decision.value], self._agent.stale_requests[decision])
        yield family
