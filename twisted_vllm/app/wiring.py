"""Creates the gateway's components and connects them. Nothing is opened or started here."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from random import random
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver

from twisted_vllm.admin.app import ROUTES, AdminApp
from twisted_vllm.admin.context import Readiness
from twisted_vllm.app.accounting import AccountingService
from twisted_vllm.app.drain import Drain
from twisted_vllm.app.each_minute import EachMinute
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.fields import FieldPolicies
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.config.listen import with_backlog
from twisted_vllm.config.settings import Server, Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.tls import read_all
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.net.bounded_turns import turn_cooperator
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher
from twisted_vllm.http.net.epoll_hub import data_path_reactor
from twisted_vllm.http.net.open_files import open_file_limit, share_out
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.http.server.ids import RequestIds
from twisted_vllm.http.server.site import GatewaySite
from twisted_vllm.http.web_pages import WebPages
from twisted_vllm.lifecycle import Lifecycle, RequestObserver
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.logging.request_log import RequestLog
from twisted_vllm.observability.logging.unsent_lines import UnsentLines
from twisted_vllm.observability.metrics import Metrics
from twisted_vllm.observability.route_templates import RouteTemplates
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.attempt_metrics import AttemptCollector, AttemptMetrics
from twisted_vllm.proxy.background_responses import BackgroundCollector, BackgroundResponses
from twisted_vllm.proxy.entry_usage import EntryUsage
from twisted_vllm.proxy.form_files import FormFiles
from twisted_vllm.proxy.forwarded import address_of, is_allowed, may_take_all_connections
from twisted_vllm.proxy.forwarding import Forwarder
from twisted_vllm.proxy.ledger import LedgerRecorder
from twisted_vllm.proxy.metrics import (
    AbuseCollector,
    ConnectionCollector,
    HeldBodiesCollector,
    StaleConnectionCollector,
)
from twisted_vllm.proxy.paths import MOUNT
from twisted_vllm.proxy.resource import PassThroughResource
from twisted_vllm.proxy.response_ids import ResponseIds
from twisted_vllm.proxy.revocation import Revoker
from twisted_vllm.proxy.upstream_metrics import UpstreamCollector
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.metrics import DatabaseCollector
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.report_queue import ReportLimits
from twisted_vllm.storage.reports import ReportReader
from twisted_vllm.storage.store import Store
from twisted_vllm.upstreams.breaker import Breaker
from twisted_vllm.upstreams.dispatcher import Dispatcher
from twisted_vllm.upstreams.health_checks import HealthChecks
from twisted_vllm.upstreams.health_report import endpoints_of
from twisted_vllm.upstreams.load_scraper import LoadScraper
from twisted_vllm.upstreams.metrics_of_servers import MetricsOfServers
from twisted_vllm.upstreams.probe import Prober
from twisted_vllm.upstreams.response_locator import ResponseLocator
from twisted_vllm.upstreams.response_places import ResponsePlaces
from twisted_vllm.upstreams.router import Router
from twisted_vllm.upstreams.served_models import ServedModels
from twisted_vllm.upstreams.server_state import Servers, ServerState
from twisted_vllm.usage.spool.pending import PendingFiles


class Wiring:
    """The components of the gateway, which the root service starts and stops.

    Attributes:
        endpoints: the endpoints to listen on.
        health: checks the servers.
        load_scraper: asks the servers for their load.
        database: the database; `store` runs transactions on it.
        reports: reads the ledger for reports.
        metrics: the gateway's metrics.
        accounting: meters, limits and stores usage.
        background: follows responses that servers generate in the background.
        index: the keys in memory; `registry` synchronizes them with the database.
        lifecycle: the observers of requests.
        each_minute: writes once a minute what was summed up.
        deadlines: checks the deadlines of all connections.
        disconnects: detects clients that disconnect while they are not read from.
        agent: the connections to servers.
        shortages: counts what failed for want of a descriptor or a port.
        descriptors: how many descriptors clients, servers and forms may take.
        servers: what is known of each server; `router` finds those of a model, and `dispatcher` places requests on
            them.
        site: the factory of client connections.
        revoker: ends requests of keys that are no longer valid.
        drain: the graceful shutdown.
    """

    def __init__(self, reactor: Any, settings: Settings, observer: ILogObserver) -> None:
        """Create the components.

        Raises:
            ValueError: a listen string is not an endpoint.
            InvalidRequest: a rule of ``tenant_routes`` cannot be read.
            ConfigError: a file of TLS to a server cannot be used.
        """
        limits = settings.limits
        client_of = partial(address_of, trusted=settings.trusted_proxies)
        allows: Callable[[RequestContext], bool] | None = None
        if settings.allowed_ips:
            allows = partial(is_allowed, trusted=settings.trusted_proxies, allowed=settings.allowed_ips)
        web_pages = WebPages(
            is_open=settings.master_key is None,
            any_address=settings.allow_anonymous,
            hosts=settings.allowed_hosts,
            origins=settings.allowed_origins,
        )
        coalescer = WriteCoalescer()
        self.shortages = shortages = Shortages()
        self.descriptors = descriptors = share_out(limits.max_connections, open_file_limit())
        sockets = data_path_reactor(reactor, coalescer, shortages)
        ids = RequestIds(os.urandom)
        self.endpoints = [serverFromString(sockets, with_backlog(text)) for text in settings.listen]
        self.deadlines = DeadlineSweeper(reactor)
        self.disconnects = DisconnectWatcher(reactor)
        self.agent = UpstreamAgent(
            sockets, self.deadlines, coalescer, shortages, descriptors.upstreams, asks_for_tls=True
        )
        # now, while twistd still has the privileges to read the files
        self.agent.reconfigure(settings.servers, descriptors.upstreams, read_all(settings.servers))
        self.dispatcher = dispatcher = Dispatcher(self.deadlines)
        routing, health = settings.routing, settings.health
        self.servers = Servers(
            lambda: Breaker(
                allowed_fails=routing.allowed_fails,
                cooldown=routing.cooldown_time,
                max_cooldown=health.max_cooldown,
                slow_start=health.slow_start,
                random=random,
                now=reactor.seconds(),
            )
        )
        self.router = router = Router(
            settings.models,
            settings.default_server,
            servers=self.servers,
            routing=routing,
            random=random,
            retry_share=settings.retry.budget,
        )

        prober = Prober(self.agent.endpoint_of, reactor, self.agent.ask_for_tls)
        self.load_scraper = LoadScraper(self.servers, prober, reactor, health)
        self.health = HealthChecks(
            self.servers,
            prober,
            reactor,
            health,
            on_dead=_send_elsewhere,
            on_alive=lambda state: dispatcher.freed(),
        )

        self.database = Database(reactor, settings.database_url, settings.timeouts.database)
        self.reports = ReportReader(
            reactor,
            settings.database_url,
            ReportLimits(limits.max_reports, limits.max_reports_per_key, limits.max_queued_reports),
            settings.timeouts.report,
        )
        self.store = Store(self.database)
        self.index = KeyIndex()
        self.metrics = Metrics()
        self.metrics.add(StaleConnectionCollector(self.agent))
        self.metrics.add(UpstreamCollector(self.health, named=False), UpstreamCollector(self.health, named=True))
        self.metrics.add(DatabaseCollector(self.database, self.reports))
        uncounted = UncountedRequests(limits.max_uncounted_requests)
        self.accounting = accounting = AccountingService(
            reactor, settings, self.index, self.metrics, uncounted, client_of
        )
        self.registry = Registry(
            self.store,
            self.index,
            accounting.spend_set,
            budget_gone=accounting.limiter.budget_forgotten,
            read_anew=accounting.read_anew,
            patience=settings.timeouts.database,
        )

        self.each_minute = EachMinute(reactor)
        # the observers of requests, in order: the ledger and the log use the results of the accounting
        text = ClientText(Redactor(settings.secrets), RouteTemplates(route.path for route in ROUTES))
        attempts = AttemptMetrics()
        observers: list[RequestObserver] = [accounting.observer, EntryUsage(), attempts]
        if accounting.spool is not None:
            # before a client has its whole response, the row is in the spool
            coalescer.before_send = accounting.spool.flush
            usage_headers = [name.encode("ascii") for name in settings.ledger.usage_headers]
            recorder = LedgerRecorder(
                accounting.spool, text, ids.make, usage_headers=usage_headers, coalescer=coalescer
            )
            observers.append(recorder)
            self.each_minute.add(recorder.write_repeated)
        self.background = background = BackgroundResponses(
            reactor,
            # not queued: such a request takes no place of a response
            PassThroughClient(self.agent),
            settings.servers,
            accounting.limiter,
            self.index.allowance_of,
            rows=accounting.spool,
            files=None if accounting.spool is None else PendingFiles(settings.spool_directory / "background"),
            assumed_output_tokens=limits.assumed_output_tokens,
        )
        self.metrics.add(BackgroundCollector(background))
        unsent = UnsentLines(settings.log.max_unsent_lines, client_of)
        self.metrics.add(AbuseCollector(uncounted, unsent))
        self.each_minute.add(unsent.report)
        observers += [background, RequestLog(observer, text, client_of, unsent)]
        self.lifecycle = Lifecycle(observers)

        authenticator = Authenticator(settings.master_key, self.index)
        throttle = AuthenticationThrottle(limits.max_failed_authentications)
        client = PassThroughClient(self.agent)
        served_models = ServedModels(client, reactor)
        places = ResponsePlaces()
        locator = ResponseLocator(client, reactor, places)

        def locate(response_id: str) -> Deferred[Server | None]:
            return locator.locate(response_id, [state.server for state in self.servers])

        admission = Admission(
            authenticator=authenticator,
            policy=RoutePolicy(settings.tenant_routes),
            router=router,
            base_models=served_models,
            path_aliases=settings.path_aliases,
            fields=FieldPolicies(settings.tenant_fields),
            reads_bodies=settings.ledger.enabled,
            inject_usage=settings.ledger.enabled and settings.ledger.count_stream_usage == "inject",
            response_ids=ResponseIds(settings.servers, os.urandom),
            places=places,
        )
        form_files = FormFiles(limits.max_spooled_form_bytes, descriptors.form_files)
        cooperate = turn_cooperator(reactor).cooperate
        forwarder = Forwarder(
            admission=admission,
            dispatcher=dispatcher,
            client=client,
            trusted_proxies=settings.trusted_proxies,
            cooperate=cooperate,
            clock=reactor,
            accounting=accounting.observer,
            lifecycle=self.lifecycle,
            background=background,
            routing=routing,
            retry=settings.retry,
            session_header=settings.session_header,
            places=places,
        )
        self.metrics.add(AttemptCollector(attempts, forwarder, dispatcher))
        pass_through = PassThroughResource(
            admission=admission,
            forwarder=forwarder,
            limits=limits,
            trusted_proxies=settings.trusted_proxies,
            in_thread=partial(deferToThreadPool, reactor, reactor.getThreadPool()),
            form_files=form_files,
            cooperate=cooperate,
            ask_models=served_models.ask,
            locate=locate,
            throttle=throttle,
            allows=allows,
            web_pages=web_pages,
            accounting=accounting.observer,
        )

        metrics_of_servers = MetricsOfServers(
            client, reactor, cooperate, lambda: [state.server for state in self.servers]
        )

        def client_of_admin(request: Any) -> str:
            return client_of(request.context)

        def allows_admin(request: Any) -> bool:
            return allows is None or allows(request.context)

        admin = AdminApp(
            authenticator=authenticator,
            registry=self.registry,
            reports=self.reports,
            clock=reactor,
            now=lambda: datetime.now(UTC),
            randbytes=os.urandom,
            readiness=lambda: Readiness(
                draining=self.drain.begun,
                database=self.database.reachable,
                requires_database=settings.readiness_requires_database,
                file_is_lost=self.database.file_is_lost,
            ),
            endpoints=lambda: tuple(endpoints_of(router.groups)),
            metrics=self.metrics,
            metrics_of_servers=metrics_of_servers.expose,
            metrics_are_open=settings.metrics_are_open,
            client_of=client_of_admin,
            failures=throttle,
            uncounted=uncounted,
            allows=allows_admin,
            key_bounds=settings.upperbound_key_generate_params,
            web_pages=web_pages,
            text=text,
            # an earlier change, the connection and the change itself
            database_timeout=3 * settings.timeouts.database,
        )
        self.site = GatewaySite(
            streaming={MOUNT[1:]: pass_through},
            other=admin.resource(),
            deadlines=self.deadlines,
            coalescer=coalescer,
            disconnects=self.disconnects,
            reactor=reactor,
            limits=attrs.evolve(limits, max_connections=descriptors.clients),
            timeouts=settings.timeouts,
            ids=ids,
            lifecycle=self.lifecycle,
            web_pages=web_pages,
            is_exempt=partial(may_take_all_connections, trusted=settings.trusted_proxies),
            max_refused=descriptors.refused,
        )
        if isinstance(observer, LineObserver):
            observer.secrets_in_flight = self.site.secrets_in_flight
        shortages.add_reclaimer(self.site.connection_limit.make_room)
        self.metrics.add(ConnectionCollector(self.site, self.agent, shortages, form_files))
        self.metrics.add(HeldBodiesCollector(self.site.held_bodies))
        self.revoker = Revoker(admission, self.site.running, reactor)
        self.drain = Drain(reactor, self.site, settings.drain_delay, settings.drain_timeout)


def _send_elsewhere(state: ServerState, reason: str) -> None:
    """End the attempts that wait for a dead server to begin its answer."""
    for attempt in tuple(state.awaiting):
        attempt.server_died(reason)
