"""The tester: may a key call a model on a route, and if not, why?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.models import Json, Query, Response
from twisted_vllm.admin.routing import Routes
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import InvalidRequest, NotFound
from twisted_vllm.storage.transaction import Transaction

if TYPE_CHECKING:
    # few gateways are asked
    from twisted_vllm.auth.verdicts import Check, Verdict

_METHODS = Literal["", "get", "head", "post", "put", "patch", "delete"]
_NO_SERVERS = "This gateway has no servers."


class MayCallQuery(Query, frozen=True, kw_only=True):
    """The request to decide about."""

    key: Annotated[
        str, msgspec.Meta(description="A key or its hash; without it, the caller's own.", max_length=1_000)
    ] = ""
    model: Annotated[str, msgspec.Meta(description="The model that the request names.", max_length=5_000)] = ""
    route: Annotated[
        str,
        msgspec.Meta(
            description="Its path, as clients write it: /v1/chat/completions, /vllm/tokenize.",
            max_length=2_000,
            pattern="^(/|$)",
        ),
    ] = "/v1/chat/completions"
    method: Annotated[_METHODS, msgspec.Meta(description="Its method; without it, the route's usual one.")] = ""
    user: Annotated[str, msgspec.Meta(description="The end user that it names.", max_length=1_000)] = ""
    max_tokens: Annotated[
        int,
        msgspec.Meta(description="The tokens that it may generate, for limits of tokens and money; 0: not said.", ge=0),
    ] = 0


class CheckReport(Response, kw_only=True):
    """One check of the request."""

    check: Annotated[
        Literal["key", "route", "model", "fields", "end_user", "limits", "servers"],
        msgspec.Meta(description="What is checked, in the gateway's order. There is one `limits` for each level."),
    ]
    level: Annotated[
        str | None,
        msgspec.Meta(description="Whose limits: key, user, team, member, organization, end_user, model_budget, proxy."),
    ]
    passed: Annotated[bool | None, msgspec.Meta(description="Null if it is not known without sending the request.")]
    why: Annotated[str, msgspec.Meta(description="The reason; of a check that fails, the message of its error.")]
    opens: Annotated[str | None, msgspec.Meta(description="What would let it pass; null if it does.")]
    status: Annotated[int | None, msgspec.Meta(description="The status of its error; null without one.")]
    code: Annotated[str | None, msgspec.Meta(description="The code of its error; null without one.")]
    retry_after: Annotated[int | None, msgspec.Meta(description="Seconds after which it may pass by itself.")]


class MayCallReport(Response, kw_only=True):
    """What would become of the request."""

    allowed: Annotated[bool, msgspec.Meta(description="Whether no check fails.")]
    token: Annotated[str | None, msgspec.Meta(description="The hash of the key; null for the master key.")]
    key_alias: str | None
    method: str
    route: Annotated[str | None, msgspec.Meta(description="vLLM's path of the route; null if it is none of vLLM's.")]
    model: Annotated[str | None, msgspec.Meta(description="The model's name in limits and the ledger, if it has one.")]
    fallback: Annotated[str | None, msgspec.Meta(description="The model that would be asked in its place.")]
    status: Annotated[int | None, msgspec.Meta(description="The status that its client would get; null if allowed.")]
    code: Annotated[str | None, msgspec.Meta(description="The code of that error; null if allowed.")]
    checks: tuple[CheckReport, ...]


routes = Routes()


@routes.get("/key/may_call", access=Access.ANY_KEY, query=MayCallQuery, response=MayCallReport, errors=(404,))
async def may_call(call: AdminCall, query: MayCallQuery) -> Json:
    """Decide whether a key may call a model on a route now, and tell each check. Nothing is sent or counted.

    The request is the smallest one of its kind: what depends on the body, the client's address or headers is not
    checked. A key sees itself, its user's keys and those of teams that its user administers.
    """
    trials = None if call.context.trials is None else call.context.trials()
    from twisted_vllm.auth.verdicts import Question

    question = Question(
        query.method.upper().encode("ascii"), query.route, query.model, query.user, query.max_tokens or None
    )
    own = call.context.authenticator.own_token(call.request)
    presented = call.context.authenticator.presented_token(call.request)
    if not query.key and own is None:
        if trials is None:
            raise InvalidRequest(_NO_SERVERS)
        verdict = await trials.of_principal(call.principal, question)
        assert verdict is not None
        return _report(verdict, None, None)
    missing = NotFound("No such key is known.", param="key")
    token = token_of(query.key) if query.key else own
    assert token is not None
    # a former value of the caller's own key means the key
    wanted = own if own is not None and token == presented else token

    def work(transaction: Transaction) -> KeyRecord:
        record: KeyRecord = call.scope.visible_key(transaction, transaction.keys.get(wanted), missing)
        return record

    record = await call.read(work)
    if trials is None:
        raise InvalidRequest(_NO_SERVERS)
    verdict = await trials.of_key(record.token, question, call.now.timestamp())
    if verdict is None:
        # another process made it a moment ago
        raise missing
    return _report(verdict, record.token, record.key_alias)


def _report(verdict: Verdict, token: str | None, alias: str | None) -> Json:
    refusal = verdict.refusal
    return {
        "allowed": verdict.allowed,
        "token": token,
        "key_alias": alias,
        "method": verdict.method,
        "route": verdict.route or None,
        "model": verdict.model or None,
        "fallback": verdict.fallback or None,
        "status": None if refusal is None else refusal.status,
        "code": None if refusal is None else refusal.code,
        "checks": [_report_check(each) for each in verdict.checks],
    }


def _report_check(check: Check) -> Json:
    error = check.error
    return {
        "check": check.check,
        "level": check.level or None,
        "passed": check.passed,
        "why": check.why,
        "opens": check.opens or None,
        "status": None if error is None else error.status,
        "code": None if error is None else error.code,
        "retry_after": None if error is None else error.retry_after,
    }
