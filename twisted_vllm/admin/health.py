"""The health endpoints, open to everyone: a load balancer has no key."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.web.iweb import IRequest

from twisted_vllm.admin.respond import send_error, send_json
from twisted_vllm.errors import ERROR_HEADER, Draining, GatewayError, StoreUnavailable


@attrs.frozen
class Readiness:
    """How fit the process is to serve.

    Attributes:
        draining: whether it is shutting down.
        database: whether the database answered when it was last asked.
    """

    draining: bool
    database: bool


class HealthEndpoints:
    """Liveness and readiness, in LiteLLM's words."""

    def __init__(self, readiness: Callable[[], Readiness]) -> None:
        self._readiness = readiness

    def liveliness(self, request: IRequest) -> bytes:
        """Answer ``GET /health/liveliness``: the process is there, and means to stay."""
        if self._readiness().draining:
            return send_error(request, _draining())
        return send_json(request, "I'm alive!")

    def readiness(self, request: IRequest) -> bytes:
        """Answer ``GET /health/readiness``: new requests are welcome here."""
        state = self._readiness()
        problem: GatewayError | None = None
        if state.draining:
            problem = _draining()
        elif not state.database:
            problem = StoreUnavailable(
                "The database does not answer. Keys that exist work; none can be made or deleted."
            )
        body = {
            "status": "healthy" if problem is None else "unhealthy",
            "db": "connected" if state.database else "disconnected",
            "draining": state.draining,
        }
        if problem is None:
            return send_json(request, body)
        request.setHeader(ERROR_HEADER, problem.code.encode("ascii"))
        error = {"message": problem.message, "type": problem.type, "param": None, "code": problem.code}
        return send_json(request, {**body, "error": error}, problem.status)


def _draining() -> Draining:
    return Draining("The gateway is shutting down and takes no new requests.")
