"""Health and metrics, open to everyone: a load balancer has no key."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from twisted.web.iweb import IRequest

from twisted_vllm.admin.context import AdminContext
from twisted_vllm.admin.models import ErrorDetail, Response
from twisted_vllm.admin.responses import send, send_json
from twisted_vllm.admin.routing import Routes
from twisted_vllm.errors import ERROR_HEADER, Draining, GatewayError, StoreUnavailable

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


routes = Routes()


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

    They name no key, user or model. The operator may restrict them to administrators.
    """
    if not context.metrics_are_open:
        context.authenticator.administrator_of(request)
    accept = request.requestHeaders.getRawHeaders(b"accept", [b""])
    body, content_type = context.metrics.expose(b",".join(accept).decode("latin-1"))
    return send(request, 200, [(b"content-type", content_type.encode("ascii"))], body)
