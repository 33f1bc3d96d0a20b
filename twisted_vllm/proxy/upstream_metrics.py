"""The metrics of vLLM servers. They are collected at a scrape, and cost nothing between two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.upstreams.breaker import STATES
from twisted_vllm.upstreams.faults import KNOWN_FAULTS
from twisted_vllm.upstreams.health_checks import Checked
from twisted_vllm.upstreams.health_report import DRAINED, SLEEPING, state_in_words

#: A counter that is there before the first failure: Prometheus sees no increase of one that begins above 0.
_NO_FAILURES = dict.fromkeys(KNOWN_FAULTS, 0)


class UpstreamCollector(Collector):
    """Reads on each scrape how each server is.

    Whoever reaches the port may read the metrics, and internal addresses are none of their business: strangers get
    numbers in place of the servers' names.
    """

    def __init__(self, servers: Iterable[Checked], *, named: bool) -> None:
        """Collect from these servers.

        Args:
            servers: the servers, and what their checks found.
            named: whether the label has the server's name, or its number.
        """
        self._servers = servers
        self._named = named

    def collect(self) -> Iterator[Metric]:
        """Return the current figures."""
        healthy = GaugeMetricFamily(f"{PREFIX}_upstream_healthy", "1 if the server gets requests.", labels=["server"])
        states = GaugeMetricFamily(
            f"{PREFIX}_upstream_state", "1 for the state of the server, 0 for the others.", labels=["server", "state"]
        )
        out = GaugeMetricFamily(
            f"{PREFIX}_upstream_out",
            "1 for a server that gets no requests, by the reason for which it was taken out.",
            labels=["server", "reason"],
        )
        in_flight = GaugeMetricFamily(
            f"{PREFIX}_upstream_in_flight", "Requests of this process at the server.", labels=["server"]
        )
        waiting = GaugeMetricFamily(
            f"{PREFIX}_upstream_waiting",
            "Requests in the server's own queue, as it reports with health.scrape_metrics.",
            labels=["server"],
        )
        kv_usage = GaugeMetricFamily(
            f"{PREFIX}_upstream_kv_cache_usage",
            "The used share of the server's KV cache, as it reports with health.scrape_metrics.",
            labels=["server"],
        )
        failures = CounterMetricFamily(
            f"{PREFIX}_upstream_failures",
            "Requests that failed by the server's fault, retried ones included.",
            labels=["server", "reason"],
        )
        checks = CounterMetricFamily(
            f"{PREFIX}_health_checks", "Health checks, by their result.", labels=["server", "result"]
        )
        for each in self._servers:
            state = each.state
            breaker = state.breaker
            server = state.name if self._named else str(each.number)
            current = state_in_words(state)
            healthy.add_metric([server], current == "closed")
            for name in (*STATES, SLEEPING, DRAINED):
                states.add_metric([server, name], name == current)
            if not breaker.closed:
                out.add_metric([server, breaker.reason], 1)
            in_flight.add_metric([server], state.in_flight_here)
            waiting.add_metric([server], state.waiting)
            kv_usage.add_metric([server], state.kv_usage)
            for reason, count in {**_NO_FAILURES, **breaker.failures}.items():
                failures.add_metric([server, reason], count)
            for result, count in each.results.items():
                checks.add_metric([server, result], count)
        yield from (healthy, states, out, in_flight, waiting, kv_usage, failures, checks)
