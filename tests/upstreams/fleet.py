"""A fleet of vLLM servers in virtual time, to compare policies: how much of the prompts is found in prefix caches.

Each server batches continuously as vLLM's scheduler does: every step takes waiting requests, computes up to a budget of
prompt tokens that its prefix cache lacks, and one token for each running request. Blocks are known to the cache as soon
as they are scheduled; the least recently used are dropped when there is no room. A token is one character.

    python -m tests.upstreams.fleet [SEEDS]    prints the table of docs/decisions/0056-routing-policies.md
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import attrs

from twisted_vllm.bodies.prompt_prefix import prompt_prefix
from twisted_vllm.upstreams.policies import Policy, RoutingRequest, ServerSnapshot, make_policy

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(source: random.Random, count: int) -> str:
    return " ".join("".join(source.choices(LETTERS, k=source.randint(2, 7))) for _ in range(count))


@attrs.define(eq=False)
class Call:
    """A request at a server: what it lacks of the prompt, and of the answer."""

    text: str
    answer: int
    done: Callable[[], None]
    uncached: int = -1


class SimulatedServer:
    """One vLLM. Times are in seconds; defaults make a prompt of 400 tokens as dear as 20 steps of decoding."""

    def __init__(self, name: str, *, block: int = 16, capacity: int = 100_000, batch: int = 64) -> None:
        self.name = name
        self.block, self.blocks, self.batch = block, capacity // block, batch
        self.up = True
        self.waiting: list[Call] = []
        self.running: list[Call] = []
        self.cache: dict[str, None] = {}
        self.hits = self.queries = self.served = self.in_flight = 0
        self.busy = False

    def restart(self) -> None:
        self.cache.clear()

    def admit(self, call: Call) -> None:
        """Look the prompt up, and put its blocks into the cache."""
        size, text = self.block, call.text
        ends = range(size, len(text) + 1, size)
        found = 0
        for end in ends:
            # the whole beginning stands for the chained hash of its last block
            if text[:end] not in self.cache:
                break
            found = end
        # vLLM computes the last token always
        found = min(found, (len(text) - 1) // size * size)
        for end in reversed(ends):
            self.cache.pop(text[:end], None)
            self.cache[text[:end]] = None
        while len(self.cache) > self.blocks:
            del self.cache[next(iter(self.cache))]
        self.queries += len(text)
        self.hits += found
        call.uncached = len(text) - found

    def step(self) -> float:
        """Run one step; return its seconds."""
        budget = 2048
        while self.waiting and len(self.running) < self.batch and budget > 0:
            call = self.waiting.pop(0)
            self.admit(call)
            budget -= call.uncached
            self.running.append(call)
        prefilled = 0
        for call in self.running:
            part = min(call.uncached, 2048 - prefilled)
            call.uncached -= part
            prefilled += part
            if not call.uncached:
                call.answer -= 1
        return 0.005 + 0.0001 * prefilled + 0.0002 * len(self.running)

    def ended(self) -> list[Call]:
        over = [call for call in self.running if call.answer <= 0]
        self.running = [call for call in self.running if call.answer > 0]
        return over


@attrs.frozen
class Scenario:
    """What happens.

    Attributes:
        servers: how many.
        users: how many talk.
        turns: requests of each user.
        groups: systems prompts.
        hot: how many times more users the first group has than each other.
        think: mean seconds between an answer and the next turn; 0 for none.
        ramp: seconds in which the users begin.
        away: the shares of all requests after which the last server leaves and comes back with an empty cache.
        block: tokens of a block of the prefix cache.
        capacity: tokens in a server's prefix cache.
        system: words of a system prompt.
        said: words of a user's message.
        answer: tokens of an answer.
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
    block: int = 16
    capacity: int = 100_000
    system: int = 60
    said: int = 12
    answer: int = 12
    weights: tuple[float, ...] = ()


@attrs.frozen
class Outcome:
    """What came of it.

    Attributes:
        hits: the share of prompt tokens found in caches.
        busiest: the largest share of requests, over its fair share, that one server got: 1.0 is even.
        share: the largest share of the requests that one server got.
        late: as `share`, of the last third of the requests.
        p99: the 99th percentile of seconds to the end of a request.
        moves: turns of a conversation at another server than the turn before.
    """

    hits: float
    share: float
    late: float
    p99: float
    moves: float
    shares: tuple[float, ...]


def simulate(scenario: Scenario, policy: Policy, seed: int) -> Outcome:
    """Run a scenario to its end."""
    source = random.Random(seed)
    servers = [
        SimulatedServer(f"server-{number}", block=scenario.block, capacity=scenario.capacity)
        for number in range(scenario.servers)
    ]
    weights = scenario.weights or (1.0,) * scenario.servers
    shares = [scenario.hot] + [1] * (scenario.groups - 1)
    group_of = [user % scenario.groups for user in range(scenario.users)]
    if scenario.hot > 1:
        group_of = list(itertools.islice(itertools.cycle(_spread(shares)), scenario.users))
    systems = [words(source, scenario.system) for _ in range(scenario.groups)]
    total = scenario.users * scenario.turns
    events: list[tuple[float, int, Callable[[], None]]] = []
    order = itertools.count()
    now = 0.0
    began = ended = moves = 0
    taken: list[float] = []
    placed: list[str] = []

    def at(seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (now + seconds, next(order), what))

    def run(server: SimulatedServer) -> None:
        seconds = server.step()

        def over() -> None:
            for call in server.ended():
                server.in_flight -= 1
                server.served += 1
                call.done()
            server.busy = False
            wake(server)

        at(seconds, over)

    def wake(server: SimulatedServer) -> None:
        if not server.busy and (server.waiting or server.running):
            server.busy = True
            at(0.0, lambda: run(server))

    def send(body: bytes, text: str, number: int, done: Callable[[], None]) -> str:
        nonlocal began
        began += 1
        if scenario.away is not None:
            last = servers[-1]
            if last.up and began == int(scenario.away[0] * total):
                last.up = False
                last.restart()
                policy.forgot(last.name)
            elif not last.up and began == int(scenario.away[1] * total):
                last.up = True
        up = [(server, weight) for server, weight in zip(servers, weights, strict=True) if server.up]
        request = RoutingRequest(session=f"user-{number}".encode(), prefix=prompt_prefix(body, model="m"))
        snapshots = [ServerSnapshot(each.name, weight, each.in_flight) for each, weight in up]
        server = up[policy.choose(snapshots, request)][0]
        policy.sent(server.name, request)
        server.in_flight += 1
        started = now

        def answered() -> None:
            taken.append(now - started)
            done()

        server.waiting.append(Call(text, max(1, round(source.gauss(scenario.answer, scenario.answer / 8))), answered))
        placed.append(server.name)
        wake(server)
        return server.name

    def user(number: int) -> Iterator[None]:
        nonlocal moves
        own = random.Random(seed * 1000 + number)
        messages = [{"role": "system", "content": systems[group_of[number]]}]
        before = ""
        for _ in range(scenario.turns):
            messages.append({"role": "user", "content": words(own, scenario.said)})
            body = json.dumps({"model": "m", "messages": messages, "max_tokens": 12, "stream": True}).encode()
            text = "".join(f"<{each['role']}>{each['content']}" for each in messages)
            name = send(body, text, number, lambda: advance(number))
            moves += before not in ("", name)
            before = name
            yield
            messages.append({"role": "assistant", "content": "".join(own.choices(LETTERS, k=scenario.answer))})

    talks = [user(number) for number in range(scenario.users)]

    def advance(number: int) -> None:
        at(source.expovariate(1 / scenario.think) if scenario.think else 0.0, lambda: next(talks[number], None))

    for number in range(scenario.users):
        at(source.uniform(0, scenario.ramp), lambda number=number: next(talks[number], None))  # type: ignore[misc]
    while events:
        now, _, what = heapq.heappop(events)
        what()
        ended += 1
    assert len(taken) == total
    taken.sort()
    count = Counter(placed)
    late = Counter(placed[-total // 3 :])
    return Outcome(
        sum(each.hits for each in servers) / sum(each.queries for each in servers),
        max(count.values()) / total,
        max(late.values()) / len(placed[-total // 3 :]),
        taken[int(0.99 * (total - 1))],
        moves / max(1, total - scenario.users),
        tuple(count[each.name] / total for each in servers),
    )


def _spread(shares: Sequence[int]) -> list[int]:
    """Return groups, each as often as its share."""
    return [group for group, share in enumerate(shares) for _ in range(share)]


class CacheAware:
    """vllm-router's ``cache_aware`` with its defaults, on our table: the longest match over half the prompt.

    (``src/policies/cache_aware.rs``: ``cache_threshold`` 0.5, ``balance_abs_threshold`` 32, ``balance_rel_threshold``
    1.1; below the threshold, the server with the smallest tree.)
    """

    reads_prompt, reads_session = True, False

    def __init__(self) -> None:
        self._blocks: dict[str, set[int]] = {}

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        loads = [each.in_flight for each in servers]
        if max(loads) - min(loads) > 32 and max(loads) > 1.1 * min(loads):
            return loads.index(min(loads))
        known = [self._blocks.setdefault(each.name, set()) for each in servers]
        matched = [sum(block in blocks for block in request.prefix) for blocks in known]
        if max(matched) > 0.5 * len(request.prefix):
            return matched.index(max(matched))
        sizes = [len(blocks) for blocks in known]
        return sizes.index(min(sizes))

    def sent(self, server: str, request: RoutingRequest) -> None:
        self._blocks.setdefault(server, set()).update(request.prefix)

    def forgot(self, server: str) -> None:
        self._blocks.pop(server, None)


SCENARIOS = {
    "two": Scenario(),
    "two, block 128": Scenario(block=128),
    "three": Scenario(servers=3),
    "two, hot": Scenario(users=30, hot=10),
    "three, hot": Scenario(servers=3, users=30, hot=10),
    "two, away": Scenario(turns=18, away=(0.3, 0.5)),
    "three, away": Scenario(servers=3, turns=18, away=(0.3, 0.5)),
    "two, thinking": Scenario(users=96, turns=12, groups=12, think=1.0, ramp=2.0),
    "three, thinking": Scenario(servers=3, users=96, turns=12, groups=12, think=1.0, ramp=2.0),
    "two, thinking, hot": Scenario(users=96, turns=12, groups=12, hot=10, think=1.0, ramp=2.0),
    "eight, thinking": Scenario(servers=8, users=256, turns=8, groups=24, think=1.0, ramp=2.0),
    "two, weights 3:1": Scenario(users=32, weights=(3.0, 1.0), groups=8),
    "two, small cache": Scenario(capacity=8_000, users=24),
}


def main(seeds: int, names: Sequence[str]) -> None:
    policies: dict[str, Callable[[random.Random], Policy]] = {
        name: (lambda source, name=name: make_policy(name, source.random))  # type: ignore[misc]
        for name in ("prefix", "session", "least-busy", "latency-based-routing", "round-robin")
    }
    policies["cache_aware"] = lambda source: CacheAware()
    for title, scenario in SCENARIOS.items():
        if names and title not in names:
            continue
        one = [
            simulate(
                attrs.evolve(scenario, servers=1, away=None, weights=()),
                make_policy("round-robin", random.Random(0).random),
                seed,
            ).hits
            for seed in range(seeds)
        ]
        print(f"{title}: one server {sum(one) / seeds:.3f}")
        for name, make in policies.items():
            found = [simulate(scenario, make(random.Random(seed)), seed) for seed in range(seeds)]
            ratios = [each.hits / limit for each, limit in zip(found, one, strict=True)]
            print(
                f"  {name:12} hits/one {sum(ratios) / seeds:.3f} (min {min(ratios):.3f})"
                f"  busiest {sum(each.share for each in found) / seeds:.2f} (max {max(each.share for each in found):.2f})"
                f" late max {max(each.late for each in found):.2f}"
                f"  p99 {sum(each.p99 for each in found) / seeds:.2f} s  moves {sum(each.moves for each in found) / seeds:.3f}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10, sys.argv[2:])
