"""The root service: it builds the gateway from its settings, starts it in order, and drains it at the end."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import attrs
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

from twisted_vllm.access.failures import FailedAuthentications
from twisted_vllm.access.index import KeyIndex
from twisted_vllm.access.keys import Authenticator
from twisted_vllm.access.policy import RoutePolicy
from twisted_vllm.admin.app import AdminApp
from twisted_vllm.admin.health import Readiness
from twisted_vllm.config.collect import secrets_of, servers_of
from twisted_vllm.config.listen import with_backlog
from twisted_vllm.config.settings import Settings
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.gateway.admission import Admission
from twisted_vllm.gateway.forwarded import address_of
from twisted_vllm.gateway.queueing import ServerQueues
from twisted_vllm.gateway.record import Recorder
from twisted_vllm.gateway.resource import MOUNT, PassThroughResource
from twisted_vllm.gateway.routing import Router
from twisted_vllm.observe.redact import Redactor
from twisted_vllm.observe.request_log import RequestLog
from twisted_vllm.observe.setup import finish, give_to_twistd, install
from twisted_vllm.starting import StartError
from twisted_vllm.stopping import Drain, StopSignals
from twisted_vllm.store.database import Database
from twisted_vllm.store.following import Follower
from twisted_vllm.store.interfaces import StoreError
from twisted_vllm.store.registry import Registry
from twisted_vllm.store.store import Store
from twisted_vllm.wire.agent import UpstreamAgent
from twisted_vllm.wire.client import PassThroughClient
from twisted_vllm.wire.descriptors import cap_within, open_files
from twisted_vllm.wire.eager import EagerWrites
from twisted_vllm.wire.hangup import Hangups
from twisted_vllm.wire.hub import sockets_of
from twisted_vllm.wire.request import GatewayRequest
from twisted_vllm.wire.site import GatewaySite
from twisted_vllm.wire.sweeper import Sweeper

#: seconds between two looks at whether the database answers
PING_INTERVAL = 5.0


class GatewayService(Service):
    """The gateway.

    Attributes:
        ports: what it listens on, while it runs.
        site: the factory of client connections.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        observer: ILogObserver,
        companions: Sequence[IService] = (),
        signals: StopSignals | None = None,
    ) -> None:
        """Build the gateway; nothing is opened yet.

        Args:
            reactor: Twisted's reactor.
            settings: what the operator decided.
            observer: where the log goes.
            companions: services that start before the gateway and stop after it.
            signals: what asks the process to end: the first drains, the second cuts what is left.

        Raises:
            ValueError: a listen string describes no endpoint.
            InvalidRequest: a rule of ``tenant_routes`` cannot be read.
        """
        self.ports: list[IListeningPort] = []
        self._reactor = reactor
        self._settings = settings
        limits = attrs.evolve(
            settings.limits, max_connections=cap_within(settings.limits.max_connections, open_files())
        )
        self._observer = observer
        self._companions = companions
        self._signals = signals
        writes = EagerWrites()
        sockets = sockets_of(reactor, writes)
        self._endpoints = [serverFromString(sockets, with_backlog(text)) for text in settings.listen]
        self._database = Database(reactor, settings.database_url)
        self._store = Store(self._database)
        self._index = KeyIndex()
        self._registry = Registry(self._store, self._index)
        self._sweeper = Sweeper(reactor)
        self._hangups = Hangups(reactor)
        self._agent = UpstreamAgent(sockets, self._sweeper, writes)
        self._database_answers = True
        self._pinging = LoopingCall(self._ping)
        self._pinging.clock = reactor
        self._follower = Follower(self._registry, reactor)
        self._request_log = RequestLog(observer)
        self._recorder = Recorder(settings.trusted_proxies, Redactor(secrets_of(settings)))
        authenticator = Authenticator(settings.master_key, self._index)
        failures = FailedAuthentications(settings.limits.max_failed_authentications)
        admission = Admission(
            authenticator=authenticator,
            policy=RoutePolicy(settings.tenant_routes),
            router=Router(settings.models, settings.default_server),
            path_aliases=settings.path_aliases,
        )
        queues = self._queues = ServerQueues(servers_of(settings), self._agent.forward, self._sweeper, reactor.seconds)
        pass_through = PassThroughResource(
            admission=admission,
            client=PassThroughClient(self._agent, queues.forward if queues.needed else None),
            limits=settings.limits,
            trusted_proxies=settings.trusted_proxies,
            in_thread=lambda *call: deferToThreadPool(reactor, reactor.getThreadPool(), *call),
            failures=failures,
        )
        admin = AdminApp(
            authenticator=authenticator,
            registry=self._registry,
            clock=reactor,
            now=lambda: datetime.now(UTC),
            randbytes=os.urandom,
            readiness=self._readiness,
            client_of=lambda request: address_of(request, settings.trusted_proxies),
            failures=failures,
        )
        self.site = GatewaySite(
            streaming={MOUNT[1:]: pass_through},
            other=admin.resource(),
            sweeper=self._sweeper,
            writes=writes,
            hangups=self._hangups,
            reactor=reactor,
            limits=limits,
            timeouts=settings.timeouts,
            randbytes=os.urandom,
            on_finished=self._finished_and_left if queues.needed else self._finished,
        )
        self._drain = Drain(reactor, self.site, settings.drain_delay, settings.drain_timeout)

    # start

    def setServiceParent(self, parent: object) -> None:
        """Join an application, and give it the log before twistd makes one of its own."""
        give_to_twistd(self._observer, parent)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Begin to log and to listen, before twistd gives up the rights to low ports.

        Connections wait in the kernel until the reactor runs, which is after `startService`.

        Raises:
            StartError: an address cannot be had.
        """
        super().privilegedStartService()
        install(self._observer)
        for companion in self._companions:
            companion.privilegedStartService()
        self._listen()

    def startService(self) -> None:
        """Open the database, read the keys and begin to serve; it blocks, as nothing runs yet that could be delayed.

        Raises:
            StartError: the database cannot be used.
        """
        super().startService()
        for companion in self._companions:
            companion.startService()
        if not self.ports:
            self._listen()
        try:
            self._database.open()
            self._registry.take(self._store.load_now())
        except (StoreError, StoreUnavailable) as error:
            self._refuse_to_start(str(error))
        # what there is now lasts as long as the process: the collector need not look at it again
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)
        if self._signals is not None:
            self._signals.install(self._drain.signalled)
        self._sweeper.start()
        self._pinging.start(PING_INTERVAL, now=False)
        self._follower.start()
        for warning in self._settings.warnings:
            self._log.warn("{warning}", warning=warning)
        cap = self.site.limits.max_connections
        if cap != self._settings.limits.max_connections:
            self._log.info(
                "At most {cap} client connections at once: the process may open {files} files",
                cap=cap,
                files=open_files(),
            )
        for port in self.ports:
            self._log.info("Listening on {address}", address=_address(port))
        self._log.info(
            "Serving {servers} with {keys} virtual keys, {mode}",
            servers=", ".join(server.name for server in servers_of(self._settings)),
            keys=len(self._index),
            mode="open to anybody: no master key is set" if self._settings.master_key is None else "master key set",
        )

    def _listen(self) -> None:
        failures: list[Failure] = []
        starting = True

        def failed(failure: Failure) -> None:
            if starting:
                failures.append(failure)
            else:
                self._log.failure("One of the addresses cannot be listened on", failure)

        for endpoint in self._endpoints:
            endpoint.listen(self.site).addCallbacks(self.ports.append, failed)
        starting = False
        if failures:
            self._refuse_to_start(failures[0].getErrorMessage())

    def _refuse_to_start(self, reason: str) -> NoReturn:
        self._log.critical("The gateway cannot start: {reason}", reason=reason)
        ports, self.ports = self.ports, []
        for port in ports:
            port.stopListening()
        raise StartError(reason) from None

    # while it runs

    def _finished(self, request: GatewayRequest) -> None:
        self._request_log.emit(self._recorder.record(request, self.site.seconds()))

    def _finished_and_left(self, request: GatewayRequest) -> None:
        self._finished(request)
        self._queues.finished(request)

    def _readiness(self) -> Readiness:
        return Readiness(draining=self._drain.begun, database=self._database_answers)

    def _ping(self) -> Deferred[None]:
        return self._database.ping().addCallback(self._pinged)

    def _pinged(self, answers: bool) -> None:
        self._database_answers = answers

    # stop

    @inlineCallbacks
    def stopService(self) -> Any:
        """Drain, end everything else, and fire."""
        super().stopService()
        began = self._reactor.seconds()
        yield self._drain.run(self.ports)
        self._agent.close()
        self._hangups.close()
        self._sweeper.stop()
        self._follower.stop()
        if self._pinging.running:
            self._pinging.stop()
        yield gatherResults([maybeDeferred(companion.stopService) for companion in self._companions])
        yield self._database.stop()
        self._log.info("Drained in {seconds:.1f} s", seconds=self._reactor.seconds() - began)
        if self._signals is not None:
            self._signals.restore()
        finish(self._observer)


def _address(port: IListeningPort) -> str:
    """Return where a port listens, as people write it."""
    address: Any = port.getHost()
    host = getattr(address, "host", None)
    if host is None:
        name = getattr(address, "name", None)
        return os.fsdecode(name) if name else str(address)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
