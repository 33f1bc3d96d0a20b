"""The records that the database holds, and the principal that a request acts as."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import inf
from typing import Any

import attrs

from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited

#: how many hex digits of a key's SHA-256 stand in logs, to tell keys apart without naming them
HASH_PREFIX_LENGTH = 8

#: what stands among a key's ``allowed_routes`` and lets it administer
MANAGEMENT = "management"


def _derived_id(record: KeyRecord) -> str:
    return record.token[:32]


@attrs.frozen
class KeyRecord:
    """A virtual key as the database holds it; the key itself is not kept.

    Attributes:
        token: the SHA-256 of the key, 64 lower-case hex digits; another one after it was regenerated.
        key_name: ``sk-...`` and the last four characters, to recognise the key by.
        created_at: when it was made (UTC, with a time zone).
        updated_at: when it was last changed, likewise.
        created_by: who made it: ``master``, ``anonymous`` or a key's hash prefix.
        key_alias: a unique name given by the administrator.
        models: the model names that it may use, ``*`` and ``?`` as wildcards; empty allows all.
        allowed_routes: paths, ``prefix/*`` and class names that it may call; empty leaves the default.
        blocked: whether an administrator blocked it.
        expires: when it stops working (UTC, with a time zone); ``None`` is never.
        metadata: a JSON object of the administrator's.
        tags: labels of the administrator's.
        user_id: whose key it is: a user's id, or a mere label where there is no such user.
        team_id: which team's key it is, likewise.
        aliases: names of models as this key's callers write them, and the model that each stands for.
        priority: what ``X-Vllm-Priority`` says of its requests; ``None`` says nothing.
        granted_headers: which of the operator's headers its callers may set themselves, in lower case.
        updated_by: who changed it last.
        rotation_count: how often it was regenerated.
        last_rotation_at: when it was last regenerated.
        key_id: what it is known by for good, through every regeneration: 32 hex digits.
        allowance: its limits.
        cache_salt: what keeps its prompts apart in vLLM's prefix cache, made here and never shown; ``None`` shares the
            cache.
    """

    token: str
    key_name: str
    created_at: datetime
    updated_at: datetime
    created_by: str
    key_alias: str | None = None
    models: tuple[str, ...] = ()
    allowed_routes: tuple[str, ...] = ()
    blocked: bool = False
    expires: datetime | None = None
    metadata: dict[str, Any] = attrs.field(factory=dict)
    tags: tuple[str, ...] = ()
    user_id: str | None = None
    team_id: str | None = None
    aliases: dict[str, str] = attrs.field(factory=dict)
    priority: int | None = None
    granted_headers: tuple[str, ...] = ()
    updated_by: str = attrs.field(default=attrs.Factory(lambda self: self.created_by, takes_self=True))
    rotation_count: int = 0
    last_rotation_at: datetime | None = None
    key_id: str = attrs.field(default=attrs.Factory(_derived_id, takes_self=True))
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)
    cache_salt: str | None = attrs.field(default=None, repr=False)

    @property
    def hash_prefix(self) -> str:
        """The first digits of the hash, which stand for the key in logs."""
        return self.token[:HASH_PREFIX_LENGTH]

    @property
    def manages(self) -> bool:
        """Whether it administers."""
        return MANAGEMENT in self.allowed_routes


@attrs.frozen
class Spend:
    """What a key, user, team or end user spent, as the database says.

    Attributes:
        kind: ``key``, ``user``, ``team`` or ``end_user``.
        id: the key's lasting id, or the id of the others.
        spend: in the period that began at `period_start`, in picodollars.
        period_start: when that was, in Unix seconds; 0 where there are no periods.
        total_spend: in all, in picodollars.
    """

    kind: str
    id: str
    spend: int = 0
    period_start: int = 0
    total_spend: int = 0


@attrs.frozen
class Principal:
    """Who a request acts as.

    Attributes:
        kind: ``anonymous`` (open mode), ``master``, ``key`` or ``preflight``.
        name: what logs call it: the key's alias or ``sk-...abcd``, else the kind.
        hash_prefix: the first digits of the key's hash; empty for the other kinds.
        models: the model patterns that it may use; empty allows all.
        allowed_routes: the route rules of its key; empty leaves the default.
        key_id: the key's lasting id; empty for the other kinds.
        user_id: the user or label of its key.
        team_id: the team or label of its key.
        user_models: the model patterns of its user; empty allows all.
        team_models: the model patterns of its team; empty allows all.
        aliases: the key's own names of models, and the model that each stands for.
        priority: what ``X-Vllm-Priority`` says of its requests.
        granted_headers: which of the operator's headers it may set, in lower case.
        expires: when its key stops working, in Unix seconds; infinity is never.
        limited: the key, user and team that have limits, each with its own; empty where none has.
        tags: its key's labels.
        cache_salt: what keeps its prompts apart in vLLM's prefix cache; empty shares the cache.
    """

    kind: str
    name: str
    hash_prefix: str = ""
    models: tuple[str, ...] = ()
    allowed_routes: tuple[str, ...] = ()
    key_id: str = ""
    user_id: str | None = None
    team_id: str | None = None
    user_models: tuple[str, ...] = ()
    team_models: tuple[str, ...] = ()
    aliases: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    priority: int | None = None
    granted_headers: frozenset[bytes] = frozenset()
    expires: float = inf
    limited: tuple[Limited, ...] = attrs.field(default=(), hash=False)
    tags: tuple[str, ...] = ()
    cache_salt: str = attrs.field(default="", repr=False)

    @property
    def is_administrator(self) -> bool:
        """Whether it may call the admin API and every route."""
        return self.kind in ("anonymous", "master")

    @property
    def may_administer(self) -> bool:
        """Whether it may call the admin API: an administrator, or a key that was made for it."""
        return self.is_administrator or MANAGEMENT in self.allowed_routes

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens or the money of its requests are limited."""
        return any(each.allowance.counts_tokens for each in self.limited)

    @property
    def counts_models(self) -> bool:
        """Whether the use of certain models is limited."""
        return any(each.allowance.counts_models for each in self.limited)

    @property
    def restricts_models(self) -> bool:
        """Whether its key, user or team may use certain models only."""
        return bool(self.models or self.user_models or self.team_models)


ANONYMOUS = Principal(kind="anonymous", name="anonymous")
MASTER = Principal(kind="master", name="master")

#: a browser's question before a request from another origin (Fetch §4.8: it carries no credentials); it may reach what
#: every key may reach, and no more
PREFLIGHT = Principal(kind="preflight", name="preflight")
