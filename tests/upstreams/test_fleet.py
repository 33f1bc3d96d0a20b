"""What the policies make of a simulated fleet: the promises of docs/routing.md, over many seeds."""

from __future__ import annotations

import random

import pytest

from tests.upstreams.fleet import SCENARIOS, Outcome, hits_of_one, simulate
from twisted_vllm.upstreams.policies import make_policy

SEEDS = range(12)


def run(title: str, strategy: str, seed: int) -> tuple[Outcome, float]:
    """Return the outcome, and its hit ratio as a part of one server's."""
    scenario = SCENARIOS[title]
    found = simulate(scenario, make_policy(strategy, random.Random(seed).random), seed)
    return found, found.hits / hits_of_one(scenario, seed)


@pytest.mark.parametrize(
    ("title", "busiest"),
    [
        ("two servers", 0.60),
        ("two, blocks of 128", 0.60),
        ("three servers", 0.45),
        ("two, one group ten times as hot", 0.60),
        ("three, one group ten times as hot", 0.45),
        ("two, after one left and came back", 0.60),
        ("three, after one left and came back", 0.45),
    ],
)
def test_prefix_finds_what_one_server_would_find_and_shares_the_work_out(title: str, busiest: float) -> None:
    for seed in SEEDS:
        found, ratio = run(title, "prefix", seed)
        assert ratio >= 0.97, seed
        assert max(found.shares) <= busiest, seed


@pytest.mark.parametrize("title", ["two, users who think", "three, users who think"])
def test_chance_in_what_is_in_flight_moves_no_conversations(title: str) -> None:
    found, ratio = run(title, "prefix", 1)
    assert ratio >= 0.97
    assert found.moves <= 0.02
    assert max(found.shares) <= 1.25 / SCENARIOS[title].servers


def test_a_server_that_comes_back_in_the_middle_takes_its_part_and_each_conversation_moves_once() -> None:
    scenario = SCENARIOS["two, one leaves and comes back"]
    for seed in SEEDS:
        found, _ = run("two, one leaves and comes back", "prefix", seed)
        # half of the users when it leaves, and half when it comes back
        assert found.moves * (scenario.turns - 1) <= 1.1
        # it was away for a fifth of the requests
        assert min(found.shares) >= 0.35


def test_prefix_answers_no_later_than_the_other_policies() -> None:
    for title in ("two servers", "three, one group ten times as hot"):
        slowest = {
            strategy: sum(run(title, strategy, seed)[0].p99 for seed in range(4))
            for strategy in ("prefix", "least-busy", "round-robin", "simple-shuffle")
        }
        assert min(slowest, key=slowest.__getitem__) == "prefix"


def test_round_robin_and_weights_lose_what_prefix_keeps() -> None:
    for strategy in ("round-robin", "simple-shuffle"):
        assert run("two servers", strategy, 1)[1] < 0.9
