"""A fleet of vLLM servers in virtual time, to compare policies: how much of the prompts is found in prefix caches.

Each server batches continuously as vLLM's scheduler does: every step takes waiting requests, computes up to a budget of
prompt tokens that its prefix cache lacks, and one token of each running answer. A block is in the cache once it is
scheduled; the least recently used are dropped if there is no room. A token is one character.

    python -m tests.upstreams.fleet [SEEDS [SCENARIO ...]]

prints the table of ``docs/decisions/0056-routing-policies.md``.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from twisted_vllm.bodies.prompt_prefix import prompt_prefix
from twisted_vllm.config.routing import STRATEGIES
from twisted_vllm.upstreams.policies import Policy, RoutingRequest, ServerSnapshot, make_policy

LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: prompt tokens that one step computes
BUDGET = 2_048


def words(source: random.Random, count: int) -> str:
    """Return words of 2 to 7 letters."""
    return " ".join("".join(source.choices(LETTERS, k=source.randint(2, 7))) for _ in range(count))


@attrs.define(eq=False)
class Call:
    """A request at a server.

    Attributes:
        text: its prompt.
        answer: the tokens that its answer lacks.
        done: called when it is complete.
        uncached: the tokens of the prompt that are not computed.
    """

    text: str
    answer: int
    done: Callable[[], None]
    uncached: int = 0


class SimulatedServer:
    """One vLLM. A prompt of 400 tokens takes as long as 8 steps of decoding."""

    def __init__(self, name: str, block: int, capacity: int) -> None:
        self.name = name
        self.block, self.blocks = block, capacity // block
        self.up = True
        self.is_stepping = False
        self.waiting: list[Call] = []
        self.running: list[Call] = []
        self.cache: dict[str, None] = {}
        self.hits = self.queries = self.served = self.in_flight = 0

    def step(self) -> float:
        """Begin a step; return its seconds."""
        room = BUDGET - sum(call.uncached for call in self.running)
        while self.waiting and len(self.running) < 64 and room > 0:
            call = self.waiting.pop(0)
            self._look_up(call)
            room -= call.uncached
            self.running.append(call)
        room = BUDGET
        for call in self.running:
            computed = min(call.uncached, room)
            call.uncached -= computed
            room -= computed
            if not call.uncached:
                call.answer -= 1
        return 0.005 + 0.0001 * (BUDGET - room) + 0.0002 * len(self.running)

    def end_step(self) -> list[Call]:
        """Return the requests that are complete."""
        complete = [call for call in self.running if call.answer <= 0]
        self.running = [call for call in self.running if call.answer > 0]
        self.in_flight -= len(complete)
        self.served += len(complete)
        return complete

    def _look_up(self, call: Call) -> None:
        text = call.text
        # the beginning stands for the chained hash of its last block
        beginnings = [text[:end] for end in range(self.block, len(text) + 1, self.block)]
        found = next((index for index, each in enumerate(beginnings) if each not in self.cache), len(beginnings))
        # vLLM always computes the last token
        cached = min(found, (len(text) - 1) // self.block) * self.block
        for each in reversed(beginnings):
            self.cache.pop(each, None)
            self.cache[each] = None
        while len(self.cache) > self.blocks:
            del self.cache[next(iter(self.cache))]
        self.queries += len(text)
        self.hits += cached
        call.uncached = len(text) - cached


@attrs.frozen
class Scenario:
    """What happens.

    Attributes:
        servers: how many.
        users: how many talk at once.
        turns: requests of each user.
        groups: system prompts, which users share.
        hot: how many times as many users the first group has as each other.
        think: mean seconds between an answer and the next turn; 0 for none.
        ramp: seconds in which the users begin.
        away: the shares of all requests after which the last server leaves, and comes back with an empty cache.
        before: whether the last server is there in the rounds before the one that is measured, which have other users.
        block: tokens of a block of the prefix cache.
        capacity: tokens in a server's prefix cache.
        weights: of the servers; empty for equal ones.
    """

    servers: int = 2
    users: int = 24
    turns: int = 6
    groups: int = 6
    hot: int = 1
    think: float = 0.0
    ramp: float = 0.002
    away: tuple[float, float] | None = None
    before: tuple[bool, ...] = ()
    block: int = 16
    capacity: int = 100_000
    weights: tuple[float, ...] = ()

    def on_one_server(self) -> Scenario:
        """The same users at one server, which stays."""
        return attrs.evolve(self, servers=1, away=None, before=(True,) * len(self.before), weights=())


@attrs.frozen
class Outcome:
    """What came of it.

    Attributes:
        hits: the share of prompt tokens that were found in caches.
        shares: the share of the requests that each server got.
        p99: the 99th percentile of seconds to the end of a request.
        moves: the share of later turns that were not at the server of the turn before.
    """

    hits: float
    shares: tuple[float, ...]
    p99: float
    moves: float


class User:
    """One conversation."""

    def __init__(self, simulation: Simulation, name: str, system: str) -> None:
        self.simulation = simulation
        self.name = name
        self.source = random.Random(f"{simulation.seed} {name}")
        self.messages = [{"role": "system", "content": system}]
        self.turns = 0
        self.server = ""

    def ask(self) -> None:
        """Send the next turn."""
        self.messages.append({"role": "user", "content": words(self.source, 12)})
        self.turns += 1
        server = self.simulation.send(self)
        self.simulation.moves += self.server not in ("", server)
        self.server = server

    def answered(self) -> None:
        """Go on, sooner or later."""
        self.messages.append({"role": "assistant", "content": "".join(self.source.choices(LETTERS, k=12))})
        simulation = self.simulation
        if self.turns < simulation.scenario.turns:
            think = simulation.scenario.think
            simulation.after(simulation.source.expovariate(1 / think) if think else 0.0, self.ask)


class Simulation:
    """Runs a scenario once."""

    def __init__(self, scenario: Scenario, policy: Policy, seed: int) -> None:
        self.scenario, self.policy, self.seed = scenario, policy, seed
        self.source = random.Random(seed)
        self.servers = [
            SimulatedServer(f"server-{number}", scenario.block, scenario.capacity) for number in range(scenario.servers)
        ]
        self.weights = scenario.weights or (1.0,) * scenario.servers
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.began = self.moves = 0
        self.seconds: list[float] = []

    def run(self) -> Outcome:
        scenario, last = self.scenario, self.servers[-1]
        for number, is_there in enumerate(scenario.before):
            self.set_up(last, is_there)
            self.play(number)
        self.set_up(last, True)
        before = [(each.hits, each.queries, each.served) for each in self.servers]
        self.began = self.moves = 0
        self.seconds.clear()
        self.play(len(scenario.before))
        total = scenario.users * scenario.turns
        assert len(self.seconds) == total
        return Outcome(
            sum(each.hits - old[0] for each, old in zip(self.servers, before, strict=True))
            / sum(each.queries - old[1] for each, old in zip(self.servers, before, strict=True)),
            tuple((each.served - old[2]) / total for each, old in zip(self.servers, before, strict=True)),
            sorted(self.seconds)[int(0.99 * (total - 1))],
            self.moves / (total - scenario.users),
        )

    def play(self, number: int) -> None:
        """Let users talk until all have ended."""
        scenario = self.scenario
        groups = [0] * scenario.hot + list(range(1, scenario.groups))
        systems = [words(self.source, 60) for _ in range(scenario.groups)]
        for user in range(scenario.users):
            talking = User(self, f"user-{number}-{user}", systems[groups[user % len(groups)]])
            self.after(self.source.uniform(0.0, scenario.ramp), talking.ask)
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.order), what))

    def set_up(self, server: SimulatedServer, is_up: bool) -> None:
        """Let a server leave or come back."""
        if server.up and not is_up:
            server.cache.clear()
            self.policy.forgot(server.name)
        server.up = is_up

    def send(self, user: User) -> str:
        """Send a user's conversation to a server; return its name."""
        scenario = self.scenario
        self.began += 1
        if scenario.away is not None:
            leaves, comes = (int(share * scenario.users * scenario.turns) for share in scenario.away)
            self.set_up(self.servers[-1], not leaves <= self.began < comes)
        body = json.dumps({"model": "m", "messages": user.messages, "max_tokens": 12, "stream": True}).encode()
        request = RoutingRequest(user.name.encode(), prompt_prefix(body, model="m"))
        up = [each for each in zip(self.servers, self.weights, strict=True) if each[0].up]
        snapshots = [ServerSnapshot(server.name, weight, server.in_flight) for server, weight in up]
        server = up[self.policy.choose(snapshots, request)][0]
        self.policy.sent(server.name, request)
        server.in_flight += 1
        began = self.now

        def done() -> None:
            self.seconds.append(self.now - began)
            user.answered()

        text = "".join(f"<{each['role']}>{each['content']}" for each in user.messages)
        server.waiting.append(Call(text, max(1, round(self.source.gauss(12, 1.5))), done))
        if not server.is_stepping:
            server.is_stepping = True
            self.after(0.0, partial(self._step, server))
        return server.name

    def _step(self, server: SimulatedServer) -> None:
        self.after(server.step(), partial(self._end_step, server))

    def _end_step(self, server: SimulatedServer) -> None:
        for call in server.end_step():
            call.done()
        if server.waiting or server.running:
            self._step(server)
        else:
            server.is_stepping = False


def simulate(scenario: Scenario, policy: Policy, seed: int) -> Outcome:
    """Run a scenario; `seed` decides what users say and when they begin."""
    return Simulation(scenario, policy, seed).run()


def hits_of_one(scenario: Scenario, seed: int) -> float:
    """Return the share of prompt tokens that one server would have found in its cache."""
    return simulate(scenario.on_one_server(), make_policy("least-busy", lambda: 0.0), seed).hits


class LongestMatch:
    """The rule of vllm-router's ``cache_aware``, with its defaults, on our blocks. The router itself finds less.

    The server with the longest match, if that is over half of the prompt, else the one that knows least; the one with
    the least in flight, if they differ by over 32 and by over a tenth (``src/policies/cache_aware.rs``).
    """

    reads_prompt, reads_session, reads_latency = True, False, False

    def __init__(self) -> None:
        self._known: dict[str, set[int]] = {}

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        loads = [each.in_flight for each in servers]
        if max(loads) - min(loads) > 32 and max(loads) > 1.1 * min(loads):
            return loads.index(min(loads))
        known = [self._known.setdefault(each.name, set()) for each in servers]
        matched = [sum(block in blocks for block in request.prefix) for blocks in known]
        if max(matched) > 0.5 * len(request.prefix):
            return matched.index(max(matched))
        sizes = [len(blocks) for blocks in known]
        return sizes.index(min(sizes))

    def sent(self, server: str, request: RoutingRequest) -> None:
        self._known.setdefault(server, set()).update(request.prefix)

    def forgot(self, server: str) -> None:
        self._known.pop(server, None)


_THINKING = Scenario(users=96, turns=12, groups=12, think=1.0, ramp=2.0)
SCENARIOS = {
    "two servers": Scenario(),
    "two, blocks of 128": Scenario(block=128),
    "three servers": Scenario(servers=3),
    "two, one group ten times as hot": Scenario(users=30, hot=10),
    "three, one group ten times as hot": Scenario(servers=3, users=30, hot=10),
    "two, after one left and came back": Scenario(before=(True, False)),
    "three, after one left and came back": Scenario(servers=3, before=(True, False)),
    "two, one leaves and comes back": Scenario(turns=18, away=(0.3, 0.5)),
    "three, one leaves and comes back": Scenario(servers=3, turns=18, away=(0.3, 0.5)),
    "two, users who think": _THINKING,
    "three, users who think": attrs.evolve(_THINKING, servers=3),
    "two, users who think, one group hot": attrs.evolve(_THINKING, hot=10),
    "eight, users who think": attrs.evolve(_THINKING, servers=8, users=256, turns=8, groups=24),
    "two, weights 3 and 1": attrs.evolve(_THINKING, weights=(3.0, 1.0)),
    "two, caches too small for one": Scenario(capacity=8_000),
}


def print_table(seeds: int, titles: Sequence[str]) -> None:
    """Print what each policy makes of scenarios."""
    policies: dict[str, Callable[[random.Random], Policy]] = {name: partial(_made, name) for name in STRATEGIES}
    policies["longest match"] = lambda source: LongestMatch()
    print("| scenario | policy | hits, of one server's: mean, least | busiest: mean, most | p99 s | moves |")
    print("| --- | --- | --- | --- | --- | --- |")
    for title in titles:
        scenario = SCENARIOS[title]
        limits = [hits_of_one(scenario, seed) for seed in range(seeds)]
        for name, make in policies.items():
            found = [simulate(scenario, make(random.Random(seed)), seed) for seed in range(seeds)]
            ratios = [each.hits / limit for each, limit in zip(found, limits, strict=True)]
            busiest = [max(each.shares) for each in found]
            print(
                f"| {title} | `{name}` | {sum(ratios) / seeds:.3f}, {min(ratios):.3f}"
                f" | {sum(busiest) / seeds:.2f}, {max(busiest):.2f} | {sum(each.p99 for each in found) / seeds:.2f}"
                f" | {sum(each.moves for each in found) / seeds:.3f} |",
                flush=True,
            )


def _made(name: str, source: random.Random) -> Policy:
    return make_policy(name, source.random)


if __name__ == "__main__":
    print_table(int(sys.argv[1]) if len(sys.argv) > 1 else 10, sys.argv[2:] or list(SCENARIOS))
