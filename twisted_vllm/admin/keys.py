"""The key endpoints: what each takes, does and answers, in LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest

from twisted_vllm.access.keys import Authenticator, KeyIndex, generate_key, hash_key, name_key
from twisted_vllm.access.records import KeyRecord, Principal
from twisted_vllm.admin.authorize import Gatekeeper, token_of
from twisted_vllm.admin.durations import expiry_of
from twisted_vllm.admin.listing import parse_list, select_page, status_of
from twisted_vllm.admin.litellm import GENERATE_DEFAULTS, refuse_what_is_not_done, shown
from twisted_vllm.admin.respond import read_object, read_query, send_json, shielded
from twisted_vllm.admin.schemas import ALL_MODELS, DeleteRequest, GenerateRequest, parse_delete, parse_generate
from twisted_vllm.errors import InvalidRequest, NotFound, RouteNotAllowed
from twisted_vllm.store.interfaces import IKeyStore, KeyExists

T = TypeVar("T")

#: what LiteLLM reports of a key beside what is kept here
_REPORTED_DEFAULTS = {
    name: default for name, default in GENERATE_DEFAULTS.items() if name not in ("key_type", "send_invite_email")
}


class KeyEndpoints:
    """Makes, shows, lists and deletes virtual keys.

    The store is written first, then the index, then the answer: a key works, or does not any more, on the request after
    the answer. One change runs at a time, so that the index sees the changes in the store's order.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        index: KeyIndex,
        store: IKeyStore,
        clock: IReactorTime,
        now: Callable[[], datetime],
        randbytes: Callable[[int], bytes],
    ) -> None:
        self._authenticator = authenticator
        self._gatekeeper = Gatekeeper(authenticator, now)
        self._index = index
        self._store = store
        self._clock = clock
        self._now = now
        self._randbytes = randbytes
        self._changes = DeferredLock()

    async def generate(self, request: IRequest) -> bytes:
        """Answer ``POST /key/generate``: the one time that the key itself is shown."""
        principal = self._gatekeeper.administrator_of(request)
        asked = parse_generate(read_object(request))
        key = generate_key(self._randbytes) if asked.key is None else asked.key
        if self._authenticator.is_master(key):
            raise KeyExists
        record = _new_record(key, asked, principal, self._now().astimezone(UTC))
        await self._change(lambda: self._insert(record))
        return send_json(
            request, {**self._report(record), "key": key, "token_id": record.token, "duration": asked.duration}
        )

    async def info(self, request: IRequest) -> bytes:
        """Answer ``GET /key/info``: any key for an administrator, itself for a virtual key."""
        principal = self._gatekeeper.principal_of(request)
        query = read_query(request)
        refuse_what_is_not_done(query, ("key",), {})
        asked = query.get("key") or None
        own = None if principal.is_administrator else self._gatekeeper.own_token(request)
        token = own if asked is None else token_of(asked)
        if token is None:
            raise InvalidRequest("Name the key, or its hash: /key/info?key=…", param="key")
        if own is not None and token != own:
            raise RouteNotAllowed("A virtual key may see its own information only; the master key sees every key's.")
        record = self._index.get(token)
        if record is None:
            raise NotFound("No such key is known.", param="key")
        return send_json(request, {"key": token if asked is None else asked, "info": self._report(record)})

    async def list_keys(self, request: IRequest) -> bytes:
        """Answer ``GET /key/list``."""
        self._gatekeeper.administrator_of(request)
        query = parse_list(read_query(request), token_of)
        page = select_page(self._index.records(), query, self._now())
        return send_json(
            request,
            {
                "keys": [self._report(record) if query.full else record.token for record in page.records],
                "total_count": page.total_count,
                "current_page": page.current_page,
                "total_pages": page.total_pages,
            },
        )

    async def delete(self, request: IRequest) -> bytes:
        """Answer ``POST /key/delete``: all that were named, or none where one of them is not known."""
        self._gatekeeper.administrator_of(request)
        asked = parse_delete(read_object(request))
        deleted = await self._change(lambda: self._delete(asked))
        return send_json(request, {"deleted_keys": deleted})

    def _change(self, change: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> Deferred[T]:
        """Make a change when its turn comes, and see it through, also when the client goes away."""
        return shielded(self._changes.run(lambda: Deferred.fromCoroutine(change())), self._clock)

    async def _insert(self, record: KeyRecord) -> None:
        await self._store.insert(record)
        self._index.add(record)

    async def _delete(self, asked: DeleteRequest) -> list[str]:
        named = self._find(asked)
        await self._store.delete(list(named))
        for token in named:
            self._index.discard(token)
        return list(named.values())

    def _find(self, asked: DeleteRequest) -> dict[str, str]:
        """Return what each token that is to go was called by the caller."""
        named: dict[str, str] = {}
        keys = dict.fromkeys(asked.keys or ())
        unknown = 0
        for key in keys:
            token = token_of(key)
            if token in self._index:
                named.setdefault(token, key)
            else:
                unknown += 1
        if unknown:
            raise NotFound(f"{unknown} of the {len(keys)} keys are not known. Nothing was deleted.", param="keys")
        for alias in asked.key_aliases or ():
            record = self._index.by_alias(alias)
            if record is None:
                raise NotFound(f"No key has the alias `{shown(alias)}`. Nothing was deleted.", param="key_aliases")
            named.setdefault(record.token, alias)
        return named

    def _report(self, record: KeyRecord) -> dict[str, Any]:
        """Return a key as LiteLLM shows it."""
        return {
            **_REPORTED_DEFAULTS,
            "token": record.token,
            "key_name": record.key_name,
            "key_alias": record.key_alias,
            "models": record.models,
            "allowed_routes": record.allowed_routes,
            "blocked": record.blocked,
            "status": status_of(record, self._now()),
            "expires": record.expires,
            "metadata": record.metadata,
            "tags": record.tags,
            "user_id": record.user_id,
            "team_id": record.team_id,
            "litellm_budget_table": None,
            "created_at": record.created_at,
            "created_by": record.created_by,
            "updated_at": record.updated_at,
            "updated_by": record.created_by,
        }


def _new_record(key: str, asked: GenerateRequest, principal: Principal, now: datetime) -> KeyRecord:
    models = asked.models or ()
    return KeyRecord(
        token=hash_key(key),
        key_name=name_key(key),
        key_alias=asked.key_alias,
        models=() if ALL_MODELS in models else models,
        allowed_routes=asked.allowed_routes or (),
        blocked=bool(asked.blocked),
        expires=expiry_of(asked.duration, now),
        metadata=asked.metadata or {},
        tags=asked.tags or (),
        user_id=asked.user_id,
        team_id=asked.team_id,
        created_at=now,
        created_by=principal.hash_prefix or principal.kind,
        updated_at=now,
    )
