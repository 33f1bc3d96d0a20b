"""Decides about a request that nobody sent: may this key call this model on this route, and if not, why?

It asks what a real request would pass, in the same order, and counts and sends nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks

from twisted_vllm.api_routes import ModelPlace, classify
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.verdicts import WITHOUT_BODY, Check, Question, Verdict
from twisted_vllm.context import Authorization
from twisted_vllm.errors import (
    BudgetExceeded,
    EndUserBlocked,
    GatewayError,
    InvalidRequest,
    LimitsUnavailable,
    ModelNotAllowed,
    ModelNotFound,
    ModelUndetermined,
    NotFound,
    RateLimitExceeded,
)
from twisted_vllm.mounts import Mount, Mounts
from twisted_vllm.proxy.accounting import Accounting, Demand
from twisted_vllm.proxy.admission import Admission, Admitted, ResponseUnlocated
from twisted_vllm.proxy.paths import target
from twisted_vllm.proxy.serving import BaseModelUnknown
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.refusals import LEVELS
from twisted_vllm.upstreams.dispatcher import Dispatcher
from twisted_vllm.upstreams.router import ModelGroup

#: models that are tried in place of one, as in `Forwarding`
_MOST_FALLBACKS = 5

#: the gateway's own paths of the list of models
_LISTING = re.compile(rb"(?:/openai)?((?:/v1)?/models(?:/.*)?)")

_JSON = {b"content-type": b"application/json"}


class Trials:
    """Decides about requests that nobody sent."""

    def __init__(
        self,
        admission: Admission,
        accounting: Accounting | None,
        dispatcher: Dispatcher,
        mounts: Mounts,
        judged: Callable[[str, float], tuple[Principal, GatewayError | None] | None],
    ) -> None:
        """Set up.

        Args:
            admission: authorizes and routes requests.
            accounting: limits them; None limits none.
            dispatcher: knows which servers get requests.
            mounts: decides which paths are vLLM's.
            judged: finds a key by its token, as `Authenticator.judged`.
        """
        self._admission = admission
        self._accounting = accounting
        self._dispatcher = dispatcher
        self._mounts = mounts
        self._judged = judged

    def of_key(self, token: str, question: Question, now: float) -> Deferred[Verdict | None]:
        """Decide about a request with a key; None if there is no such key."""
        found = self._judged(token, now)
        if found is None:
            return _fired(None)
        return self._decide(*found, question)

    def of_principal(self, principal: Principal, question: Question) -> Deferred[Verdict | None]:
        """Decide about a request of a caller that is known."""
        return self._decide(principal, None, question)

    @inlineCallbacks
    def _decide(
        self, principal: Principal, refusal: GatewayError | None, question: Question
    ) -> Generator[Deferred[Any], Any, Verdict | None]:
        checks = [_key_check(refusal)]
        if not question.method:
            question = msgspec.structs.replace(question, method=self._usual_method(question.path))
        method = question.method.decode("latin-1")
        authorization = self._authorize(principal, question, checks)
        if authorization is None:
            self._look_at_model(principal, question, checks)
            yield self._look_at_limits(principal, checks)
            return Verdict(tuple(checks), "", method)
        route = authorization.route.name or authorization.route.path
        if authorization.model_id is not None:
            self._look_at_model(principal, question, checks, authorization.model_id)
            return Verdict(tuple(checks), route, method)
        admitted = self._admit(authorization, question, checks)
        if admitted is None:
            if not authorization.uncounted:
                yield self._look_at_limits(principal, checks)
            return Verdict(tuple(checks), route, method)
        if self._accounting is not None:
            yield self._limits(self._accounting, authorization, admitted, question, checks)
        fallback = self._servers(authorization, admitted, question, checks)
        return Verdict(tuple(checks), route, method, admitted.model, fallback)

    def _usual_method(self, path: str) -> bytes:
        """Return the method by which a route is called: POST if it takes that."""
        mount = self._find(path.encode("utf-8", "replace").partition(b"?")[0])
        methods: tuple[bytes, ...] = ()
        if mount is not None:
            with suppress(InvalidRequest):
                methods = classify(b"POST", target(mount.path).path).row.methods
        return b"POST" if b"POST" in methods or not methods else methods[0]

    def _find(self, path: bytes) -> Mount | None:
        """Return what a path means to a server; also of the list of models, which is the gateway's own at the root."""
        mount = self._mounts.find(path)
        if mount is None and (listed := _LISTING.fullmatch(path)) is not None:
            return Mount(b"", listed[1])
        return mount

    def _authorize(self, principal: Principal, question: Question, checks: list[Check]) -> Authorization | None:
        path, mark, query = question.path.encode("utf-8", "replace").partition(b"?")
        mount = self._find(path)
        if mount is None:
            # nobody is asked for a key there
            error = NotFound("The gateway has no such route. vLLM's are below /vllm.")
            checks.insert(0, _failed("route", error, _OPENS[error.code]))
            return None
        try:
            authorization = self._admission.authorize(
                principal, question.method, mount.path + mark + query, mount.model
            )
        except GatewayError as error:
            checks.append(_failed("route", error, _OPENS.get(error.code, "")))
            return None
        kind = authorization.route.route_class.value.replace("_", " ")
        how = "allowed_routes of the key name it" if principal.allowed_routes else "every key may call it"
        if principal.is_administrator:
            how = "administrators may call every route"
        elif not principal.allowed_routes and authorization.route.route_class.value == "privileged":
            how = "passthrough.tenant_routes.allow opens it to all keys"
        checks.append(Check("route", True, f"It is a route of the class {kind}: {how}."))
        return authorization

    def _look_at_model(
        self, principal: Principal, question: Question, checks: list[Check], name: str | None = None
    ) -> None:
        """Check a model's name alone: of a request whose route is refused, or which asks about the model."""
        asked = question.model if name is None else name
        if not asked:
            return
        if self._admission.may_use_model(principal, principal.aliases.get(asked, asked)):
            checks.append(Check("model", True, "The key may use this model."))
        elif name is None:
            error: GatewayError = ModelNotAllowed(f"The key may not use the model {asked[:100]!r}.", param="model")
            checks.append(_failed("model", error, _MODELS))
        else:
            # as the list of models has it
            checks.append(_failed("model", ModelNotFound("There is no such model.", param="model"), _MODELS))

    def _admit(self, authorization: Authorization, question: Question, checks: list[Check]) -> Admitted | None:
        principal = authorization.principal
        headers: Mapping[bytes, bytes] = {} if question.method in WITHOUT_BODY else _JSON
        try:
            admitted = self._admission.admit(authorization, headers, question.body_for(authorization.route.row.fields))
        except (ModelNotAllowed, ModelNotFound, ModelUndetermined) as error:
            opens = _NEW_MODEL if isinstance(error, ModelNotFound) else _MODELS
            if isinstance(error, ModelUndetermined):
                opens = "Name a model."
            checks.append(_failed("model", error, opens))
            return None
        except BaseModelUnknown:
            checks.append(
                Check("model", None, "On this route the server's base model answers, and the server must be asked.")
            )
            return None
        except ResponseUnlocated:
            checks.append(Check("servers", None, "All servers must be asked for this stored response."))
            return None
        except GatewayError as error:
            checks.append(_failed("fields", error, "`allowed_fields` of the key, or the rules of its team."))
            return None
        if authorization.route.takes_model or admitted.model:
            checks.append(Check("model", True, _model_in_words(principal, question, admitted)))
        if authorization.fields is not None:
            checks.append(
                Check(
                    "fields", True, "The fields of this request pass; others depend on the body: see the key's rules."
                )
            )
        return admitted

    @inlineCallbacks
    def _look_at_limits(self, principal: Principal, checks: list[Check]) -> Generator[Deferred[Any], Any, None]:
        """Check what limits leave for any request, of one that is refused for something else."""
        if self._accounting is not None and principal.limited:
            yield self._try_limits(self._accounting, (principal.limited, "", 1, 1), checks)

    @inlineCallbacks
    def _limits(
        self,
        accounting: Accounting,
        authorization: Authorization,
        admitted: Admitted,
        question: Question,
        checks: list[Check],
    ) -> Generator[Deferred[Any], Any, None]:
        try:
            demand = accounting.demand_of(authorization, admitted, question.method)
        except GatewayError as error:
            name = "end_user" if isinstance(error, EndUserBlocked) or error.param == "user" else "limits"
            checks.append(_failed(name, error, _OPENS.get(error.code, "")))
            return
        if demand is None:
            checks.append(Check("limits", True, "No limit applies."))
            return
        yield self._try_limits(accounting, demand, checks)

    @inlineCallbacks
    def _try_limits(
        self, accounting: Accounting, demand: Demand, checks: list[Check]
    ) -> Generator[Deferred[Any], Any, None]:
        """Check the limits of each level."""
        limited, model, tokens, cost = demand
        for each in limited:
            level = LEVELS.get(each.kind, each.kind)
            try:
                deciding = accounting.would_admit(((each,), model, tokens, cost))
                if deciding is not None:
                    yield deciding
            except (RateLimitExceeded, BudgetExceeded, LimitsUnavailable) as error:
                checks.append(_failed("limits", error, _opens_limit(each, error), each.kind))
            else:
                checks.append(Check("limits", True, f"The limits of {level} have room.", level=each.kind))

    def _servers(
        self, authorization: Authorization, admitted: Admitted, question: Question, checks: list[Check]
    ) -> str:
        """Check that a server gets requests; return the model that is asked in its place, or nothing."""
        if admitted.servers:
            checks.append(Check("servers", True, f"It goes to all {len(admitted.servers)} servers."))
            return ""
        route = authorization.route
        uses_model = route.takes_model or route.row.model is ModelPlace.EVENT
        group = admitted.serving.group
        refusal = self._dispatcher.refusal_of(group, uses_model=uses_model)
        if refusal is None:
            checks.append(Check("servers", True, _servers_in_words(self._dispatcher, group)))
            return ""
        for name in group.fallbacks[:_MOST_FALLBACKS]:
            try:
                other = self._admission.admit(
                    authorization, _JSON, question.body_for(authorization.route.row.fields), instead=name
                )
            except GatewayError:
                continue
            if self._dispatcher.refusal_of(other.serving.group, uses_model=uses_model) is None:
                checks.append(Check("servers", True, f"No server of the model gets requests: {name} is asked instead."))
                return other.model or name
        checks.append(_failed("servers", refusal, "A server of the model that gets requests: see the servers."))
        return ""


def _fired(value: Any) -> Deferred[Any]:
    fired: Deferred[Any] = Deferred()
    fired.callback(value)
    return fired


def _failed(check: str, error: GatewayError, opens: str, level: str = "") -> Check:
    return Check(check, False, error.message, opens, error, level)


def _key_check(refusal: GatewayError | None) -> Check:
    if refusal is None:
        return Check("key", True, "The key is valid.")
    return _failed("key", refusal, _OPENS.get(refusal.code, ""))


_MODELS = "`models` of the level that refuses it (key, user, team or organization), or an alias of the key for it."
_NEW_MODEL = "An entry of the model list with this name: in the file, or by POST /model/new."

#: what would open what an error refuses, by its code
_OPENS = {
    "blocked_api_key": "Unblock the key, or its team.",
    "expired_api_key": "Give the key a later expiry, or make a new one.",
    "route_not_allowed": "allowed_routes of the key, or passthrough.tenant_routes for all keys.",
    "route_not_found": "Another path: the gateway knows no such route of vLLM.",
    "method_not_allowed": "Another method.",
    "not_found": "Another path: vLLM's routes are below /vllm, and its inference routes also at the root.",
    "end_user_blocked": "Unblock the end user.",
    "ledger_unavailable": "The operator must see to the ledger: nothing is served until it can be written.",
}


def _opens_limit(limited: Limited, error: GatewayError) -> str:
    whose = LEVELS.get(limited.kind, limited.kind)
    if isinstance(error, BudgetExceeded):
        return f"A higher max_budget of {whose}, or its next period."
    if isinstance(error, RateLimitExceeded):
        return f"Time, or a higher limit of {whose}."
    return "Time: the limits cannot be counted at present."


def _model_in_words(principal: Principal, question: Question, admitted: Admitted) -> str:
    asked, model = question.model, admitted.model
    if not model:
        return "The request names no model; it uses the server's."
    if asked and asked != model:
        return f"{asked[:100]!r} means the model {model[:100]!r} here, which the key may use."
    how = "" if principal.restricts_models else ": nothing restricts it to certain models"
    return f"The key may use the model {model[:100]!r}{how}."


def _servers_in_words(dispatcher: Dispatcher, group: ModelGroup) -> str:
    now = dispatcher.seconds()
    usable = sum(each.is_usable(now) for each in {each.state for each in group.current.destinations})
    count = len({each.state for each in group.current.destinations})
    waiting = len(group.current.queue)
    waits = f" {waiting} requests wait for them." if waiting else ""
    return f"{usable} of {count} servers of the model get requests.{waits}"
