"""The metrics of the pass-through for Prometheus. No label: a stranger would choose its values."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.retries import StaleRequest
from twisted_vllm.http.net.shortages import Operation, Shortages
from twisted_vllm.http.server.held_bodies import HeldBodies
from twisted_vllm.http.server.site import GatewaySite
from twisted_vllm.identification.inquiry import Inquiry
from twisted_vllm.observability.logging.unsent_lines import UnsentLines
from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.proxy.accounting import Accounting
from twisted_vllm.proxy.form_files import FormFiles

#: there at 0 before the first: Prometheus sees no increase of a counter that begins above 0
_NO_SHORTAGES: dict[tuple[Operation, str], int] = {
    ("accept", "EMFILE"): 0,
    ("accept", "ENFILE"): 0,
    ("connect", "EMFILE"): 0,
    ("connect", "ENFILE"): 0,
    ("connect", "EADDRNOTAVAIL"): 0,
}


class ConnectionCollector(Collector):
    """Reads on each scrape how many connections there are, and what limits and shortages did to them."""

    def __init__(self, site: GatewaySite, agent: UpstreamAgent, shortages: Shortages, files: FormFiles) -> None:
        """Collect from both sides, from the shortages of sockets, and from the files of forms."""
        self._site = site
        self._agent = agent
        self._shortages = shortages
        self._files = files

    def collect(self) -> Iterator[Metric]:
        """Return the current counts."""
        limit = self._site.connection_limit
        busy = sum(1 for connection in self._site.connections if connection.requests)
        connections = GaugeMetricFamily(
            f"{PREFIX}_connections", "Client connections, by what they do.", labels=["state"]
        )
        connections.add_metric(["busy"], busy)
        connections.add_metric(["idle"], max(len(limit) - busy, 0))
        connections.add_metric(["refused"], limit.being_refused)
        connections.add_metric(["closing"], limit.being_closed)
        yield connections
        if (most := limit.most) is not None:
            yield GaugeMetricFamily(f"{PREFIX}_connections_limit", "The most client connections that are served.", most)
        yield GaugeMetricFamily(
            f"{PREFIX}_server_connections", "Connections to servers, idle ones included.", len(self._agent.connections)
        )
        refused = CounterMetricFamily(
            f"{PREFIX}_connections_refused",
            "Client connections over a limit, in all or of one address.",
            labels=["limit"],
        )
        for name in ("total", "address"):
            refused.add_metric([name], limit.refused[name])
        yield refused
        dropped = CounterMetricFamily(
            f"{PREFIX}_dropped_connections", "Idle client connections that made room for others.", labels=["idle"]
        )
        for idle, count in limit.dropped.items():
            dropped.add_metric([idle.name.lower()], count)
        yield dropped
        failed = CounterMetricFamily(
            f"{PREFIX}_socket_shortages",
            "What failed for want of an open file, a port or memory for a socket.",
            labels=["operation", "error"],
        )
        shortages = {**_NO_SHORTAGES, **self._shortages.counts}
        for (operation, error), count in shortages.items():
            failed.add_metric([operation, error], count)
        yield failed
        yield GaugeMetricFamily(
            f"{PREFIX}_form_spool_bytes", "Bytes of large forms that wait in temporary files.", self._files.bytes
        )


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


class HeldBodiesCollector(Collector):
    """Reads on each scrape what the bodies in memory take. No label: it would name keys."""

    def __init__(self, held_bodies: HeldBodies) -> None:
        """Collect from the account of a site."""
        self._held_bodies = held_bodies

    def collect(self) -> Iterator[Metric]:
        """Return the current figures."""
        held_bodies = self._held_bodies
        yield GaugeMetricFamily(
            f"{PREFIX}_held_body_bytes",
            "Room that request bodies take in memory: what they have, or may still have.",
            value=held_bodies.held,
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_bodies_waiting",
            "Requests whose body waits unread for room in memory.",
            value=held_bodies.waiting,
        )
        yield CounterMetricFamily(
            f"{PREFIX}_bodies_without_room",
            "Requests that were answered 503 no_room_for_body.",
            value=held_bodies.refused,
        )


class AbuseCollector(Collector):
    """Reads on each scrape how much was refused or left out of the log because it came too often, and its cost."""

    def __init__(self, uncounted: UncountedRequests, unsent: UnsentLines, inquiry: Inquiry) -> None:
        """Collect from what counts it."""
        self._inquiry = inquiry
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
        yield CounterMetricFamily(
            f"{PREFIX}_key_questions",
            "Questions to the database for callers who were not known.",
            value=self._inquiry.asked,
        )
