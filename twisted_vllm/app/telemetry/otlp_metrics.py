"""OTLP metrics: collects the metrics at intervals, and queues them for the exporter."""

from __future__ import annotations

from collections.abc import Callable
from random import random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.app.telemetry.otlp_receivers import Receiver, receivers_of
from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.otlp_metrics import CUMULATIVE, OtlpMetricsSettings
from twisted_vllm.config.settings import Settings
from twisted_vllm.observability.metrics.registry import Snapshot

if TYPE_CHECKING:
    from twisted_vllm.observability.delivery.queue import DeliveryQueue

#: the queue's name
QUEUE = "metrics:otlp"
#: how long a stopping gateway waits for the receiver, in seconds
STOP_TIMEOUT = 5.0
#: what may wait: one collection of many thousand series
MAX_BYTES = 33_554_432
#: the longest wait after a failure, in seconds
MAX_BACKOFF = 60.0


class OtlpMetricsPart(TelemetryPart):
    """Metrics by OTLP."""

    _log = Logger()

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up; nothing is collected before settings say so."""
        self._surroundings = surroundings
        self._directory = surroundings.directory
        self._began = surroundings.reactor.seconds()
        self._interval = 0.0
        self._temporality = ""
        self._receiver: Receiver | None = None
        #: remembers what was exported; made in the exporter's thread, as it imports the SDK
        self._conversion: list[Any] = []
        self._queue: DeliveryQueue[Any] | None = None
        self._loop: LoopingCall | None = None
        self._is_started = False

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read the files of the destination; return what starts or ends the exports."""
        wanted = settings.otlp_metrics
        receiver = None
        # of several processes one exports for all
        if wanted.active and self._surroundings.siblings.housekeeps:
            placed = [("passthrough.otlp_metrics", wanted.destination)]
            (receiver,) = receivers_of(placed, wanted.service_name, wanted.resource, self._directory)
        return lambda: self._apply(wanted, receiver)

    def start(self) -> None:
        """Start to export."""
        self._is_started = True
        if self._queue is not None:
            self._queue.start()
            self._begin()

    def stop(self) -> Deferred[None] | None:
        """Export the last figures."""
        self._is_started = False
        self._end()
        queue = self._queue
        if queue is None:
            return None
        return self._collect().addCallback(lambda _: queue.stop(STOP_TIMEOUT))

    def _apply(self, wanted: OtlpMetricsSettings, receiver: Receiver | None) -> None:
        interval, temporality = wanted.interval or 0.0, wanted.temporality or CUMULATIVE
        if receiver is None:
            if self._queue is not None:
                self._end()
                queue, self._queue, self._receiver = self._queue, None, None
                queue.stop(STOP_TIMEOUT).addBoth(lambda _: self._surroundings.deliveries.remove(queue))
            self._interval, self._temporality, self._conversion = 0.0, "", []
            return
        if (receiver, interval, temporality) == (self._receiver, self._interval, self._temporality):
            return
        if temporality != self._temporality:
            self._conversion = []
        self._receiver, self._interval, self._temporality = receiver, interval, temporality
        self._export_to(receiver)
        if self._is_started:
            self._end()
            self._begin()

    def _export_to(self, receiver: Receiver) -> None:
        # few gateways need what this loads
        from twisted_vllm.observability.delivery.blocking import ThreadedDestination
        from twisted_vllm.observability.delivery.interfaces import Bounds
        from twisted_vllm.observability.delivery.queue import DeliveryQueue

        reactor = self._surroundings.reactor
        bounds = Bounds(
            max_items=1,
            max_bytes=MAX_BYTES,
            batch_items=1,
            linger=0.0,
            timeout=receiver.destination.timeout + STOP_TIMEOUT,
            max_backoff=min(self._interval, MAX_BACKOFF),
            # the next collection says all that this one says
            max_age=self._interval,
        )
        conversion, temporality, began = self._conversion, self._temporality, self._began
        threaded = ThreadedDestination(QUEUE, lambda: _exporter(receiver, conversion, temporality, began), reactor)
        if self._queue is not None:
            self._queue.reconfigure(threaded, bounds)
            return
        self._queue = DeliveryQueue(QUEUE, threaded, reactor, bounds, random)
        self._surroundings.deliveries.add(self._queue)
        if self._is_started:
            self._queue.start()

    def _begin(self) -> None:
        self._loop = LoopingCall(self._collect)
        self._loop.clock = self._surroundings.reactor
        self._loop.start(self._interval, now=False)

    def _end(self) -> None:
        if self._loop is not None:
            self._loop.stop()
            self._loop = None

    def _collect(self) -> Deferred[None]:
        """Collect the metrics and queue them; a collection takes milliseconds."""
        collecting = maybeDeferred(self._surroundings.snapshot, self._surroundings.reactor.seconds())
        # the loop would end at a failure
        return collecting.addCallbacks(self._put, self._failed)

    def _put(self, snapshot: Snapshot) -> None:
        if self._queue is not None:
            self._queue.put(snapshot, snapshot.size)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("The metrics could not be collected", failure, once_a_second=True)


def _exporter(receiver: Receiver, conversion: list[Any], temporality: str, began: float) -> Any:
    """Make the exporter, in its thread: it takes half a second and 30 MiB to load."""
    from twisted_vllm.observability.metrics.otlp import Conversion, MetricDestination

    if not conversion:
        conversion.append(Conversion(temporality, began))
    return MetricDestination(receiver.destination, receiver.resource, conversion[0])
