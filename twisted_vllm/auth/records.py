"""Records of keys and of spending, and the principal of a request."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import inf
from typing import Any

import attrs

from twisted_vllm.field_policy.rules import NO_RULES, FieldRules
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited

#: how many hex digits of a key's SHA-256 are logged, to tell keys apart
HASH_PREFIX_LENGTH = 8

#: the entry of ``allowed_routes`` that allows a key to administer
MANAGEMENT = "management"

#: LiteLLM's role of users who administer the gateway
PROXY_ADMIN = "proxy_admin"


def _derived_id(record: KeyRecord) -> str:
    return record.token[:32]


@attrs.frozen
class KeyRecord:
    """A virtual key in the database, which holds its hash and not the key.

    Attributes:
        token: the SHA-256 of the key, 64 lower-case hex digits. It changes when the key is regenerated.
        key_name: ``sk-...`` and the last four characters of the key.
        created_at: when it was created (UTC, with a time zone).
        updated_at: when it was last changed, likewise.
        created_by: who created it: ``master``, ``anonymous`` or a key's hash prefix.
        key_alias: a unique name given by the administrator.
        models: the models that it may use, with the wildcards ``*`` and ``?``; empty means all.
        allowed_routes: the routes that it may call, as rules for `parse_rule`; empty means the default.
        blocked: whether an administrator blocked it.
        expires: when it stops working (UTC, with a time zone); ``None`` means never.
        metadata: the administrator's JSON object.
        tags: the administrator's labels.
        user_id: the key's user, or a label if there is no such user.
        team_id: the key's team, likewise.
        aliases: the key's own model names, and the model of each.
        priority: the ``X-Vllm-Priority`` of its requests; ``None`` sends none.
        granted_headers: the operator's headers that its callers may set, in lower case.
        updated_by: who changed it last.
        rotation_count: how often it was regenerated.
        last_rotation_at: when it was last regenerated.
        key_id: its permanent id, 32 hex digits, which regeneration does not change.
        allowance: its limits.
        cache_salt: separates its prompts in vLLM's prefix cache; it is generated and never shown. ``None`` shares the
            cache.
        fields: which fields of a body it may send.
        organization_id: the key's organization, or a label; None takes its team's.
        budget_id: the budget whose limits hold where it has none of its own.
        log_bodies: what is kept of its prompts and answers: ``off``, ``metadata`` or ``full``; None says nothing.
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
    fields: FieldRules = NO_RULES
    organization_id: str | None = None
    budget_id: str | None = None
    log_bodies: str | None = None

    @property
    def hash_prefix(self) -> str:
        """The first digits of the hash, which identify the key in logs."""
        return self.token[:HASH_PREFIX_LENGTH]

    @property
    def manages(self) -> bool:
        """Whether it may administer."""
        return MANAGEMENT in self.allowed_routes


@attrs.frozen
class Spend:
    """What somebody spent.

    Attributes:
        kind: as in `Limited`.
        id: likewise.
        spend: in the budget period that began at `period_start`, in picodollars.
        period_start: in Unix seconds; 0 without periods.
        total_spend: since the beginning, in picodollars.
    """

    kind: str
    id: str
    spend: int = 0
    period_start: int = 0
    total_spend: int = 0


@attrs.frozen(weakref_slot=False)
class Principal:
    """The identity of a request's caller.

    Attributes:
        kind: ``anonymous`` (open mode), ``master``, ``key`` or ``preflight``.
        name: its name in logs: the key's alias or ``sk-...abcd``, otherwise the kind.
        hash_prefix: the first digits of the key's hash; empty for the other kinds.
        models: the model patterns of its key; empty means all models.
        allowed_routes: the route rules of its key; empty means the default.
        key_id: the key's permanent id; empty for the other kinds.
        user_id: the user or label of its key.
        team_id: the team or label of its key.
        user_models: the model patterns of its user; empty means all models.
        team_models: the model patterns of its team; empty means all models.
        aliases: the key's own model names and those of its team, and the model of each.
        team_aliases: those of its team alone, which also allow their models.
        log_bodies: what its key says about keeping its prompts and answers: a mode of
            `twisted_vllm.config.log_bodies`; None says nothing. Likewise `team_log_bodies`.
        priority: the ``X-Vllm-Priority`` of its requests.
        granted_headers: the operator's headers that it may set, in lower case.
        expires: when its key stops working, in Unix seconds; infinity means never.
        limited: the key, its user, team and organization and the others above it, as far as they have limits.
        tags: the labels of its key.
        cache_salt: separates its prompts in vLLM's prefix cache; empty shares the cache.
        key_fields: what its key says about the fields of a body.
        team_fields: what its team says about them.
        organization_id: the organization of its key, or of its team.
        organization_models: the model patterns of that organization; empty means all models.
        role: LiteLLM's name for the role of its user; empty without a user.
        end_user_id: the end user of its token, whom no request can replace; None if it names none.
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
    key_fields: FieldRules = NO_RULES
    team_fields: FieldRules = NO_RULES
    organization_id: str | None = None
    organization_models: tuple[str, ...] = ()
    role: str = ""
    end_user_id: str | None = None
    team_aliases: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    log_bodies: str | None = None
    team_log_bodies: str | None = None

    @property
    def is_administrator(self) -> bool:
        """Whether it may call the admin API and every route."""
        return self.kind in ("anonymous", "master")

    @property
    def may_administer(self) -> bool:
        """Whether it may change everything with the admin API, or all but who else may.

        An administrator, a management key, and a key of a user who administers, unless its ``allowed_routes`` narrow
        it.
        """
        if self.is_administrator or MANAGEMENT in self.allowed_routes:
            return True
        return self.role == PROXY_ADMIN and not self.allowed_routes

    @property
    def counts_tokens(self) -> bool:
        """Whether admission needs an estimate of tokens or cost."""
        return any(each.allowance.counts_tokens for each in self.limited)

    @property
    def counts_models(self) -> bool:
        """Whether there are limits per model."""
        return any(each.allowance.counts_models for each in self.limited)

    @property
    def restricts_models(self) -> bool:
        """Whether its key, user, team or organization is restricted to certain models."""
        return bool(self.models or self.user_models or self.team_models or self.organization_models)


ANONYMOUS = Principal(kind="anonymous", name="anonymous")
MASTER = Principal(kind="master", name="master")

#: a browser's CORS preflight, which has no credentials (Fetch §4.8); it may call what every key may call
PREFLIGHT = Principal(kind="preflight", name="preflight")
