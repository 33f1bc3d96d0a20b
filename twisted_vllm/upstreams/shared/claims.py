"""What workers and the supervisor tell each other of the limits of servers, of queues and of entries.

A worker claims (`Claims`) and the supervisor grants (`Grants`), each at any time and in any number. Of a server and of
a queue a worker *holds* so many places, until it returns them: places of requests in flight, or in the queue. Of an
entry it is granted single requests, which the supervisor counts in the entry's minute from then on, and which the
worker sends at once or gives back.
"""

from __future__ import annotations

import msgspec

#: the topics of messages: to the supervisor, and to a worker
CLAIMS, GRANTS, USED = "servers.claims", "servers.grants", "servers.used"

#: what stands before the name of a server or of a model's queue
SERVER, QUEUE = "server ", "queue "


class Claim(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a worker wants of a limit.

    Attributes:
        name: `SERVER` and the URL of a server, or `QUEUE` and the name of a model.
        limit: the limit, as the worker's settings say.
        need: how many places it could use now, with those that it uses.
        weight: whose requests they are: the number of keys.
        returned: how many places it gives back.
        recall: the number of the recall that this answers; 0 for none.
    """

    name: str
    limit: int
    need: int
    weight: int
    returned: int = 0
    recall: int = 0


class EntryClaim(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The requests that a worker could send now by an entry; it replaces what was claimed before.

    Attributes:
        name: the entry.
        rpm: its limits, as the worker's settings say.
        tpm: likewise.
        tokens: the estimated tokens of each request.
    """

    name: str
    rpm: int | None
    tpm: int | None
    tokens: list[int]


class Claims(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Claims of one worker.

    Attributes:
        round: a number that `Grants` repeats when all that these claims can get was granted; 0 if nobody waits for it.
        claims: those of servers and queues.
        entries: those of entries.
    """

    round: int
    claims: list[Claim]
    entries: list[EntryClaim]


class Grant(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a worker gets of a limit.

    Attributes:
        name: as in `Claim`.
        more: how many places it holds more.
        keep: how many it may keep: the others go back as soon as they are free. -1 if it may keep all.
        recall: a number that the answer to this repeats; 0 if it needs none. The answer says also what is needed now.
    """

    name: str
    more: int
    keep: int = -1
    recall: int = 0


class EntryGrant(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Requests that may be sent by an entry.

    Attributes:
        name: the entry.
        granted: the number of each, with its tokens.
        until: when the next one may be granted, in the reactor's seconds; 0.0 if nothing more is wanted.
    """

    name: str
    granted: list[tuple[int, int]]
    until: float = 0.0


class Grants(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the supervisor grants a worker.

    Attributes:
        rounds: the numbers of `Claims` that are answered.
        grants: of servers and queues.
        entries: of entries.
    """

    rounds: list[int]
    grants: list[Grant]
    entries: list[EntryGrant]


class Used(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a granted request used.

    Attributes:
        entry: the entry.
        number: the number of the grant.
        tokens: the tokens that it used.
        sent: whether anything of it reached the server; if not, it does not count.
    """

    entry: str
    number: int
    tokens: int
    sent: bool
