"""Policies: which of the servers that can take a request gets it.

A policy sees plain snapshots. `Dispatcher` passes only servers that may be chosen: healthy, awake, with room.
The load of a server is what waits and runs there over its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from twisted_vllm.bodies.prompt_prefix import OFFSETS
from twisted_vllm.upstreams.prefix_table import PrefixTable
from twisted_vllm.upstreams.rendezvous import key_hash, score


class ServerSnapshot(msgspec.Struct, frozen=True, gc=False):
    """What a policy knows of a server.

    Attributes:
        name: its name.
        weight: its weight, over 0; a server in slow start has less than its own.
        in_flight: this gateway's requests there.
        queued: the requests that wait there, as the server reports; 0.0 if unknown.
        latency: the peak-sensitive mean of seconds to the first byte; 0.0 if unknown.
        kv_usage: the share of the server's KV cache that running requests use; 0.0 if unknown.
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
        prefix: the chained hashes of its prompt's blocks; empty if unknown.
    """

    session: bytes = b""
    prefix: tuple[int, ...] = ()


class Policy(Protocol):
    """Chooses a server for each request of one model group.

    Attributes:
        reads_prompt: whether it uses `RoutingRequest.prefix`.
        reads_session: whether it uses `RoutingRequest.session`.
    """

    reads_prompt: bool
    reads_session: bool

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        """Return the index of the server for a request.

        Args:
            servers: the servers to choose from, at least one.
            request: the request.
        """

    def sent(self, server: str, request: RoutingRequest) -> None:
        """Note that a request was sent to a server."""

    def forgot(self, server: str) -> None:
        """Note that a server left, or restarted with an empty cache."""


def load_of(server: ServerSnapshot) -> float:
    return (server.in_flight + server.queued) / server.weight


def random_by_weight(servers, indices, random):
    total = 0.0
    for index in indices:
        total += servers[index].weight
    point = random() * total
    for index in indices:
        point -= servers[index].weight
        if point < 0.0:
            return index
    return indices[-1]


class Stateless:
    reads_prompt = reads_session = False

    def __init__(self, random):
        self._random = random

    def sent(self, server, request):
        pass

    def forgot(self, server):
        pass


class LeastBusy(Stateless):
    def choose(self, servers, request):
        loads = [load_of(s) for s in servers]
        least = min(loads)
        return random_by_weight(servers, [i for i, l in enumerate(loads) if l == least], self._random)


class SimpleShuffle(Stateless):
    def choose(self, servers, request):
        return random_by_weight(servers, range(len(servers)), self._random)


class RoundRobin(Stateless):
    def __init__(self, random):
        self._current = {}

    def choose(self, servers, request):
        current = self._current
        total = 0.0
        best = 0
        for i, s in enumerate(servers):
            current[s.name] = current.get(s.name, 0.0) + s.weight
            total += s.weight
            if current[s.name] > current[servers[best].name]:
                best = i
        current[servers[best].name] -= total
        return best


class Session(Stateless):
    reads_session = True

    def choose(self, servers, request):
        key = key_hash(request.session)
        scores = [(score(key, key_hash(s.name.encode()), s.weight), i) for i, s in enumerate(servers)]
        busy = sum(s.in_flight + s.queued for s in servers) + 1
        total = sum(s.weight for s in servers)
        for _, i in sorted(scores, reverse=True):
            s = servers[i]
            if s.in_flight + s.queued + 1 <= 1.25 * busy * s.weight / total + 1:
                return i
        raise AssertionError


class Bounded(Stateless):
    """candidate: momentary bound."""

    reads_prompt = True
    C, SLACK = 1.15, 1.0

    def __init__(self, random):
        self._random = random
        self._table = PrefixTable()
        self._recent = {}

    def choose(self, servers, request):
        busy = sum(s.in_flight + s.queued for s in servers) + 1
        total = sum(s.weight for s in servers)
        matched = self._table.matched(request.prefix, [s.name for s in servers])
        best, at = None, 0
        for i, s in enumerate(servers):
            fair = busy * s.weight / total
            here = s.in_flight + s.queued + 1
            if here <= self.C * fair + self.SLACK or len(servers) == 1:
                k = (-OFFSETS[matched[i]], here / fair + self._recent.get(s.name, 0) / s.weight, self._random())
                if best is None or k < best:
                    best, at = k, i
        assert best is not None
        return at

    def sent(self, server, request):
        self._table.learn(request.prefix, server)
        for name in self._recent:
            self._recent[name] *= 127 / 128
        self._recent[server] = self._recent.get(server, 0.0) + 1 / 128

    def forgot(self, server):
        self._table.forget(server)
        self._recent.pop(server, None)


class Prefix(Stateless):
    reads_prompt = True
    C, N, K, HARD, HS, NEW, G, K2, P, A, T = 1.15, 64, 8, 1.5, 4.0, 8, 1.0, 1.0, 8, 1, 0.35

    def __init__(self, random, make_table):
        self._random = random
        self._table = make_table()
        self._counts = {}
        self._news = {}
        self._inc = 1.0

    def choose(self, servers, request):
        counts = self._counts
        if any(s.name not in counts for s in servers):
            self._inc = 1.0
            for n in counts:
                counts[n] = 0.0
            for s in servers:
                counts[s.name] = 0.0
            self._news.clear()
        inc = self._inc
        total = sum(s.weight for s in servers)
        busy = sum(s.in_flight + s.queued for s in servers) + 1
        recent = sum(counts[s.name] for s in servers) / inc
        matched = self._table.matched(request.prefix, [s.name for s in servers])
        size = OFFSETS[len(request.prefix)]
        best = None
        news = sum(self._news.get(s.name, 0.0) for s in servers) / inc
        known = OFFSETS[max(matched)] * self.NEW >= size
        for i, s in enumerate(servers):
            f = s.weight / total
            here = s.in_flight + s.queued + 1
            q = (counts[s.name] / inc + self.K * f) / (recent + self.K) / f
            l = here / (busy * f)
            C = 1 + self.T * (1 - f)
            over = here > self.HARD * busy * f + self.HS or (q > C and here > busy * f + 1)
            g = (self._news.get(s.name, 0.0) / inc + self.K2 * f) / (news + self.K2) / f
            if known:
                v = l + q
            else:
                v = (here + counts[s.name] / inc * self.A + self.P * self._news.get(s.name, 0.0) / inc) / f
            k = (over, -matched[i] if known else 0, v, self._random())
            if best is None or k < best:
                best, at = k, i
        if best[0] and len(servers) > 1:
            at = min(range(len(servers)), key=lambda i: (servers[i].in_flight + servers[i].queued) / servers[i].weight)
        self._is_new = not known
        return at

    def sent(self, server, request):
        if self._is_new:
            self._news[server] = self._news.get(server, 0.0) + self._inc
        self._table.learn(request.prefix, server)
        self._inc *= 1 + 1 / (self.N * len(self._counts))
        self._counts[server] = self._counts.get(server, 0.0) + self._inc
        if self._inc > 1e100:
            for n in self._counts:
                self._counts[n] /= self._inc
            self._inc = 1.0

    def forgot(self, server):
        self._table.forget(server)
        self._counts.pop(server, None)


def make_policy(strategy, random, make_table=PrefixTable):
    if strategy == "prefix":
        return Prefix(random, make_table)
    return {
        "least-busy": LeastBusy,
        "simple-shuffle": SimpleShuffle,
        "round-robin": RoundRobin,
        "session": Session,
        "prefix": Prefix,
        "bounded": Bounded,
    }[strategy](random)
