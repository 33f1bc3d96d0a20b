"""The routes of virtual keys, in LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.defaults import with_key_defaults
from twisted_vllm.admin.fields import one_of_fields
from twisted_vllm.admin.keys import operations
from twisted_vllm.admin.keys.answers import (
    AliasList,
    BulkAnswer,
    ChangedKey,
    DeletedKeys,
    GeneratedKey,
    KeyInfo,
    KeyInfos,
    KeyList,
    KeyReport,
    NewKey,
    ResetSpend,
)
from twisted_vllm.admin.keys.models import (
    NAMES_KEY,
    ROUTES_ONCE,
    AliasesQuery,
    BulkRequest,
    DeleteRequest,
    GenerateRequest,
    InfoRequest,
    KeyInfoQuery,
    KeyListQuery,
    NameRequest,
    RegenerateRequest,
    ResetSpendRequest,
    UpdateRequest,
)
from twisted_vllm.admin.lists import reported
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.routing import Routes
from twisted_vllm.auth.authenticator import generate_key
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import InvalidRequest, NotFound
from twisted_vllm.money import from_dollars
from twisted_vllm.storage.errors import KeyExists
from twisted_vllm.storage.paging import Page
from twisted_vllm.storage.transaction import Transaction

routes = Routes()


@routes.post(
    "/key/generate",
    access=Access.SELF_SERVICE,
    body=GenerateRequest,
    response=GeneratedKey,
    constraint=ROUTES_ONCE,
    may_be_empty=True,
    errors=(404, 409),
)
async def generate(call: AdminCall, body: GenerateRequest) -> Json:
    """Create a key. The response is the only one that shows its value."""
    return await _create(call, with_key_defaults(body, call.given, call.context.record_defaults))


@routes.post(
    "/key/service-account/generate",
    access=Access.SELF_SERVICE,
    body=GenerateRequest,
    response=GeneratedKey,
    constraint={
        "required": ["team_id"],
        "properties": {"team_id": {"type": "string", "minLength": 1}, "user_id": {"type": "null"}},
        **ROUTES_ONCE,
    },
    errors=(404, 409),
)
async def generate_service_account(call: AdminCall, body: GenerateRequest) -> Json:
    """Create a key that belongs to a team and to none of its users."""
    if body.team_id is None:
        raise InvalidRequest("A service account belongs to a team: send `team_id`.", param="team_id")
    if body.user_id is not None:
        raise InvalidRequest("A service account belongs to no user: leave `user_id` out.", param="user_id")
    filled = with_key_defaults(body, call.given, call.context.record_defaults)
    body = msgspec.structs.replace(filled, user_id=None)
    metadata = {"service_account_id": body.key_alias, **(body.metadata or {})}
    return await _create(call, body, service_account=True, metadata=metadata)


async def _create(call: AdminCall, body: GenerateRequest, *, service_account: bool = False, **extra: Json) -> Json:
    key = _new_value(call, body.key, "key")
    record = operations.new_record(key, {**body.values(body.__struct_fields__, call.audit), **extra}, call.audit)

    def work(transaction: Transaction) -> Json:
        made = operations.insert(transaction, call.audit, record, call.given, service_account=service_account)
        operations.set_spend_of_key(transaction, call.audit, made, body.spend)
        return operations.report_key(transaction, made, call.now)

    return {**await call.change(work), **_with_value(record, key), "duration": body.duration}


def _new_value(call: AdminCall, custom: str | None, param: str) -> str:
    """Return the value of a new key: the one that the request gives, or a random one."""
    if custom is not None:
        call.scope.check_administrators(param)
    key = generate_key(call.context.randbytes) if custom is None else custom
    if call.context.authenticator.is_master(key):
        raise KeyExists(param)
    return key


def _with_value(record: KeyRecord, key: str) -> dict[str, str]:
    return {"key": key, "token_id": record.token}


@routes.post(
    "/key/update",
    access=Access.SELF_SERVICE,
    body=UpdateRequest,
    response=ChangedKey,
    constraint={"allOf": [NAMES_KEY, ROUTES_ONCE]},
    errors=(404, 409),
)
async def update(call: AdminCall, body: UpdateRequest) -> Json:
    """Change a key. Fields that are absent stay as they are; null clears a field."""

    def work(transaction: Transaction) -> Json:
        changed = operations.update(transaction, call.audit, body, call.given)
        return operations.report_key(transaction, changed, call.now)

    report = await call.change(work)
    return {**report, "key": body.key or report["token"]}


@routes.post("/key/bulk_update", body=BulkRequest, response=BulkAnswer)
async def bulk_update(call: AdminCall, body: BulkRequest) -> Json:
    """Change several keys. Each is changed on its own, and the response has a result for each."""
    return await call.change(lambda transaction: operations.update_each(transaction, call.audit, body))


@routes.post(
    "/key/block",
    access=Access.SELF_SERVICE,
    body=NameRequest,
    response=KeyReport,
    constraint=NAMES_KEY,
    errors=(404,),
)
async def block(call: AdminCall, body: NameRequest) -> Json:
    """Block a key, from the next request on."""
    return await _set_blocked(call, body, True)


@routes.post(
    "/key/unblock",
    access=Access.SELF_SERVICE,
    body=NameRequest,
    response=KeyReport,
    constraint=NAMES_KEY,
    errors=(404,),
)
async def unblock(call: AdminCall, body: NameRequest) -> Json:
    """Unblock a key."""
    return await _set_blocked(call, body, False)


async def _set_blocked(call: AdminCall, body: NameRequest, blocked: bool) -> Json:
    def work(transaction: Transaction) -> Json:
        record = operations.find(transaction, call.scope, body.key, body.key_alias)
        changed = operations.change(transaction, call.audit, record, {"blocked": blocked})
        return operations.report_key(transaction, changed, call.now)

    return await call.change(work)


@routes.post(
    "/key/<string:key>/regenerate",
    access=Access.SELF_SERVICE,
    body=RegenerateRequest,
    response=NewKey,
    constraint={"properties": {"key": {"type": "null", "description": "The path names the key."}}, **ROUTES_ONCE},
    may_be_empty=True,
    errors=(404, 409),
)
@routes.post(
    "/key/regenerate",
    access=Access.SELF_SERVICE,
    body=RegenerateRequest,
    response=NewKey,
    constraint={"allOf": [NAMES_KEY, ROUTES_ONCE]},
    errors=(404, 409),
)
async def regenerate(call: AdminCall, body: RegenerateRequest) -> Json:
    """Give a key a new value. The response is the only one that shows it."""
    value = _new_value(call, body.new_key, "new_key")

    def work(transaction: Transaction) -> Json:
        record = operations.regenerate(transaction, call.audit, body, call.given, value)
        return {**operations.report_key(transaction, record, call.now), **_with_value(record, value)}

    return await call.change(work)


@routes.post("/key/<string:key>/reset_spend", body=ResetSpendRequest, response=ResetSpend, errors=(404, 409))
async def reset_spend(call: AdminCall, body: ResetSpendRequest) -> Json:
    """Lower the spend of a key in its budget's current period. Its total spend stays."""
    key, reset_to = call.path["key"], from_dollars(body.reset_to)
    return await call.change(lambda transaction: operations.reset_spend(transaction, call.audit, key, reset_to))


@routes.post(
    "/key/delete",
    access=Access.SELF_SERVICE,
    body=DeleteRequest,
    response=DeletedKeys,
    constraint=one_of_fields("keys", "key_aliases", value={"type": "array", "minItems": 1}),
    errors=(404,),
)
async def delete(call: AdminCall, body: DeleteRequest) -> Json:
    """Delete keys: all that the request names, or none if one of them does not exist."""
    return {"deleted_keys": await call.change(lambda transaction: operations.delete(transaction, call.audit, body))}


@routes.get("/key/info", query=KeyInfoQuery, response=KeyInfo, access=Access.ANY_KEY, errors=(404,))
async def info(call: AdminCall, query: KeyInfoQuery) -> Json:
    """Return a key. A key sees itself, its user's keys and those of teams that its user administers."""
    own = call.context.authenticator.own_token(call.request)
    token = token_of(query.key) if query.key else own
    if token is None:
        raise NotFound(
            "The caller has no virtual key of its own. Name a key, or its hash: /key/info?key=…", param="key"
        )
    # a former value of the caller's own key means the key
    wanted = own if own is not None and token == call.context.authenticator.presented_token(call.request) else token

    def work(transaction: Transaction) -> Json:
        missing = NotFound("No such key is known.", param="key")
        record = call.scope.visible_key(transaction, transaction.keys.get(wanted), missing)
        return operations.report_key(transaction, record, call.now)

    return {"key": query.key or token, "info": await call.read(work)}


@routes.post("/v2/key/info", access=Access.ANY_KEY, body=InfoRequest, response=KeyInfos, errors=(404,))
async def info_of_several(call: AdminCall, body: InfoRequest) -> Json:
    """Return several keys. Those that do not exist, or that the caller may not see, are left out."""
    tokens = {token_of(key): key for key in body.keys}

    def work(transaction: Transaction) -> list[Json]:
        records = call.scope.visible_keys(transaction, transaction.keys.among("token", tokens))
        return operations.report_keys(transaction, records, call.now)

    reports = await call.read(work)
    if not reports:
        raise NotFound("None of these keys is known.", param="keys")
    by_token = {report["token"]: report for report in reports}
    return {
        "key": [key for token, key in tokens.items() if token in by_token],
        "info": [by_token[token] for token in tokens if token in by_token],
    }


@routes.get("/key/list", access=Access.ANY_KEY, query=KeyListQuery, response=KeyList)
async def list_keys(call: AdminCall, query: KeyListQuery) -> Json:
    """Return a page of the keys that the caller may see, as hashes or whole."""

    def report(transaction: Transaction, records: Sequence[KeyRecord]) -> list[Json]:
        reports = operations.report_keys(transaction, records, call.now)
        if query.expand:
            operations.expand_users(transaction, reports)
        return reports

    def work(transaction: Transaction) -> Json:
        own = call.scope.own_keys(transaction)
        page = transaction.keys.page_of_status(query.page_query(), query.state, call.now, *own)
        if query.wants_records:
            return {"keys": reported(page.records, lambda some: report(transaction, some)), **_place(page)}
        return {"keys": [record.token for record in page.records], **_place(page)}

    return await call.read(work)


@routes.get("/key/aliases", access=Access.ANY_KEY, query=AliasesQuery, response=AliasList)
async def list_aliases(call: AdminCall, query: AliasesQuery) -> Json:
    """Return a page of the aliases of keys that the caller may see, in alphabetical order."""
    page = await call.read(
        lambda transaction: transaction.keys.page_of_aliases(query.page_query(), *call.scope.own_keys(transaction))
    )
    return {"aliases": [record.key_alias for record in page.records], **_place(page), "size": query.size}


def _place(page: Page[KeyRecord]) -> Json:
    """Return the place of a page among all pages, as ``/key/list`` writes it."""
    return {
        "total_count": page.total_count,
        "current_page": page.current_page,
        "total_pages": page.total_pages,
        "next": page.next,
    }
