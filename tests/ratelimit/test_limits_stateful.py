"""Any interleaving of admissions, ends, aborts, changes and time, beside a model that keeps every event."""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.ratelimit.limiter_contract import NOON
from twisted_vllm.errors import BudgetExceeded, RateLimitExceeded
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.periods import period_of
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.ratelimit.windows import BUCKET_SECONDS

KEYS = [("key", "k1"), ("team", "t1")]
DURATION = "1h"
MODELS = ["a", "b", ""]

few = st.none() | st.integers(0, 5)
tokens = st.integers(0, 12)
costs = st.integers(0, 12)
allowances = st.builds(
    Allowance,
    rpm=few,
    tpm=st.none() | st.integers(0, 30),
    parallel=few,
    model_rpm=st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 3), max_size=2),
    model_tpm=st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 20), max_size=2),
    max_budget=st.none() | st.integers(0, 30),
    budget_duration=st.just(DURATION),
)
steps = st.sampled_from([0.01, 0.1, 0.24, 0.3, 7.3, 29.9, 30.0, 30.1, 59.7, 59.95, 60.0, 60.1, 61.0, 3600.0])


@attrs.define
class Running:
    """A request in work, as the model sees it."""

    reservation: Reservation
    scopes: list[tuple[str, str]]
    tokens: int
    cost: int
    #: the counts of its tokens: each a [time, amount] that stands in the model's lists too
    charges: list[tuple[Any, list[Any]]]
    #: whose budgets it reserved, in which period
    budgets: list[tuple[tuple[str, str], int]]


class Limits(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.limiter = LocalLimiter()
        self.now = NOON
        self.allowances = dict.fromkeys(KEYS, Allowance())
        self.running: list[Running] = []
        # Every request and every token that was ever counted, by scope, limit and model: [time, amount].
        self.events: dict[Any, list[list[Any]]] = defaultdict(list)
        self.saved: dict[Any, int] = defaultdict(int)
        self.unsaved: dict[Any, int] = defaultdict(int)
        self.known_budgets: set[tuple[str, str]] = set()

    @initialize(data=st.lists(allowances, min_size=len(KEYS), max_size=len(KEYS)))
    def everybody_has_limits(self, data: list[Allowance]) -> None:
        self.allowances = dict(zip(KEYS, data, strict=True))

    @property
    def period(self) -> int:
        return period_of(DURATION, self.now)[0]

    def used(self, where: Any, window: float) -> int:
        return sum(amount for time, amount in self.events[where] if time + window > self.now)

    def full(self, scope: tuple[str, str], model: str, tokens: int, cost: int, window: float) -> set[str]:
        """The limits of a scope that a request would break, by the list of all events."""
        allowance, found = self.allowances[scope], set()
        tokens, cost = max(tokens, 1), max(cost, 1)
        in_flight = sum(scope in request.scopes for request in self.running)
        if allowance.parallel is not None and in_flight + 1 > allowance.parallel:
            found.add("parallel")
        for name, limit, amount in (
            ("rpm", allowance.rpm, 1),
            ("tpm", allowance.tpm, tokens),
            (f"rpm {model}", allowance.model_rpm.get(model), 1),
            (f"tpm {model}", allowance.model_tpm.get(model), tokens),
        ):
            if limit is not None and self.used((scope, name), window) + amount > limit:
                found.add(name)
        if allowance.max_budget is not None:
            place = (scope, self.period)
            reserved = sum(request.cost for request in self.running if place in request.budgets)
            if self.saved[place] + self.unsaved[place] + reserved + cost > allowance.max_budget:
                found.add("budget")
        return found

    @rule(
        scopes=st.lists(st.sampled_from(KEYS), unique=True, min_size=1),
        model=st.sampled_from(MODELS),
        tokens=tokens,
        cost=costs,
    )
    def a_request_comes(self, scopes: list[tuple[str, str]], model: str, tokens: int, cost: int) -> None:
        limited = [Limited(*scope, self.allowances[scope]) for scope in scopes]
        full = {scope: self.full(scope, model, tokens, cost, 60.0) for scope in scopes}
        surely_full = {scope: self.full(scope, model, tokens, cost, 60.0 + BUCKET_SECONDS) for scope in scopes}
        try:
            reservation = self.limiter.admit(limited, model, tokens, cost, self.now)
        except (RateLimitExceeded, BudgetExceeded) as error:
            assert any(surely_full.values()), "refused although there was room"
            if not any("parallel" in limits for limits in surely_full.values()):
                self.check_wait(error.retry_after, limited, model, tokens, cost)
            for scope in scopes:
                if self.allowances[scope].max_budget is not None:
                    self.known_budgets.add(scope)
            return
        assert not any(full.values()), "admitted over a limit"
        self.count(reservation, scopes, model, tokens, cost)

    @rule(scope=st.sampled_from(KEYS), model=st.sampled_from(MODELS), tokens=tokens, cost=costs, then=steps)
    def a_burst_comes(self, scope: tuple[str, str], model: str, tokens: int, cost: int, then: float) -> None:
        for _ in range(4):
            self.a_request_comes([scope], model, tokens, cost)
        self.now += then
        self.a_request_comes([scope], model, tokens, cost)

    def check_wait(self, wait: int | None, limited: list[Limited], model: str, tokens: int, cost: int) -> None:
        """What is told of the time to wait is true: then it succeeds, and a second earlier it does not."""

        def succeeds(seconds: int) -> bool:
            try:
                deepcopy(self.limiter).admit(limited, model, tokens, cost, self.now + seconds)
            except (RateLimitExceeded, BudgetExceeded):
                return False
            return True

        if wait is None:
            assert not any(succeeds(seconds) for seconds in (1, 61, 3601, 10**6))
        else:
            assert wait >= 1
            assert succeeds(wait)
            assert wait == 1 or not succeeds(wait - 1)

    def count(
        self, reservation: Reservation, scopes: list[tuple[str, str]], model: str, tokens: int, cost: int
    ) -> None:
        request = Running(reservation, scopes, tokens, cost, [], [])
        for scope in scopes:
            allowance = self.allowances[scope]
            if allowance.rpm is not None:
                self.events[scope, "rpm"].append([self.now, 1])
            if model in allowance.model_rpm:
                self.events[scope, f"rpm {model}"].append([self.now, 1])
            for name, limit in (("tpm", allowance.tpm), (f"tpm {model}", allowance.model_tpm.get(model))):
                if limit is not None:
                    charge = [self.now, tokens]
                    self.events[scope, name].append(charge)
                    request.charges.append(((scope, name), charge))
            if allowance.max_budget is not None:
                request.budgets.append((scope, self.period))
                self.known_budgets.add(scope)
        self.running.append(request)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0), tokens=st.integers(0, 20), cost=st.integers(0, 20))
    def a_request_ends(self, which: int, tokens: int, cost: int) -> None:
        self.end(self.running[which % len(self.running)], tokens, cost)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0))
    def a_request_is_aborted(self, which: int) -> None:
        self.end(self.running[which % len(self.running)], 0, 0)

    def end(self, request: Running, tokens: int, cost: int) -> None:
        self.running.remove(request)
        self.limiter.settle(request.reservation, tokens, cost, self.now)
        self.limiter.settle(request.reservation, tokens + 5, cost + 5, self.now)
        for where, charge in request.charges:
            charge[1] = min(charge[1], tokens)
            if tokens > request.tokens:
                self.events[where].append([self.now, tokens - request.tokens])
        for scope, period in request.budgets:
            self.unsaved[scope, period] += cost

    @rule(seconds=steps)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(scope=st.sampled_from(KEYS), allowance=allowances)
    def an_allowance_changes(self, scope: tuple[str, str], allowance: Allowance) -> None:
        self.allowances[scope] = allowance

    @rule(scope=st.sampled_from(KEYS), spend=costs, reset=st.booleans())
    def the_database_is_read_or_reset(self, scope: tuple[str, str], spend: int, reset: bool) -> None:
        change = self.limiter.budget_reset if reset else self.limiter.budget_loaded
        change(*scope, spend, self.period)
        self.saved[scope, self.period] = spend
        self.known_budgets.add(scope)

    @rule(scope=st.sampled_from(KEYS), share=st.integers(0, 100), others=costs, older=st.booleans())
    def spending_is_committed(self, scope: tuple[str, str], share: int, others: int, older: bool) -> None:
        place = (scope, self.period - 3600 * older)
        amount = self.unsaved[place] * share // 100
        total = self.saved[place] + amount + others
        self.limiter.budget_committed(*scope, amount, total, place[1])
        if scope in self.known_budgets:
            self.unsaved[place] -= amount
            self.saved[place] = total

    def teardown(self) -> None:
        for request in list(self.running):
            self.end(request, request.tokens // 2, request.cost // 2)
        self.now += 60.0 + BUCKET_SECONDS
        # All is free again: each limit lets exactly one through that allows one.
        for scope in KEYS:
            spent = self.saved[scope, self.period] + self.unsaved[scope, self.period]
            self.allowances[scope] = Allowance(
                rpm=1,
                tpm=1,
                parallel=1,
                model_rpm={"a": 1},
                model_tpm={"a": 1},
                max_budget=spent + 1,
                budget_duration=DURATION,
            )
        limited = [Limited(*scope, self.allowances[scope]) for scope in KEYS]
        self.limiter.settle(self.limiter.admit(limited, "a", 1, 1, self.now), 1, 1, self.now)
        for other in range(4):
            self.limiter.admit([], "", 0, 0, self.now + 60 * other)
        assert len(self.limiter) == 0


TestLimits = Limits.TestCase
TestLimits.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
