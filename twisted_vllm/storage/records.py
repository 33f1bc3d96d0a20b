"""Records that only the database and the admin API use."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs

from twisted_vllm.auth.roles import INTERNAL_USER
from twisted_vllm.field_policy.rules import NO_RULES, FieldRules
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance


@attrs.frozen
class FormerKeyRecord:
    """The value of a key before it was regenerated.

    Attributes:
        token: its SHA-256.
        key_id: the id of the key, which a regeneration does not change.
        works_until: until when it is valid (UTC, with a time zone).
    """

    token: str
    key_id: str
    works_until: datetime


@attrs.frozen
class UserRecord:
    """An owner of keys: a person or a service.

    Attributes:
        user_id: by which keys and teams refer to it.
        user_alias: its name.
        user_email: its address in lower case, unique.
        user_role: LiteLLM's name for it.
        models: the models that its keys may use, with ``*`` and ``?`` as wildcards; empty allows all.
        metadata: a JSON object of the administrator's.
        allowance: the limits of all its keys together.
        budget_id: as in `KeyRecord`.

    The others are as in `KeyRecord`.
    """

    user_id: str
    created_at: datetime
    updated_at: datetime
    created_by: str
    updated_by: str
    user_alias: str | None = None
    user_email: str | None = None
    user_role: str = INTERNAL_USER
    models: tuple[str, ...] = ()
    metadata: dict[str, Any] = attrs.field(factory=dict)
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)
    budget_id: str | None = None


@attrs.frozen
class TeamRecord:
    """A team.

    Attributes:
        team_id: by which keys refer to it.
        team_alias: its name.
        models: the models that its keys may use, with ``*`` and ``?`` as wildcards; empty allows all.
        blocked: whether its keys are refused.
        metadata: a JSON object of the administrator's.
        allowance: the limits of all its keys together.
        fields: which fields of a body its keys may send.
        organization_id: the organization that it belongs to, or a label.
        budget_id: as in `KeyRecord`.
        aliases: model names of its keys, and the model of each; those of a key win.

    The others are as in `KeyRecord`.
    """

    team_id: str
    created_at: datetime
    updated_at: datetime
    created_by: str
    updated_by: str
    team_alias: str | None = None
    models: tuple[str, ...] = ()
    blocked: bool = False
    metadata: dict[str, Any] = attrs.field(factory=dict)
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)
    fields: FieldRules = NO_RULES
    organization_id: str | None = None
    budget_id: str | None = None
    aliases: dict[str, str] | None = None
    log_bodies: str | None = None


@attrs.frozen
class OrganizationRecord:
    """An organization: what is above teams.

    Attributes:
        organization_id: by which teams and keys refer to it.
        organization_alias: its name.
        models: the models that its keys and those of its teams may use, with ``*`` and ``?`` as wildcards; empty allows
            all.
        metadata: a JSON object of the administrator's.
        allowance: the limits of all these keys together.

    The others are as in `KeyRecord`.
    """

    organization_id: str
    created_at: datetime
    updated_at: datetime
    created_by: str
    updated_by: str
    organization_alias: str | None = None
    models: tuple[str, ...] = ()
    metadata: dict[str, Any] = attrs.field(factory=dict)
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)
    budget_id: str | None = None


@attrs.frozen
class BudgetRecord:
    """Limits for all that name them. Each of these has a spend of its own.

    Attributes:
        budget_id: by which they name it.
        allowance: the limits.

    The others are as in `KeyRecord`.
    """

    budget_id: str
    created_at: datetime
    updated_at: datetime
    created_by: str
    updated_by: str
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)


@attrs.frozen
class EndUserRecord:
    """An end user whom requests name; LiteLLM calls it a customer.

    Attributes:
        user_id: by which requests name it.
        alias: its name.
        blocked: whether its requests are refused.
        allowance: its limits, over all keys.

    The others are as in `KeyRecord`.
    """

    user_id: str
    created_at: datetime
    updated_at: datetime
    created_by: str
    updated_by: str
    alias: str | None = None
    blocked: bool = False
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)
    budget_id: str | None = None


@attrs.frozen
class ModelRecord:
    """An entry of the model list that was added at run time.

    Attributes:
        model_id: its id.
        model_name: the name that callers use.
        litellm_params: the settings of its server, without the key.
        model_info: its description, a JSON object of the administrator's.
        api_key: the server's key, encrypted.

    The others are as in `KeyRecord`.
    """

    model_id: str
    model_name: str
    litellm_params: dict[str, Any]
    model_info: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    created_by: str
    updated_by: str
    api_key: str | None = attrs.field(default=None, repr=False)


@attrs.frozen
class DrainedServerRecord:
    """A server that gets no new requests.

    Attributes:
        url: its URL.
        reason: why, in the administrator's words; perhaps empty.
        drained_at: since when (UTC, with a time zone).
        drained_by: who did it: the name of a key, or ``master``.
    """

    url: str
    reason: str
    drained_at: datetime
    drained_by: str


@attrs.frozen
class Member:
    """A user's membership of a team.

    Attributes:
        team_id: the team.
        user_id: the user.
        role: LiteLLM's ``user`` or ``admin``.
        allowance: the limits of the user's keys in this team together.
        budget_id: as in `KeyRecord`.
    """

    team_id: str
    user_id: str
    role: str = "user"
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)
    budget_id: str | None = None


@attrs.frozen
class OrganizationMember:
    """A user's membership of an organization. ``role`` is LiteLLM's ``org_admin`` or ``internal_user``."""

    organization_id: str
    user_id: str
    role: str = "internal_user"


@attrs.frozen
class AuditRecord:
    """One administrative action. Keys are named by a prefix of their hash.

    Attributes:
        at: when (UTC, with a time zone).
        actor: ``master``, ``anonymous`` or a key's hash prefix.
        actor_name: the alias or name of that key.
        action: such as ``key/update``.
        object_type: ``key``, ``user``, ``team``, ``organization``, ``budget``, ``end_user`` or ``model``.
        object_id: a key's hash prefix, or the id of the others.
        before: the object before; ``None`` where it was created.
        after: the object after; ``None`` where it was deleted.
        request_id: the id of the HTTP request.
        client: the address that it came from.
        id: the entry's number; 0 until it is stored.
    """

    at: datetime
    actor: str
    actor_name: str
    action: str
    object_type: str
    object_id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str = ""
    client: str = ""
    id: int = 0
