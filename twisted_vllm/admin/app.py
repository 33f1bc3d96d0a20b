"""The gateway's own routes, on Klein.

Importing Klein imports Twisted's reactor: import this module only once the reactor is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from zope.interface import implementer

from twisted_vllm.admin.audit import AuditEndpoints
from twisted_vllm.admin.authorize import AdminAuthenticator
from twisted_vllm.admin.customers import CustomerEndpoints
from twisted_vllm.admin.health import HealthEndpoints, Readiness
from twisted_vllm.admin.key_views import KeyViews
from twisted_vllm.admin.keys import KeyEndpoints
from twisted_vllm.admin.metrics import MetricsEndpoint
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.openapi import OpenApiEndpoint
from twisted_vllm.admin.respond import refuse, send_error, send_json
from twisted_vllm.admin.spend_routes import spend_routes
from twisted_vllm.admin.teams import TeamEndpoints
from twisted_vllm.admin.users import UserEndpoints
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.observability.metrics import Metrics
from twisted_vllm.storage.registry import Registry

WELCOME = {
    "service": "twisted_vllm",
    "about": "A gateway for shared vLLM servers: everything below /vllm goes to vLLM in its own format.",
    "routes": {
        "/vllm/…": "vLLM's own API",
        "/key/generate, /key/update, /key/regenerate, /key/info, /key/list, /key/delete …": "virtual keys",
        "/user/new, /user/info … and /team/new, /team/block …": "users and teams",
        "/spend/logs, /global/spend, /user/daily/activity …, /usage/report": "what was used, and what it cost",
        "/customer/new, /customer/info, /customer/block …": "end users, whom the callers of keys name",
        "/audit/list": "what administrators did",
        "/health/liveliness, /health/readiness": "health",
        "/metrics": "the gateway's own metrics; vLLM's are at /vllm/metrics",
        "/openapi.json": "what each of these takes and answers",
    },
    "docs": "README.md and the docs directory of the twisted-vllm package; vLLM's own API is described at /vllm/docs",
}


def _peer_of(request: IRequest) -> str:
    return getattr(request.getClientAddress(), "host", None) or "-"


class AdminApp:
    """Everything that the gateway answers itself: virtual keys, health, and a welcome.

    Attributes:
        url_map: the routes, as werkzeug keeps them.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        registry: Registry,
        clock: IReactorTime,
        now: Callable[[], datetime],
        randbytes: Callable[[int], bytes],
        readiness: Callable[[], Readiness],
        metrics: Metrics,
        metrics_are_open: bool = True,
        client_of: Callable[[IRequest], str] = _peer_of,
        failures: AuthenticationThrottle | None = None,
    ) -> None:
        """Bind the routes.

        Args:
            authenticator: says who calls.
            registry: where keys are kept, in the store and in memory.
            clock: measures how long a client waits for the store.
            now: returns the present moment, with a time zone.
            randbytes: returns that many bytes, fit for secrets.
            readiness: tells how fit the process is to serve; it is asked for each request and must not block.
            metrics: what the gateway says of itself.
            metrics_are_open: whether everybody may read them, and not administrators alone.
            client_of: returns the address that a request comes from.
            failures: slows guessing down.
        """
        gatekeeper = AdminAuthenticator(
            authenticator,
            registry.index,
            now,
            client_of,
            AuthenticationThrottle(None) if failures is None else failures,
        )
        office = AdminContext(
            authenticator=authenticator,
            gatekeeper=gatekeeper,
            registry=registry,
            clock=clock,
            now=now,
            randbytes=randbytes,
        )
        app = Klein()
        # Without these, werkzeug answers a doubled or trailing slash with a redirect, built from the Host header.
        app.url_map.strict_slashes = False
        app.url_map.merge_slashes = False
        app.handle_errors(Exception)(refuse)
        routes = {**_routes(office), **_open_routes(readiness)}
        routes["/metrics"] = ("GET", MetricsEndpoint(metrics, None if metrics_are_open else gatekeeper).metrics)
        routes["/openapi.json"] = ("GET", OpenApiEndpoint(routes).openapi)
        for path, (method, endpoint) in routes.items():
            app.route(path, methods=[method], endpoint=path)(endpoint)
        self.url_map = app.url_map
        self._app = app

    def resource(self) -> IResource:
        """Return the resource that serves the routes; it takes every path that reaches it."""
        return AdminResource(self._app)


def _routes(office: AdminContext) -> dict[str, tuple[str, Any]]:
    """Return the method and the endpoint of each route that asks who calls."""
    keys, key_views, users, teams = KeyEndpoints(office), KeyViews(office), UserEndpoints(office), TeamEndpoints(office)
    end_users = CustomerEndpoints(office)
    customers = {
        "new": ("POST", end_users.new),
        "info": ("GET", end_users.info),
        "update": ("POST", end_users.update),
        "delete": ("POST", end_users.delete),
        "list": ("GET", end_users.list_customers),
        "block": ("POST", end_users.block),
        "unblock": ("POST", end_users.unblock),
    }
    return {
        "/key/generate": ("POST", keys.generate),
        "/key/service-account/generate": ("POST", keys.generate_service_account),
        "/key/update": ("POST", keys.update),
        "/key/bulk_update": ("POST", keys.bulk_update),
        "/key/block": ("POST", keys.block),
        "/key/unblock": ("POST", keys.unblock),
        "/key/regenerate": ("POST", keys.regenerate),
        "/key/<string:key>/regenerate": ("POST", keys.regenerate),
        "/key/<string:key>/reset_spend": ("POST", keys.reset_spend),
        "/key/delete": ("POST", keys.delete),
        "/key/info": ("GET", key_views.info),
        "/v2/key/info": ("POST", key_views.info_of_several),
        "/key/list": ("GET", key_views.list_keys),
        "/key/aliases": ("GET", key_views.list_aliases),
        "/user/new": ("POST", users.new),
        "/user/info": ("GET", users.info),
        "/user/update": ("POST", users.update),
        "/user/delete": ("POST", users.delete),
        "/user/list": ("GET", users.list_users),
        "/team/new": ("POST", teams.new),
        "/team/info": ("GET", teams.info),
        "/team/update": ("POST", teams.update),
        "/team/delete": ("POST", teams.delete),
        "/team/list": ("GET", teams.list_teams),
        "/team/block": ("POST", teams.block),
        "/team/unblock": ("POST", teams.unblock),
        "/team/member_add": ("POST", teams.add_members),
        "/team/member_update": ("POST", teams.update_member),
        "/team/member_delete": ("POST", teams.remove_member),
        **{f"/{name}/{path}": route for name in ("customer", "end_user") for path, route in customers.items()},
        "/audit/list": ("GET", AuditEndpoints(office).list_entries),
        **spend_routes(office),
    }


def _open_routes(readiness: Callable[[], Readiness]) -> dict[str, tuple[str, Any]]:
    """Return the method and the endpoint of each route that is open to everyone."""
    health = HealthEndpoints(readiness)
    return {
        "/": ("GET", _welcome),
        "/health/liveliness": ("GET", health.liveliness),
        "/health/liveness": ("GET", health.liveliness),
        "/health/readiness": ("GET", health.readiness),
    }


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
    """Answer ``GET /``: what this is."""
    return send_json(request, WELCOME)
