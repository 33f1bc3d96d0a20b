"""Opens the sinks of the settings, and gives them finished requests and log lines.

A type of sink is a row of `MAKERS` here, and of `twisted_vllm.config.sinks.TYPES`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import random
from time import time
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.logger import globalLogPublisher

from twisted_vllm.app.telemetry.otlp_receivers import receivers_of
from twisted_vllm.app.telemetry.part import Surroundings
from twisted_vllm.config.otlp_sinks import log_destination
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.sinks import DATABASE, FACILITIES, KEPT_FOR, LOCAL_SYSLOG, LOG, SinkSettings
from twisted_vllm.observability.delivery.blocking import ThreadedDestination
from twisted_vllm.observability.delivery.interfaces import Bounds, IBlockingDestination, IDestination
from twisted_vllm.observability.delivery.post import Poster, http_agent
from twisted_vllm.observability.delivery.queue import DeliveryQueue
from twisted_vllm.observability.delivery.spool import DiskSpool
from twisted_vllm.observability.logging.request_log import RequestLog
from twisted_vllm.observability.logging.sinks import RotatedFile, StreamSink
from twisted_vllm.observability.sinks.encoders import Encoder, JournalEncoder, SyslogEncoder, make_encoder
from twisted_vllm.observability.sinks.sink import Sink
from twisted_vllm.observability.sinks.wanted import make_filter
from twisted_vllm.observability.sinks.written import LineDestination

#: how long a stopping gateway waits for the sinks, in seconds
STOP_TIMEOUT = 5.0


@attrs.frozen
class Parts:
    """The encoder and the destination of a sink.

    Attributes:
        encoder: makes its items.
        destination: makes what they are delivered to.
    """

    encoder: Encoder
    destination: Callable[[], IDestination]


@attrs.frozen
class Workshop:
    """Shared dependencies of the makers of sinks.

    Attributes:
        reactor: the reactor.
        directory: where the names of files begin.
        encoder: makes the items in the sink's format.
        redact: removes secrets from text.
        database_url: the gateway's database.
        housekeeps: whether this process does what must be done once.
    """

    reactor: Any
    directory: str
    encoder: Encoder
    redact: Callable[[str], str]
    database_url: Secret
    housekeeps: bool

    def file(self, name: str | None) -> str | None:
        """Return the path of a file of the settings."""
        return None if name is None else os.path.join(self.directory or os.getcwd(), name)

    def threaded(self, sink: SinkSettings, make: Callable[[], IBlockingDestination]) -> Callable[[], IDestination]:
        """Return a factory that runs a blocking destination in a thread of its own."""
        return lambda: ThreadedDestination(f"sink-{sink.name}", make, self.reactor)


#: makes the parts of a sink; raises ConfigError, with the setting's name in place of a path, if they cannot be made
Maker = Callable[[SinkSettings, Workshop], Parts]


def _problem(name: str, message: str) -> ConfigError:
    return ConfigError([Problem(name, message)])


def _stdout(sink: SinkSettings, workshop: Workshop) -> Parts:
    # twistd replaces sys.stdout by a log
    stream = sys.__stdout__
    if stream is None:
        raise _problem("type", "there is no standard output (write a file)")
    return Parts(workshop.encoder, workshop.threaded(sink, lambda: LineDestination(lambda: StreamSink(stream))))


def _file(sink: SinkSettings, workshop: Workshop) -> Parts:
    path = workshop.file(sink.path)
    assert path is not None
    try:
        # now, while twistd still has its privileges, and so that a wrong name is refused
        file = RotatedFile(path, rotate_bytes=sink.rotate_bytes, keep_files=sink.keep_files)
    except OSError as error:
        raise _problem(
            "path", f"cannot be opened: {error.strerror}: {path} (the gateway's user must be able to write there)"
        ) from None
    return Parts(workshop.encoder, workshop.threaded(sink, lambda: LineDestination(lambda: file)))


def _syslog(sink: SinkSettings, workshop: Workshop) -> Parts:
    from twisted_vllm.observability.sinks.sockets import SyslogDestination

    encoder = SyslogEncoder(workshop.encoder, FACILITIES.index(sink.facility), sink.app_name, time)
    address, ca_file = sink.address or LOCAL_SYSLOG, workshop.file(sink.ca_file)
    return Parts(encoder, workshop.threaded(sink, lambda: SyslogDestination(address, ca_file)))


def _journald(sink: SinkSettings, workshop: Workshop) -> Parts:
    from twisted_vllm.observability.sinks.sockets import JournalDestination

    encoder = JournalEncoder(workshop.encoder, sink.app_name)
    return Parts(encoder, workshop.threaded(sink, lambda: JournalDestination(sink.socket)))


def _webhook(sink: SinkSettings, workshop: Workshop) -> Parts:
    from twisted_vllm.observability.sinks.webhook import WebhookDestination

    assert sink.url is not None
    url = sink.url
    try:
        agent, pool = http_agent(workshop.reactor, workshop.file(sink.ca_file))
    except OSError as error:
        raise _problem("ca_file", f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _problem("ca_file", str(error)) from None
    return Parts(
        workshop.encoder,
        lambda: WebhookDestination(
            Poster(agent, url, sink.headers, pool), sink.body, sink.compression, sink.secret, time
        ),
    )


def _otlp(sink: SinkSettings, workshop: Workshop) -> Parts:
    placed = [("", log_destination(sink))]
    (receiver,) = receivers_of(placed, sink.service_name, sink.resource, workshop.directory or os.getcwd())

    def make() -> IBlockingDestination:
        from twisted_vllm.observability.logging.otlp import OtlpLogs

        return OtlpLogs(receiver.destination, receiver.resource)

    return Parts(workshop.encoder, workshop.threaded(sink, make))


def _s3(sink: SinkSettings, workshop: Workshop) -> Parts:
    from twisted_vllm.observability.sinks.object_storage import S3Destination

    used = attrs.evolve(sink, ca_file=workshop.file(sink.ca_file))
    return Parts(workshop.encoder, workshop.threaded(sink, lambda: S3Destination(used, time, os.urandom)))


def _database(sink: SinkSettings, workshop: Workshop) -> Parts:
    from twisted_vllm.app.telemetry.kept_contents import ContentsDestination, ContentsEncoder, TrimmedDestination

    url, reactor = workshop.database_url, workshop.reactor

    def make() -> IBlockingDestination:
        return ContentsDestination(url, sink.keep_for or KEPT_FOR, sink.max_stored_bytes, reactor.seconds)

    def destination() -> IDestination:
        threaded = workshop.threaded(sink, make)()
        return TrimmedDestination(threaded, reactor) if workshop.housekeeps else threaded

    return Parts(ContentsEncoder(), destination)


def _python(sink: SinkSettings, workshop: Workshop) -> Parts:
    from twisted_vllm.observability.sinks.python_object import (
        ObjectDestination,
        ObjectEncoder,
        ObjectError,
        load_object,
    )

    assert sink.object is not None
    try:
        target = load_object(sink.object, sink.import_from)
    except ObjectError as error:
        raise _problem("object", str(error)) from None
    encoder = ObjectEncoder(workshop.redact)
    return Parts(encoder, workshop.threaded(sink, lambda: ObjectDestination(sink.name, target)))


#: the types of sinks
MAKERS: Mapping[str, Maker] = {
    "stdout": _stdout,
    "file": _file,
    "syslog": _syslog,
    "journald": _journald,
    "webhook": _webhook,
    "otlp": _otlp,
    "s3": _s3,
    DATABASE: _database,
    "python": _python,
}


class RunningSinks:
    """The sinks of the settings; `SinksPart` makes it once there are some."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Set up; there are no sinks before settings name some."""
        self._surroundings = surroundings
        reactor = surroundings.reactor
        self._in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
        self._record_of = RequestLog(surroundings.observer, surroundings.text, surroundings.client_of).record
        self._settings: dict[str, SinkSettings] = {}
        self._sinks: dict[str, Sink] = {}
        self._selective: tuple[Any, ...] = ()
        self._is_started = False

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Open what the sinks need, in any thread; return what puts them in place of the present ones.

        Raises:
            ConfigError: a sink cannot be made.
        """
        parts: dict[str, Parts] = {}
        own = {sink.name for sink in settings.sinks}
        problems: list[Problem] = []
        for index, sink in enumerate(settings.all_sinks):
            if self._settings.get(sink.name) == sink:
                continue
            try:
                parts[sink.name] = self._make(sink, settings.database_url)
            except ConfigError as error:
                at = f"passthrough.sinks[{index}]" if sink.name in own else f"litellm_settings.callbacks: {sink.name}"
                problems += [
                    Problem(f"{at}.{each.path}" if sink.name in own else at, each.message) for each in error.problems
                ]
        if problems:
            raise ConfigError(problems)
        return lambda: self._apply(settings.all_sinks, parts)

    def start(self) -> None:
        """Start to deliver."""
        self._is_started = True
        for name, sink in self._sinks.items():
            self._start(self._settings[name], sink)

    def stop(self) -> Deferred[None] | None:
        """Deliver what waits."""
        self._is_started = False
        if not self._sinks:
            return None
        stopping = [self._stop(sink) for sink in self._sinks.values()]
        return gatherResults(stopping).addCallback(lambda _: None)

    def _make(self, sink: SinkSettings, database_url: Secret) -> Parts:
        surroundings = self._surroundings
        encoder = make_encoder(sink.format, surroundings.redact, self._record_of)
        workshop = Workshop(
            surroundings.reactor,
            surroundings.directory,
            encoder,
            surroundings.redact,
            database_url,
            surroundings.siblings.housekeeps,
        )
        return MAKERS[sink.type](sink, workshop)

    def _apply(self, wanted: tuple[SinkSettings, ...], parts: Mapping[str, Parts]) -> None:
        names = {sink.name for sink in wanted}
        for name in self._sinks.keys() - names:
            self._remove(name)
        for sink in wanted:
            if sink.name in parts:
                self._use(sink, parts[sink.name])
        # in the order of the settings
        self._sinks = {sink.name: self._sinks[sink.name] for sink in wanted}
        self._settings = {sink.name: sink for sink in wanted}
        events = self._surroundings.events
        others = tuple(pair for pair in events.selective if pair not in self._selective)
        self._selective = tuple((sink.wants, sink.consume) for sink in self._sinks.values() if sink.wants_requests)
        events.selective = (*others, *self._selective)

    def _use(self, settings: SinkSettings, parts: Parts) -> None:
        """Make a sink, or give the present one other settings; what waits in it stays."""
        name, former = settings.name, self._settings.get(settings.name)
        wants = make_filter(settings, self._surroundings.is_own)
        sink = self._sinks.get(name)
        if sink is not None and former is not None and _spool_of(former) == _spool_of(settings):
            self._unobserve(sink)
            sink.use(parts.encoder, wants)
            sink.level = settings.level
            spool_bytes = settings.spool.max_bytes if settings.spool.enabled else None
            sink.queue.reconfigure(parts.destination(), _bounds_of(settings), spool_bytes)
        else:
            if sink is not None:
                self._remove(name)
            sink = self._sinks[name] = Sink(self._queue(settings, parts), parts.encoder, wants, settings.level)
            sink.secrets_in_flight = self._surroundings.site.secrets_in_flight
            self._surroundings.deliveries.add(sink.queue)
        if self._is_started:
            self._start(settings, sink)

    def _queue(self, settings: SinkSettings, parts: Parts) -> DeliveryQueue[bytes]:
        spool = None
        if settings.spool.enabled:
            spool = DiskSpool(Path(settings.spool_path), settings.spool.max_bytes, bytes, bytes)
        return DeliveryQueue(
            settings.name,
            parts.destination(),
            self._surroundings.reactor,
            _bounds_of(settings),
            random,
            spool=spool,
            in_thread=self._in_thread,
        )

    def _start(self, settings: SinkSettings, sink: Sink) -> None:
        sink.queue.start()
        if LOG in settings.events:
            globalLogPublisher.addObserver(sink)

    def _remove(self, name: str) -> None:
        sink = self._sinks.pop(name)
        self._surroundings.deliveries.remove(sink.queue)
        self._stop(sink)

    def _stop(self, sink: Sink) -> Deferred[None]:
        self._unobserve(sink)
        sink.finish()
        return sink.queue.stop(STOP_TIMEOUT)

    def _unobserve(self, sink: Sink) -> None:
        globalLogPublisher.removeObserver(sink)


def _bounds_of(settings: SinkSettings) -> Bounds:
    queue = settings.queue
    return Bounds(
        max_items=queue.max_items,
        max_bytes=queue.max_bytes,
        batch_items=queue.batch_items,
        batch_bytes=queue.batch_bytes,
        linger=queue.linger,
        timeout=queue.timeout,
        max_backoff=queue.max_backoff,
        max_age=queue.max_age,
    )


def _spool_of(settings: SinkSettings) -> tuple[bool, str | None]:
    return settings.spool.enabled, settings.spool.directory
