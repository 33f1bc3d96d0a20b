"""Two workers that tell each other what they sent find as much in prefix caches as one process."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import pytest

from tests.upstreams.fleet import SCENARIOS, Scenario, Simulation, simulate
from twisted_vllm.upstreams.policies import Policy, RoutingRequest, ServerSnapshot, make_policy
from twisted_vllm.upstreams.shared.servers import INTERVAL

#: By the scenario, how much less two workers may find, in percent of the prompts' tokens. Users who think ask at any
#: time. The others ask in the moment in which the server's batch ends, several at once, and of those workers do not
#: know from each other.
LESS = {
    "two, users who think": 0.5,
    "three, users who think": 0.5,
    "two, users who think, one group hot": 0.5,
    "two servers": 2.5,
    "three servers": 3.5,
}
#: how much less they find at least if they tell each other nothing
UNTOLD = 4.0


class Workers:
    """Policies of several workers; each request goes to one of them by chance.

    What one of them sends, the others learn with the next tick, and so they see what is in flight.
    """

    reads_prompt, reads_session, reads_latency = True, False, False

    def __init__(self, count: int, seed: int, *, share: bool = True) -> None:
        self.source = random.Random(seed)
        self.policies: list[Policy] = [make_policy("prefix", random.Random(seed).random) for _ in range(count)]
        self.simulation: Simulation | None = None
        self.share = share
        self.chosen = 0
        self._tick = 0
        self._told: deque[tuple[int, int, str, RoutingRequest]] = deque()
        self._loads: dict[str, int] = {}
        self._own: dict[tuple[int, str], int] = {}

    def choose(self, servers: Sequence[ServerSnapshot], request: RoutingRequest) -> int:
        assert self.simulation is not None
        tick = int(self.simulation.now / INTERVAL)
        if tick != self._tick:
            self._tick = tick
            self._loads = {each.name: each.in_flight for each in servers}
            self._own.clear()
            while self._told and self._told[0][0] < tick:
                _, sender, server, sent = self._told.popleft()
                for number, policy in enumerate(self.policies):
                    if number != sender and self.share:
                        policy.sent(server, sent)
        self.chosen = self.source.randrange(len(self.policies))
        seen = [
            ServerSnapshot(
                each.name, each.weight, self._loads.get(each.name, 0) + self._own.get((self.chosen, each.name), 0)
            )
            for each in servers
        ]
        return self.policies[self.chosen].choose(seen, request)

    def sent(self, server: str, request: RoutingRequest) -> None:
        key = (self.chosen, server)
        self._own[key] = self._own.get(key, 0) + 1
        self.policies[self.chosen].sent(server, request)
        self._told.append((self._tick, self.chosen, server, request))

    def forgot(self, server: str) -> None:
        for policy in self.policies:
            policy.forgot(server)


def hits(scenario: Scenario, count: int, seed: int, *, share: bool = True) -> float:
    """Return the percent of prompt tokens that servers find in their caches."""
    if count == 1:
        return 100.0 * simulate(scenario, make_policy("prefix", random.Random(seed).random), seed).hits
    workers = Workers(count, seed, share=share)
    workers.simulation = Simulation(scenario, workers, seed)
    return 100.0 * workers.simulation.run().hits


@pytest.mark.parametrize("title", LESS)
def test_two_workers_find_as_much_as_one_process(title: str) -> None:
    one, two = (sum(hits(SCENARIOS[title], count, seed) for seed in range(2)) / 2 for count in (1, 2))
    assert two >= one - LESS[title]


def test_two_workers_that_tell_each_other_nothing_find_much_less() -> None:
    scenario = SCENARIOS["two servers"]
    assert hits(scenario, 2, 0, share=False) < hits(scenario, 1, 0) - UNTOLD
