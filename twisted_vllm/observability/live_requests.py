"""What is told of the requests in flight: which are asked for, what each is doing, and how many there are of what.

Each process of a gateway reports its own; `merged` makes one report of several. It does no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from typing import Literal, TypeAlias

import msgspec

from twisted_vllm.auth.records import Principal
from twisted_vllm.observability.request_states import MOST_NAMES, State

#: counts by name; of keys, the name and the first digits of the hash
Counts: TypeAlias = list[tuple[str, int]]
KeyCounts: TypeAlias = list[tuple[str, str, int]]


class Whose(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Whose requests somebody may see who does not see everybody's.

    Attributes:
        key_id: those of this key.
        user_id: those of all keys of this user; empty for no user.
        teams: those of all keys of these teams, which the user administers.
    """

    key_id: str
    user_id: str = ""
    teams: tuple[str, ...] = ()

    def includes(self, principal: Principal) -> bool:
        """Return whether these are the requests of a caller."""
        return self.is_own(principal) or (principal.kind == "key" and principal.team_id in self.teams)

    def is_own(self, principal: Principal) -> bool:
        """Return whether a caller is the same key, or has the same user."""
        if principal.kind != "key":
            return False
        return principal.key_id == self.key_id or (bool(self.user_id) and principal.user_id == self.user_id)


class LiveQuery(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which requests in flight are asked for. An empty text asks for all.

    Attributes:
        whose: those that the asker may see; None for everybody's.
        state: a `State`.
        model: the name of the model.
        key: the alias of the key, or at least the first digits of its hash.
        team: the id of the key's team.
        user: the id of the key's user.
        server: the name of the server.
        sort: whether the oldest or those with the most tokens come first.
        ascending: the other way round.
        limit: how many are named.
    """

    whose: Whose | None = None
    state: str = ""
    model: str = ""
    key: str = ""
    team: str = ""
    user: str = ""
    server: str = ""
    sort: Literal["age", "tokens"] = "age"
    ascending: bool = False
    limit: int = 100


class LiveRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request in flight. Text of clients is without secrets.

    Attributes:
        request_id: its ``X-Request-Id``.
        started: when its first byte came, in Unix seconds.
        state: what it is doing.
        key_name: the alias of its key.
        key_prefix: the first digits of the key's hash; empty for the master key.
        user_id: the key's user; empty without one.
        team_id: the key's team; empty without one.
        model: the model that it names.
        server: the server that it goes to; empty if that is not known yet, and for an asker who may not know it.
        route: the route of vLLM.
        age: seconds since its first byte came.
        first_byte: seconds from then to the first byte of its answer; None before.
        queue_place: its place in the queue of its model, from 1; None if it does not wait there.
        tokens: the tokens of its answer so far, as far as a stream tells; None if nothing does.
        prompt_tokens: the tokens of its prompt, estimated; None if they are not counted.
        bytes_in: the bytes of its body so far.
        bytes_out: the bytes of its answer so far.
        stream: whether its answer is a stream of events; None if that is not known yet.
        client: the address that it comes from; empty for an asker who may not know it.
        attempts: how often it was sent to a server.
    """

    request_id: str
    started: float
    state: State
    key_name: str
    key_prefix: str
    user_id: str
    team_id: str
    model: str
    server: str
    route: str
    age: float
    first_byte: float | None
    queue_place: int | None
    tokens: int | None
    prompt_tokens: int | None
    bytes_in: int
    bytes_out: int
    stream: bool | None
    client: str
    attempts: int


class LiveReport(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The requests in flight that somebody asked for.

    Attributes:
        at: when they were looked at, in Unix seconds; of several processes, the first of them.
        total: how many the asker may see.
        matching: how many of them are asked for; what follows is about these.
        requests: the first of them.
        states: how many there are in each state.
        models: how many of each model, those with the most.
        servers: how many on each server, likewise; empty for an asker who may not know them.
        keys: how many of each key, likewise.
        missing: the names of processes that did not answer in time.
    """

    at: float
    total: int
    matching: int
    requests: Sequence[LiveRequest] = ()
    states: Counts = []
    models: Counts = []
    servers: Counts = []
    keys: KeyCounts = []
    missing: tuple[str, ...] = ()


class Cut(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request in flight that is to end.

    Attributes:
        request_id: its id, as `LiveRequest` tells it.
        whose: those that the asker may end; None for everybody's.
    """

    request_id: str
    whose: Whose | None = None


class WasCut(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What came of a `Cut`.

    Attributes:
        requests: what was ended, as it was.
        missing: the names of processes that did not answer in time; what they have may have ended too.
    """

    requests: Sequence[LiveRequest]
    missing: tuple[str, ...] = ()


def in_order(requests: Iterable[LiveRequest], query: LiveQuery) -> list[LiveRequest]:
    """Return the first requests of a query; those whose tokens are not known come last."""
    if query.sort == "age":
        ordered = sorted(requests, key=lambda each: each.started, reverse=query.ascending)
    else:
        sign = 1 if query.ascending else -1
        ordered = sorted(requests, key=lambda each: (each.tokens is None, sign * (each.tokens or 0)))
    return ordered[: query.limit]


def most_of(counted: Mapping[str, int], most: int) -> Counts:
    """Return the largest counts, the largest first."""
    return nlargest(most, counted.items(), key=lambda pair: pair[1])


def most_keys(counted: Mapping[tuple[str, str], int], most: int) -> KeyCounts:
    """Return the largest counts by name and hash prefix, the largest first."""
    found = nlargest(most, counted.items(), key=lambda pair: pair[1])
    return [(name, prefix, count) for (name, prefix), count in found]


def merged(reports: Sequence[LiveReport], query: LiveQuery, missing: Iterable[str] = ()) -> LiveReport:
    """Return the reports of several processes, at least one, as one report.

    Args:
        reports: what each of them says.
        query: what they were asked.
        missing: the names of those that did not answer.
    """
    states, models, servers = Counter[str](), Counter[str](), Counter[str]()
    keys = Counter[tuple[str, str]]()
    for each in reports:
        for counted, told in ((states, each.states), (models, each.models), (servers, each.servers)):
            for name, count in told:
                counted[name] += count
        for name, prefix, count in each.keys:
            keys[name, prefix] += count
    return LiveReport(
        min(each.at for each in reports),
        sum(each.total for each in reports),
        sum(each.matching for each in reports),
        in_order((request for each in reports for request in each.requests), query),
        most_of(states, MOST_NAMES),
        most_of(models, MOST_NAMES),
        most_of(servers, MOST_NAMES),
        most_keys(keys, MOST_NAMES),
        tuple(missing),
    )
