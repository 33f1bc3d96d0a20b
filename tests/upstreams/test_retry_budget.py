"""A dying server's requests are all sent again, and no outage doubles the load for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from twisted_vllm.upstreams.retry_budget import BURST, FORGIVEN, RetryBudget


def granted(budget: RetryBudget, times: int, *, in_flight: int = 0, now: float = 1000.0) -> int:
    """Ask for retries of requests that were sent; return how many were allowed."""
    return sum(budget.take(now, sent=True, in_flight=in_flight) for _ in range(times))


def test_all_requests_of_a_server_that_dies_are_sent_again_without_a_single_request_before() -> None:
    budget = RetryBudget(0.2, 0.0)
    assert granted(budget, 50, in_flight=100) == 50
    assert budget.denied == 0


def test_a_second_server_that_dies_soon_after_has_what_is_left() -> None:
    budget = RetryBudget(0.2, 0.0)
    assert granted(budget, 80, in_flight=100) + granted(budget, 80, in_flight=100) == 100
    assert (budget.taken, budget.denied) == (100, 60)


def test_few_requests_in_flight_have_a_few_retries() -> None:
    assert granted(RetryBudget(0.2, 0.0), 100, in_flight=1) == BURST


def test_what_was_never_sent_costs_nothing() -> None:
    budget = RetryBudget(0.2, 0.0)
    assert all(budget.take(0.0, sent=False, in_flight=1) for _ in range(1000))
    assert granted(budget, 100, in_flight=1) == BURST


def test_a_share_of_nothing_allows_only_what_was_never_sent() -> None:
    budget = RetryBudget(0.0, 0.0)
    assert granted(budget, 10, in_flight=10) == 0
    assert budget.take(0.0, sent=False, in_flight=10)


def test_under_a_lasting_fault_a_fifth_of_the_requests_are_sent_again() -> None:
    budget = RetryBudget(0.2, 0.0)
    for _ in range(10_000):
        budget.began()
        granted(budget, 1, in_flight=1, now=0.0)
    assert 2_000 <= budget.taken <= 2_000 + BURST


def test_a_gateway_with_little_traffic_has_retries_again_after_a_while() -> None:
    budget = RetryBudget(0.2, 0.0)
    granted(budget, 100, in_flight=100, now=1000.0)
    assert granted(budget, 1, in_flight=1, now=1001.0) == 0
    assert granted(budget, 100, in_flight=1, now=1000.0 + 100 / FORGIVEN) == BURST


def test_a_clock_that_is_set_back_forgives_nothing() -> None:
    budget = RetryBudget(0.2, 5000.0)
    assert granted(budget, 20, in_flight=10, now=5000.0) == 10
    assert granted(budget, 20, in_flight=10, now=0.0) == 0
    assert granted(budget, 20, in_flight=10, now=1 / FORGIVEN) == 1


class AnyTraffic(RuleBasedStateMachine):
    """The bound of the module's docstring, over any part of any run."""

    SHARE = 0.2

    def __init__(self) -> None:
        super().__init__()
        self.now = self.start = 100.0
        self.budget = RetryBudget(self.SHARE, self.now)
        self.requests = self.retries = self.in_flight = self.most = 0

    @rule(number=st.integers(1, 60))
    def begin(self, number: int) -> None:
        for _ in range(number):
            self.budget.began()
        self.requests += number
        self.in_flight += number
        self.most = max(self.most, self.in_flight)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.in_flight -= data.draw(st.integers(1, self.in_flight))

    @rule(number=st.integers(1, 60))
    def fail(self, number: int) -> None:
        for _ in range(number):
            self.retries += self.budget.take(self.now, sent=True, in_flight=self.in_flight)

    @rule(seconds=st.sampled_from([0.01, 1.0, 30.0, 600.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def look_at_what_follows_alone(self) -> None:
        self.start, self.most = self.now, self.in_flight
        self.requests = self.retries = 0

    @invariant()
    def retries_are_bounded(self) -> None:
        earned = self.SHARE * self.requests + FORGIVEN * (self.now - self.start)
        # what was forgiven before is settled at the first retry after it, and the burst covers it
        assert self.retries <= earned + max(BURST, self.most) + 1e-6


TestAnyTraffic = AnyTraffic.TestCase


@given(st.integers(0, 500), st.integers(1, 500))
def test_every_request_in_flight_can_be_sent_again_once_if_nothing_failed_before(before: int, in_flight: int) -> None:
    budget = RetryBudget(0.2, 0.0)
    for _ in range(before):
        budget.began()
    assert granted(budget, in_flight, in_flight=in_flight) == in_flight
