"""Authorization of a request and the choice of its server, without I/O, in two steps.

The head identifies the caller and the route. The body is read before the second step only if the model decides a
permission or the server. Every other body streams.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twisted_vllm.api_routes import ModelPlace, PrefixCache, RouteClass, VllmRoute, classify
from twisted_vllm.auth.authenticator import Authenticator
from twisted_vllm.auth.credentials import credential_of
from twisted_vllm.auth.fields import FieldPolicies
from twisted_vllm.auth.policy import RoutePolicy
from twisted_vllm.auth.records import PREFLIGHT, Principal
from twisted_vllm.auth.steering_headers import SERVER, SERVERS_OF_MODEL
from twisted_vllm.bodies.edits import (
    Edit,
    has_priority,
    name_edit,
    priority_edits,
    request_id_edit,
    salt_edit,
    splice,
    usage_edits,
)
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.bodies.held_pieces import Rope
from twisted_vllm.bodies.json_body import MAX_SURE, UNREAD, BodyFacts, ModelField, is_no_object, read_body
from twisted_vllm.bodies.multipart import find_model_in_form, insert_in_form, rename_in_form
from twisted_vllm.bodies.response_fields import NO_FIELDS, ResponseFields, check_repeatable, read_response_fields
from twisted_vllm.config.settings import Server
from twisted_vllm.context import Authorization
from twisted_vllm.errors import InvalidRequest, ModelUndetermined, RouteNotAllowed
from twisted_vllm.field_policy.forms import FormFields
from twisted_vllm.field_policy.policy import FieldPolicy
from twisted_vllm.http.headers import RequestHead, is_form, is_json
from twisted_vllm.proxy.chosen_servers import chosen_server
from twisted_vllm.proxy.paths import model_in, target
from twisted_vllm.proxy.response_ids import ResponseIds, hides_responses, stored_response_in
from twisted_vllm.proxy.serving import BaseModels, Serving, ServingChooser
from twisted_vllm.proxy.upstream_headers import PRIORITY
from twisted_vllm.upstreams.response_places import ResponsePlaces
from twisted_vllm.upstreams.router import Destination, Router
from twisted_vllm.upstreams.server_state import ServerState
from twisted_vllm.usage.records import Payer, refer

# to read a member of an enum from its class takes 0.1 µs
_PERHAPS, _HEADER, _EVENT = ModelPlace.PERHAPS, ModelPlace.HEADER, ModelPlace.EVENT
_SALTED = PrefixCache.SALTED

#: the list of models, and the methods by which it is read
LISTING = classify(b"GET", b"/v1/models")
_LISTING_METHODS = (b"GET", b"HEAD")

#: methods whose requests have no body
_WITHOUT_BODY = frozenset((b"GET", b"HEAD", b"OPTIONS"))


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """A request that is forwarded to a server.

    Attributes:
        serving: what serves it.
        path: path and query, below the server's base path.
        body: the body as it came, or a form with the model of the path; None if it streams.
        facts: other facts read from the body.
        form: whether the body is a form.
        named: the model that the body names; empty if it names none.
        edits: the changes to the body that do not depend on the server.
        usage_injected: whether the gateway requests the stream's usage although the client did not.
        unread: why the body could not be read; None if it was read or streams.
        stored: what the body says about stored responses.
        background: whether the server is to generate the response in the background.
        previous_id: the id of the stored response that it continues; None if it continues none, or for administrators.
        steered: whether the client named its server.
        servers: the servers that it goes to, if there are several: an act of the operator.
    """

    serving: Serving
    path: bytes
    body: bytes | HeldBody | None
    facts: BodyFacts = UNREAD
    form: bool = False
    named: str = ""
    edits: tuple[Edit, ...] = ()
    usage_injected: bool = False
    unread: ModelUndetermined | None = None
    stored: ResponseFields = NO_FIELDS
    background: bool = False
    previous_id: str | None = None
    steered: bool = False
    servers: tuple[ServerState, ...] = ()

    @property
    def model(self) -> str:
        """The model's name, as in `Serving`."""
        return self.serving.model


class ResponseUnlocated(Exception):
    """All servers must be asked for a stored response.

    Attributes:
        response_id: its id.
    """

    def __init__(self, response_id: str) -> None:
        super().__init__(response_id)
        self.response_id = response_id


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A request as a server gets it.

    Attributes:
        body: the body; None if it streams.
        renamed: for a streaming form, the server's name of the model if it differs from the form's.
        response_id: the id of the response, if the gateway chose it; else empty.
    """

    body: bytes | Rope | None
    renamed: str | None = None
    response_id: str = ""


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
        places: ResponsePlaces | None = None,
    ) -> None:
        """Set up admission.

        Args:
            authenticator: identifies the principal of a credential.
            policy: decides which routes and models a principal may use.
            router: picks the server for a model.
            base_models: knows the base models of servers, for the choice of what serves a request.
            path_aliases: whether OpenAI's and Anthropic's routes also work without ``/v1``.
            fields: decides which fields of a body a principal may send; None allows any.
            reads_bodies: whether to read bodies for the ledger.
            inject_usage: whether to request the usage of a stream when the client does not.
            response_ids: makes and checks the ids of stored responses; None lets every key use every response.
            places: what was learned of the places of other stored responses; None sends all requests for them to the
                default server.
        """
        self._reads_bodies = reads_bodies
        self._authenticator = authenticator
        self._authenticate = authenticator.authenticate
        #: as of `Authenticator`
        self.known, self.index = authenticator.known, authenticator.index
        self._serving = ServingChooser(policy, router, base_models)
        self._response_ids = response_ids
        self._places = places
        self._servers = router.servers
        self.reconfigure(policy=policy, path_aliases=path_aliases, fields=fields, inject_usage=inject_usage)

    def reconfigure(
        self, *, policy: RoutePolicy, path_aliases: bool, fields: FieldPolicies | None, inject_usage: bool
    ) -> None:
        """Use other settings from now on, and what the router has now; the arguments are the constructor's."""
        self._policy = policy
        self._path_aliases = path_aliases
        self._fields = fields
        self._inject_usage = inject_usage
        self._serving.reconfigure(policy)
        self._routes_by_model = self._serving.routes_by_model

    @property
    def changes(self) -> int:
        """A counter of changes to keys, users, teams and settings; a change may invalidate earlier decisions."""
        return self._authenticator.changes

    def identify(
        self, headers: Mapping[bytes, bytes], now: float, method: bytes = b"GET", has_body: bool = False
    ) -> Principal:
        """Authenticate a request.

        Args:
            headers: the first value of each header, by lower-case name.
            now: the time in Unix seconds.
            method: the method; a browser sends its preflight (OPTIONS) without credentials, and vLLM answers it.
            has_body: whether the request has a body. A preflight has none, and a stranger's must not reach a server.

        Returns:
            The principal; `PREFLIGHT` only for a request that vLLM's CORS middleware answers by itself.

        Raises:
            MissingApiKey, InvalidApiKey, ExpiredApiKey, BlockedApiKey: the credential is missing or not valid.
        """
        if method == b"OPTIONS" and not has_body and _is_preflight(headers) and credential_of(headers) is None:
            return PREFLIGHT
        return self._authenticate(headers, now)

    def authorize(self, principal: Principal, method: bytes, raw: bytes, path_model: str = "") -> Authorization:
        """Authorize a request by its head.

        Of the principal, the decision depends on what `Permissions` tells apart, and on the key where the path names a
        stored response.

        Args:
            principal: the caller.
            method: the method.
            raw: the request target below its mount, as received.
            path_model: the model that the path names; empty if it names none.

        Raises:
            InvalidRequest: the path's dot segments lead out of ``/vllm``.
            RouteNotAllowed, RouteNotFound, RouteMethodNotAllowed: the principal may not call this route.
            ResponseNotFound: the path names a stored response that the principal's key did not make.
        """
        resolved = target(raw, self._path_aliases)
        model_id = model_in(resolved.path, self._path_aliases) if method in _LISTING_METHODS else None
        # whoever may list models may ask for each
        route = classify(method, resolved.path) if model_id is None else LISTING
        if route.name == LISTING.name and model_id is None and method in _LISTING_METHODS:
            model_id = ""
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
                or bool(path_model)
            )
        )
        return Authorization(
            principal,
            _payer_of(principal),
            route,
            resolved.path,
            resolved.forwarded,
            needs_body,
            takes_model and self._reads_bodies,
            takes_model or may_name,
            restricted,
            stores,
            response_id,
            response_server,
            fields,
            route.route_class is RouteClass.READ_ONLY or response_id is not None,
            path_model if takes_model else "",
            model_id=model_id,
        )

    def may_use_model(self, principal: Principal, name: str) -> bool:
        """Return whether a principal may use a model, by a name whose alias of the key is resolved."""
        return principal.is_administrator or self._serving.may_use(principal, name)

    def check_may_list(self, principal: Principal) -> None:
        """Check that a principal may list models.

        Raises:
            RouteNotAllowed: it may not.
        """
        self._policy.check_route(principal, LISTING)

    def must_hold(self, authorization: Authorization, head: RequestHead) -> bool:
        """Return whether a body that is on its way must be held, by what its head says of it.

        Raises:
            ModelUndetermined: whatever the body is, a permission depends on it and it cannot be read.
        """
        if authorization.route.fans_out and len(self._servers) > 1:
            # each of them gets it
            return True
        if not authorization.needs_body or _is_readable(head.first):
            return authorization.needs_body
        if not _must_be_read(authorization):
            # nothing can be found out from it
            return False
        if authorization.restricted or authorization.principal.cache_salt or (head.length or 0) > MAX_SURE:
            raise _unreadable_type()
        return True

    def admit(
        self,
        authorization: Authorization,
        headers: Mapping[bytes, bytes],
        body: bytes | HeldBody | None,
        instead: str = "",
    ) -> Admitted:
        """Admit the whole request.

        Args:
            authorization: what `authorize` returned.
            headers: the first value of each header, by lower-case name.
            body: the body, or None if it streams; required if `must_hold` says so.
            instead: the model to use in place of the one that the body names; empty for that one.

        Raises:
            ModelUndetermined: a permission depends on the model, and the body does not name it clearly.
            ModelNotAllowed: the principal may not use the model.
            ModelNotFound: no server is configured for the model, or on ``/invocations`` the server does not have it.
            InvalidRequest: the key has its own prefix cache, and the body repeats ``cache_salt``; or the body asks to
                stream where vLLM does not count what it streams; or as from `read_response_fields`.
            ResponseNotFound: the body continues a response that the principal's key did not make.
            FieldNotAllowed: the principal may not send a field of the body.
            BaseModelUnknown: a server must be asked for its base model first.
            ResponseUnlocated: all servers must be asked for a stored response first.
            ServerNotAllowed, ServerNotFound: as from `chosen_server` and `ServingChooser.moved`.
        """
        principal, row = authorization.principal, authorization.route.row
        chosen = self._chosen(principal, headers) if SERVER in headers else None
        if authorization.route.fans_out:
            return self._admit_act(authorization, headers, body, chosen)
        form = headers.get(b"content-type") != b"application/json" and is_form(headers)
        facts, unread = self._facts(authorization, headers, body, form)
        field = facts.model
        path_model = authorization.path_model
        if path_model and field is None and form and facts is not UNREAD:
            assert isinstance(body, bytes)
            body, field = insert_in_form(body, headers[b"content-type"], path_model)
            facts = BodyFacts(model=field)
        own = "" if field is None else field.name
        named = instead or path_model or own
        place = row.model
        if place is _PERHAPS:
            return self._admit_unknown(authorization, named, body, chosen)
        stored, preferred = NO_FIELDS, None
        if authorization.stores and body and facts is not UNREAD:
            stored, preferred = self._response_fields(authorization, body, chosen)
        if place is _HEADER:
            serving = self._serving.by_header(authorization, headers, named, chosen)
        elif chosen is not None and not named:
            serving = self._serving.at(chosen, takes_model=authorization.route.takes_model)
        elif authorization.response_id is not None:
            serving = self._serving_of_response(authorization, authorization.response_id)
        elif place is _EVENT:
            serving = self._serving.by_event()
        else:
            serving = self._serving.by_body(authorization, named, facts is not UNREAD and not form, preferred)
            if chosen is not None:
                serving = self._serving.moved(serving, chosen, principal)
        forwarded, steered = authorization.forwarded, chosen is not None
        if body is None or facts is UNREAD or form:
            return Admitted(serving, forwarded, body, facts, form, own, unread=unread, steered=steered)
        edits: list[Edit] = []
        if principal.priority is not None:
            edits += self._priority_edits(principal, row, body, facts)
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
        return Admitted(
            serving,
            forwarded,
            body,
            facts,
            False,
            own,
            tuple(edits) if edits else (),
            bool(injected),
            stored=stored,
            background=stored.background,
            previous_id=stored.previous if stored.previous is not None and self._makes_ids(authorization) else None,
            steered=steered,
        )

    def prepare(self, authorization: Authorization, admitted: Admitted, destination: Destination) -> Prepared:
        """Return an admitted request as one of its servers gets it.

        Raises:
            ModelUndetermined: the model's name cannot be written in a form.
        """
        body, facts, own = admitted.body, admitted.facts, admitted.named
        name = admitted.serving.name_at(destination)
        if body is None:
            return Prepared(None, name if name and name != own else None)
        if facts is UNREAD:
            return Prepared(_unedited(body))
        if admitted.form:
            assert isinstance(body, bytes)
            if facts.model is not None and name and name != own:
                body = rename_in_form(body, facts.model, name)
            return Prepared(body)
        edits = admitted.edits
        if name and name != own:
            edits = (*edits, name_edit(body, facts, name))
        response_id = ""
        if authorization.stores and self._response_ids is not None and self._makes_ids(authorization):
            response_id = self._response_ids.make(authorization.principal, destination.server)
            edits = (*edits, request_id_edit(body, admitted.stored, response_id))
        return Prepared(splice(body, edits) if edits else _unedited(body), None, response_id)

    def _makes_ids(self, authorization: Authorization) -> bool:
        """Return whether the gateway chooses the id of the response."""
        return authorization.stores and self._response_ids is not None and authorization.principal.kind == "key"

    def _chosen(self, principal: Principal, headers: Mapping[bytes, bytes]) -> Server | None:
        return chosen_server(principal, headers, {state.name: state.server for state in self._servers})

    def _admit_act(
        self,
        authorization: Authorization,
        headers: Mapping[bytes, bytes],
        body: bytes | HeldBody | None,
        chosen: Server | None,
    ) -> Admitted:
        """Admit an act that goes to all servers, to those of a model, or to one.

        Raises:
            ModelUndetermined, ModelNotAllowed, ModelNotFound: as from `ServingChooser.servers_of`.
        """
        if chosen is not None:
            return Admitted(self._serving.at(chosen), authorization.forwarded, body, steered=True)
        model = headers.get(SERVERS_OF_MODEL)
        servers = self._serving.servers_of(authorization, None if model is None else model.decode("latin-1"))
        serving = self._serving.at(servers[0].server)
        return Admitted(serving, authorization.forwarded, body, servers=servers if len(servers) > 1 else ())

    def _serving_of_response(self, authorization: Authorization, response_id: str) -> Serving:
        """Return the serving of a request for a stored response.

        Raises:
            ResponseUnlocated: as from `admit`.
        """
        server = authorization.response_server or self._place_of(authorization, response_id)
        return self._serving.undetermined() if server is None else self._serving.at(server)

    def _place_of(self, authorization: Authorization, response_id: str) -> Server | None:
        """Return the server that has a response whose id does not tell; None if no server has it.

        Raises:
            ResponseUnlocated: as from `admit`.
        """
        if self._places is None or len(self._servers) < 2:
            return None
        located = authorization.located
        if located is not None and located[0] == response_id:
            return located[1]
        name = self._places.find(response_id)
        state = None if name is None else self._servers.named(name)
        if state is None:
            raise ResponseUnlocated(response_id)
        return state.server

    def _response_fields(
        self, authorization: Authorization, body: bytes | HeldBody, chosen: Server | None
    ) -> tuple[ResponseFields, Server | None]:
        """Return what a body says about stored responses, and the server that has the one to continue.

        Raises:
            ResponseNotFound, InvalidRequest: as from `admit`; for virtual keys only.
            ResponseUnlocated: as from `admit`.
        """
        principal = authorization.principal
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
        server = self._response_ids.server_of(principal, stored.previous)
        if server is None and chosen is None:
            server = self._place_of(authorization, stored.previous)
        return stored, server

    def admit_form(
        self,
        authorization: Authorization,
        headers: Mapping[bytes, bytes],
        name: str | None,
        fault: ModelUndetermined | None,
    ) -> Admitted:
        """Admit a request whose form streams.

        Args:
            authorization: what `authorize` returned.
            headers: the first value of each header, by lower-case name.
            name: the model that the form names, or None.
            fault: why the model cannot be determined, or None.

        Raises:
            ModelUndetermined, ModelNotAllowed, ModelNotFound, InvalidRequest, ServerNotAllowed, ServerNotFound: as from
                `admit`.
        """
        principal = authorization.principal
        named = authorization.path_model or name or ""
        if authorization.stores and principal.kind == "key":
            raise _no_json()
        if fault is not None and _must_be_read(authorization):
            raise fault
        if not named and authorization.restricted:
            raise _no_model()
        chosen = self._chosen(principal, headers) if SERVER in headers else None
        if chosen is not None and not named:
            serving = self._serving.at(chosen, takes_model=True)
        else:
            serving = self._serving.by_body(authorization, named, insertable=False)
            if chosen is not None:
                serving = self._serving.moved(serving, chosen, principal)
        return Admitted(
            serving,
            authorization.forwarded,
            None,
            form=True,
            named=name or "",
            unread=fault,
            steered=chosen is not None,
        )

    @staticmethod
    def _priority_edits(principal: Principal, row: VllmRoute, body: bytes | HeldBody, facts: BodyFacts) -> list[Edit]:
        """Return the edits that set the priority of the key, unless its callers may choose their own."""
        assert principal.priority is not None
        if PRIORITY in principal.granted_headers and has_priority(body, facts):
            return []
        return priority_edits(body, facts, principal.priority, insert=row.priority_in_body)

    def _admit_unknown(
        self, authorization: Authorization, named: str, body: bytes | HeldBody | None, chosen: Server | None
    ) -> Admitted:
        """Admit a request on a route that may use a model that its body names."""
        if named:
            self._serving.by_body(authorization, named, insertable=False)
        if chosen is not None:
            serving = self._serving.at(chosen)
        elif authorization.response_id is not None:
            serving = self._serving_of_response(authorization, authorization.response_id)
        else:
            serving = self._serving.undetermined()
        return Admitted(serving, authorization.forwarded, body, steered=chosen is not None)

    def _facts(
        self, authorization: Authorization, headers: Mapping[bytes, bytes], body: bytes | HeldBody | None, form: bool
    ) -> tuple[BodyFacts, ModelUndetermined | None]:
        """Return the facts read from the body, or `UNREAD` and why it could not be read, or None if it need not be."""
        principal, route = authorization.principal, authorization.route
        restricted = authorization.restricted
        if body and authorization.reads:
            try:
                if form and authorization.stores and principal.kind == "key":
                    raise _no_json()
                if form:
                    assert isinstance(body, bytes)
                    facts = BodyFacts(model=_read_form(body, headers[b"content-type"], authorization.fields))
                elif is_json(headers):
                    facts = read_body(body, route.row.fields, authorization.fields)
                else:
                    raise _unreadable_type()
            except ModelUndetermined as error:
                if not (restricted or principal.cache_salt) and _is_refused(headers, body):
                    # so that the error is the server's own
                    return UNREAD, None
                # vLLM may still accept it, with its default model, in the shared prefix cache or with any field
                if _must_be_read(authorization):
                    raise
                # its traceback refers to the body
                return UNREAD, error.with_traceback(None)
            path_model = authorization.path_model
            if facts.model_repeated and (path_model or not principal.is_administrator):
                raise ModelUndetermined('"model" is there more than once. Send it once.', param="model")
            if not restricted or path_model or not route.takes_model or (facts.model is not None and facts.model.name):
                return facts, None
        if restricted and not authorization.path_model and (route.takes_model or route.row.model is ModelPlace.EVENT):
            raise _no_model()
        if body is None and authorization.needs_body and not _is_readable(headers):
            return UNREAD, _unreadable_type()
        return UNREAD, None


def _unedited(body: bytes | HeldBody | None) -> bytes | Rope | None:
    return body.rope() if isinstance(body, HeldBody) else body


def _is_preflight(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether an OPTIONS request is a CORS preflight (Fetch §4.8).

    Without ``Origin`` vLLM's CORS middleware does not answer it: vLLM would, and its ``/metrics`` ignores the method.
    """
    return b"access-control-request-method" in headers and b"origin" in headers


def _must_be_read(authorization: Authorization) -> bool:
    """Return whether a permission depends on a body, so that one that cannot be read is refused."""
    principal = authorization.principal
    return (
        authorization.restricted
        or bool(principal.cache_salt)
        or principal.priority is not None
        or authorization.fields is not None
        or (authorization.stores and principal.kind == "key")
        # the body must name the model of the path
        or bool(authorization.path_model)
    )


def _is_refused(headers: Mapping[bytes, bytes], body: bytes | HeldBody) -> bool:
    """Return whether vLLM certainly refuses a body: what is neither a form nor a JSON object."""
    content_type = headers.get(b"content-type", b"").lstrip().lower()
    return not content_type.startswith((b"multipart/", b"application/x-www-form-urlencoded")) and is_no_object(body)


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
        principal.organization_id,
    )
    return refer(payer)


def _is_readable(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether the gateway can read a body of this type for its model."""
    return is_json(headers) or is_form(headers)


def _unreadable_type() -> ModelUndetermined:
    return ModelUndetermined(
        "The model cannot be told from a body of this Content-Type: send application/json, or multipart/form-data "
        "where vLLM takes files.",
        param="model",
    )


def _no_json() -> InvalidRequest:
    return InvalidRequest("Responses are requested with a body of Content-Type application/json.")


def _no_model() -> ModelUndetermined:
    return ModelUndetermined(
        "This key may use certain models only, and the gateway cannot read from this request which it asks "
        'for: send it in the body as "model".',
        param="model",
    )
