"""The requests in flight: which they are, what each is doing, and how to end one."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.authorization import prefix_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.fields import MAX_LENGTH, PRINTABLE, Label, redacted
from twisted_vllm.admin.models import Body, Json, Query, Response, SortOrder
from twisted_vllm.admin.routing import Routes
from twisted_vllm.errors import GatewayError, NotFound, RouteNotAllowed
from twisted_vllm.observability.request_states import MOST_ROWS, State
from twisted_vllm.storage.transaction import Transaction

if TYPE_CHECKING:
    # loaded when somebody asks
    from twisted_vllm.observability.live_requests import LiveReport, LiveRequest, WasCut

_log = Logger()

#: names in each list of counts of an answer
MOST_COUNTED = 20

#: a text by which requests are chosen
_Text = Annotated[str, msgspec.Meta(max_length=MAX_LENGTH)]


class LiveQueryParameters(Query, frozen=True, kw_only=True):
    """The query of ``GET /request/live``."""

    model: Annotated[_Text, msgspec.Meta(description="Only requests for this model.")] = ""
    key: Annotated[
        _Text, msgspec.Meta(description="Only those of this key: its alias, its hash, or the first digits of its hash.")
    ] = ""
    user_id: Annotated[_Text, msgspec.Meta(description="Only those of keys of this user.")] = ""
    team_id: Annotated[_Text, msgspec.Meta(description="Only those of keys of this team.")] = ""
    server: Annotated[_Text, msgspec.Meta(description="Only those on this server; for administrators.")] = ""
    state: Annotated[Literal["", State], msgspec.Meta(description="Only those in this state.")] = ""
    sort_by: Annotated[
        Literal["age", "tokens"], msgspec.Meta(description="`tokens`: those whose tokens are not known come last.")
    ] = "age"
    sort_order: SortOrder = "desc"
    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS, description="The most requests to name.")] = 100


class RequestInFlight(Response, kw_only=True):
    """A request in flight."""

    request_id: str
    started_at: datetime
    state: Annotated[
        State,
        msgspec.Meta(
            description="reading_body: its body still arrives. preparing: it waits for something of the gateway's. "
            "queued: for a server with room. waiting: for the first byte of its answer. streaming: the answer is being "
            "relayed. paused: its client reads too slowly. tunnel: a WebSocket."
        ),
    ]
    key_name: Annotated[str, msgspec.Meta(description="The key's alias or `sk-...abcd`, `master` or `anonymous`.")]
    key_prefix: Annotated[str, msgspec.Meta(description="The first digits of the key's hash; else empty.")]
    user_id: str | None
    team_id: str | None
    model: str
    server: Annotated[str | None, msgspec.Meta(description="Where it goes; null if not known yet. For administrators.")]
    route: str
    age_seconds: float
    first_byte_seconds: Annotated[
        float | None, msgspec.Meta(description="How long it waited for the first byte of its answer; null before.")
    ]
    queue_place: Annotated[
        int | None,
        msgspec.Meta(description="From 1; with several workers, in the queue of its own. Null if it is not queued."),
    ]
    tokens: Annotated[
        int | None,
        msgspec.Meta(
            description="Of the answer so far: as a stream counts them, or its events. Null without a stream."
        ),
    ]
    prompt_tokens: Annotated[int | None, msgspec.Meta(description="Estimated; null where nothing counts tokens.")]
    bytes_in: int
    bytes_out: int
    stream: Annotated[bool | None, msgspec.Meta(description="Null if it is not known yet.")]
    client: Annotated[
        str | None, msgspec.Meta(description="The address that it comes from; null for those of other people.")
    ]
    attempts: Annotated[int, msgspec.Meta(description="How often it was sent to a server.")]


class Counted(Response, kw_only=True):
    """How many requests have something in common."""

    name: str
    count: int


class CountedKey(Response, kw_only=True):
    """How many requests a key has."""

    key_name: str
    key_prefix: str
    count: int


class LiveRequestsReport(Response, kw_only=True):
    """The requests in flight."""

    at: Annotated[datetime, msgspec.Meta(description="When they were looked at, up to two seconds ago.")]
    total: Annotated[int, msgspec.Meta(description="How many are in flight that the caller may see.")]
    matching: Annotated[int, msgspec.Meta(description="How many of them the query asks for; the rest is about these.")]
    requests: tuple[RequestInFlight, ...]
    by_state: tuple[Counted, ...]
    by_model: Annotated[tuple[Counted, ...], msgspec.Meta(description=f"The {MOST_COUNTED} with the most.")]
    by_server: Annotated[tuple[Counted, ...], msgspec.Meta(description="Likewise; empty but for administrators.")]
    by_key: Annotated[tuple[CountedKey, ...], msgspec.Meta(description="Likewise.")]
    warnings: Annotated[tuple[str, ...], msgspec.Meta(description="What is missing.")]


class CutRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /request/cut``."""

    request_id: Annotated[Label, msgspec.Meta(description="As `GET /request/live` tells it: its `x-request-id`.")]
    reason: Annotated[
        str,
        msgspec.Meta(
            max_length=MAX_LENGTH,
            description="For the audit log; the client is not told.",
            extra_json_schema={"pattern": PRINTABLE},
        ),
    ] = ""


class CutReport(Response, kw_only=True):
    """What was ended."""

    status: Literal["success"]
    requests: Annotated[
        tuple[RequestInFlight, ...],
        msgspec.Meta(description="As they were; more than one if several clients chose the same id."),
    ]
    warnings: Annotated[tuple[str, ...], msgspec.Meta(description="What did not go well.")]


routes = Routes()


@routes.get(
    "/request/live", query=LiveQueryParameters, access=Access.ANY_KEY, response=LiveRequestsReport, errors=(403,)
)
async def live(call: AdminCall, query: LiveQueryParameters) -> LiveRequestsReport:
    """Return the requests in flight, in all processes of the gateway, and how many there are of what.

    Administrators and viewers see all. Everybody else sees those of their own key, of keys of their user, and of keys
    of teams that their user administers, without servers.
    """
    from twisted_vllm.observability.live_requests import LiveQuery

    scope = call.scope
    if query.server and not scope.sees_all:
        raise RouteNotAllowed("Which server answers is for administrators.", param="server")
    whose = None if scope.sees_all else await call.read(scope.own_requests)
    asked = LiveQuery(
        whose,
        query.state,
        query.model,
        # a key without an alias is called so
        query.key if query.key.startswith("sk-...") else prefix_of(query.key),
        query.team_id,
        query.user_id,
        query.server,
        query.sort_by,
        query.sort_order == "asc",
        query.limit,
    )
    return _report(await call.context.live.report(asked))


@routes.post("/request/cut", body=CutRequest, access=Access.SELF_SERVICE, response=CutReport, errors=(404,))
async def cut(call: AdminCall, body: CutRequest) -> CutReport:
    """End a request in flight, by its `x-request-id`. Its client gets the error `request_cut`, or a cut answer.

    Administrators end any. People end those of their own keys, and of keys of teams that they administer.
    """
    return await call.complete(_cut(call, body))


@inlineCallbacks
def _cut(call: AdminCall, body: CutRequest) -> Generator[Deferred[Any], Any, CutReport]:
    from twisted_vllm.observability.live_requests import Cut

    whose = None
    if not call.scope.sees_all:
        whose = yield call.read(lambda transaction: call.scope.own_requests(transaction, changing=True))
    result: WasCut = yield call.context.live.cut(Cut(body.request_id, whose))
    warnings = [f"{name} did not answer in time: ask again if the request goes on" for name in result.missing]
    if not result.requests:
        missing = f" {'; '.join(warnings)}." if warnings else ""
        raise NotFound(
            f"No request with the id `{redacted(body.request_id)}` is in flight: it may have ended. GET /request/live "
            f"shows those that are.{missing}",
            param="request_id",
        )

    def work(transaction: Transaction) -> None:
        for each in result.requests:
            call.audit.record(
                transaction, "request", each.request_id, _audited(each), {"outcome": "cut", "reason": body.reason}
            )

    try:
        yield call.change(work)
    except GatewayError as error:
        # it has ended already
        _log.error(
            "The request {request_id} was cut by {actor}, which is not in the audit log: {reason}",
            request_id=result.requests[0].request_id,
            actor=call.audit.actor_name or call.audit.actor,
            reason=error.message,
        )
        warnings.append(f"this is not in the audit log: {error.message}")
    return CutReport(status="success", requests=_rows(result.requests), warnings=tuple(warnings))


def _report(found: LiveReport) -> LiveRequestsReport:
    return LiveRequestsReport(
        at=datetime.fromtimestamp(found.at, UTC),
        total=found.total,
        matching=found.matching,
        requests=_rows(found.requests),
        by_state=_counted(found.states),
        by_model=_counted(found.models),
        by_server=_counted(found.servers),
        by_key=tuple(
            CountedKey(key_name=name, key_prefix=prefix, count=count)
            for name, prefix, count in found.keys[:MOST_COUNTED]
        ),
        warnings=tuple(f"{name} did not answer in time: its requests are missing" for name in found.missing),
    )


def _rows(requests: Sequence[LiveRequest]) -> tuple[RequestInFlight, ...]:
    return tuple(
        RequestInFlight(
            request_id=each.request_id,
            started_at=datetime.fromtimestamp(each.started, UTC),
            state=each.state,
            key_name=each.key_name,
            key_prefix=each.key_prefix,
            user_id=each.user_id or None,
            team_id=each.team_id or None,
            model=each.model,
            server=each.server or None,
            route=each.route,
            age_seconds=round(each.age, 3),
            first_byte_seconds=None if each.first_byte is None else round(each.first_byte, 3),
            queue_place=each.queue_place,
            tokens=each.tokens,
            prompt_tokens=each.prompt_tokens,
            bytes_in=each.bytes_in,
            bytes_out=each.bytes_out,
            stream=each.stream,
            client=each.client or None,
            attempts=each.attempts,
        )
        for each in requests
    )


def _counted(counts: Sequence[tuple[str, int]]) -> tuple[Counted, ...]:
    return tuple(Counted(name=name, count=count) for name, count in counts[:MOST_COUNTED])


def _audited(request: LiveRequest) -> Json:
    """Return what the audit log has of a request: whose it was, and how far."""
    names = ("key_name", "key_prefix", "user_id", "team_id", "model", "server", "route", "state", "client", "tokens")
    return {**{name: getattr(request, name) for name in names}, "age_seconds": round(request.age, 3)}
