"""What the gateway is put together from, by its settings; nothing is opened or started here."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver

from twisted_vllm.admin.app import AdminApp
from twisted_vllm.admin.health import Readiness
from twisted_vllm.app.accounting import AccountingService
from twisted_vllm.app.drain import Drain
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.config.collect import secrets_of, servers_of
from twisted_vllm.config.listen import with_backlog
from twisted_vllm.config.settings import Settings
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.servers import ServersByURL
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher
from twisted_vllm.http.net.epoll_hub import data_path_reactor
from twisted_vllm.http.net.open_files import connections_within, open_file_limit
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.http.server.site import GatewaySite
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.logging.request_log import RequestLog
from twisted_vllm.observability.metrics import Metrics
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.forwarded import address_of
from twisted_vllm.proxy.request_recorder import RequestRecorder
from twisted_vllm.proxy.resource import MOUNT, PassThroughResource, RequestContext
from twisted_vllm.proxy.revocation import Revoker
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.store import Store
from twisted_vllm.upstreams.queue import QueueingAgent
from twisted_vllm.upstreams.router import Router

#: seconds between two looks at whether the database answers
PING_INTERVAL = 5.0


class DatabaseHealth:
    """Asks from time to time whether the database answers.

    Attributes:
        answers: whether it did the last time.
    """

    def __init__(self, database: Database, reactor: Any) -> None:
        self.answers = True
        self._database = database
        self._loop = LoopingCall(self._ping)
        self._loop.clock = reactor

    def start(self) -> None:
        """Begin to ask."""
        self._loop.start(PING_INTERVAL, now=False)

    def stop(self) -> None:
        """Cease to ask."""
        if self._loop.running:
            self._loop.stop()

    def _ping(self) -> Deferred[None]:
        return self._database.ping().addCallback(self._pinged)

    def _pinged(self, answers: bool) -> None:
        self.answers = answers


class Wiring:
    """The gateway's parts, as the root service starts and stops them.

    Attributes:
        endpoints: what it listens on.
        database: the database, and `store`, its transactions.
        health: whether it answers.
        metrics: what the gateway says of itself.
        books: what is reserved, used and written down.
        index: the keys in memory, and `registry`, which keeps them alike.
        sweeper: the deadlines of all connections.
        hangups: who has gone while nobody reads from him.
        agent: the connections to servers.
        queues: the requests that wait for a busy server.
        site: the factory of client connections.
        revoker: ends requests whose key is not valid any more.
        drain: how they end.
    """

    def __init__(self, reactor: Any, settings: Settings, observer: ILogObserver) -> None:
        """Put them together.

        Raises:
            ValueError: a listen string describes no endpoint.
            InvalidRequest: a rule of ``tenant_routes`` cannot be read.
        """
        writes = self._writes = WriteCoalescer()
        sockets = data_path_reactor(reactor, writes)
        self.endpoints = [serverFromString(sockets, with_backlog(text)) for text in settings.listen]
        self.database = Database(reactor, settings.database_url)
        self.health = DatabaseHealth(self.database, reactor)
        self.store = Store(self.database)
        self.index = KeyIndex()
        self.metrics = Metrics()
        self.books = AccountingService(
            reactor, settings, self.index, lambda started: self.site.make_id(started), self.metrics
        )
        books = self.books
        self.registry = Registry(self.store, self.index, books.spend_set, budget_gone=books.limiter.budget_forgotten)
        self.sweeper = DeadlineSweeper(reactor)
        self.hangups = DisconnectWatcher(reactor)
        servers = servers_of(settings)
        self.agent = UpstreamAgent(sockets, self.sweeper, writes, ServersByURL(servers))
        self._request_log = RequestLog(observer)
        self._recorder = RequestRecorder(settings.trusted_proxies, Redactor(secrets_of(settings)))
        # a client that has its whole answer finds it in the ledger
        writes.before_send = self.books.flush
        authenticator = Authenticator(settings.master_key, self.index)
        failures = AuthenticationThrottle(settings.limits.max_failed_authentications)
        queues = self.queues = QueueingAgent(self.agent, servers, self.sweeper, reactor.seconds)
        admission = Admission(
            authenticator=authenticator,
            policy=RoutePolicy(settings.tenant_routes),
            router=Router(settings.models, settings.default_server),
            path_aliases=settings.path_aliases,
            reads_bodies=settings.ledger.enabled,
            asks_usage=settings.ledger.enabled and settings.ledger.count_stream_usage == "inject",
        )
        pass_through = PassThroughResource(
            admission=admission,
            client=PassThroughClient(queues if queues.needed else self.agent),
            limits=settings.limits,
            trusted_proxies=settings.trusted_proxies,
            in_thread=lambda *call: deferToThreadPool(reactor, reactor.getThreadPool(), *call),
            failures=failures,
            accounts=self.books.accounts,
        )
        admin = AdminApp(
            authenticator=authenticator,
            registry=self.registry,
            clock=reactor,
            now=lambda: datetime.now(UTC),
            randbytes=os.urandom,
            readiness=self._readiness,
            metrics=self.metrics,
            metrics_are_open=settings.metrics_are_open,
            client_of=lambda request: address_of(request, settings.trusted_proxies),
            failures=failures,
        )
        limits = settings.limits
        self.site = GatewaySite(
            streaming={MOUNT[1:]: pass_through},
            other=admin.resource(),
            sweeper=self.sweeper,
            writes=writes,
            hangups=self.hangups,
            reactor=reactor,
            limits=attrs.evolve(limits, max_connections=connections_within(limits.max_connections, open_file_limit())),
            timeouts=settings.timeouts,
            randbytes=os.urandom,
            on_finished=self._finished,
        )
        self.revoker = Revoker(admission, self.site.running, reactor)
        self.drain = Drain(reactor, self.site, settings.drain_delay, settings.drain_timeout)

    def _finished(self, request: GatewayRequest) -> None:
        record = self._recorder.record(request, self.site.seconds())
        note = request.note
        if isinstance(note, RequestContext) and note.charge is not None:
            relay = note.relay
            self.books.accounts.close(request, note.charge, relay is not None and relay.went_on, record)
            if not self._writes.holding:
                self.books.flush()
        self._request_log.emit(record)

    def _readiness(self) -> Readiness:
        return Readiness(draining=self.drain.begun, database=self.health.answers)
