"""Authorization of a request and the choice of its server, without I/O, in two steps.

The head identifies the caller and the route. The body is read before the second step only if the model decides a
permission or the server. Every other body streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from twisted_vllm.api_routes import ModelPlace, PrefixCache, VllmRoute, classify
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.credentials import credential_of
from twisted_vllm.auth.fields import FieldPolicies
from twisted_vllm.auth.policy import RoutePolicy, is_no_path
from twisted_vllm.auth.records import PREFLIGHT, Principal
from twisted_vllm.auth.steering_headers import ADAPTER
from twisted_vllm.bodies.edits import (
    Edit,
    has_priority,
    name_edit,
    request_id_edit,
    salt_edit,
    splice,
    usage_edits,
    with_priority,
)
from twisted_vllm.bodies.json_body import UNREAD, BodyFacts, ModelField, read_body
from twisted_vllm.bodies.multipart import find_model_in_form, rename_in_form
from twisted_vllm.bodies.response_fields import NO_FIELDS, ResponseFields, check_repeatable, read_response_fields
from twisted_vllm.config.settings import ModelEntry, Server
from twisted_vllm.context import Authorization
from twisted_vllm.errors import InvalidRequest, ModelNotAllowed, ModelNotFound, ModelUndetermined, RouteNotAllowed
from twisted_vllm.field_policy.forms import FormFields
from twisted_vllm.field_policy.policy import FieldPolicy
from twisted_vllm.http.headers import is_form, is_json
from twisted_vllm.proxy.paths import target
from twisted_vllm.proxy.response_ids import ResponseIds, hides_responses, stored_response_in
from twisted_vllm.proxy.upstream_headers import PRIORITY, dropped_from
from twisted_vllm.upstreams.router import CLIP, Router
from twisted_vllm.usage.records import Payer, refer

#: cached servings of models that no entry names, and the maximum length of such a name in characters
MAX_UNLISTED, MAX_NAME = 1_000, 256

# to read a member of an enum from its class takes 0.1 µs
_PERHAPS, _HEADER, _SALTED = ModelPlace.PERHAPS, ModelPlace.HEADER, PrefixCache.SALTED

#: methods whose requests have no body
_WITHOUT_BODY = frozenset((b"GET", b"HEAD", b"OPTIONS"))


class Serving(msgspec.Struct, frozen=True, gc=False):
    """What serves a request.

    Attributes:
        server: the chosen server.
        name: the server's name of the model, which the body must contain; empty to leave the body as it is.
        model: the model's name in limits and the ledger: the entry's in ``model_list``, else the body's with the key's
            alias resolved; empty if it is not known.
        asked: the body's name with the key's alias resolved, if that is not `model`.
        entry: the entry that serves it; None if there is none.
        priced: whether the price is known. It is not if the server's base model serves the request and the prices of
            the server's models differ.
    """

    server: Server
    name: str = ""
    model: str = ""
    asked: str = ""
    entry: ModelEntry | None = None
    priced: bool = True


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """A request that is forwarded to a server.

    Attributes:
        serving: what serves it.
        path: path and query, below the server's base path.
        body: the body for the server; None if it streams.
        facts: other facts read from the body.
        usage_injected: whether the gateway requested the stream's usage although the client did not.
        renamed: for a streaming form, the server's name of the model if it differs from the form's.
        unread: why the body could not be read; None if it was read or streams.
        background_id: the id of the response, if the server is to generate it in the background; empty if the server
            chooses it; None for every other request.
        response_id: the id of the response, if the gateway chose it; else empty.
        previous_id: the id of the stored response that it continues; None if it continues none, or for administrators.
    """

    serving: Serving
    path: bytes
    body: bytes | None
    facts: BodyFacts = UNREAD
    usage_injected: bool = False
    renamed: str | None = None
    unread: ModelUndetermined | None = None
    background_id: str | None = None
    response_id: str = ""
    previous_id: str | None = None

    @property
    def server(self) -> Server:
        """The chosen server."""
        return self.serving.server

    @property
    def model(self) -> str:
        """The model's name, as in `Serving`."""
        return self.serving.model


class BaseModelUnknown(Exception):
    """The base model of a server decides, and the server must be asked for it.

    Attributes:
        server: the server.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server.name)
        self.server = server


class BaseModels(Protocol):
    """Knows the base models of servers: `ServedModels`."""

    def base_model(self, server: Server) -> str | None:
        """Return the name of a server's base model, empty if it does not tell; None if it must be asked."""

    def has_model(self, server: Server, name: str) -> bool:
        """Return whether a server listed a model when it was asked last."""


class Admission:
    """Authorizes and routes requests by the settings and the keys in memory."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        policy: RoutePolicy,
        router: Router,
        base_models: BaseModels,
        path_aliases: bool,
        fields: FieldPolicies | None = None,
        reads_bodies: bool = False,
        inject_usage: bool = False,
        response_ids: ResponseIds | None = None,
    ) -> None:
        """Set up admission.

        Args:
            authenticator: identifies the principal of a credential.
            policy: decides which routes and models a principal may use.
            router: picks the server for a model.
            base_models: knows the base models of servers.
            path_aliases: whether OpenAI's and Anthropic's routes also work without ``/v1``.
            fields: decides which fields of a body a principal may send; None allows any.
            reads_bodies: whether to read bodies for the ledger.
            inject_usage: whether to request the usage of a stream when the client does not.
            response_ids: makes and checks the ids of stored responses; None lets every key use every response.
        """
        self._fields = fields
        self._reads_bodies = reads_bodies
        self._inject_usage = inject_usage
        self._authenticator = authenticator
        self._authenticate = authenticator.authenticate
        self._policy = policy
        self._router = router
        self._base_models = base_models
        self._unlisted: dict[str, Serving] = {}
        self._path_aliases = path_aliases
        self._response_ids = response_ids
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

        Returns:
            The principal; `PREFLIGHT` only for a request that vLLM's CORS middleware answers by itself.

        Raises:
            MissingApiKey, InvalidApiKey, ExpiredApiKey, BlockedApiKey: the credential is missing or not valid.
        """
        if method == b"OPTIONS" and _is_preflight(headers) and credential_of(headers) is None:
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
            ResponseNotFound: the path names a stored response that the principal's key did not make.
        """
        resolved = target(raw, self._path_aliases)
        route = classify(method, resolved.path)
        takes_model = route.takes_model
        ids, stores, response_id, response_server = self._response_ids, False, None, None
        if ids is not None and principal is not PREFLIGHT:
            stores = takes_model and route.row.stores
            response_id = stored_response_in(resolved.path)
            if response_id is not None:
                # before the route: whoever did not make a response learns nothing of it by any method
                response_server = ids.server_of(principal, response_id)
        self._policy.check_route(principal, route)
        if ids is not None and principal.kind == "key" and not route.row.stores and hides_responses(resolved.path):
            # the body would pass unread
            raise RouteNotAllowed("This key may call /v1/responses by its plain path only.")
        fields = None if self._fields is None else self._fields.of(principal, route)
        restricted = principal.restricts_models
        # a plugin of the server may serve a model there
        may_name = restricted and route.row.model is _PERHAPS and method not in _WITHOUT_BODY
        needs_body = may_name or (
            takes_model
            and (
                stores
                or self._routes_by_model
                or restricted
                or bool(principal.aliases or principal.cache_salt)
                or principal.counts_tokens
                or principal.counts_models
                or route.row.model is _HEADER
                or fields is not None
                or principal.priority is not None
            )
        )
        return Authorization(
            principal,
            route,
            resolved.path,
            resolved.forwarded,
            needs_body,
            takes_model and self._reads_bodies,
            _payer_of(principal),
            takes_model or may_name,
            restricted,
            stores,
            response_id,
            response_server,
            fields,
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
            ModelNotFound: no server is configured for the model, or on ``/invocations`` the server does not have it.
            InvalidRequest: the key has its own prefix cache, and the body repeats ``cache_salt``; or the body asks to
                stream where vLLM does not count what it streams; or as from `read_response_fields`.
            ResponseNotFound: the body continues a response that the principal's key did not make.
            FieldNotAllowed: the principal may not send a field of the body.
            BaseModelUnknown: a server must be asked for its base model first.
        """
        principal, row = authorization.principal, authorization.route.row
        form = headers.get(b"content-type") != b"application/json" and is_form(headers)
        facts, unread = self._facts(authorization, headers, body, form)
        field = facts.model
        named = "" if field is None else field.name
        place = row.model
        if place is _PERHAPS:
            return self._admit_unknown(authorization, named, body)
        stored, preferred = NO_FIELDS, None
        if authorization.stores and body and facts is not UNREAD:
            stored, preferred = self._response_fields(principal, body)
        if place is _HEADER:
            serving = self._serving_by_header(authorization, headers, named)
        elif authorization.response_server is not None:
            serving = Serving(authorization.response_server)
        else:
            serving = self._serving(authorization, named, facts is not UNREAD and not form, preferred)
        forwarded = authorization.forwarded
        if body is None or facts is UNREAD:
            return Admitted(serving, forwarded, body, unread=unread)
        name = serving.name
        if form:
            if field is not None and name and name != named:
                body = rename_in_form(body, field, name)
            return Admitted(serving, forwarded, body, facts)
        edits: list[Edit] = []
        if name and name != named:
            edits.append(name_edit(body, facts, name))
        injected: tuple[Edit, ...] = ()
        if facts.stream and row.generates:
            if not row.streams and not principal.is_administrator:
                raise InvalidRequest(
                    'vLLM does not stream on this route, and with "stream" it does not count all tokens. Leave it out.',
                    param="stream",
                )
            if self._inject_usage and row.stream_options:
                injected = usage_edits(body, facts)
                edits += injected
        if principal.cache_salt and row.prefix_cache is _SALTED:
            edits.append(salt_edit(body, facts, principal.cache_salt))
        background_id, response_id, previous_id = "" if stored.background else None, "", None
        if authorization.stores and self._response_ids is not None and principal.kind == "key":
            response_id = self._response_ids.make(principal, serving.server)
            previous_id = stored.previous
            edits.append(request_id_edit(body, stored, response_id))
            if stored.background:
                background_id = response_id
        if edits:
            body = splice(body, edits)
        if principal.priority is not None:
            body = self._prioritised(principal, row, body, facts)
        return Admitted(
            serving,
            forwarded,
            body,
            facts,
            bool(injected),
            background_id=background_id,
            response_id=response_id,
            previous_id=previous_id,
        )

    def _response_fields(self, principal: Principal, body: bytes) -> tuple[ResponseFields, Server | None]:
        """Return what a body says about stored responses, and the server that has the one to continue.

        Raises:
            ResponseNotFound, InvalidRequest: as from `admit`; for virtual keys only.
        """
        if principal.kind == "key":
            check_repeatable(body)
        try:
            stored = read_response_fields(body)
        except InvalidRequest:
            if principal.kind == "key":
                raise
            return NO_FIELDS, None
        if stored.previous is None or self._response_ids is None:
            return stored, None
        return stored, self._response_ids.server_of(principal, stored.previous)

    def admit_form(self, authorization: Authorization, name: str | None, fault: ModelUndetermined | None) -> Admitted:
        """Admit a request whose form streams.

        Args:
            authorization: what `authorize` returned.
            name: the model that the form names, or None.
            fault: why the model cannot be determined, or None.

        Raises:
            ModelUndetermined, ModelNotAllowed, ModelNotFound, InvalidRequest: as from `admit`.
        """
        principal = authorization.principal
        if authorization.stores and principal.kind == "key":
            raise _no_json()
        if fault is not None and _must_be_read(authorization):
            raise fault
        if not name and principal.restricts_models:
            raise _no_model()
        serving = self._serving(authorization, name or "", insertable=False)
        renamed = serving.name if serving.name and serving.name != name else None
        return Admitted(serving, authorization.forwarded, None, renamed=renamed, unread=fault)

    def _serving(
        self, authorization: Authorization, named: str, insertable: bool, server: Server | None = None
    ) -> Serving:
        """Return what serves a request that names a model, or none; check that the principal may use it.

        Args:
            authorization: the authorization of the request's head.
            named: the body's model; empty if it names none, and vLLM would use its base model.
            insertable: whether a name can be added to the body.
            server: the server that has what the request continues; None if it continues nothing.
        """
        router = self._router
        if not named:
            destination = router.destination_for_undetermined()
            entry = destination.entry
            if entry is not None and insertable:
                return Serving(destination.server, entry.upstream_model, entry.model_name, entry=entry)
            return Serving(destination.server, priced=not router.prices_differ(destination.server))
        aliases = authorization.principal.aliases
        asked = aliases.get(named, named) if aliases else named
        if authorization.restricted:
            self._policy.check_model(authorization.principal, asked)
        found = self._unlisted.get(asked)
        if found is not None:
            return found
        destination = router.route(asked, server)
        entry = destination.entry
        if entry is None:
            self._policy.check_unlisted_model(authorization.principal, asked)
            found = Serving(destination.server, asked, asked)
            # clients choose these texts; what may be a path is checked each time
            if len(asked) <= MAX_NAME and is_no_path(asked):
                if len(self._unlisted) >= MAX_UNLISTED:
                    self._unlisted.clear()
                self._unlisted[asked] = found
            return found
        model = entry.model_name
        return Serving(
            destination.server, destination.upstream_model or asked, model, "" if asked == model else asked, entry
        )

    def _serving_by_header(self, authorization: Authorization, headers: Mapping[bytes, bytes], named: str) -> Serving:
        """Return what serves a request whose body's model only chooses the server: an adapter or the base model."""
        router, principal = self._router, authorization.principal
        asked = principal.aliases.get(named, named)
        destination = router.route(asked or None)
        server = destination.server
        adapter = None if ADAPTER in dropped_from(principal) else headers.get(ADAPTER)
        name = self._base_models.base_model(server) if adapter is None else adapter.decode("latin-1")
        if name is None:
            raise BaseModelUnknown(server)
        if not name:
            if principal.restricts_models:
                raise ModelNotAllowed(
                    "This key may use certain models only. On this route the server's base model answers whatever the "
                    "body names, and the server does not say which that is. Use another route.",
                    param="model",
                )
            return Serving(server, priced=not router.prices_differ(server))
        entry = router.serving(server, name)
        model = name if entry is None else entry.model_name
        self._policy.check_model(principal, model)
        if entry is None:
            self._policy.check_unlisted_model(principal, model)
        if (
            adapter is None
            and asked
            and destination.entry is None
            and principal.restricts_models
            and not self._base_models.has_model(server, asked)
        ):
            # the base model would answer for any name; on other routes vLLM refuses a name that it does not have
            raise ModelNotFound(f"The server has no model {asked[:CLIP]!r}.", param="model")
        return Serving(server, "", model, "" if name == model else name, entry)

    @staticmethod
    def _prioritised(principal: Principal, row: VllmRoute, body: bytes, facts: BodyFacts) -> bytes:
        """Return a JSON body with the priority of the key, unless its callers may choose their own."""
        assert principal.priority is not None
        if PRIORITY in principal.granted_headers and has_priority(body, facts):
            return body
        return with_priority(body, facts, principal.priority, insert=row.priority_in_body)

    def _admit_unknown(self, authorization: Authorization, named: str, body: bytes | None) -> Admitted:
        """Admit a request on a route that may use a model that its body names."""
        if named:
            self._serving(authorization, named, insertable=False)
        server = self._router.destination_for_undetermined().server
        return Admitted(Serving(server), authorization.forwarded, body)

    def _facts(
        self, authorization: Authorization, headers: Mapping[bytes, bytes], body: bytes | None, form: bool
    ) -> tuple[BodyFacts, ModelUndetermined | None]:
        """Return the facts read from the body, or `UNREAD` and why it could not be read, or None if it need not be."""
        principal, route = authorization.principal, authorization.route
        restricted = authorization.restricted
        if body and authorization.reads:
            try:
                if form and authorization.stores and principal.kind == "key":
                    raise _no_json()
                if form:
                    facts = BodyFacts(model=_read_form(body, headers[b"content-type"], authorization.fields))
                elif is_json(headers):
                    facts = read_body(body, route.row.fields, authorization.fields)
                else:
                    raise ModelUndetermined(
                        "The model cannot be told from a body of this Content-Type: send application/json, "
                        "or multipart/form-data where vLLM takes files.",
                        param="model",
                    )
            except ModelUndetermined as error:
                # vLLM may still accept it, with its default model, in the shared prefix cache or with any field
                if _must_be_read(authorization):
                    raise
                return UNREAD, error
            if facts.model_repeated and not principal.is_administrator:
                raise ModelUndetermined('"model" is there more than once. Send it once.', param="model")
            if not restricted or not route.takes_model or (facts.model is not None and facts.model.name):
                return facts, None
        if restricted and (route.takes_model or route.row.model is ModelPlace.EVENT):
            raise _no_model()
        return UNREAD, None


def _is_preflight(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether an OPTIONS request is a CORS preflight (Fetch §4.8).

    Without ``Origin`` vLLM's CORS middleware does not answer it: vLLM would, and its ``/metrics`` ignores the method.
    A preflight has no body, and a stranger has no reason to send one.
    """
    return (
        b"access-control-request-method" in headers
        and b"origin" in headers
        and b"transfer-encoding" not in headers
        and headers.get(b"content-length", b"0").strip() == b"0"
    )


def _must_be_read(authorization: Authorization) -> bool:
    """Return whether a permission depends on a body, so that one that cannot be read is refused."""
    principal = authorization.principal
    return (
        principal.restricts_models
        or bool(principal.cache_salt)
        or principal.priority is not None
        or authorization.fields is not None
        or (authorization.stores and principal.kind == "key")
    )


def _read_form(body: bytes, content_type: bytes, policy: FieldPolicy | None) -> ModelField | None:
    """Return the model of a form, and check its fields."""
    if policy is None:
        return find_model_in_form(body, content_type)
    fields = FormFields(policy)
    field = find_model_in_form(body, content_type, fields)
    fields.finish()
    return field


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


def _no_json() -> InvalidRequest:
    return InvalidRequest("Responses are requested with a body of Content-Type application/json.")


def _no_model() -> ModelUndetermined:
    return ModelUndetermined(
        "This key may use certain models only, and the gateway cannot read from this request which it asks "
        'for: send it in the body as "model".',
        param="model",
    )
