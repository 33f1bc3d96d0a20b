"""The virtual key as it is stored, and the principal that a request acts as."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs

#: how many hex digits of a key's SHA-256 stand in logs, to tell keys apart without naming them
HASH_PREFIX_LENGTH = 8


@attrs.frozen
class KeyRecord:
    """A virtual key as the database holds it; the key itself is not kept.

    Attributes:
        token: the SHA-256 of the key, 64 lower-case hex digits.
        key_name: ``sk-...`` and the last four characters, to recognise the key by.
        key_alias: a unique name given by the administrator.
        models: the model names that it may use, ``*`` and ``?`` as wildcards; empty allows all.
        allowed_routes: paths, ``prefix/*`` and class names that it may call; empty leaves the default.
        blocked: whether an administrator blocked it.
        expires: when it stops working (UTC, with a time zone); ``None`` is never.
        metadata: a JSON object of the administrator's.
        tags: labels of the administrator's.
        user_id: whose key it is, a label.
        team_id: which team's key it is, a label.
        created_at: when it was made (UTC, with a time zone).
        created_by: who made it: ``master``, ``anonymous`` or a key's hash prefix.
        updated_at: when it was last changed (UTC, with a time zone).
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

    @property
    def hash_prefix(self) -> str:
        """The first digits of the hash, which stand for the key in logs."""
        return self.token[:HASH_PREFIX_LENGTH]


@attrs.frozen
class Principal:
    """Who a request acts as.

    Attributes:
        kind: ``anonymous`` (open mode), ``master``, ``key`` or ``preflight``.
        name: what logs call it: the key's alias or ``sk-...abcd``, else the kind.
        hash_prefix: the first digits of the key's hash; empty for the other kinds.
        models: the model patterns that it may use; empty allows all.
        allowed_routes: the route rules of its key; empty leaves the default.
    """

    kind: str
    name: str
    hash_prefix: str = ""
    models: tuple[str, ...] = ()
    allowed_routes: tuple[str, ...] = ()

    @property
    def is_administrator(self) -> bool:
        """Whether it may call the admin API and every route."""
        return self.kind in ("anonymous", "master")


ANONYMOUS = Principal(kind="anonymous", name="anonymous")
MASTER = Principal(kind="master", name="master")

#: a browser's question before a request from another origin (Fetch §4.8: it carries no credentials); it may reach what
#: every key may reach, and no more
PREFLIGHT = Principal(kind="preflight", name="preflight")
