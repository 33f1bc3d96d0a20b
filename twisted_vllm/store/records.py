"""Records that only the database and the admin API know."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs


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
class AuditRecord:
    """One thing that an administrator did. It names keys by the first digits of their hashes.

    Attributes:
        at: when (UTC, with a time zone).
        actor: who: ``master``, ``anonymous`` or a key's hash prefix.
        actor_name: the alias or name of that key.
        action: what was done, such as ``key/update``.
        object_type: to what: ``key``, ``user`` or ``team``.
        object_id: to which: a key's hash prefix, a user's or a team's id.
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
