"""Authorization of a request and the choice of its server, without I/O, in two steps.

The head says who asks for which route. The body is read before the second step only where the model decides something:
a permission, or the server. Everything else streams.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twisted_vllm.api_routes import ModelPlace, classify
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.credentials import credential_of
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import PREFLIGHT, Principal
from twisted_vllm.bodies.edits import Edit, rename_edit, salt_edit, splice, usage_edits
from twisted_vllm.bodies.json_body import UNREAD, BodyFacts, read_body
from twisted_vllm.bodies.multipart import find_model_in_form, rename_in_form
from twisted_vllm.config.settings import Server
from twisted_vllm.context import Authorization
from twisted_vllm.errors import ModelUndetermined
from twisted_vllm.http.headers import is_form, is_json
from twisted_vllm.proxy.paths import target
from twisted_vllm.upstreams.router import Router
from twisted_vllm.usage.records import Payer, refer


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """A request that goes on to a server.

    Attributes:
        server: which one.
        path: what the server is asked for: path and query, below the server's base.
        model: the model that the body names, by its own name where the key has another for it; empty where the body
            names none or was not read.
        body: the body as the server shall see it; None where it was not in hand and streams.
        facts: what else the body asks for.
        asked_usage: whether the gateway asked for the usage of the stream, which the client did not.
        renamed: the server's name for the model, where a form that streams has another.
    """

    server: Server
    path: bytes
    model: str
    body: bytes | None
    facts: BodyFacts = UNREAD
    asked_usage: bool = False
    renamed: str | None = None


class Admission:
    """Authorizes and routes requests by the settings and the keys in memory."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        policy: RoutePolicy,
        router: Router,
        path_aliases: bool,
        reads_bodies: bool = False,
        asks_usage: bool = False,
    ) -> None:
        """Bind what decides.

        Args:
            authenticator: tells who a credential stands for.
            policy: tells which routes and models a principal may use.
            router: picks the server for a model.
            path_aliases: whether OpenAI's and Anthropic's routes work without their ``/v1``.
            reads_bodies: whether the ledger wants to know what bodies ask for.
            asks_usage: whether a server is asked for the usage of a stream where the client did not.
        """
        self._reads_bodies = reads_bodies
        self._asks_usage = asks_usage
        self._authenticator = authenticator
        self._authenticate = authenticator.authenticate
        self._policy = policy
        self._router = router
        self._path_aliases = path_aliases
        self._routes_by_model = bool(router.names)

    @property
    def changes(self) -> int:
        """A counter of changes to keys, users and teams: decisions from before a change may not hold after it."""
        return self._authenticator.changes

    def identify(self, headers: Mapping[bytes, bytes], now: float, method: bytes = b"GET") -> Principal:
        """Authenticate a request.

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

    def authorize(self, principal: Principal, method: bytes, raw: bytes) -> Authorization:
        """Authorize a request by its head.

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
        takes = route.takes_model
        needs = takes and (
            self._routes_by_model
            or principal.restricts_models
            or bool(principal.aliases or principal.cache_salt)
            or principal.counts_tokens
            or principal.counts_models
        )
        return Authorization(
            principal, route, where.path, where.forwarded, needs, takes and self._reads_bodies, _payer_of(principal)
        )

    def admit(self, authorization: Authorization, headers: Mapping[bytes, bytes], body: bytes | None) -> Admitted:
        """Admit the whole request.

        Args:
            authorization: what `authorize` returned.
            headers: the first value of each header, by lower-case name.
            body: the body, or None where it is not in hand; it must be where `Authorization.needs_body`.

        Raises:
            ModelUndetermined: the permission depends on the model, and the body does not say clearly which it is.
            ModelNotAllowed: the principal may not use the model.
            ModelNotFound: no server is configured for the model.
            InvalidRequest: the key has its own prefix cache, and the body names its cache more than once.
        """
        form = is_form(headers)
        facts = self._facts(authorization, headers, body, form)
        field = facts.model
        if field is None:
            destination = self._router.destination_for_undetermined()
            model = name = ""
        else:
            aliases = authorization.principal.aliases
            model = aliases.get(field.name, field.name) if aliases else field.name
            self._policy.check_model(authorization.principal, model)
            destination = self._router.route(model)
            name = destination.upstream_model or model
        forwarded = authorization.forwarded
        if body is None or (form and field is None) or facts is UNREAD:
            return Admitted(destination.server, forwarded, model, body)
        if form:
            if field is not None and name != field.name:
                body = rename_in_form(body, field, name)
            return Admitted(destination.server, forwarded, model, body, facts)
        edits = [] if field is None or name == field.name else [rename_edit(field, name)]
        asked: tuple[Edit, ...] = ()
        if self._asks_usage and facts.stream and authorization.route.row.stream_options:
            asked = usage_edits(body, facts)
            edits += asked
        if authorization.principal.cache_salt:
            edits.append(salt_edit(body, facts, authorization.principal.cache_salt))
        if edits:
            body = splice(body, edits)
        return Admitted(destination.server, forwarded, model, body, facts, bool(asked))

    def admit_form(self, authorization: Authorization, name: str | None, fault: ModelUndetermined | None) -> Admitted:
        """Admit a request whose form streams.

        Args:
            authorization: what `authorize` returned.
            name: the model that the form names, or None.
            fault: why that cannot be told, if it cannot.

        Raises:
            ModelUndetermined, ModelNotAllowed, ModelNotFound: as from `admit`.
        """
        principal = authorization.principal
        if fault is not None and (principal.restricts_models or principal.cache_salt):
            raise fault
        if name is None:
            if principal.restricts_models:
                raise _unnamed()
            return Admitted(self._router.destination_for_undetermined().server, authorization.forwarded, "", None)
        model = principal.aliases.get(name, name)
        self._policy.check_model(principal, model)
        destination = self._router.route(model)
        upstream = destination.upstream_model or model
        renamed = None if upstream == name else upstream
        return Admitted(destination.server, authorization.forwarded, model, None, renamed=renamed)

    def _facts(
        self, authorization: Authorization, headers: Mapping[bytes, bytes], body: bytes | None, form: bool
    ) -> BodyFacts:
        """Return what the body asks for; `UNREAD` where it is forwarded unread."""
        principal = authorization.principal
        restricted = principal.restricts_models
        if authorization.route.takes_model and body:
            try:
                if form:
                    facts = BodyFacts(model=find_model_in_form(body, headers[b"content-type"]))
                elif is_json(headers):
                    facts = read_body(body, authorization.route.row.output_limits)
                else:
                    raise ModelUndetermined(
                        "The model cannot be told from a body of this Content-Type: send application/json, "
                        "or multipart/form-data where vLLM takes files.",
                        param="model",
                    )
            except ModelUndetermined:
                # vLLM may still read it, with a model of its choice or in the prefix cache that others share
                if restricted or principal.cache_salt:
                    raise
                return UNREAD
            if facts.model is not None or not restricted:
                return facts
        if restricted and (authorization.route.takes_model or authorization.route.row.model is ModelPlace.EVENT):
            raise _unnamed()
        return UNREAD


def _payer_of(principal: Principal) -> msgspec.Raw:
    payer = Payer(
        principal.kind,
        principal.key_id,
        principal.hash_prefix,
        principal.name,
        principal.user_id,
        principal.team_id,
        principal.tags,
    )
    return refer(payer)


def _unnamed() -> ModelUndetermined:
    return ModelUndetermined(
        "This key may use certain models only, and the gateway cannot read from this request which it asks "
        'for: send it in the body as "model".',
        param="model",
    )
