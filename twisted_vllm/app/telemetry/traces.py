"""Queues finished requests for the exporters of traces; it is imported only where there are traces."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from random import random
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from twisted_vllm.app.telemetry.otlp_receivers import Receiver
from twisted_vllm.app.telemetry.part import Surroundings
from twisted_vllm.config.tracing import TracingSettings
from twisted_vllm.config.tracing_destinations import FAILURE, SUCCESS
from twisted_vllm.context import RequestContext
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.delivery.blocking import ThreadedDestination
from twisted_vllm.observability.delivery.interfaces import Bounds
from twisted_vllm.observability.delivery.queue import DeliveryQueue
from twisted_vllm.observability.request_event import RequestEvent, is_success
from twisted_vllm.observability.tracing.sampling import ErrorAllowance, Sampler
from twisted_vllm.observability.tracing.traced_request import TracedRequest
from twisted_vllm.observability.tracing.tracer import Tracer

#: requests in one export: each has two spans or more
BATCH = 256
#: how long a stopping gateway waits for the collector, in seconds
STOP_TIMEOUT = 5.0
#: what the names of queues begin with
QUEUE_PREFIX = "traces:"


class TracesBegun(RequestObserver):
    """Gives refused requests their places in traces, before the log writes their lines."""

    def __init__(self, tracer: Tracer) -> None:
        """Make it for a tracer."""
        self._tracer = tracer

    def finished(self, context: RequestContext) -> None:
        """Begin the trace of a request that has none."""
        self._tracer.ended(context)


class Traces:
    """The traces of requests, while there are any."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up; nothing is traced before `apply`."""
        self._surroundings = surroundings
        self._tracer: Tracer | None = None
        self._settings: TracingSettings | None = None
        self._receivers: dict[str, Receiver] = {}
        self._queues: dict[str, DeliveryQueue[TracedRequest]] = {}
        self._max_bytes = 0
        self._is_started = False
        self._selective = ((self._wants, self._consume),)

    def observers(self) -> Sequence[RequestObserver]:
        """Return what observes requests before the log does."""
        return () if self._tracer is None else (TracesBegun(self._tracer),)

    def start(self) -> None:
        """Start to export. Idempotent."""
        self._is_started = True
        for queue in self._queues.values():
            queue.start()

    def stop(self) -> Deferred[None]:
        """Export what waits."""
        self._is_started = False
        stopping = [queue.stop(STOP_TIMEOUT) for queue in self._queues.values()]
        return gatherResults(stopping).addCallback(lambda _: None)

    def apply(self, tracing: TracingSettings, receivers: Mapping[str, Receiver]) -> None:
        """Trace by these settings from now on, or not any more.

        Args:
            tracing: the settings.
            receivers: the destinations by name, none if there are no traces.
        """
        surroundings = self._surroundings
        if tracing != self._settings:
            self._settings = tracing
            self._tracer = _tracer(tracing, surroundings.is_own) if tracing.active else None
            surroundings.forwarder.tracer = self._tracer
            others = tuple(pair for pair in surroundings.events.selective if pair not in self._selective)
            surroundings.events.selective = others if self._tracer is None else (*others, *self._selective)
        for name in self._queues.keys() - receivers.keys():
            queue = self._queues.pop(name)
            del self._receivers[name]
            queue.stop(STOP_TIMEOUT).addCallback(self._stopped, queue)
        for name, receiver in receivers.items():
            if self._receivers.get(name) != receiver or tracing.max_queued_bytes != self._max_bytes:
                self._use(name, receiver, tracing.max_queued_bytes)
        self._max_bytes = tracing.max_queued_bytes

    def _use(self, name: str, receiver: Receiver, max_bytes: int) -> None:
        """Export to a destination that is new, or that has other settings."""
        reactor, title = self._surroundings.reactor, f"{QUEUE_PREFIX}{name}"
        self._receivers[name] = receiver
        bounds = Bounds(
            max_bytes=max_bytes,
            batch_items=BATCH,
            # the exporter itself ends after that time
            timeout=receiver.destination.timeout + STOP_TIMEOUT,
        )
        threaded = ThreadedDestination(title, lambda: _exporter(receiver), reactor)
        queue = self._queues.get(name)
        if queue is not None:
            queue.reconfigure(threaded, bounds)
            return
        queue = self._queues[name] = DeliveryQueue(title, threaded, reactor, bounds, random)
        self._surroundings.deliveries.add(queue)
        if self._is_started:
            queue.start()

    def _stopped(self, _: None, queue: DeliveryQueue[TracedRequest]) -> None:
        self._surroundings.deliveries.remove(queue)

    def _wants(self, context: RequestContext) -> bool:
        return self._tracer is not None and self._tracer.records(context)

    def _consume(self, event: RequestEvent, context: RequestContext) -> None:
        trace = context.trace
        assert trace is not None
        state = self._surroundings.text.text(context, trace.state.decode("ascii")) if trace.state else ""
        traced = TracedRequest(event, trace.parent_id, state)
        size = traced.size
        outcome = SUCCESS if is_success(event.status, event.outcome) else FAILURE
        for name, queue in self._queues.items():
            if outcome in self._receivers[name].destination.outcomes:
                queue.put(traced, size)


def _tracer(tracing: TracingSettings, is_own: Callable[[bytes], bool]) -> Tracer:
    assert tracing.sampler is not None
    assert tracing.sample_ratio is not None
    return Tracer(
        Sampler.of(tracing.sampler, tracing.sample_ratio, tracing.trust_incoming, tracing.trust_sampled),
        os.urandom,
        propagates=bool(tracing.propagate),
        errors=ErrorAllowance(tracing.max_sampled_errors) if tracing.always_sample_errors else None,
        refused=tracing.refused,
        gateway_routes=tracing.gateway_routes,
        is_own=is_own,
    )


def _exporter(receiver: Receiver) -> Any:
    """Make the exporter, in its thread: it takes half a second and 30 MiB to load."""
    from twisted_vllm.observability.tracing.exporting import SpanDestination

    return SpanDestination(receiver.destination, receiver.resource)
