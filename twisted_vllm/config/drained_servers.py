"""Servers that an administrator drained: they get no new requests until they are undrained."""

from __future__ import annotations

import msgspec

#: the servers that may be drained at a time, those included that are not configured any more
MAX_DRAINED = 500

#: the longest URL of such a server, and the longest reason, in characters
MAX_URL, MAX_REASON = 500, 500


class DrainedServer(msgspec.Struct, frozen=True):
    """A drained server.

    Attributes:
        url: its URL, whose server is drained whatever entries of the model list name it.
        reason: why, in the administrator's words; perhaps empty.
        since: since when, in Unix seconds.
        by: who did it: the name of a key, or ``master``.
    """

    url: str
    reason: str = ""
    since: float = 0.0
    by: str = ""
