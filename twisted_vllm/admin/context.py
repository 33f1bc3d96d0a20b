"""What the handlers of the admin API work with: the app's context, the call that they serve, and its audit context."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast
from uuid import UUID

import attrs
import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest

from twisted_vllm.admin.authorization import AdminAuthenticator
from twisted_vllm.admin.field_rules import report_rules
from twisted_vllm.admin.latest_answers import LatestAnswers
from twisted_vllm.admin.limits import report_limits
from twisted_vllm.admin.scope import AdministratorScope, IScope
from twisted_vllm.admin.self_service import OwnScope
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH, KeyRecord, Principal
from twisted_vllm.auth.roles import has_master_rights, reads_everything
from twisted_vllm.auth.sealing import Sealer
from twisted_vllm.config.new_records import NO_DEFAULTS, RecordDefaults
from twisted_vllm.config.reload import Reloaded, ReloadState
from twisted_vllm.config.settings import NO_BOUNDS, KeyUpperBounds, Settings
from twisted_vllm.context import RequestContext
from twisted_vllm.errors import GatewayError, InvalidRequest, ModelNotFound, StoreUnavailable
from twisted_vllm.http.web_pages import NO_WEB_PAGES, WebPages
from twisted_vllm.observability.client_text import ClientText
from twisted_vllm.observability.logging.level import LogLevels
from twisted_vllm.observability.metrics.registry import Exposes
from twisted_vllm.observability.problems.facts import ProblemsReport
from twisted_vllm.ratelimit.used_budget import UsedBudget
from twisted_vllm.storage.interfaces import IReports
from twisted_vllm.storage.records import AuditRecord
from twisted_vllm.storage.registry import Registry
from twisted_vllm.storage.report_queue import ReportCaller
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.exports import Schedule
from twisted_vllm.upstreams.health_report import EndpointHealth
from twisted_vllm.upstreams.listed_entries import ListedEntry

if TYPE_CHECKING:
    # few gateways are asked about their servers, and about what a key may call
    from twisted_vllm.auth.verdicts import Question, Verdict
    from twisted_vllm.upstreams.server_report import ServerRow

if TYPE_CHECKING:
    # loaded when somebody asks what is in flight
    from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, WasCut

T = TypeVar("T")

#: seconds that a client waits for the database; longer than the database's own deadline, whose errors say more
DATABASE_TIMEOUT = 15.0

#: when an app without a data path was asked what passes, in Unix seconds
_SOME_TIME = 1_000_000_000.0

#: text that looks like a key or its hash, for example in metadata
_SECRET = re.compile(r"sk-[!-~]{13,}|\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*|\b[0-9a-fA-F]{64}\b")

_log = Logger()


@attrs.frozen
class Readiness:
    """Whether the process can serve requests.

    Attributes:
        draining: whether it is shutting down.
        database: whether the database answered the last time.
        requires_database: whether it must, for the process to be ready.
        file_is_lost: whether SQLite's file was removed or replaced while the process runs.
    """

    draining: bool
    database: bool
    requires_database: bool = False
    file_is_lost: bool = False


@attrs.frozen
class ModelSource:
    """What entries that are added to the model list are checked against.

    Attributes:
        settings: the settings, with the entries of the file.
        sealer: encrypts the keys of servers.
    """

    settings: Settings
    sealer: Sealer


class ModelLists(Protocol):
    """Lists the models that a caller may use: `twisted_vllm.proxy.model_listing.ModelListing`."""

    def check_allowed(self, principal: Principal) -> None:
        """Check that a principal may list models."""

    def listed(self, principal: Principal, query: Mapping[str, str], headers: Mapping[bytes, bytes]) -> Deferred[bytes]:
        """Return the JSON of the list, by the parameters and headers of the request."""

    def retrieve(
        self, principal: Principal, name: str, query: Mapping[str, str], headers: Mapping[bytes, bytes]
    ) -> Deferred[bytes]:
        """Return the JSON of one model."""

    def entries(self, principal: Principal, *, expand: bool, named: str = "") -> Deferred[list[ListedEntry]]:
        """Return the entries of the model list."""


class NoModels:
    """The lists of an app without servers."""

    def check_allowed(self, principal: Principal) -> None:
        """Allow it."""

    def listed(self, principal: Principal, query: Mapping[str, str], headers: Mapping[bytes, bytes]) -> Deferred[bytes]:
        """Return an empty list."""
        return succeed(b'{"object":"list","data":[]}')

    def retrieve(
        self, principal: Principal, name: str, query: Mapping[str, str], headers: Mapping[bytes, bytes]
    ) -> Deferred[bytes]:
        """Refuse it."""
        return fail(ModelNotFound("There is no such model.", param="model"))

    def entries(self, principal: Principal, *, expand: bool, named: str = "") -> Deferred[list[ListedEntry]]:
        """Return none."""
        return succeed([])


class ServerDesk(Protocol):
    """Reports the servers: `twisted_vllm.upstreams.server_report.ServerReports`."""

    @property
    def names(self) -> list[str]:
        """The names of the configured servers."""

    def rows(self, *, refresh: bool = True) -> Deferred[list[ServerRow]]:
        """Return the rows of all servers."""

    def find(self, text: str) -> str | None:
        """Return the URL of the server with a name or URL; None if there is none."""


class Trials(Protocol):
    """Decides about requests that nobody sent: `twisted_vllm.proxy.trial.Trials`."""

    def of_key(self, token: str, question: Question, now: float) -> Deferred[Verdict | None]:
        """Decide about a request with a key; None if there is no such key."""

    def of_principal(self, principal: Principal, question: Question) -> Deferred[Verdict | None]:
        """Decide about a request of a caller that is known."""


class NoServers:
    """The servers of an app without any."""

    names: list[str] = []

    def rows(self, *, refresh: bool = True) -> Deferred[list[ServerRow]]:
        """Return none."""
        return succeed([])

    def find(self, text: str) -> str | None:
        """Return None."""
        return None


class Exports(Protocol):
    """The export of the ledger: `twisted_vllm.usage_export.service.UsageExport`."""

    @property
    def enabled(self) -> bool:
        """Whether anything is exported."""

    @property
    def target(self) -> str:
        """Where the files go, in words."""

    @property
    def schedule(self) -> Schedule:
        """When days are exported."""

    def look_soon(self) -> None:
        """Look for a day to export."""


class NoExports:
    """The export of an app that exports nothing."""

    enabled = False
    target = ""
    schedule = Schedule()

    def look_soon(self) -> None:
        """Do nothing."""


class LiveView(Protocol):
    """What is in flight: `twisted_vllm.proxy.live_answers.LiveAnswers`."""

    def report(self, query: LiveQuery) -> Deferred[LiveReport]:
        """Return what is in flight of what is asked for."""

    def cut(self, cut: Cut) -> Deferred[WasCut]:
        """End a request."""


class NothingLive:
    """What is in flight in an app without clients."""

    def report(self, query: LiveQuery) -> Deferred[LiveReport]:
        """Return nothing."""
        from twisted_vllm.observability.live_requests import LiveReport

        return succeed(LiveReport(0.0, 0, 0))

    def cut(self, cut: Cut) -> Deferred[WasCut]:
        """End nothing."""
        from twisted_vllm.observability.live_requests import WasCut

        return succeed(WasCut(()))


class Overview(Protocol):
    """What passes, what is wrong, and which budgets are used, of all processes: `twisted_vllm.app.overview`."""

    def traffic(self, seconds: int, start: float) -> Deferred[bytes]:
        """Return the JSON of a `TrafficReport` of so many seconds, or with 0 from a time in Unix seconds."""

    def problems(self) -> Deferred[bytes]:
        """Return the JSON of a `ProblemsReport`."""

    def budgets(self) -> Deferred[Sequence[UsedBudget]]:
        """Return the budgets that are used most, those of each kind together."""


class NoOverview:
    """The overview of an app without a data path: nothing passes, and nothing is wrong."""

    def traffic(self, seconds: int, start: float) -> Deferred[bytes]:
        """Return that nothing passed."""
        from twisted_vllm.observability.traffic.report import make_report
        from twisted_vllm.observability.traffic.ring import History

        report = make_report(History(_SOME_TIME), _SOME_TIME - seconds, _SOME_TIME)
        return succeed(msgspec.json.encode(report))

    def problems(self) -> Deferred[bytes]:
        """Return none."""
        some_time = datetime.fromtimestamp(_SOME_TIME, UTC)
        return succeed(msgspec.json.encode(ProblemsReport(problems=[], looked_at=some_time, watched_since=some_time)))

    def budgets(self) -> Deferred[Sequence[UsedBudget]]:
        """Return none."""
        return succeed(())


def cannot_reload() -> Deferred[Reloaded]:
    """Refuse: there is nothing to read again."""
    return fail(InvalidRequest("This gateway was started without a configuration that can be read again."))


def never_reloaded() -> Deferred[ReloadState]:
    """Return the state of a gateway that was not reloaded."""
    return succeed(ReloadState(read_at=0.0))


@attrs.define(kw_only=True)
class AdminContext:
    """What all handlers of an admin app share.

    Attributes:
        authenticator: authenticates requests.
        registry: the keys in the database and in memory.
        reports: reads the ledger.
        clock: measures `database_timeout`.
        now: returns the current time, with a time zone.
        randbytes: returns that many bytes, fit for secrets.
        readiness: returns the state of the process; it must not block.
        endpoints: returns the health of every entry of the servers, as `HealthReport` shows it.
        metrics: the gateway's own metrics.
        metrics_are_open: whether anyone may read them, or only administrators.
        metrics_of_servers: collects the metrics of all servers, as `MetricsOfServers.expose`.
        key_bounds: the most that a key may be given.
        record_defaults: what new keys, users and teams get that the request leaves out.
        text: removes secrets from text of clients.
        model_source: returns what entries of the model list are checked against, which a reload changes.
        models: lists the models that a caller may use.
        settings_in_effect: returns the settings with all entries of the model list.
        web_pages: decides about requests of web pages.
        database_timeout: seconds that a client waits for the database.
        reload: reads the configuration again.
        reload_state: returns what reloads did.
        log_levels: changes the level of the log; None if the log is not the gateway's own.
        exports: exports the ledger.
        live: tells and ends requests in flight.
        servers: returns what reports the servers.
        trials: returns what decides about requests that nobody sent; None for an app without a data path.
        overview: tells of all processes what passes, what is wrong, and which budgets are used.
        latest_spend: the last overviews of everybody's spend.
    """

    authenticator: AdminAuthenticator
    registry: Registry
    reports: IReports
    clock: IReactorTime
    now: Callable[[], datetime]
    randbytes: Callable[[int], bytes]
    readiness: Callable[[], Readiness]
    endpoints: Callable[[], Sequence[EndpointHealth]]
    metrics: Exposes
    metrics_are_open: bool
    metrics_of_servers: Callable[[], Deferred[bytes]]
    text: ClientText
    model_source: Callable[[], ModelSource]
    models: ModelLists
    settings_in_effect: Callable[[], Settings]
    key_bounds: KeyUpperBounds = NO_BOUNDS
    record_defaults: RecordDefaults = NO_DEFAULTS
    web_pages: WebPages = NO_WEB_PAGES
    database_timeout: float = DATABASE_TIMEOUT
    reload: Callable[[], Deferred[Reloaded]] = cannot_reload
    reload_state: Callable[[], Deferred[ReloadState]] = never_reloaded
    log_levels: LogLevels | None = None
    exports: Exports = attrs.field(factory=NoExports)
    live: LiveView = attrs.field(factory=NothingLive)
    servers: Callable[[], ServerDesk] = NoServers
    trials: Callable[[], Trials] | None = None
    overview: Overview = attrs.field(factory=NoOverview)
    latest_spend: LatestAnswers = attrs.field(factory=LatestAnswers)

    def scope_of(self, request: IRequest, principal: Principal, now: datetime) -> IScope:
        """Return what the caller of a request may see and change."""
        if reads_everything(principal):
            return AdministratorScope(has_master_rights(principal), principal.may_administer)
        authenticator = self.authenticator
        # a token of a login service is no key of the index
        is_key = authenticator.own_token(request) is not None
        token = authenticator.presented_token(request) if is_key else None
        return OwnScope(principal, token, authenticator.settings, now, self.randbytes)


@attrs.frozen
class AuditContext:
    """Who makes a change, when and by which request.

    Attributes:
        action: what is done, such as ``key/update``.
        actor: who does it: ``master``, ``anonymous`` or a key's hash prefix.
        actor_name: the alias or name of that key.
        scope: what the actor may change.
        now: when (UTC).
        randbytes: returns that many bytes, fit for secrets.
        key_bounds: the most that a key may be given.
        request_id: the id of the request.
        client: the address that the request comes from.
    """

    action: str
    actor: str
    actor_name: str
    scope: IScope
    now: datetime
    randbytes: Callable[[int], bytes]
    key_bounds: KeyUpperBounds = NO_BOUNDS
    request_id: str = ""
    client: str = ""

    @property
    def created(self) -> dict[str, Any]:
        """The attributes of a new record that say when it was made and by whom."""
        return {"created_at": self.now, "created_by": self._author, **self.updated}

    @property
    def updated(self) -> dict[str, Any]:
        """The attributes of a changed record that say when it was changed and by whom."""
        return {"updated_at": self.now, "updated_by": self._author}

    @property
    def _author(self) -> str:
        author: str | None = self.scope.author
        return author or self.actor

    def new_id(self) -> str:
        """Return a random id for a user, a team, an organization or a budget."""
        return str(UUID(bytes=self.randbytes(16), version=4))

    def record_key(self, transaction: Transaction, before: KeyRecord | None, after: KeyRecord | None) -> None:
        """Write the change of a key to the audit log."""
        key = after or before
        assert key is not None
        self.record(transaction, "key", key.hash_prefix, before, after)

    def record(
        self, transaction: Transaction, object_type: str, object_id: str, before: object | None, after: object | None
    ) -> None:
        """Write a change to the audit log, without keys, hashes and salts."""
        transaction.write_audit(
            AuditRecord(
                at=self.now,
                actor=self.actor,
                actor_name=self.actor_name,
                action=self.action,
                object_type=object_type,
                object_id=object_id,
                before=_without_key(before),
                after=_without_key(after),
                request_id=self.request_id,
                client=self.client,
            )
        )


class AdminCall:
    """One authorized request, for its handler.

    Attributes:
        request: the HTTP request.
        context: the app's context.
        principal: who calls.
        path: the parameters in the path, by name.
        given: the fields of the body, or the non-empty query parameters, as they came.
        scope: what the caller may see and change.
        audit: who calls, when and for what, for the audit log.
    """

    def __init__(
        self,
        request: IRequest,
        context: AdminContext,
        principal: Principal,
        action: str,
        path: Mapping[str, str],
        given: Mapping[str, Any],
    ) -> None:
        self.request = request
        self.context = context
        self.principal = principal
        self.path = path
        self.given = given
        # the type is not IRequest's: the gateway's own request has a context
        request_context: RequestContext = cast(Any, request).context
        self._secrets = request_context.secrets
        now = context.now().astimezone(UTC)
        self.scope = context.scope_of(request, principal, now)
        self.audit = AuditContext(
            action=action,
            actor=principal.hash_prefix or principal.kind,
            actor_name=principal.name,
            scope=self.scope,
            now=now,
            randbytes=context.randbytes,
            key_bounds=context.key_bounds,
            request_id=context.text.request_id(request_context),
            client=context.authenticator.client_of(request)[:64],
        )

    @property
    def now(self) -> datetime:
        """When the request came (UTC)."""
        return self.audit.now

    def new_id(self) -> str:
        """Return a random id, as `AuditContext.new_id`."""
        return self.audit.new_id()

    def read(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Run work that only reads in a transaction."""
        return _wait_without_cancelling(self.context.registry.read(work), self.context, self._secrets)

    def report(self, work: Callable[[Transaction], T], *, begun: bool = False) -> Deferred[T]:
        """Read a report, or with `begun` its next part, when it is the caller's turn.

        It is stopped when the client disconnects, which cancels the Deferred.

        Raises:
            TooManyReports, ReportsBusy, ReportTimeout, StoreUnavailable: as `IReports.read`.
        """
        return self.context.reports.read(ReportCaller.of(self.principal), work, begun=begun)

    def change(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Run work that changes something in a transaction. It completes even if the client disconnects."""
        return _wait_without_cancelling(self.context.registry.change(work), self.context, self._secrets)

    def complete(self, work: Deferred[T]) -> Deferred[T]:
        """Wait for work that completes even if the client disconnects."""
        return _without_cancelling(work, self._secrets)


def _without_key(record: object | None) -> dict[str, Any] | None:
    """Return a record for the audit log; a key is named by the first digits of its hash."""
    if record is None:
        return None
    values: dict[str, Any] = msgspec.to_builtins(record)
    token = values.pop("token", None)
    # The id of a key that is older than ids is a part of its hash.
    values.pop("key_id", None)
    if values.pop("allowance", None) is not None:
        values.update(report_limits(record.allowance))  # type: ignore[attr-defined]  # every record with limits has it
    if (rules := values.pop("fields", None)) is not None:
        values.update(report_rules(record.fields))  # type: ignore[attr-defined]  # likewise
        if token is not None:
            values["allowed_fields"] = rules["allowed"]
    if "cache_salt" in values:
        values["cache_isolation"] = values.pop("cache_salt") is not None
    found: dict[str, Any] = _without_secrets(values)
    if token is not None:
        found["token_prefix"] = token[:HASH_PREFIX_LENGTH]
    return found


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET.sub("…", value)
    if isinstance(value, dict):
        return {_without_secrets(name): _without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return value


def _wait_without_cancelling(work: Deferred[T], context: AdminContext, secrets: Iterable[str]) -> Deferred[T]:
    """Return a Deferred that fires with the result of work, and whose cancellation does not cancel the work.

    A client that disconnects cancels its request. A change that it began must complete, or the database and the keys in
    memory would differ.

    Args:
        work: its failure is logged if nothing waits for it any more.
        context: says after which time the returned Deferred fails with StoreUnavailable.
        secrets: what the log must not show of the request.
    """

    def too_slow(_cancelled: object, _seconds: float) -> T:
        raise StoreUnavailable(
            "The database takes too long to answer. What was asked may still be done: look before trying again.",
            retry_after=int(context.database_timeout),
        )

    waiting = _without_cancelling(work, secrets)
    waiting.addTimeout(context.database_timeout, context.clock, onTimeoutCancel=too_slow)
    return waiting


def _without_cancelling(work: Deferred[T], secrets: Iterable[str]) -> Deferred[T]:
    """Return a Deferred that fires with the result of work, and whose cancellation does not cancel the work."""
    waiting: Deferred[T] = Deferred()

    def pass_on(result: T | Failure) -> None:
        if waiting.called:
            if isinstance(result, Failure) and not result.check(GatewayError):
                _log.failure("an admin request failed after its client had gone", failure=result, log_secrets=secrets)
        elif isinstance(result, Failure):
            waiting.errback(result)
        else:
            waiting.callback(result)

    work.addBoth(pass_on)
    return waiting
