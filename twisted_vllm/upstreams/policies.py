"""Policies: which of the servers that can take a request gets it.

A policy sees plain snapshots of the servers that may be chosen: those that are healthy, awake and have room. It has no
clock, and its random source is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from twisted_vllm.upstreams.bounded_load import most_load
from twisted_vllm.upstreams.prefix_choice import choose_by_prefix, is_known
from twisted_vllm.upstreams.prefix_table import CacheTable, PrefixTable
from twisted_vllm.upstreams.recent_requests import RecentRequests
from twisted_vllm.upstreams.rendezvous import key_hash, score


class ServerSnapshot(msgspec.Struct, frozen=True, gc=False):
    """What a policy knows of a server.

    Attributes:
        name: its name.
        weight: its weight, over 0; a server in slow start has less than its own.
        in_flight: this gateway's requests there, of all its processes.
        queued: the requests that wait there, as the server reports; 0.0 if unknown.
        latency: the peak-sensitive mean of seconds to the first byte; 0.0 if unknown, or if the policy reads none.
        kv_usage: the share of its KV cache that running requests use; 0.0 if unknown.
    """

    name: str
    weight: float
    in_flight: int
    queued: float = 0.0
    latency: float = 0.0
    kv_usage: float = 0.0


class RoutingRequest(msgspec.Struct, frozen=True, gc=False):
    """What a policy knows of a request.

    Attributes:
        session: the key of its session; empty if it has none.
        prefix: the chained hashes of its prompt's blocks (`twisted_vllm.bodies.prompt_prefix`); empty if unknown.
    """

    session: bytes = b""
    prefix: tuple[int, ...] = ()


class Policy(Protocol):
    """Chooses servers for the requests of one model group.

    Attributes:
        reads_prompt: whether it uses `RoutingRequest.prefix`.
        reads_session: whether it uses `RoutingRequest.session`.
        reads_latency: whether it uses `ServerSnapshot.latency`.
    """

    reads_prompt: bool
    reads_session: bool
    reads_latency: bool

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        """Return the index of the server that gets a request.

        Args:
            servers: the servers to choose from, at least one.
            request: the request.
        """

    def sent(self, server: str, request: RoutingRequest) -> None:
        """Note that a request was sent to a server, chosen by this policy or not."""

    def forgot(self, server: str) -> None:
        """Note that a server left, or restarted: its cache is empty. State is kept of all others, so this must come."""


#: the share of a KV cache from which vLLM preempts requests and evicts prefixes soon. Above it a server counts as
#: busier than it is, twice as busy when the cache is full
KV_PRESSURE = 0.8


def load_of(server: ServerSnapshot) -> float:
    """Return the requests that wait and run at a server; one that the server reports as waiting counts twice."""
    load = server.in_flight + server.queued
    if server.kv_usage > KV_PRESSURE:
        load *= 1.0 + (server.kv_usage - KV_PRESSURE) / (1.0 - KV_PRESSURE)
    return load


def pick_by_weight(servers: Sequence[ServerSnapshot], among: Sequence[int], random: Callable[[], float]) -> int:
    """Return one of some servers' indices, each with a chance in proportion to its weight.

    Args:
        servers: the servers.
        among: the indices to pick from, at least one.
        random: returns a number from 0 up to 1.
    """
    if len(among) == 1:
        return among[0]
    point = random() * sum([servers[index].weight for index in among])
    for index in among:
        point -= servers[index].weight
        if point < 0.0:
            return index
    # the sum was rounded
    return among[-1]


class _Stateless:
    """A policy that keeps nothing but its random source."""

    reads_prompt = False
    reads_session = False
    reads_latency = False

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random

    def sent(self, server: str, request: RoutingRequest) -> None:
        """Keep nothing."""

    def forgot(self, server: str) -> None:
        """Keep nothing."""


class SimpleShuffle(_Stateless):
    """At random, in proportion to the weights."""

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        """Return the index of a server; see `Policy`."""
        return pick_by_weight(servers, range(len(servers)), self._random)


class LeastBusy(_Stateless):
    """The server with the least load for its weight; among equals at random, by weight."""

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        """Return the index of a server; see `Policy`."""
        least = 0.0
        among: list[int] = []
        for index, each in enumerate(servers):
            load = load_of(each) / each.weight
            if not among or load < least:
                least, among = load, [index]
            elif load == least:
                among.append(index)
        return among[0] if len(among) == 1 else pick_by_weight(servers, among, self._random)


class LatencyBased(_Stateless):
    """The server where a request probably waits the shortest: its latency, times the requests that share it.

    A server of unknown latency counts as the quickest one, so that it is tried. One request in `EXPLORE` goes anywhere:
    a server that was slow once would otherwise never show that it is quick again.
    """

    EXPLORE = 100
    reads_latency = True

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        """Return the index of a server; see `Policy`."""
        if self._random() * self.EXPLORE < 1.0:
            return int(self._random() * len(servers))
        quickest = min([each.latency for each in servers if each.latency > 0.0], default=1.0)
        costs = [(each.latency or quickest) * (load_of(each) + 1.0) / each.weight for each in servers]
        least = min(costs)
        return pick_by_weight(servers, [index for index, cost in enumerate(costs) if cost == least], self._random)


class RoundRobin:
    """In turn, in proportion to the weights: nginx's smooth weighted round robin.

    Each choice adds its weight to every server, takes the highest and subtracts the total from it
    (``src/http/ngx_http_upstream_round_robin.c``). The choices of a heavy server are spread evenly.
    """

    reads_prompt = False
    reads_session = False
    reads_latency = False

    def __init__(self) -> None:
        self._current: dict[str, float] = {}

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        """Return the index of a server; see `Policy`."""
        current = self._current
        total = highest = 0.0
        best = 0
        for index, server in enumerate(servers):
            value = current[server.name] = current.get(server.name, 0.0) + server.weight
            total += server.weight
            if not index or value > highest:
                best, highest = index, value
        current[servers[best].name] -= total
        return best

    def sent(self, server: str, request: RoutingRequest) -> None:
        """Keep nothing: a choice counts."""

    def forgot(self, server: str) -> None:
        """Drop a server's turn."""
        self._current.pop(server, None)


class Session:
    """The server of the session, by weighted rendezvous hashing; the next in its order if that one is overloaded.

    Without a session, as `LeastBusy`.
    """

    reads_prompt = False
    reads_session = True
    reads_latency = False

    def __init__(self, random: Callable[[], float]) -> None:
        self._hashes: dict[str, int] = {}
        self._without_session = LeastBusy(random)

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        """Return the index of a server; see `Policy`."""
        if not request.session:
            return self._without_session.choose(servers, request)
        key = key_hash(request.session)
        scores = [score(key, self._hash_of(each.name), each.weight) for each in servers]
        loads = [load_of(each) for each in servers]
        total, weights = sum(loads) + 1.0, sum([each.weight for each in servers])
        order = sorted(range(len(servers)), key=scores.__getitem__, reverse=True)
        # the least loaded one is never over its bound
        return next(index for index in order if loads[index] + 1.0 <= most_load(total, servers[index].weight / weights))

    def _hash_of(self, name: str) -> int:
        found = self._hashes.get(name)
        if found is None:
            found = self._hashes[name] = key_hash(name.encode("utf-8", "surrogatepass"))
        return found

    def sent(self, server: str, request: RoutingRequest) -> None:
        """Keep nothing."""

    def forgot(self, server: str) -> None:
        """Drop the hash of a server's name."""
        self._hashes.pop(server, None)


class Prefix:
    """The server that has most of the prompt in its prefix cache, as long as it gets no more than its part."""

    reads_prompt = True
    reads_session = False
    reads_latency = False

    def __init__(self, random: Callable[[], float], table: CacheTable) -> None:
        self._random = random
        self._table = table
        self._recent = RecentRequests()

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        """Return the index of a server; see `Policy`."""
        names = [each.name for each in servers]
        matched, continues = self._table.matched(request.prefix, names)
        is_new = max(matched) < is_known(len(request.prefix))
        return choose_by_prefix(
            [each.weight for each in servers],
            [load_of(each) for each in servers],
            self._recent.requests(names),
            matched,
            fresh=self._recent.fresh(names) if is_new else None,
            continues=continues,
            random=self._random,
        )

    def sent(self, server: str, request: RoutingRequest) -> None:
        """Learn that a server has a prompt now; see `Policy`."""
        prefix = request.prefix
        self._recent.add(server, fresh=bool(prefix) and not self._table.knows(prefix[is_known(len(prefix)) - 1]))
        self._table.learn(prefix, server)

    def forgot(self, server: str) -> None:
        """Drop what a server had; see `Policy`."""
        self._table.forget(server)
        self._recent.forget(server)


_POLICIES: dict[str, Callable[[Callable[[], float]], Policy]] = {
    "simple-shuffle": SimpleShuffle,
    "least-busy": LeastBusy,
    "latency-based-routing": LatencyBased,
    "round-robin": lambda random: RoundRobin(),
    "session": Session,
}


def make_policy(
    strategy: str, random: Callable[[], float], make_table: Callable[[], CacheTable] = PrefixTable
) -> Policy:
    """Make the policy of one model group.

    Args:
        strategy: its name, one of `twisted_vllm.config.routing.STRATEGIES`.
        random: returns a number from 0 up to 1.
        make_table: makes what ``prefix`` keeps of the servers' prefix caches.

    Raises:
        KeyError: no policy has the name.
    """
    if strategy == "prefix":
        return Prefix(random, make_table())
    return _POLICIES[strategy](random)
