"""Authorization of a request and the choice of its server, without I/O, in two steps.

The head identifies the caller and the route. The body is read before the second step only if the model decides a
permission or the server. Every other body streams.
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
    """A request that is forwarded to a server.

    Attributes:
        server: the chosen server.
        path: path and query, below the server's base path.
        model: the body's model with the key's alias resolved; empty if the body names none or was not read.
        body: the body for the server; None if it streams.
        facts: other facts read from the body.
        usage_injected: whether the gateway requested the stream's usage although the client did not.
        renamed: for a streaming form, the server's name of the model if it differs from the form's.
    """

    server: Server
    path: bytes
    model: str
    body: bytes | None
    facts: BodyFacts = UNREAD
    usage_injected: bool = False
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
        inject_usage: bool = False,
    ) -> None:
        """Set up admission.

        Args:
            authenticator: identifies the principal of a credential.
            policy: decides which routes and models a principal may use.
            router: picks the server for a model.
            path_aliases: whether OpenAI's and Anthropic's routes also work without ``/v1``.
            reads_bodies: whether to read bodies for the ledger.
            inject_usage: whether to request the usage of a stream when the client does not.
        """
        self._reads_bodies = reads_bodies
        self._inject_usage = inject_usage
        self._authenticator = authenticator
        self._authenticate = authenticator.authenticate
        self._policy = policy
        self._router = router
        self._path_aliases = path_aliases
        self._routes_by_model = bool(router.names)

    @property
    def changes(self) -> int:
        """A counter of changes to keys, users and teams; a change may invalidate earlier decisions."""
        return self._authenticator.changes

    def identify(self, headers: Mapping[bytes, bytes], now: float, method: bytes = b"GET") -> Principal:
        """Authenticate a request.

        Args:
            headers: the first value of each header, by lower-case name.
            now: the time in Unix seconds.
            method: the method; a browser sends its preflight (OPTIONS) without credentials, and vLLM answers it.

        Raises:
            MissingApiKey, InvalidApiKey, ExpiredApiKey, BlockedApiKey: the credential is missing or not valid.
        """
        if method == b"OPTIONS" and b"access-control-request-method" in headers and credential_of(headers) is None:
            return PREFLIGHT
        return self._authenticate(headers, now)

    def authorize(self, principal: Principal, method: bytes, raw: bytes) -> Authorization:
        """Authorize a request by its head.

        Args:
            principal: the caller.
            method: the method.
            raw: the request target below ``/vllm``, as received.

        Raises:
            InvalidRequest: the path's dot segments lead out of ``/vllm``.
            RouteNotAllowed: the principal may not call this route.
        """
        resolved = target(raw, self._path_aliases)
        route = classify(method, resolved.path)
        self._policy.check_route(principal, route)
        takes_model = route.takes_model
        needs_body = takes_model and (
            self._routes_by_model
            or principal.restricts_models
            or bool(principal.aliases or principal.cache_salt)
            or principal.counts_tokens
            or principal.counts_models
        )
        return Authorization(
            principal,
            route,
            resolved.path,
            resolved.forwarded,
            needs_body,
            takes_model and self._reads_bodies,
            _payer_of(principal),
        )

    def admit(self, authorization: Authorization, headers: Mapping[bytes, bytes], body: bytes | None) -> Admitted:
        """Admit the whole request.

        Args:
            authorization: what `authorize` returned.
            headers: the first value of each header, by lower-case name.
            body: the body, or None if it streams; required if `Authorization.needs_body` is set.

        Raises:
            ModelUndetermined: a permission depends on the model, and the body does not name it clearly.
            ModelNotAllowed: the principal may not use the model.
            ModelNotFound: no server is configured for the model.
            InvalidRequest: the key has its own prefix cache, and the body repeats ``cache_salt``.
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
        injected: tuple[Edit, ...] = ()
        if self._inject_usage and facts.stream and authorization.route.row.stream_options:
            injected = usage_edits(body, facts)
            edits += injected
        if authorization.principal.cache_salt:
            edits.append(salt_edit(body, facts, authorization.principal.cache_salt))
        if edits:
            body = splice(body, edits)
        return Admitted(destination.server, forwarded, model, body, facts, bool(injected))

    def admit_form(self, authorization: Authorization, name: str | None, fault: ModelUndetermined | None) -> Admitted:
        """Admit a request whose form streams.

        Args:
            authorization: what `authorize` returned.
            name: the model that the form names, or None.
            fault: why the model cannot be determined, or None.

        Raises:
            ModelUndetermined, ModelNotAllowed, ModelNotFound: as from `admit`.
        """
        principal = authorization.principal
        if fault is not None and (principal.restricts_models or principal.cache_salt):
            raise fault
        if name is None:
            if principal.restricts_models:
                raise _no_model()
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
        """Return the facts read from the body; `UNREAD` if it is forwarded unread."""
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
                # vLLM may still accept it, with its default model or in the shared prefix cache
                if restricted or principal.cache_salt:
                    raise
                return UNREAD
            if facts.model is not None or not restricted:
                return facts
        if restricted and (authorization.route.takes_model or authorization.route.row.model is ModelPlace.EVENT):
            raise _no_model()
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


def _no_model() -> ModelUndetermined:
    return ModelUndetermined(
        "This key may use certain models only, and the gateway cannot read from this request which it asks "
        'for: send it in the body as "model".',
        param="model",
    )
