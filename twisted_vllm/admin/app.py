"""The gateway's own routes, on Klein.

Importing Klein imports Twisted's reactor: import this module only once the reactor is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from zope.interface import implementer

from twisted_vllm.access.keys import Authenticator, KeyIndex
from twisted_vllm.admin.health import HealthEndpoints, Readiness
from twisted_vllm.admin.keys import KeyEndpoints
from twisted_vllm.admin.respond import refuse, send_error, send_json
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.store.interfaces import IKeyStore

WELCOME = {
    "service": "twisted_vllm",
    "about": "A gateway for shared vLLM servers: everything below /vllm goes to vLLM in its own format.",
    "routes": {
        "/vllm/…": "vLLM's own API",
        "/key/generate, /key/info, /key/list, /key/delete": "virtual keys",
        "/health/liveliness, /health/readiness": "health",
    },
    "docs": "README.md and the docs directory of the twisted-vllm package; vLLM's own API is described at /vllm/docs",
}


class AdminApp:
    """Everything that the gateway answers itself: virtual keys, health, and a welcome."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        index: KeyIndex,
        store: IKeyStore,
        clock: IReactorTime,
        now: Callable[[], datetime],
        randbytes: Callable[[int], bytes],
        readiness: Callable[[], Readiness],
    ) -> None:
        """Bind the routes.

        Args:
            authenticator: says who calls.
            index: the keys that requests are checked against; a change is made here after the store took it.
            store: where keys are kept.
            clock: measures how long a client waits for the store.
            now: returns the present moment, with a time zone.
            randbytes: returns that many bytes, fit for secrets.
            readiness: tells how fit the process is to serve; it is asked for each request and must not block.
        """
        keys = KeyEndpoints(
            authenticator=authenticator, index=index, store=store, clock=clock, now=now, randbytes=randbytes
        )
        health = HealthEndpoints(readiness)
        app = Klein()
        # Without these, werkzeug answers a doubled or trailing slash with a redirect, built from the Host header.
        app.url_map.strict_slashes = False
        app.url_map.merge_slashes = False
        app.handle_errors(Exception)(refuse)
        app.route("/", methods=["GET"], endpoint="welcome")(_welcome)
        app.route("/key/generate", methods=["POST"], endpoint="generate")(keys.generate)
        app.route("/key/info", methods=["GET"], endpoint="info")(keys.info)
        app.route("/key/list", methods=["GET"], endpoint="list")(keys.list_keys)
        app.route("/key/delete", methods=["POST"], endpoint="delete")(keys.delete)
        app.route("/health/liveliness", methods=["GET"], endpoint="liveliness")(health.liveliness)
        app.route("/health/liveness", methods=["GET"], endpoint="liveness")(health.liveliness)
        app.route("/health/readiness", methods=["GET"], endpoint="readiness")(health.readiness)
        self._app = app

    def resource(self) -> IResource:
        """Return the resource that serves the routes; it takes every path that reaches it."""
        return AdminResource(self._app)


@implementer(IResource)
class AdminResource(Resource):
    """Klein's resource, with the gateway's own answers to what Klein does not hand to its error handlers."""

    isLeaf = True

    def __init__(self, app: Klein) -> None:
        super().__init__()
        self._klein: IResource = app.resource()

    def render(self, request: IRequest) -> bytes | int:
        """Answer a request."""
        try:
            for part in (*request.prepath, *request.postpath, request.getRequestHostname(), request.method):
                part.decode("utf-8")
        except UnicodeDecodeError:
            return send_error(request, InvalidRequest("The path and the Host header must be UTF-8."))
        try:
            answer: bytes | int = self._klein.render(request)
        except Exception:
            # For one, werkzeug refuses some Host headers before it looks for a route.
            return refuse(request, Failure())
        return answer


def _welcome(request: IRequest) -> bytes:
    return send_json(request, WELCOME)
