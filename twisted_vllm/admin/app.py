"""The admin API: the gateway's own routes, on Klein.

Importing Klein imports Twisted's reactor. Import this module only after the reactor was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache

import msgspec
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from werkzeug.routing import PathConverter
from zope.interface import implementer

from twisted_vllm.admin import (
    audit,
    configuration,
    customers,
    health,
    impact,
    live_requests,
    log_level,
    may_call,
    model_entries,
    model_lists,
    settings_report,
    storage,
    upstream_metrics,
    usage_exports,
)
from twisted_vllm.admin import servers as server_routes
from twisted_vllm.admin.authorization import AdminAuthenticator, BeforeRefusal, BeforeSessionEnds, first_headers
from twisted_vllm.admin.budgets import routes as budgets
from twisted_vllm.admin.context import (
    DATABASE_TIMEOUT,
    AdminContext,
    Exports,
    LiveView,
    ModelLists,
    ModelSource,
    NoExports,
    NoModels,
    NoOverview,
    NoServers,
    NothingLive,
    Overview,
    Readiness,
    ServerDesk,
    Trials,
    cannot_reload,
    never_reloaded,
)
from twisted_vllm.admin.keys import routes as keys
from twisted_vllm.admin.models import Json, Response
from twisted_vllm.admin.openapi import make_document
from twisted_vllm.admin.organizations import routes as organizations
from twisted_vllm.admin.overview import routes as overviews
from twisted_vllm.admin.reports import routes as reports
from twisted_vllm.admin.responses import send, send_error, send_failure
from twisted_vllm.admin.routing import Access, Route, Routes
from twisted_vllm.admin.self_service import SelfService
from twisted_vllm.admin.teams import routes as teams
from twisted_vllm.admin.users import routes as users
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.change_limits import ChangeLimits
from twisted_vllm.auth.sealing import Sealer
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.config.new_records import NO_DEFAULTS, RecordDefaults
from twisted_vllm.config.reload import Reloaded, ReloadState
from twisted_vllm.config.settings import NO_BOUNDS, KeyUpperBounds, Settings
from twisted_vllm.errors import ADDRESS_NOT_ALLOWED, AddressNotAllowed, GatewayError, InvalidRequest
from twisted_vllm.http.web_pages import DECISIVE, NO_WEB_PAGES, WebPages
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.level import LogLevels
from twisted_vllm.observability.logging.redaction import Redactor
from twisted_vllm.observability.metrics.registry import Exposes
from twisted_vllm.storage.interfaces import IReports
from twisted_vllm.storage.registry import Registry
from twisted_vllm.upstreams.health_report import EndpointHealth

WELCOME = {
    "service": "twisted_vllm",
    "about": "A gateway for shared vLLM servers: vLLM's inference routes, and all that is below /vllm, go to vLLM in "
    "its own format.",
    "routes": {
        "/v1/chat/completions, /v1/responses, /v1/messages, /v1/embeddings, /rerank …": "vLLM's inference routes",
        "/engines/MODEL/…, /openai/deployments/MODEL/…": "the same; the path names the model",
        "/vllm/…": "all of vLLM's own API",
        "/key/generate, /key/update, /key/regenerate, /key/info, /key/list, /key/delete …": "virtual keys",
        "/user/new, /user/info … and /team/new, /team/block …": "users and teams",
        "/spend/logs, /global/spend, /user/daily/activity …, /usage/report": "what was used, and what it cost",
        "/customer/new, /customer/info, /customer/block …": "end users, whom the callers of keys name",
        "/v1/models, /model/info, /model_group/info": "the models that a key may use",
        "/budget/new, /budget/update, /budget/list …": "limits that keys, users, teams, customers name by budget_id",
        "/organization/new, /organization/info, /organization/list …": "organizations: a level above teams",
        "/model/new, /model/update, /model/delete": "models and their servers, while the gateway runs",
        "/gateway/traffic, /gateway/problems": "what passes now, and what is wrong, in words",
        "/usage/storage": "what takes room in the database",
        "/usage/exports": "which days of the ledger are exported as files",
        "/audit/list": "what administrators did",
        "/config, /config/models": "the settings in effect, and where each was written",
        "/config/reload": "the configuration, read again",
        "/config/log_level": "the level of the log",
        "/request/live, /request/cut": "the requests in flight, and the end of one",
        "/health": "the health of each vLLM server",
        "/health/liveliness, /health/readiness": "the health of the gateway",
        "/metrics": "the gateway's own metrics; vLLM's are at /vllm/metrics",
        "/metrics/upstreams": "the metrics of all vLLM servers",
        "/openapi.json": "what each of these takes and answers",
        "/ui": "the console, for people",
    },
    "docs": "README.md and the docs directory of the twisted-vllm package; vLLM's own API is described at /vllm/docs",
}


class Welcome(Response, kw_only=True):
    """What this server is."""

    service: str
    about: str
    routes: dict[str, str]
    docs: str


class RouteEntry(Response, kw_only=True):
    """A route."""

    path: str
    methods: tuple[str, ...]
    name: str
    endpoint: str


class RouteEntries(Response, kw_only=True):
    """Routes."""

    routes: tuple[RouteEntry, ...]


about = Routes()


@about.open("/", response=Welcome)
async def welcome(_context: AdminContext, _request: IRequest) -> Json:
    """Return what this server is, and an overview of its routes."""
    return WELCOME


@about.open("/openapi.json", response=Json)
async def openapi(_context: AdminContext, _request: IRequest) -> msgspec.Raw:
    """Return this document. It contains no secrets."""
    return _document()


@about.open("/routes", response=RouteEntries)
async def list_routes(_context: AdminContext, _request: IRequest) -> msgspec.Raw:
    """Return the gateway's own routes, as LiteLLM lists its own; vLLM's are below /vllm."""
    return _route_list()


@cache
def _route_list() -> msgspec.Raw:
    found: dict[str, list[str]] = {}
    for route in ROUTES:
        found.setdefault(route.template, []).append(route.method)
    entries = [
        RouteEntry(path=path, methods=tuple(methods), name=path.strip("/"), endpoint=path.strip("/"))
        for path, methods in found.items()
    ]
    return msgspec.Raw(msgspec.json.encode(RouteEntries(routes=tuple(entries))))


@cache
def _document() -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(make_document(ROUTES)))


#: every route of the admin API
ROUTES: tuple[Route, ...] = (
    *keys.routes,
    *users.routes,
    *teams.routes,
    *customers.routes,
    *budgets.routes,
    *organizations.routes,
    *impact.routes,
    *model_entries.routes,
    *model_lists.routes,
    *audit.routes,
    *configuration.routes,
    *settings_report.routes,
    *log_level.routes,
    *live_requests.routes,
    *reports.routes,
    *overviews.routes,
    *usage_exports.routes,
    *health.routes,
    *server_routes.routes,
    *may_call.routes,
    *upstream_metrics.routes,
    *storage.routes,
    *about,
)


#: what a load balancer asks, whose address no operator lists
_HEALTH = frozenset(
    route.path.encode("ascii")
    for route in health.routes
    if route.path.startswith("/health/") and route.access is Access.OPEN
)


def _is_health(request: IRequest) -> bool:
    return request.uri.partition(b"?")[0] in _HEALTH


def _peer_of(request: IRequest) -> str:
    return getattr(request.getClientAddress(), "host", None) or "-"


#: where the console is
CONSOLE = b"/ui"


def is_of_console(target: bytes) -> bool:
    """Return whether the target of a request is the console's."""
    return target[:3] == CONSOLE and target[3:4] in (b"", b"/", b"?")


class NameConverter(PathConverter):
    """Matches a name with slashes, which may begin with one: a model's name may be an absolute path."""

    regex = "/?[^/].*?"


@cache
def _routes() -> Klein:
    """Return all routes, to be bound to a context: werkzeug takes 40 ms to compile them."""
    app = Klein()
    # Otherwise werkzeug redirects a path with a doubled or trailing slash, to a URL made from the Host header.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.converters = {**app.url_map.converters, "name": NameConverter}
    app.handle_errors(Exception)(_send_failure)
    for route in ROUTES:
        app.route(route.path, methods=[route.method], endpoint=f"{route.method} {route.path}")(route.respond)
    return app


def _send_failure(self: object, request: IRequest, failure: Failure) -> bytes:
    """Respond with an error; Klein calls it with the context that its routes are bound to."""
    return send_failure(request, failure)


class AdminApp:
    """All routes of the gateway's own.

    Attributes:
        url_map: the routes, as werkzeug has them.
        context: what all handlers share.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        registry: Registry,
        reports: IReports,
        clock: IReactorTime,
        now: Callable[[], datetime],
        randbytes: Callable[[int], bytes],
        readiness: Callable[[], Readiness],
        metrics: Exposes,
        metrics_of_servers: Callable[[], Deferred[bytes]],
        endpoints: Callable[[], Sequence[EndpointHealth]] = tuple,
        metrics_are_open: bool = True,
        client_of: Callable[[IRequest], str] = _peer_of,
        failures: AuthenticationThrottle | None = None,
        uncounted: UncountedRequests | None = None,
        before_refusal: BeforeRefusal | None = None,
        before_session_ends: BeforeSessionEnds | None = None,
        allows: Callable[[IRequest], bool] | None = None,
        key_bounds: KeyUpperBounds = NO_BOUNDS,
        self_service: SelfService = SelfService(),  # noqa: B008 - frozen
        changes: ChangeLimits | None = None,
        record_defaults: RecordDefaults = NO_DEFAULTS,
        web_pages: WebPages = NO_WEB_PAGES,
        text: ClientText | None = None,
        model_source: Callable[[], ModelSource] | None = None,
        models: ModelLists | None = None,
        settings_in_effect: Callable[[], Settings] = Settings,
        database_timeout: float = DATABASE_TIMEOUT,
        reload: Callable[[], Deferred[Reloaded]] = cannot_reload,
        reload_state: Callable[[], Deferred[ReloadState]] = never_reloaded,
        log_levels: LogLevels | None = None,
        exports: Exports | None = None,
        live: LiveView | None = None,
        servers: Callable[[], ServerDesk] | None = None,
        trials: Callable[[], Trials] | None = None,
        overview: Overview | None = None,
    ) -> None:
        """Bind the routes to what they need.

        Args:
            authenticator: authenticates callers.
            registry: the keys in the database and in memory.
            reports: reads the ledger.
            clock: measures how long a client waits for the database.
            now: returns the current time, with a time zone.
            randbytes: returns that many bytes, fit for secrets.
            readiness: returns the state of the process; it must not block.
            metrics: the gateway's own metrics.
            metrics_of_servers: collects the metrics of all servers.
            endpoints: returns the health of every entry of the servers; it must not block.
            metrics_are_open: whether anyone may read them, or only administrators.
            client_of: returns the address that a request comes from.
            failures: limits failed attempts to authenticate; None for no limit.
            uncounted: limits what a virtual key reads; None for no limit.
            before_refusal: finds out about a caller who is about to be refused; None refuses at once.
            before_session_ends: the same of a session of the console.
            allows: returns whether the address of a request is served; None serves all.
            key_bounds: the most that a key may be given.
            self_service: what people may do for themselves.
            changes: limits what they change; None for no limit.
            record_defaults: what new keys, users and teams get that the request leaves out.
            web_pages: decides about requests of web pages.
            text: removes secrets from text of clients; None knows only their form.
            model_source: returns what entries of the model list are checked against; None for a gateway without a file
                and without a key to encrypt with.
            models: lists the models that a caller may use; None for none.
            settings_in_effect: returns the settings with all entries of the model list.
            database_timeout: seconds that a client waits for the database.
            reload: reads the configuration again.
            reload_state: returns what reloads did.
            log_levels: changes the level of the log; None if the log is not the gateway's own.
            exports: exports the ledger; None if nothing does.
            live: tells and ends requests in flight; None if there are none.
            servers: returns what reports the servers; None for an app without.
            trials: returns what decides about requests that nobody sent; None for an app without a data path.
            overview: tells of all processes what passes, what is wrong, and which budgets are used; None if nothing
                does.
        """
        throttle = AuthenticationThrottle(None) if failures is None else failures
        reads = UncountedRequests(None) if uncounted is None else uncounted
        self.context = context = AdminContext(
            authenticator=AdminAuthenticator(
                authenticator,
                registry.index,
                now,
                client_of,
                throttle,
                reads,
                ChangeLimits() if changes is None else changes,
                self_service,
                before_refusal,
                before_session_ends,
            ),
            registry=registry,
            reports=reports,
            clock=clock,
            now=now,
            randbytes=randbytes,
            readiness=readiness,
            endpoints=endpoints,
            metrics=metrics,
            metrics_are_open=metrics_are_open,
            metrics_of_servers=metrics_of_servers,
            key_bounds=key_bounds,
            record_defaults=record_defaults,
            web_pages=web_pages,
            text=ClientText(Redactor()) if text is None else text,
            model_source=model_source or (lambda: ModelSource(Settings(), Sealer(None, randbytes))),
            models=NoModels() if models is None else models,
            settings_in_effect=settings_in_effect,
            database_timeout=database_timeout,
            reload=reload,
            reload_state=reload_state,
            log_levels=log_levels,
            exports=NoExports() if exports is None else exports,
            live=NothingLive() if live is None else live,
            servers=NoServers if servers is None else servers,
            trials=trials,
            overview=NoOverview() if overview is None else overview,
        )
        self._app = _routes().__get__(context, AdminContext)
        self.url_map = self._app.url_map
        self._allows = allows
        self._web_pages = web_pages

    def reconfigure(
        self,
        *,
        metrics_are_open: bool,
        key_bounds: KeyUpperBounds,
        self_service: SelfService,
        record_defaults: RecordDefaults,
        database_timeout: float,
    ) -> None:
        """Use other settings from the next request on; the arguments are the constructor's."""
        self.context.authenticator.settings = self_service
        self.context.metrics_are_open = metrics_are_open
        self.context.key_bounds = key_bounds
        self.context.record_defaults = record_defaults
        self.context.database_timeout = database_timeout

    def resource(self, console: IResource | None = None) -> IResource:
        """Return the resource that serves the routes; it takes every path that reaches it.

        Args:
            console: serves what is below `CONSOLE`; None for no console.
        """
        return AdminResource(self._app, self._allows, self._web_pages, console)


@implementer(IResource)
class AdminResource(Resource):
    """Klein's resource. It also responds to what Klein does not pass to its error handlers."""

    isLeaf = True

    def __init__(
        self,
        app: Klein,
        allows: Callable[[IRequest], bool] | None,
        web_pages: WebPages,
        console: IResource | None = None,
    ) -> None:
        super().__init__()
        self._klein: IResource = app.resource()
        self._console = console
        self._allows = allows
        self._web_pages = web_pages

    def render(self, request: IRequest) -> bytes | int:
        """Respond to a request."""
        headers = first_headers(request, DECISIVE)
        for name, value in self._web_pages.response_headers(headers):
            request.setHeader(name, value)
        try:
            if not _is_health(request):
                self._check_sender(request, headers)
        except GatewayError as error:
            return send_error(request, error)
        preflight = self._web_pages.preflight(request.method, headers)
        if preflight is not None:
            return send(request, 200, preflight, b"")
        try:
            for part in (*request.prepath, *request.postpath, request.getRequestHostname(), request.method):
                part.decode("utf-8")
        except UnicodeDecodeError:
            return send_error(request, InvalidRequest("The path and the Host header must be UTF-8."))
        serves = self._klein
        if self._console is not None and is_of_console(request.uri):
            serves = self._console
        try:
            response: bytes | int = serves.render(request)
        except Exception:
            # For example, werkzeug refuses some Host headers before it looks for a route.
            return send_failure(request, Failure())
        return response

    def _check_sender(self, request: IRequest, headers: Mapping[bytes, bytes]) -> None:
        if self._allows is not None and not self._allows(request):
            raise AddressNotAllowed(ADDRESS_NOT_ALLOWED)
        self._web_pages.check(headers)
