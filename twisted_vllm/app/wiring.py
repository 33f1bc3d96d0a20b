"""Creates the gateway's components and connects them. Nothing is opened or started here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from random import random
from time import time
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver
from twisted.web.client import Agent

from twisted_vllm.admin.app import ROUTES, AdminApp
from twisted_vllm.admin.context import ModelSource, Readiness
from twisted_vllm.admin.web.mount import ConsoleMount
from twisted_vllm.app.accounting import AccountingService
from twisted_vllm.app.component_settings import (
    AdmissionSettings,
    admin_of,
    admission_of,
    breaker_of,
    directories_of,
    gateway_limits_of,
    key_sets_of,
    report_limits_of,
    usage_headers_of,
    verifier_of,
    web_pages_of,
)
from twisted_vllm.app.drain import Drain
from twisted_vllm.app.each_minute import EachMinute
from twisted_vllm.app.live import Live
from twisted_vllm.app.model_list import ModelList
from twisted_vllm.app.overview import GatewayOverview
from twisted_vllm.app.problems import Sources
from twisted_vllm.app.reload import Reloader
from twisted_vllm.app.service_manager import NO_MANAGER, ServiceManager
from twisted_vllm.app.shared.background import SharedBackground
from twisted_vllm.app.shared.changes import SharedChanges
from twisted_vllm.app.shared.ended_sessions import share_ended
from twisted_vllm.app.shared.exports import share_export
from twisted_vllm.app.signing_in import provider_of, relying_party_of
from twisted_vllm.app.telemetry.part import Surroundings
from twisted_vllm.app.telemetry.team_aliases import TeamAliases
from twisted_vllm.app.telemetry.telemetry import Telemetry
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.change_limits import ChangeLimits
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.named_callers import NamedCallers
from twisted_vllm.auth.sessions import SessionSealer, secret_of
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.token_index import TokenIndex
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.config.listen import with_backlog
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.reload import LISTEN
from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.settings import DiscoverySettings, Server, Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.tls import TlsFiles, read_all
from twisted_vllm.http.client.treq_client import PassThroughClient
from twisted_vllm.http.net.bounded_turns import turn_cooperator
from twisted_vllm.http.net.certificates import Listeners
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher
from twisted_vllm.http.net.epoll_hub import data_path_reactor
from twisted_vllm.http.net.open_files import open_file_limit, share_out
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.http.server.ids import RequestIds
from twisted_vllm.http.server.site import GatewaySite
from twisted_vllm.http.web_pages import WebPages
from twisted_vllm.identification.caller_lookup import CallerLookup
from twisted_vllm.identification.directory import Directory
from twisted_vllm.identification.identifier import Identifier
from twisted_vllm.identification.inquiry import Inquiry
from twisted_vllm.identification.key_sets import KeySets, fetch
from twisted_vllm.lifecycle import Lifecycle, RequestObserver
from twisted_vllm.mounts import MOUNT, Mounts
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.delivery.metrics import Deliveries
from twisted_vllm.observability.logging.level import LogLevels
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.logging.request_log import RequestLog
from twisted_vllm.observability.logging.sampling import RequestSampling
from twisted_vllm.observability.logging.setup import GatewayLog, LogTargetError
from twisted_vllm.observability.logging.unsent_lines import UnsentLines
from twisted_vllm.observability.metrics.registry import Metrics
from twisted_vllm.observability.request_event import RequestEvents
from twisted_vllm.observability.route_templates import RouteTemplates
from twisted_vllm.proxy.act_log import ActLog
from twisted_vllm.proxy.admission import Admission
from twisted_vllm.proxy.attempt_metrics import AttemptCollector
from twisted_vllm.proxy.background_responses import BackgroundCollector, BackgroundResponses
from twisted_vllm.proxy.budget_watch import BudgetWatch
from twisted_vllm.proxy.entry_usage import EntryUsage
from twisted_vllm.proxy.form_files import FormFiles
from twisted_vllm.proxy.forwarded import ClientAddresses
from twisted_vllm.proxy.forwarding import Forwarder
from twisted_vllm.proxy.ledger import LedgerRecorder
from twisted_vllm.proxy.litellm_headers import LitellmHeaders
from twisted_vllm.proxy.metrics import (
    AbuseCollector,
    ConnectionCollector,
    HeldBodiesCollector,
    StaleConnectionCollector,
)
from twisted_vllm.proxy.model_listing import ModelListing
from twisted_vllm.proxy.resource import PassThroughResource
from twisted_vllm.proxy.response_ids import ResponseIds
from twisted_vllm.proxy.revocation import Revoker
from twisted_vllm.proxy.server_acts import ServerActs
from twisted_vllm.proxy.upstream_metrics import UpstreamCollector
from twisted_vllm.ratelimit.allowance import END_USER
from twisted_vllm.storage.audit_retention import AuditRetention
from twisted_vllm.storage.database import Database
from twisted_vllm.storage.metrics import AuditCollector, DatabaseCollector
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.reports import ReportReader
from twisted_vllm.storage.store import Store
from twisted_vllm.upstreams.breaker import Breaker
from twisted_vllm.upstreams.discovered import Answer, ServiceName
from twisted_vllm.upstreams.discovery import LookUp
from twisted_vllm.upstreams.dispatcher import Dispatcher
from twisted_vllm.upstreams.health_checks import HealthChecks
from twisted_vllm.upstreams.health_report import endpoints_of
from twisted_vllm.upstreams.kv_caches import KvCaches
from twisted_vllm.upstreams.load_scraper import LoadScraper
from twisted_vllm.upstreams.metrics_of_servers import MetricsOfServers
from twisted_vllm.upstreams.prefix_table import PrefixTable
from twisted_vllm.upstreams.probe import Prober
from twisted_vllm.upstreams.response_locator import ResponseLocator
from twisted_vllm.upstreams.response_places import ResponsePlaces
from twisted_vllm.upstreams.router import Router
from twisted_vllm.upstreams.served_models import ServedModels
from twisted_vllm.upstreams.server_state import Servers, ServerState
from twisted_vllm.upstreams.tokenizing import PromptTokenizer
from twisted_vllm.usage.spool.pending import PendingFiles
from twisted_vllm.usage_export.metrics import UsageExportCollector
from twisted_vllm.usage_export.service import UsageExport
from twisted_vllm.workers.permitted import PermittedConnections
from twisted_vllm.workers.siblings import ALONE, Siblings

if TYPE_CHECKING:
    # a gateway of one process has nothing to share
    from twisted_vllm.app.shared.metrics import SharedMetrics
    from twisted_vllm.app.shared.readiness import SharedReadiness
    from twisted_vllm.identification.oidc.relying_party import RelyingParty
    from twisted_vllm.proxy.trial import Trials
    from twisted_vllm.upstreams.server_report import ServerReports
    from twisted_vllm.upstreams.shared.sharing import ServerSharing

if TYPE_CHECKING:
    from twisted_vllm.app.processes.member import Member
    from twisted_vllm.proxy.live_requests import LiveRequests

#: what a reload says to have changed if only the content of files of TLS to servers has
SERVER_FILES = "ssl_ca, ssl_certificate or ssl_key"


class Wiring:
    """The components of the gateway, which the root service starts and stops.

    Attributes:
        siblings: the other processes of the gateway, if there are several.
        endpoints: the endpoints to listen on.
        models: the model list: entries of the file and of the database, and the servers that DNS finds.
        health: checks the servers.
        kv_caches: follows what is in the servers' prefix caches.
        load_scraper: asks the servers for their load.
        database: the database; `store` runs transactions on it.
        reports: reads the ledger for reports.
        audit_retention: drops old entries of the audit log.
        metrics: the metrics of this process.
        shared_metrics: those of all processes; None if this is the whole gateway.
        shared_readiness: the readiness of all processes; None if this is the whole gateway.
        accounting: meters, limits and stores usage.
        usage_export: exports the ledger's rows of closed days.
        background: follows responses that servers generate in the background; `shared_background` has the housekeeper
            go on with those of processes that have ended.
        inquiry: asks the database before a caller is refused.
        changes: has other processes of the gateway read what was changed.
        index: the keys in memory; `registry` synchronizes them with the database.
        lifecycle: the observers of requests.
        budgets: watches how much of their budgets keys and others have used.
        overview: what passes, what is wrong, and which budgets are used, of all processes.
        telemetry: metrics of requests, traces, sinks and alerts.
        log_levels: changes the level of the log; None if the log is not the gateway's own.
        each_minute: writes once a minute what was summed up.
        deadlines: checks the deadlines of all connections.
        disconnects: detects clients that disconnect while they are not read from.
        agent: the connections to servers.
        shortages: counts what failed for want of a descriptor or a port.
        descriptors: how many descriptors clients, servers and forms may take.
        sharing: has other processes know the same of the servers; None if there are none.
        servers: what is known of each server; `router` finds those of a model, and `dispatcher` places requests on
            them.
        console: the web page at /ui.
        site: the factory of client connections.
        live: tells and ends requests in flight.
        revoker: ends requests of keys that are no longer valid.
        drain: the graceful shutdown.
        reloader: reads the settings again, and reconfigures the components.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        observer: ILogObserver,
        read_again: Callable[[], Settings] | None = None,
        directory: str = "",
        manager: ServiceManager = NO_MANAGER,
        member: Member | None = None,
    ) -> None:
        """Create the components.

        Args:
            reactor: Twisted's reactor.
            settings: the settings.
            observer: the log observer.
            read_again: reads the settings again, in another thread; None where nothing can be read again.
            directory: where the names of files in the settings begin, if they are read again.
            manager: is told when a reload begins and ends.
            member: makes this one of several processes; None if it is the whole gateway.

        Raises:
            ValueError: a listen string is not an endpoint.
            InvalidRequest: a rule of ``tenant_routes`` cannot be read.
            ConfigError: a file of TLS to a server cannot be used.
        """
        limits = settings.limits
        self._reactor = reactor
        self._observer = observer
        self._addresses = addresses = ClientAddresses(settings.trusted_proxies, settings.allowed_ips)
        client_of = addresses.of
        self._web_pages = web_pages = WebPages(**web_pages_of(settings))
        in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
        coalescer = WriteCoalescer()
        self.shortages = shortages = Shortages()
        self.descriptors = descriptors = share_out(limits.max_connections, open_file_limit())
        sockets = data_path_reactor(reactor, coalescer, shortages)
        ids = RequestIds(os.urandom)
        self._directory = directory
        self._listeners = Listeners(sockets, directory)
        self.siblings: Siblings = ALONE
        self._permits: PermittedConnections | None = None
        if member is None:
            self.endpoints = [self._listeners.endpoint(with_backlog(text)) for text in settings.listen]
        else:
            self.siblings = member.join(reactor, sockets, shortages, coalescer)
            self.endpoints = list(member.endpoints(self._listeners))
            self._permits = member.permits
        self.deadlines = DeadlineSweeper(reactor)
        self.disconnects = DisconnectWatcher(reactor)
        self.agent = UpstreamAgent(
            sockets, self.deadlines, coalescer, shortages, descriptors.upstreams, asks_for_tls=True
        )
        # now, while twistd still has the privileges to read the files
        self.agent.reconfigure(settings.servers, descriptors.upstreams, read_all(settings.servers))
        self.sharing = sharing = _sharing_of(self.siblings, self.deadlines, reactor)
        self.dispatcher = dispatcher = Dispatcher(self.deadlines) if sharing is None else sharing.dispatcher
        client = PassThroughClient(self.agent)
        self.kv_caches = kv_caches = KvCaches(reactor, reactor, PromptTokenizer(client, reactor))
        routing, health = settings.routing, settings.health
        self._breaker = breaker_of(settings)
        make_breaker = Breaker if sharing is None else sharing.make_breaker
        self.servers = Servers(lambda: make_breaker(**self._breaker, random=random, now=reactor.seconds()))
        self.router = router = Router(
            settings.models,
            settings.default_server,
            servers=self.servers,
            routing=routing,
            random=random,
            retry_share=settings.retry.budget,
            make_table=lambda: kv_caches.table(PrefixTable()),
            make_limits=None if sharing is None else sharing.make_limits,
        )

        prober = Prober(self.agent.endpoint_of, reactor, self.agent.ask_for_tls)
        self.load_scraper = LoadScraper(self.servers, prober, reactor, health)
        self.health = HealthChecks(
            self.servers,
            prober,
            reactor,
            health,
            on_dead=_send_elsewhere,
            on_alive=lambda state: dispatcher.serve(),
            on_gone=router.forget_cache,
            checks=self.siblings.housekeeps,
        )
        look_up: LookUp = partial(_look_up, reactor)
        if sharing is not None:
            sharing.use(router, self.health)
            look_up = sharing.look_up(look_up)

        self.database = Database(reactor, settings.database_url, settings.timeouts.database)
        self._workers = workers = 1 if member is None else member.order.workers
        self.reports = ReportReader(
            reactor,
            settings.database_url,
            report_limits_of(limits, workers),
            settings.timeouts.report,
            lambda: self.accounting.kept_from(),
        )
        self.audit_retention = AuditRetention(
            self.database, reactor, lambda: datetime.now(UTC), settings.audit_retention
        )
        self.store = Store(self.database)
        self.index = KeyIndex()
        self.index.reconfigure(gateway_limits_of(settings))
        self.metrics = Metrics()
        self.shared_metrics: SharedMetrics | None = None
        if not self.siblings.alone:
            from twisted_vllm.app.shared.metrics import SharedMetrics

            self.shared_metrics = SharedMetrics(self.metrics, self.siblings)
        self.metrics.add(StaleConnectionCollector(self.agent))
        self.metrics.add(UpstreamCollector(self.health, named=False), UpstreamCollector(self.health, named=True))
        self.metrics.add(DatabaseCollector(self.database, self.reports))
        self.usage_export = UsageExport(
            reactor,
            self.database,
            settings.database_url,
            settings.ledger.export,
            settings.ledger.usage_retention,
            now=time,
            randbytes=os.urandom,
        )
        share_export(self.siblings, self.usage_export)
        if self.siblings.housekeeps:
            self.metrics.add(UsageExportCollector(self.usage_export))
        counting = None
        if not self.siblings.alone:
            # Imported here: a gateway of one process counts by itself.
            from twisted_vllm.ratelimit.supervised.worker import SupervisedCounting

            counting = SupervisedCounting(self.siblings, reactor, coalescer.at_send)
        self._uncounted = uncounted = UncountedRequests(
            limits.max_uncounted_requests, *(() if counting is None else (counting.reads, counting.preflights))
        )
        self._changes = ChangeLimits(
            settings.self_service.max_changes,
            settings.self_service.max_changes_per_day,
            *(() if counting is None else (counting.changes_of_minute, counting.changes_of_day)),
        )
        self.accounting = accounting = AccountingService(
            reactor,
            settings,
            self.index,
            self.metrics,
            uncounted,
            client_of,
            lambda end_users: self.store.read(lambda transaction: transaction.spend.of(END_USER, end_users)),
            self.usage_export.held_from,
            self.siblings,
            self.store.spend_of_wanted,
            None if counting is None else counting.limiter,
            workers,
        )
        self.models = ModelList(settings, self._use_models, look_up=look_up, clock=reactor, randbytes=os.urandom)
        if sharing is not None:
            sharing.follow(self.models.discovery)
        self.changes = shared_changes = SharedChanges(self.siblings)
        self.registry = Registry(
            self.store,
            self.index,
            lambda spend: accounting.spend_set(spend, is_found=self.registry.is_following),
            spend_found=lambda spend: accounting.spend_set(spend, is_found=self.registry.is_following, is_known=True),
            budget_gone=lambda kind, id: accounting.budget_gone(kind, id, is_found=self.registry.is_following),
            read_anew=accounting.read_anew,
            models_set=self.models.set_stored,
            drained_set=self._drained,
            patience=settings.timeouts.database,
            tell_others=None if self.siblings.alone else shared_changes.tell,
        )
        shared_changes.follow(self.registry)
        self.metrics.add(AuditCollector(self.registry))
        self.inquiry = inquiry = Inquiry(self.registry.catch_up, reactor, workers)

        self.each_minute = EachMinute(reactor)
        # the observers of requests, in order: the ledger and the log use the results of the accounting
        self._secrets = settings.secrets
        self._redact = observer.redact if isinstance(observer, GatewayLog) else Redactor(settings.secrets)
        self._text = text = ClientText(self._redact, RouteTemplates(route.path for route in ROUTES))
        observers: list[RequestObserver] = [accounting.observer, EntryUsage()]
        self._recorder: LedgerRecorder | None = None
        if accounting.spool is not None:
            # before a client has its whole response, the row is in the spool
            coalescer.before_send = accounting.spool.flush
            self._recorder = recorder = LedgerRecorder(
                accounting.spool,
                text,
                ids.make,
                usage_headers=usage_headers_of(settings),
                request_tags=settings.ledger.request_tags,
                coalescer=coalescer,
            )
            observers.append(recorder)
            self.each_minute.add(recorder.write_repeated)
        self.background = background = BackgroundResponses(
            reactor,
            # not queued: such a request takes no place of a response
            client,
            settings.servers,
            accounting.limiter,
            self.index,
            rows=accounting.spool,
            files=None if accounting.spool is None else PendingFiles(settings.spool_directory / "background"),
            assumed_output_tokens=limits.assumed_output_tokens,
        )
        self.shared_background = SharedBackground(self.siblings, background, reactor)
        self.metrics.add(BackgroundCollector(background))
        self._unsent = unsent = UnsentLines(settings.log.max_unsent_lines, client_of)
        self.metrics.add(AbuseCollector(uncounted, unsent, inquiry))
        self.each_minute.add(unsent.report)
        self.log_levels = LogLevels(observer, reactor) if isinstance(observer, LineObserver) else None
        if self.log_levels is not None and not self.siblings.alone:
            from twisted_vllm.app.shared.log_level import SharedLogLevel

            self.log_levels.share = SharedLogLevel(self.log_levels, self.siblings, reactor).share
        self._sampling = sampling = RequestSampling(settings.log.requests, settings.log.slow_request_warning)
        self.each_minute.add(sampling.report)
        if isinstance(observer, LineObserver):
            self.each_minute.add(observer.report)
        observers += [background, RequestLog(observer, text, client_of, unsent, sampling=sampling)]
        act_log = ActLog(self.registry.change, text, client_of, time)
        observers.append(ServerActs(self._servers_acted, self._caches_emptied, act_log.record))
        self.lifecycle = Lifecycle(observers)

        callers = NamedCallers(self.index)
        self._session_sealer = _session_sealer_of(settings)
        self._authenticator = authenticator = Authenticator(
            settings.master_key, self.index, sealer=self._session_sealer, callers=callers
        )
        self.each_minute.add(authenticator.sweep)
        self._throttle = throttle = AuthenticationThrottle(
            limits.max_failed_authentications, None if counting is None else counting.failures
        )
        self._tokens = TokenIndex(callers)
        self._key_sets: KeySets | None = None
        self._lookup = CallerLookup(callers, Directory(self.registry, time))
        self._identifier = identifier = Identifier(inquiry, lookup=self._lookup)
        self._relying_party: RelyingParty | None = None
        self._use_tokens(settings)
        self._served_models = served_models = ServedModels(client, reactor)
        places = ResponsePlaces() if sharing is None else sharing.places
        locator = ResponseLocator(client, reactor, places)

        def locate(response_id: str) -> Deferred[Server | None]:
            return locator.locate(response_id, [state.server for state in self.servers])

        self._response_ids = ResponseIds(settings.servers, os.urandom)
        self._admission = admission = Admission(
            authenticator=authenticator,
            router=router,
            base_models=served_models,
            reads_bodies=settings.ledger.enabled,
            response_ids=self._response_ids,
            places=places,
            **admission_of(settings),
        )
        cooperate = turn_cooperator(reactor).cooperate
        self.budgets = BudgetWatch(accounting.watched, self.index, cooperate, reactor)
        accounting.on_soft_budget = self.budgets.soft_budget_crossed
        listing = ModelListing(
            router,
            served_models,
            admission,
            entries=lambda: self.models.current.models,
            default_prices=lambda: self.models.current.default_prices,
            created=int(time()),
            cooperate=cooperate,
        )
        self._form_files = form_files = FormFiles(limits.max_spooled_form_bytes, descriptors.form_files)
        self._forwarder = forwarder = Forwarder(
            admission=admission,
            dispatcher=dispatcher,
            client=client,
            addresses=addresses,
            cooperate=cooperate,
            clock=reactor,
            accounting=accounting.observer,
            lifecycle=self.lifecycle,
            background=background,
            routing=routing,
            retry=settings.retry,
            session_header=settings.session_header,
            places=places,
            kv_caches=kv_caches,
        )
        forwarder.record_act = act_log.record
        self.metrics.add(AttemptCollector(forwarder, dispatcher))
        self._mounts = mounts = Mounts(settings.root_routes, settings.path_aliases)
        self._pass_through = pass_through = PassThroughResource(
            admission=admission,
            forwarder=forwarder,
            limits=limits,
            addresses=addresses,
            in_thread=in_thread,
            form_files=form_files,
            cooperate=cooperate,
            ask_models=served_models.ask,
            locate=locate,
            throttle=throttle,
            before_refusal=identifier.before_refusal,
            web_pages=web_pages,
            accounting=accounting.observer,
            mounts=mounts,
            listing=listing,
        )

        self._server_reports: ServerReports | None = None
        if not self.siblings.alone:
            from twisted_vllm.app.shared.servers import SharedFigures

            self.server_reports.ask_others = SharedFigures(self.server_reports.own_figures, self.siblings).ask
        metrics_of_servers = MetricsOfServers(
            client, reactor, cooperate, lambda: [state.server for state in self.servers]
        )

        def client_of_admin(request: Any) -> str:
            return client_of(request.context)

        def allows_admin(request: Any) -> bool:
            return addresses.allows(request.context)

        def readiness() -> Readiness:
            return Readiness(
                draining=self.drain.begun,
                database=self.database.reachable,
                requires_database=self.reloader.settings.readiness_requires_database,
                file_is_lost=self.database.file_is_lost,
            )

        self.shared_readiness: SharedReadiness | None = None
        if not self.siblings.alone:
            from twisted_vllm.app.shared.readiness import SharedReadiness

            self.shared_readiness = SharedReadiness(readiness, self.siblings, reactor)

        def live_requests() -> LiveRequests:
            # Imported here: few gateways are asked for them.
            from twisted_vllm.proxy.live_requests import LiveRequests

            return LiveRequests(lambda: self.site.connections, dispatcher.turns, text, client_of, cooperate, reactor)

        self.live = Live(live_requests, self.siblings, reactor)
        team_aliases = TeamAliases(self.database, reactor.seconds)
        self.overview = GatewayOverview(
            self.siblings,
            reactor,
            lambda: sum(request.context.authorization is not None for request in self.site.running()),
            Sources(
                snapshot=self.metrics.snapshot if self.shared_metrics is None else self.shared_metrics.snapshot,
                groups=lambda: router.groups,
                budgets=lambda: self.budgets.most_used,
                team_name=team_aliases.name,
                want_teams=team_aliases.keep_only,
                file_is_lost=lambda: self._readiness().file_is_lost,
                directories=lambda: directories_of(self.reloader.settings),
            ),
        )
        self._readiness = readiness if self.shared_readiness is None else self.shared_readiness.whole
        self._admin = admin = AdminApp(
            authenticator=authenticator,
            registry=self.registry,
            reports=self.reports,
            clock=reactor,
            now=lambda: datetime.now(UTC),
            randbytes=os.urandom,
            readiness=self._readiness,
            endpoints=lambda: tuple(endpoints_of(router.groups)),
            metrics=self.metrics if self.shared_metrics is None else self.shared_metrics,
            metrics_of_servers=metrics_of_servers.expose,
            client_of=client_of_admin,
            failures=throttle,
            uncounted=uncounted,
            changes=self._changes,
            before_refusal=identifier.before_refusal,
            before_session_ends=identifier.before_session_ends,
            allows=allows_admin,
            web_pages=web_pages,
            text=text,
            reload=lambda: self.reloader.reload(),
            reload_state=lambda: self.reloader.state(),
            log_levels=self.log_levels,
            model_source=lambda: ModelSource(self.models.configured, self.models.sealer),
            models=listing,
            settings_in_effect=lambda: self.models.current,
            exports=self.usage_export,
            live=self.live,
            servers=lambda: self.server_reports,
            trials=lambda: _trials(admission, accounting.observer, dispatcher, mounts, authenticator.judged),
            overview=self.overview,
            **admin_of(settings),
        )
        self.console = ConsoleMount(
            context=admin.context,
            sealer=lambda: self._session_sealer,
            settings=settings.console,
            origin_of=lambda request: addresses.origin(_context_of(request)),
            prefix_of=lambda request: addresses.prefix(_context_of(request)).decode("ascii"),
            tell_ended=lambda id, until: tell_ended(id, until),
            in_thread=in_thread,
            parts={"relying_party": lambda: self._relying_party},
        )
        tell_ended = share_ended(self.siblings, self.console.ended, time)
        self.litellm_headers = LitellmHeaders()
        self.site = GatewaySite(
            streaming={MOUNT[1:]: pass_through},
            other=admin.resource(self.console),
            find=lambda path: None if mounts.find(path) is None else pass_through,
            deadlines=self.deadlines,
            coalescer=coalescer,
            disconnects=self.disconnects,
            reactor=reactor,
            limits=attrs.evolve(limits, max_connections=descriptors.clients),
            timeouts=settings.timeouts,
            ids=ids,
            lifecycle=self.lifecycle,
            web_pages=web_pages,
            is_exempt=addresses.may_take_all_connections,
            max_refused=descriptors.refused,
            shares=self._permits,
            budget_exceeded_status=settings.budget_exceeded_status_code,
            added_lines=self.litellm_headers.lines if settings.litellm_headers else None,
        )
        if self._permits is not None:
            self._permits.reconfigure(limits.max_connections, limits.max_connections_share, descriptors.clients)
        if isinstance(observer, LineObserver):
            observer.secrets_in_flight = self.site.secrets_in_flight
        shortages.add_reclaimer(self.site.connection_limit.make_room)
        self.metrics.add(ConnectionCollector(self.site, self.agent, shortages, form_files))
        self.metrics.add(HeldBodiesCollector(self.site.held_bodies))
        deliveries = Deliveries()
        self.metrics.add(deliveries)
        surroundings = Surroundings(
            reactor=reactor,
            observer=observer,
            redact=self._redact,
            text=text,
            client_of=client_of,
            events=RequestEvents(text, client_of),
            metrics=self.metrics,
            deliveries=deliveries,
            accounting=accounting,
            background=background,
            index=self.index,
            servers=self.servers,
            router=router,
            health=self.health,
            agent=self.agent,
            forwarder=forwarder,
            site=self.site,
            database=self.database,
            listeners=self._listeners,
            reloader=lambda: self.reloader,
            draining=lambda: self.drain.begun,
            budgets=self.budgets,
            directory=directory,
            siblings=self.siblings,
            snapshot=self.metrics.snapshot if self.shared_metrics is None else self.shared_metrics.snapshot,
            traffic=self.overview.passed,
        )
        self.telemetry = Telemetry(surroundings, settings, self.lifecycle, observers)
        self.revoker = Revoker(admission, lambda: self.site.connections, reactor)
        self.drain = Drain(
            reactor, self.site, settings.drain_delay, settings.drain_timeout, self.dispatcher.refuse_waiting
        )
        self.reloader = Reloader(settings, read_again or (lambda: settings), self.prepare, in_thread, manager)

    @property
    def server_reports(self) -> ServerReports:
        """Reports the servers to people. Few gateways are asked."""
        if self._server_reports is None:
            from twisted_vllm.upstreams.server_report import ServerReports

            self._server_reports = ServerReports(self.router, self._served_models, self._reactor)
        return self._server_reports

    def prepare(self, settings: Settings) -> tuple[tuple[str, ...], Callable[[], None]]:
        """Open and read what other settings need, in another thread; see `Prepare`."""
        admission = admission_of(settings)
        prepared = [
            self._redact.prepare(settings.secrets),
            self.accounting.prepare(settings),
            self.telemetry.prepare(settings),
        ]
        files = self._tls_files(settings)
        differs, certify = self._listeners.prepare([with_backlog(text) for text in settings.listen])
        prepared.append(certify)
        if isinstance(self._observer, GatewayLog):
            try:
                prepared.append(self._observer.prepare(settings.log))
            except OSError as error:
                text = f"cannot be opened: {error.strerror} (the gateway's user must be able to write there)"
                raise ConfigError([Problem("passthrough.log.file", text)]) from None
            except LogTargetError as error:
                raise ConfigError([Problem("passthrough.log.file", str(error))]) from None

        def apply() -> None:
            for part in prepared:
                part()
            self._secrets = settings.secrets
            self._text.secrets_changed()
            self._reconfigure(settings, admission, files)

        changed = (*((LISTEN,) if differs else ()), *((SERVER_FILES,) if self.agent.differs(files) else ()))
        return changed, apply

    def _tls_files(self, settings: Settings) -> Mapping[ServerTls, TlsFiles]:
        """Read the files of TLS to servers, in any thread: those of the file, and of other servers what can be read."""
        files = read_all(settings.servers, self._directory)
        for server in self.models.current.servers:
            with suppress(ConfigError):
                files |= read_all([server], self._directory)
        return files

    def _reconfigure(
        self, settings: Settings, admission: AdmissionSettings, files: Mapping[ServerTls, TlsFiles]
    ) -> None:
        """Give each component what the settings say now. What is in flight goes on as it began."""
        limits, timeouts = settings.limits, settings.timeouts
        self.descriptors = descriptors = share_out(limits.max_connections, open_file_limit())
        self._addresses.reconfigure(settings.trusted_proxies, settings.allowed_ips)
        self._web_pages.reconfigure(**web_pages_of(settings))
        self._throttle.reconfigure(limits.max_failed_authentications)
        self._use_tokens(settings)
        self._uncounted.reconfigure(limits.max_uncounted_requests)
        self._changes.reconfigure(settings.self_service.max_changes, settings.self_service.max_changes_per_day)
        self._unsent.reconfigure(settings.log.max_unsent_lines)
        if self.log_levels is not None:
            self.log_levels.reconfigure(settings.log.level)
        self._sampling.reconfigure(settings.log.requests, settings.log.slow_request_warning)
        self._breaker = breaker_of(settings)
        self.models.set_configured(settings)
        self.agent.reconfigure(self.models.current.servers, descriptors.upstreams, files)
        for state in self.servers:
            state.breaker.reconfigure(**self._breaker)
        self.load_scraper.update(settings.health)
        self._forwarder.reconfigure(settings.routing, settings.retry, settings.session_header)
        self._admission.reconfigure(**admission)
        if self._recorder is not None:
            self._recorder.reconfigure(usage_headers_of(settings), request_tags=settings.ledger.request_tags)
        self._form_files.reconfigure(limits.max_spooled_form_bytes, descriptors.form_files)
        self._mounts.reconfigure(settings.root_routes, settings.path_aliases)
        self._pass_through.reconfigure(limits)
        self._admin.reconfigure(**admin_of(settings))
        self.console.reconfigure(settings.console)
        self.database.reconfigure(timeouts.database)
        self.reports.reconfigure(report_limits_of(limits, self._workers), timeouts.report)
        self.audit_retention.reconfigure(settings.audit_retention)
        self.registry.reconfigure(timeouts.database)
        self.usage_export.reconfigure(settings.ledger.export, settings.ledger.usage_retention)
        self.site.reconfigure(
            attrs.evolve(limits, max_connections=descriptors.clients),
            timeouts,
            descriptors.refused,
            settings.budget_exceeded_status_code,
            self.litellm_headers.lines if settings.litellm_headers else None,
        )
        if self._permits is not None:
            self._permits.reconfigure(limits.max_connections, limits.max_connections_share, descriptors.clients)
        self.revoker.reconfigure(settings.revoke_running)
        self.drain.reconfigure(settings.drain_delay, settings.drain_timeout)
        # what was authorized before is looked at again
        self.index.reconfigure(gateway_limits_of(settings))

    @property
    def keys_in_use(self) -> int:
        """The number of keys whose credential is known."""
        return self._authenticator.keys_in_use

    def _use_tokens(self, settings: Settings) -> None:
        """Take the tokens and the sessions that the settings say, beside keys."""
        self._tokens.forget()
        self._session_sealer = sealer = _session_sealer_of(settings)
        self._relying_party = relying_party_of(
            settings, self._reactor, self._lookup, self._throttle, self._relying_party
        )
        provider = provider_of(settings)
        if not settings.enable_jwt_auth:
            self._authenticator.reconfigure(settings.master_key, sealer=sealer, provider=provider)
            self._identifier.reconfigure(None)
            return
        agent = Agent(self._reactor, connectTimeout=settings.timeouts.connect)
        # what was fetched stays: the issuer may be down at a reload
        self._key_sets = key_sets_of(
            settings, partial(fetch, agent), self._reactor, self.index.settings_changed, self._key_sets
        )
        verifier = verifier_of(settings, self._tokens, self._key_sets, self._lookup, self._throttle)
        self._authenticator.reconfigure(settings.master_key, self._tokens, sealer, provider)
        self._identifier.reconfigure(verifier)

    def _servers_acted(self) -> None:
        """Look at once whether servers sleep."""
        if self.sharing is not None:
            self.sharing.servers.acted()
            return
        for state in self.servers:
            self.health.check_now(state)

    def _drained(self, drained: Iterable[DrainedServer]) -> None:
        """Take which servers are drained. What waits for one of them is placed again, or refused."""
        for state in self.servers.set_drained(drained):
            self.health.tell_drained(state)
        self.dispatcher.serve()

    def _caches_emptied(self) -> None:
        if self.sharing is not None:
            self.sharing.servers.emptied()
            return
        for state in self.servers:
            self.router.forget_cache(state)

    def _use_models(self, settings: Settings) -> None:
        """Give the components the models and servers as they are now, of the file, the database and DNS."""
        secrets = settings.secrets
        if secrets != self._secrets:
            self._secrets = secrets
            self._redact.prepare(secrets)()
            self._text.secrets_changed()
        self.router.update(settings.models, settings.default_server, settings.routing, settings.retry.budget)
        self.dispatcher.regroup()
        self.health.update(settings.health)
        servers = settings.servers
        self._served_models.keep_only(servers)
        self._response_ids.reconfigure(servers)
        self.accounting.use_models(settings)
        self.background.reconfigure(servers, settings.limits.assumed_output_tokens)
        self.agent.keep_only(servers)
        if self.siblings.serves:
            self.kv_caches.configure(servers)


def _session_sealer_of(settings: Settings) -> SessionSealer:
    return SessionSealer(secret_of(settings.master_key, settings.salt_key), os.urandom)


def _context_of(request: Any) -> RequestContext:
    context: RequestContext = request.context
    return context


def _sharing_of(siblings: Siblings, deadlines: DeadlineSweeper, reactor: Any) -> ServerSharing | None:
    """Return what shares the servers with other processes; None if there are none."""
    if siblings.alone:
        return None
    from twisted_vllm.upstreams.shared.sharing import ServerSharing

    return ServerSharing(siblings, deadlines, reactor)


def _look_up(reactor: Any, name: ServiceName, settings: DiscoverySettings) -> Deferred[Answer]:
    """Resolve the name of a service. Few gateways need what this loads, which takes 1 MiB."""
    from twisted_vllm.upstreams.name_lookup import NameLookup

    return NameLookup(reactor).look_up(name, settings)


def _trials(*parts: Any) -> Trials:
    """Return what decides about requests that nobody sent. Few gateways are asked."""
    from twisted_vllm.proxy.trial import Trials

    return Trials(*parts)


def _send_elsewhere(state: ServerState, reason: str) -> None:
    """End the attempts that wait for a dead server to begin its answer."""
    for attempt in tuple(state.awaiting):
        attempt.server_died(reason)
