"""The metrics of the pass-through for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.http.server.held_bodies import HeldBodies
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
