"""Whether a request goes on, and where to: decided without I/O, in two steps.

The head is enough to know who asks for which route. Only where the model decides something (a permission, or which
server) must the body be read before the second step; everything else streams.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twisted_vllm.access.credentials import credential_of
from twisted_vllm.access.keys import Authenticator
from twisted_vllm.access.policy import RoutePolicy
from twisted_vllm.access.records import PREFLIGHT, Principal
from twisted_vllm.access.routes import Route, classify
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import ModelUndetermined
from twisted_vllm.gateway.bodies import ModelField, find_model
from twisted_vllm.gateway.multipart import find_model_in_form, rename_in_form
from twisted_vllm.gateway.paths import Target, target
from twisted_vllm.gateway.routing import Destination, Router
from twisted_vllm.gateway.splices import rename
from twisted_vllm.wire.headers import is_form, is_json

#: routes whose model is named where the gateway does not read it: in an event on a WebSocket
MODEL_ELSEWHERE = frozenset(("/v1/realtime",))


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A request whose head was admitted.

    Attributes:
        principal: who asks.
        route: what for.
        target: the path and query below ``/vllm``.
        needs_model: whether the body must be in hand before `Admission.admit`.
    """

    principal: Principal
    route: Route
    target: Target
    needs_model: bool


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """A request that goes on to a server.

    Attributes:
        server: which one.
        path: what the server is asked for: path and query, below the server's base.
        model: the model that the body names, by its own name where the key has another for it; empty where the body
            names none or was not read.
        body: the body as the server shall see it; None where it was not in hand and streams as it is.
    """

    server: Server
    path: bytes
    model: str
    body: bytes | None


class Admission:
    """Decides with the operator's settings and the keys in memory."""

    def __init__(
        self, *, authenticator: Authenticator, policy: RoutePolicy, router: Router, path_aliases: bool
    ) -> None:
        """Bind what decides.

        Args:
            authenticator: tells who a credential stands for.
            policy: tells which routes and models a principal may use.
            router: picks the server for a model.
            path_aliases: whether OpenAI's and Anthropic's routes work without their ``/v1``.
        """
        self._authenticator = authenticator
        self._authenticate = authenticator.authenticate
        self._policy = policy
        self._router = router
        self._path_aliases = path_aliases
        self._routes_by_model = bool(router.names)

    @property
    def changes(self) -> int:
        """How often what decides was changed: what was decided before a change may not hold after it."""
        return self._authenticator.changes

    def identify(self, headers: Mapping[bytes, bytes], now: float, method: bytes = b"GET") -> Principal:
        """Tell who asks.

        Args:
            headers: the first value of each header, by lower-case name.
            now: the time in Unix seconds.
            method: the method; a browser sends its preflight (OPTIONS) without credentials, and vLLM answers it.

        Raises:
            MissingApiKey, InvalidApiKey, ExpiredApiKey, BlockedApiKey: the credential does not admit anyone.
        """
        if method == b"OPTIONS" and b"access-control-request-method" in headers and credential_of(headers) is None:
            return PREFLIGHT
        return self._authenticate(headers, now)

    def enter(self, principal: Principal, method: bytes, raw: bytes) -> Entry:
        """Admit the head of a request.

        Args:
            principal: who asks.
            method: the method.
            raw: the request target below ``/vllm``, as it came.

        Raises:
            InvalidRequest: the path climbs out of ``/vllm``.
            RouteNotAllowed: the principal may not call this route.
        """
        where = target(raw, self._path_aliases)
        route = classify(method, where.path)
        self._policy.check_route(principal, route)
        needs_model = route.takes_model and (
            self._routes_by_model or principal.restricts_models or bool(principal.aliases)
        )
        return Entry(principal, route, where, needs_model)

    def admit(self, entry: Entry, headers: Mapping[bytes, bytes], body: bytes | None) -> Admitted:
        """Admit the whole request.

        Args:
            entry: what `enter` returned.
            headers: the first value of each header, by lower-case name.
            body: the body, or None where it is not in hand; it must be where `Entry.needs_model`.

        Raises:
            ModelUndetermined: the permission depends on the model, and the body does not say clearly which it is.
            ModelNotAllowed: the principal may not use the model.
            ModelNotFound: no server is configured for the model.
        """
        form = is_form(headers)
        field = self._find_model(entry, headers, body, form)
        if field is None:
            destination = self._router.destination_for_undetermined()
            return Admitted(destination.server, entry.target.forwarded, "", body)
        aliases = entry.principal.aliases
        model = aliases.get(field.name, field.name) if aliases else field.name
        self._policy.check_model(entry.principal, model)
        destination = self._router.route(model)
        return Admitted(
            destination.server, entry.target.forwarded, model, _renamed(body, field, model, destination, form)
        )

    def _find_model(
        self, entry: Entry, headers: Mapping[bytes, bytes], body: bytes | None, form: bool
    ) -> ModelField | None:
        """Return where the body names its model, or None where it names none or may be passed on unread."""
        restricted = entry.principal.restricts_models
        if entry.route.takes_model and body:
            try:
                if form:
                    field = find_model_in_form(body, headers[b"content-type"])
                elif is_json(headers):
                    field = find_model(body)
                else:
                    raise ModelUndetermined(
                        "The model cannot be told from a body of this Content-Type: send application/json, "
                        "or multipart/form-data where vLLM takes files.",
                        param="model",
                    )
            except ModelUndetermined:
                if restricted:
                    raise
                return None
            if field is not None:
                return field
        if restricted and (entry.route.takes_model or entry.route.path in MODEL_ELSEWHERE):
            raise ModelUndetermined(
                "This key may use certain models only, and the gateway cannot read from this request which it asks "
                'for: send it in the body as "model".',
                param="model",
            )
        return None


def _renamed(body: bytes | None, field: ModelField, model: str, destination: Destination, form: bool) -> bytes | None:
    """Return the body with the model's name as the server knows it: the only change ever made to a body."""
    name = destination.upstream_model or model
    if name == field.name or body is None:
        return body
    return (rename_in_form if form else rename)(body, field, name)
