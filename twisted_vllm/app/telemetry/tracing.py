"""Traces: switches them on and off, and queues finished requests for the exporters."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import random
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults

from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.tracing import TracingSettings
from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.context import RequestContext
from twisted_vllm.http.client.connect_errors import TlsFileError
from twisted_vllm.http.client.tls import read_files
from twisted_vllm.lifecycle import RequestObserver
from twisted_vllm.observability.delivery.blocking import ThreadedDestination
from twisted_vllm.observability.delivery.interfaces import Bounds
from twisted_vllm.observability.delivery.queue import DeliveryQueue
from twisted_vllm.observability.request_event import RequestEvent
from twisted_vllm.observability.tracing.sampling import ErrorAllowance, Sampler
from twisted_vllm.observability.tracing.traced_request import TracedRequest
from twisted_vllm.observability.tracing.tracer import Tracer

#: about what a request without its prompt takes in memory, in bytes
EVENT_BYTES = 3_000
#: requests in one export: each has two spans or more
BATCH = 256
#: how long a stopping gateway waits for the collector, in seconds
STOP_TIMEOUT = 5.0
#: what the names of queues begin with
QUEUE_PREFIX = "traces:"

#: the names of settings by those that messages about TLS to servers have
_NAMES = {"ssl_ca": "ca_file", "ssl_certificate": "certificate_file", "ssl_key": "key_file"}


class TracesBegun(RequestObserver):
    """Gives refused requests their places in traces, before the log writes their lines."""

    def __init__(self, tracer: Tracer) -> None:
        """Make it for a tracer."""
        self._tracer = tracer

    def finished(self, context: RequestContext) -> None:
        """Begin the trace of a request that has none."""
        self._tracer.ended(context)


@attrs.frozen
class _Receiver:
    """A destination with what its exporter needs; another one needs another exporter.

    Attributes:
        destination: the destination, with absolute names of files.
        resource: attributes of the gateway.
        digest: a digest of the contents of its files.
        max_bytes: what may wait for it.
    """

    destination: TraceDestination
    resource: Mapping[str, str]
    digest: bytes
    max_bytes: int


class TracingPart(TelemetryPart):
    """Traces of requests."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up; nothing is traced before settings say so."""
        self._surroundings = surroundings
        self._directory = surroundings.directory
        self._tracer: Tracer | None = None
        self._settings: TracingSettings | None = None
        self._receivers: dict[str, _Receiver] = {}
        self._queues: dict[str, DeliveryQueue[TracedRequest]] = {}
        self._is_started = False
        self._selective = ((self._wants, self._consume),)

    def first_observers(self) -> Sequence[RequestObserver]:
        """Begin traces of refused requests before the log writes their lines."""
        return () if self._tracer is None else (TracesBegun(self._tracer),)

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Read the files of the destinations; return what switches traces on, over or off."""
        tracing = settings.tracing
        receivers = _receivers(tracing, self._directory) if tracing.active else {}
        return lambda: self._apply(tracing, receivers)

    def start(self) -> None:
        """Start to export."""
        self._is_started = True
        for queue in self._queues.values():
            queue.start()

    def stop(self) -> Deferred[None] | None:
        """Export what waits."""
        self._is_started = False
        if not self._queues:
            return None
        stopping = [queue.stop(STOP_TIMEOUT) for queue in self._queues.values()]
        return gatherResults(stopping).addCallback(lambda _: None)

    def _apply(self, tracing: TracingSettings, receivers: Mapping[str, _Receiver]) -> None:
        surroundings = self._surroundings
        if tracing != self._settings:
            self._settings = tracing
            self._tracer = _tracer(tracing, self._is_own) if tracing.active else None
            surroundings.forwarder.tracer = self._tracer
            others = tuple(pair for pair in surroundings.events.selective if pair not in self._selective)
            surroundings.events.selective = others if self._tracer is None else (*others, *self._selective)
        for name in self._queues.keys() - receivers.keys():
            queue = self._queues.pop(name)
            del self._receivers[name]
            queue.stop(STOP_TIMEOUT).addCallback(self._stopped, queue)
        for name, receiver in receivers.items():
            if self._receivers.get(name) != receiver:
                self._use(name, receiver)

    def _use(self, name: str, receiver: _Receiver) -> None:
        """Export to a destination that is new, or that has other settings."""
        reactor, title = self._surroundings.reactor, f"{QUEUE_PREFIX}{name}"
        self._receivers[name] = receiver
        bounds = Bounds(
            max_bytes=receiver.max_bytes,
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

    def _is_own(self, path: bytes) -> bool:
        """Return whether a path is one of the gateway's own routes."""
        site = self._surroundings.site
        return site.leaf_for(path) is site.resource

    def _wants(self, context: RequestContext) -> bool:
        return self._tracer is not None and self._tracer.records(context)

    def _consume(self, event: RequestEvent, context: RequestContext) -> None:
        trace = context.trace
        assert trace is not None
        state = self._surroundings.text.text(context, trace.state.decode("ascii")) if trace.state else ""
        traced = TracedRequest(event, trace.parent_id, state)
        size = EVENT_BYTES + (0 if event.contents is None else len(event.contents))
        for queue in self._queues.values():
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


def _receivers(tracing: TracingSettings, directory: str) -> dict[str, _Receiver]:
    """Return the destinations by name.

    Raises:
        ConfigError: a file of TLS cannot be used.
    """
    problems: list[Problem] = []
    found: dict[str, _Receiver] = {}
    resource = {
        "service.name": tracing.service_name or "",
        "host.name": platform.node(),
        "process.pid": str(os.getpid()),
        **tracing.resource_attributes,
    }
    for each in tracing.destinations:
        destination = _with_whole_names(each, directory)
        digest = b""
        if destination.endpoint.startswith("https://"):
            tls = ServerTls(True, destination.ca_file, destination.certificate_file, destination.key_file)
            try:
                digest = read_files(tls).digest
            except TlsFileError as error:
                setting, _, reason = str(error).partition(": ")
                at = f"passthrough.tracing.destinations.{each.name}.{_NAMES.get(setting, setting)}"
                problems.append(Problem(at, reason))
        found[each.name] = _Receiver(destination, resource, digest, tracing.max_queued_bytes)
    if problems:
        raise ConfigError(problems)
    return found


def _with_whole_names(destination: TraceDestination, directory: str) -> TraceDestination:
    """Return a destination whose files' names begin at the root."""

    def whole(name: str | None) -> str | None:
        return None if name is None else str(Path(directory, name))

    return attrs.evolve(
        destination,
        ca_file=whole(destination.ca_file),
        certificate_file=whole(destination.certificate_file),
        key_file=whole(destination.key_file),
    )


def _exporter(receiver: _Receiver) -> Any:
    """Make the exporter, in its thread: it takes half a second and 30 MiB to load."""
    from twisted_vllm.observability.tracing.exporting import SpanDestination

    return SpanDestination(receiver.destination, receiver.resource)
