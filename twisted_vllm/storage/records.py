"""Records that only the database and the admin API know."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs

from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance


@attrs.frozen
class FormerKeyRecord:
    """A value that a key had before it was regenerated.

    Attributes:
        token: its SHA-256.
        key_id: the lasting id of the key.
        works_until: when it stops working, or did (UTC, with a time zone).
    """

    token: str
    key_id: str
    works_until: datetime


@attrs.frozen
class UserRecord:
    """A person, or whatever else keys belong to.

    Attributes:
        user_id: what keys and teams know it by.
        user_alias: its name.
        user_email: its address in lower case; no other user has it.
        user_role: LiteLLM's word for it; it grants nothing here.
        models: the models that its keys may use, ``*`` and ``?`` as wildcards; empty allows all.
        metadata: a JSON object of the administrator's.
        allowance: the limits of its keys together.

    The others are as in `KeyRecord`.
    """

    user_id: str
    created_at: datetime
    updated_at: datetime
    created_by: str
    updated_by: str
    user_alias: str | None = None
    user_email: str | None = None
    user_role: str = "internal_user"
    models: tuple[str, ...] = ()
    metadata: dict[str, Any] = attrs.field(factory=dict)
    allowance: Allowance = attrs.field(default=UNLIMITED, hash=False)


@attrs.frozen
class TeamRecord:
    """A team.

    Attributes:
        team_id: what keys know it by.
        team_alias: its name.
        models: the models that its keys may use, ``*`` and ``?`` as wildcards; empty allows all.
        blocked: whether its keys are refused.
        metadata: a JSON object of the administrator's.
        allowance: the limits of its keys together.

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


@attrs.frozen
class EndUserRecord:
    """Somebody for whom the callers of keys say that they ask; LiteLLM's customer.

    Attributes:
        user_id: what the callers call it.
        alias: its name.
        blocked: whether requests for it are refused.
        allowance: its limits, whichever key asks for it.

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


@attrs.frozen
class Member:
    """A user's place in a team; ``role`` is ``user`` or ``admin``, LiteLLM's words, and grants nothing here."""

    team_id: str
    user_id: str
    role: str = "user"


@attrs.frozen
class AuditRecord:
    """One thing that an administrator did. It names keys by the first digits of their hashes.

    Attributes:
        at: when (UTC, with a time zone).
        actor: who: ``master``, ``anonymous`` or a key's hash prefix.
        actor_name: the alias or name of that key.
        action: what was done, such as ``key/update``.
        object_type: to what: ``key``, ``user``, ``team`` or ``end_user``.
        object_id: to which: a key's hash prefix, the id of the others.
        before: what it was; ``None`` where it was made.
        after: what it is; ``None`` where it was deleted.
        request_id: the request that did it.
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
