"""The metrics of deliveries for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.observability.metrics.registry import PREFIX


class Counted(Protocol):
    """The counts of a `DeliveryQueue`. A gateway without queues does not load that module."""

    name: str
    delivered: int
    dropped: int
    failures: int

    @property
    def queued(self) -> int:
        """Return how many items wait."""

    @property
    def spool_bytes(self) -> int:
        """Return the size of the spool in bytes."""

    def oldest_seconds(self) -> float:
        """Return the age of the oldest item that waits, in seconds."""


class Deliveries(Collector):
    """The queues of the gateway, which it reads on each scrape, in the reactor's thread.

    Attributes:
        queues: the queues by name.
    """

    def __init__(self) -> None:
        """Start without a queue."""
        self.queues: dict[str, Counted] = {}
        #: what queues of a name counted that were removed since
        self._before: dict[str, tuple[int, int, int]] = {}

    def add(self, queue: Counted) -> None:
        """Add a queue, whose name no other has."""
        self.queues[queue.name] = queue

    def remove(self, queue: Counted) -> None:
        """Remove a queue; its counters go on if another of its name is added."""
        if self.queues.get(queue.name) is queue:
            del self.queues[queue.name]
            self._before[queue.name] = self._counts(queue)

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics."""
        name = f"{PREFIX}_delivery"
        queued = GaugeMetricFamily(f"{name}_queued", "Items that wait for their delivery.", labels=["sink"])
        oldest = GaugeMetricFamily(f"{name}_oldest_seconds", "Age of the oldest item that waits.", labels=["sink"])
        spooled = GaugeMetricFamily(f"{name}_spool_bytes", "Bytes of the spool's files.", labels=["sink"])
        delivered = CounterMetricFamily(f"{name}_delivered", "Items that were delivered.", labels=["sink"])
        dropped = CounterMetricFamily(
            f"{name}_dropped", "Items that were dropped: the queue was full, or they were refused.", labels=["sink"]
        )
        failures = CounterMetricFamily(f"{name}_failures", "Deliveries that failed.", labels=["sink"])
        for sink, queue in self.queues.items():
            queued.add_metric([sink], queue.queued)
            oldest.add_metric([sink], queue.oldest_seconds())
            spooled.add_metric([sink], queue.spool_bytes)
            for family, count in zip((delivered, dropped, failures), self._counts(queue), strict=True):
                family.add_metric([sink], count)
        yield from (queued, oldest, spooled, delivered, dropped, failures)

    def _counts(self, queue: Counted) -> tuple[int, int, int]:
        delivered, dropped, failures = self._before.get(queue.name, (0, 0, 0))
        return queue.delivered + delivered, queue.dropped + dropped, queue.failures + failures
