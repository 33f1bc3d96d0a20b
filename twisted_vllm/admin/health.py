"""Health and metrics. Those of the gateway are open to everyone: a load balancer has no key."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Literal

import msgspec
from twisted.internet.defer import Deferred
from twisted.web.iweb import IRequest

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall, AdminContext
from twisted_vllm.admin.models import ErrorDetail, Json, NoQuery, Query, Response
from twisted_vllm.admin.responses import send, send_json
from twisted_vllm.admin.routing import Routes
from twisted_vllm.config.settings import ModelEntry
from twisted_vllm.errors import ERROR_HEADER, Draining, GatewayError, InvalidRequest, StoreUnavailable
from twisted_vllm.upstreams.health_report import EndpointHealth

_ALIVE = "I'm alive!"


class ReadinessReport(Response, kw_only=True):
    """The state of the process."""

    status: Literal["healthy", "unhealthy"]
    db: Annotated[
        Literal["connected", "disconnected"],
        msgspec.Meta(description="LiteLLM's name for `database`."),
    ]
    database: Annotated[
        Literal["available", "unavailable"],
        msgspec.Meta(
            description="Whether the database answers. Without it, keys that exist work; none can be made or deleted."
        ),
    ]
    draining: bool


class Unready(ReadinessReport, kw_only=True):
    """The state of a process that should get no requests, and why."""

    error: ErrorDetail


class EndpointReport(Response, kw_only=True):
    """The health of one entry of model_list, or of the default server."""

    model_name: Annotated[
        str, msgspec.Meta(description="The name that callers use; empty for the default server, which has no entry.")
    ]
    model: Annotated[str, msgspec.Meta(description="As in litellm_params; empty for the default server.")]
    api_base: str
    state: Annotated[
        Literal["closed", "open", "half_open", "dead", "sleeping", "drained"],
        msgspec.Meta(
            description="closed: it gets requests. open: too many failed. half_open: one request tries it. dead: its "
            "health checks failed. sleeping: vLLM's sleep mode. drained: an administrator took it out."
        ),
    ]
    reason: Annotated[str, msgspec.Meta(description="Why it is in this state; empty if it never was in another.")]
    since: Annotated[datetime, msgspec.Meta(description="Since when it is in this state.")]
    in_flight: Annotated[int, msgspec.Meta(description="Requests that this gateway has there.")]


class HealthReport(Response, kw_only=True):
    """The health of all entries."""

    healthy_endpoints: list[EndpointReport]
    unhealthy_endpoints: list[EndpointReport]
    healthy_count: int
    unhealthy_count: int


class HealthQuery(Query, frozen=True, kw_only=True):
    """Which entries to show."""

    model: Annotated[str, msgspec.Meta(description="A model_name: only its entries.")] = ""
    model_id: Annotated[str, msgspec.Meta(description="The id of an entry: only that one.")] = ""


class ReadinessDetails(ReadinessReport, kw_only=True):
    """The state of the process, with what LiteLLM tells of itself."""

    litellm_version: Annotated[str, msgspec.Meta(description="The version of this gateway.")]
    cache: None
    success_callbacks: tuple[str, ...]


routes = Routes()


@routes.get("/health", query=HealthQuery, response=HealthReport)
async def servers(call: AdminCall, query: HealthQuery) -> Json:
    """Return which servers get requests.

    It tells what requests and health checks found out, and sends nothing to a server.
    """
    found = [each for each in call.context.endpoints() if query.model in ("", each.model_name)]
    if query.model_id:
        entries = call.context.settings_in_effect().models
        wanted = [each for each in entries if each.model_id == query.model_id]
        if not wanted:
            raise InvalidRequest("No entry of model_list has this id.", param="model_id")
        found = [each for each in found if any(_is_of(each, entry) for entry in wanted)]
    healthy = [_report(each) for each in found if each.is_healthy]
    unhealthy = [_report(each) for each in found if not each.is_healthy]
    return {
        "healthy_endpoints": healthy,
        "unhealthy_endpoints": unhealthy,
        "healthy_count": len(healthy),
        "unhealthy_count": len(unhealthy),
    }


def _is_of(endpoint: EndpointHealth, entry: ModelEntry) -> bool:
    """Return whether a server serves an entry; those of a discovered service have addresses of their own."""
    if endpoint.model_name != entry.model_name:
        return False
    return entry.discovery is not None or endpoint.api_base == entry.server.url.decode("ascii")


def _report(endpoint: EndpointHealth) -> Json:
    return {**msgspec.structs.asdict(endpoint), "since": datetime.fromtimestamp(endpoint.since, UTC)}


@routes.open("/health/liveliness", "/health/liveness", response=str, errors=(503,))
async def liveliness(context: AdminContext, request: IRequest) -> str:
    """Return whether the process is alive and not shutting down."""
    if context.readiness().draining:
        raise _draining()
    return _ALIVE


@routes.open("/health/readiness", response=ReadinessReport, unavailable=Unready)
async def readiness(context: AdminContext, request: IRequest) -> bytes:
    """Return whether the gateway can serve new requests.

    It can without its database, unless the operator says otherwise.
    """
    return _send_readiness(context, request, {})


@routes.get(
    "/health/readiness/details",
    access=Access.ANY_KEY,
    query=NoQuery,
    response=ReadinessDetails,
    unavailable=Unready,
)
async def readiness_details(call: AdminCall, _query: NoQuery) -> bytes:
    """Return the same as /health/readiness, with the version."""
    about = {"litellm_version": version("twisted-vllm"), "cache": None, "success_callbacks": ()}
    return _send_readiness(call.context, call.request, about)


def _send_readiness(context: AdminContext, request: IRequest, about: Json) -> bytes:
    state = context.readiness()
    problem: GatewayError | None = None
    if state.draining:
        problem = _draining()
    elif state.file_is_lost:
        problem = StoreUnavailable(
            "The database's file was removed or replaced. Keys that exist work, and nothing is stored: see the log."
        )
    elif state.requires_database and not state.database:
        problem = StoreUnavailable(
            "The database does not answer, and passthrough.readiness_requires_database is true. Keys that exist work; "
            "none can be made or deleted."
        )
    has_database = state.database and not state.file_is_lost
    body = {
        "status": "healthy" if problem is None else "unhealthy",
        "db": "connected" if has_database else "disconnected",
        "database": "available" if has_database else "unavailable",
        "draining": state.draining,
        **about,
    }
    if problem is None:
        return send_json(request, body)
    request.setHeader(ERROR_HEADER, problem.code.encode("ascii"))
    error = {"message": problem.message, "type": problem.type, "param": None, "code": problem.code}
    return send_json(request, {**body, "error": error}, problem.status)


def _draining() -> Draining:
    return Draining("The gateway is shutting down and takes no new requests.")


@routes.open("/metrics", response=None, errors=(401, 403), media_types=("text/plain", "application/openmetrics-text"))
async def metrics(context: AdminContext, request: IRequest) -> bytes:
    """Return the gateway's own metrics, in the text format of Prometheus or as OpenMetrics.

    They name models, servers, keys, users and teams to administrators only. The operator may close them to all others.
    """
    await context.authenticator.find_out(request)
    if context.metrics_are_open:
        named = await context.authenticator.is_reader(request)
    else:
        await context.authenticator.caller_of(request, Access.READER, "metrics")
        named = True
    accept = request.requestHeaders.getRawHeaders(b"accept", [b""])
    found = context.metrics.expose(b",".join(accept).decode("latin-1"), named)
    # other processes of the gateway are asked
    body, content_type = await found if isinstance(found, Deferred) else found
    return send(request, 200, [(b"content-type", content_type.encode("ascii"))], body)
