"""The limiter in memory: the contract, and what only memory has."""

from __future__ import annotations

import timeit
from collections.abc import Sequence

import pytest

from tests.ratelimit.limiter_contract import NOON, LimiterContract, key
from twisted_vllm.errors import BudgetExceeded, RateLimitExceeded
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.reservation import Reservation

DAY = 86_400
MIDNIGHT = int(NOON) - DAY // 2


class LocalDriver:
    def __init__(self) -> None:
        self.now = NOON
        self.limiter = LocalLimiter()

    async def admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int) -> Reservation:
        return self.limiter.admit(limited, model, tokens, cost, self.now)

    async def settle(self, reservation: Reservation, tokens: int, cost: int) -> None:
        self.limiter.settle(reservation, tokens, cost, self.now)

    def check(self, limited: Sequence[Limited]) -> None:
        self.limiter.check(limited, self.now)

    async def would_admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int) -> None:
        self.limiter.would_admit(limited, model, tokens, cost, self.now)


class TestLocalLimiter(LimiterContract):
    @pytest.fixture
    def driver(self) -> LocalDriver:
        return LocalDriver()


def test_a_burst_gets_exactly_what_is_allowed() -> None:
    for allowance, admitted in (
        (Allowance(rpm=500), 500),
        (Allowance(parallel=70), 70),
        (Allowance(tpm=1000), 100),
        (Allowance(model_rpm={"m": 31}), 31),
        (Allowance(model_tpm={"m": 315}), 31),
        (Allowance(max_budget=10_000), 100),
    ):
        limiter, count = LocalLimiter(), 0
        for number in range(2000):
            try:
                limiter.admit((Limited("key", "k", allowance),), "m", 10, 100, NOON + number / 1000)
                count += 1
            except (RateLimitExceeded, BudgetExceeded):
                pass
        assert count == admitted


def test_those_who_are_idle_are_forgotten_whatever_their_number() -> None:
    limiter = LocalLimiter()
    most = 0
    for number in range(30_000):
        now = NOON + number / 100
        who = Limited("end_user", f"user-{number}", Allowance(rpm=5, model_tpm={"m": 100}))
        limiter.settle(limiter.admit((who,), "m", 10, 0, now), 5, 0, now)
        most = max(most, len(limiter))
    assert most < 13_000
    for tick in range(2000):
        limiter.admit((key(rpm=100_000),), "", 0, 0, now + tick / 10)
    assert len(limiter) == 1


def test_who_has_a_request_in_flight_is_not_forgotten() -> None:
    limiter = LocalLimiter()
    long = limiter.admit((key("slow", parallel=1),), "", 0, 0, NOON)
    for minute in range(10):
        limiter.admit((key("quick", rpm=10),), "", 0, 0, NOON + 60 * minute)
    with pytest.raises(RateLimitExceeded):
        limiter.admit((key("slow", parallel=1),), "", 0, 0, NOON + 600)
    limiter.settle(long, 0, 0, NOON + 600)
    limiter.admit((key("slow", parallel=1),), "", 0, 0, NOON + 600)


def test_a_budget_is_remembered_when_nothing_else_is() -> None:
    limiter = LocalLimiter()
    limiter.settle(limiter.admit((key(max_budget=100),), "", 0, 100, NOON), 0, 100, NOON)
    for minute in range(1, 10):
        limiter.admit((key("other", rpm=10),), "", 0, 0, NOON + 60 * minute)
    assert len(limiter) == 1
    with pytest.raises(BudgetExceeded):
        limiter.admit((key(max_budget=100),), "", 0, 1, NOON + 600)


def test_a_clock_that_is_set_back_frees_nothing_and_stops_nothing() -> None:
    limiter = LocalLimiter()
    limiter.admit((key(rpm=1),), "", 0, 0, NOON)
    with pytest.raises(RateLimitExceeded) as refusal:
        limiter.admit((key(rpm=1),), "", 0, 0, NOON - 3600)
    assert refusal.value.retry_after == 60
    with pytest.raises(RateLimitExceeded):
        limiter.admit((key(rpm=1),), "", 0, 0, NOON - 3600 + 59)
    limiter.admit((key(rpm=1),), "", 0, 0, NOON - 3600 + 60)


def test_spending_goes_on_from_what_the_database_says() -> None:
    limiter = LocalLimiter()
    who = key(max_budget=100, budget_duration="1d")
    limiter.budget_loaded("key", "k1", 90, MIDNIGHT)
    with pytest.raises(BudgetExceeded):
        limiter.admit((who,), "", 0, 11, NOON)
    limiter.settle(limiter.admit((who,), "", 0, 10, NOON), 0, 4, NOON)
    # Another process spent 3 meanwhile, and the database has both.
    limiter.budget_committed("key", "k1", 4, 97, MIDNIGHT)
    with pytest.raises(BudgetExceeded):
        limiter.admit((who,), "", 0, 4, NOON)
    limiter.admit((who,), "", 0, 3, NOON)


def test_what_the_database_says_of_an_older_period_counts_no_more() -> None:
    limiter = LocalLimiter()
    who = key(max_budget=100, budget_duration="1d")
    limiter.budget_loaded("key", "k1", 100, MIDNIGHT - DAY)
    limiter.settle(limiter.admit((who,), "", 0, 60, NOON), 0, 60, NOON)
    limiter.budget_committed("key", "k1", 50, 150, MIDNIGHT - DAY)
    with pytest.raises(BudgetExceeded):
        limiter.admit((who,), "", 0, 41, NOON)
    limiter.admit((who,), "", 0, 40, NOON)


def test_a_later_period_in_the_database_begins_here_as_well() -> None:
    limiter = LocalLimiter()
    who = key(max_budget=100, budget_duration="1d")
    old = limiter.admit((who,), "", 0, 100, NOON)
    limiter.budget_committed("key", "k1", 0, 30, MIDNIGHT + DAY)
    limiter.settle(old, 0, 100, NOON)
    limiter.admit((who,), "", 0, 70, NOON + DAY)
    with pytest.raises(BudgetExceeded):
        limiter.admit((who,), "", 0, 1, NOON + DAY)


def test_a_reset_sets_what_was_spent_and_keeps_what_is_reserved() -> None:
    limiter = LocalLimiter()
    who = key(max_budget=100)
    limiter.budget_loaded("key", "k1", 100, 0)
    limiter.budget_reset("key", "k1", 10, 0)
    limiter.admit((who,), "", 0, 60, NOON)
    limiter.budget_reset("key", "k1", 0, 0)
    with pytest.raises(BudgetExceeded):
        limiter.admit((who,), "", 0, 41, NOON)
    limiter.budget_forgotten("key", "k1")
    limiter.admit((who,), "", 0, 100, NOON)


def test_nothing_is_kept_of_spending_without_a_budget() -> None:
    limiter = LocalLimiter()
    limiter.budget_committed("end_user", "anybody", 5, 5, MIDNIGHT)
    limiter.admit((Limited("end_user", "anybody", Allowance(max_budget=5)),), "", 0, 5, NOON)


def test_a_soft_budget_warns_once_for_each_period() -> None:
    warnings: list[tuple[str, str, int, int]] = []
    limiter = LocalLimiter(lambda *warning: warnings.append(warning))
    who = key(soft_budget=10, budget_duration="1d")

    def spend(cost: int, now: float, by: Limited = who) -> None:
        limiter.settle(limiter.admit((by,), "", 0, 100, now), 0, cost, now)

    spend(9, NOON)
    assert warnings == []
    spend(1, NOON)
    spend(5, NOON)
    assert warnings == [("key", "k1", 10, 10)]
    spend(1, NOON, key(soft_budget=20, budget_duration="1d"))
    assert len(warnings) == 1
    limiter.budget_committed("key", "k1", 16, 25, MIDNIGHT)
    assert warnings[1:] == [("key", "k1", 25, 20)]
    spend(9, NOON + DAY)
    assert len(warnings) == 2
    spend(9, NOON + DAY)
    assert warnings[2:] == [("key", "k1", 18, 10)]


def test_every_limit_together_costs_a_few_microseconds() -> None:
    allowance = Allowance(
        rpm=10**9,
        tpm=10**12,
        parallel=10,
        model_rpm={"m": 10**9},
        model_tpm={"m": 10**12},
        max_budget=10**18,
        budget_duration="30d",
    )
    limiter, limited, now = LocalLimiter(), (Limited("key", "k", allowance),), NOON

    def once() -> None:
        nonlocal now
        now += 0.001
        limiter.settle(limiter.admit(limited, "m", 500, 1000, now), 300, 600, now)

    # Some thirty times what it takes on a machine with nothing else to do.
    assert min(timeit.repeat(once, number=1000, repeat=10)) / 1000 < 100e-6
