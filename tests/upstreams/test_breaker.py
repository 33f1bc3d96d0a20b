"""When a server's breaker lets requests through."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from twisted_vllm.upstreams.breaker import (
    CLOSED,
    DEAD,
    FIRST_SHARE,
    HALF_OPEN,
    JITTER,
    OPEN,
    Breaker,
    Change,
    fault_of_status,
)

FAILS, COOLDOWN, LONGEST, SLOW_START = 3, 5.0, 60.0, 30.0


def breaker(**more: Any) -> Breaker:
    options: dict[str, Any] = {
        "allowed_fails": FAILS,
        "cooldown": COOLDOWN,
        "max_cooldown": LONGEST,
        "slow_start": SLOW_START,
        "random": lambda: 0.0,
    }
    return Breaker(**options | more)


def fail(found: Breaker, now: float, times: int = 1, reason: str = "connection_refused", **more: Any) -> None:
    for _ in range(times):
        found.failed(now, reason, found.begin(now), **more)


def opened(now: float = 0.0, **more: Any) -> Breaker:
    found = breaker(**more)
    fail(found, now, FAILS + 1)
    assert found.state == OPEN
    return found


def test_it_opens_when_more_failures_in_a_row_come_than_are_allowed() -> None:
    found = breaker()
    fail(found, 1.0, FAILS)
    assert (found.closed, found.allows(1.0), found.state) == (True, True, CLOSED)
    fail(found, 2.0)
    assert (found.closed, found.allows(2.0), found.state) == (False, False, OPEN)
    assert (found.reason, found.since, found.retry_at) == ("connection_refused", 2.0, 2.0 + COOLDOWN)


def test_a_success_begins_the_row_anew() -> None:
    found = breaker()
    for _ in range(10):
        fail(found, 1.0, FAILS)
        found.succeeded(1.0, found.begin(1.0))
    assert found.closed


def test_after_the_cool_down_one_request_tries_the_server() -> None:
    found = opened()
    assert not found.allows(COOLDOWN - 0.01)
    assert found.allows(COOLDOWN)
    ticket = found.begin(COOLDOWN)
    assert (found.state, found.allows(COOLDOWN)) == (HALF_OPEN, False)
    found.succeeded(COOLDOWN + 1, ticket)
    assert (found.state, found.closed, found.retry_at, found.reason) == (CLOSED, True, 0.0, "trial_succeeded")


def test_each_failed_trial_doubles_the_cool_down_to_a_bound() -> None:
    found, now = opened(), 0.0
    lengths = []
    for _ in range(8):
        lengths.append(found.retry_at - now)
        now = found.retry_at
        fail(found, now)
    assert lengths == [5, 10, 20, 40, 60, 60, 60, 60]


def test_a_server_that_fails_again_soon_after_it_came_back_goes_on_with_longer_cool_downs() -> None:
    found = opened()
    found.succeeded(5.0, found.begin(5.0))
    fail(found, 6.0, FAILS + 1)
    assert found.retry_at == 6.0 + 2 * COOLDOWN
    found.succeeded(20.0, found.begin(20.0))
    fail(found, 20.0 + LONGEST, FAILS + 1)
    assert found.retry_at == 20.0 + LONGEST + COOLDOWN


def test_what_was_sent_before_it_opened_is_no_trial() -> None:
    found = breaker()
    earlier = found.begin(0.0)
    fail(found, 0.0, FAILS + 1)
    trial = found.begin(COOLDOWN)
    found.succeeded(COOLDOWN, earlier)
    assert found.state == HALF_OPEN
    found.failed(COOLDOWN, "timeout", earlier)
    assert found.state == HALF_OPEN
    found.succeeded(COOLDOWN, trial)
    found.failed(COOLDOWN, "timeout", earlier)
    assert found.closed


def test_a_trial_whose_client_left_is_free_for_the_next_request() -> None:
    found = opened()
    ticket = found.begin(COOLDOWN)
    found.abandoned(COOLDOWN + 1, ticket)
    assert (found.state, found.allows(COOLDOWN + 1), found.retry_at) == (HALF_OPEN, True, COOLDOWN + 1)
    found.succeeded(COOLDOWN + 2, found.begin(COOLDOWN + 1))
    assert found.closed


def test_a_trial_without_end_is_replaced_and_counts_no_more() -> None:
    found = opened()
    first = found.begin(COOLDOWN)
    assert not found.allows(COOLDOWN + LONGEST - 0.1)
    assert found.allows(COOLDOWN + LONGEST)
    second = found.begin(COOLDOWN + LONGEST)
    found.abandoned(COOLDOWN + LONGEST, first)
    assert not found.allows(COOLDOWN + LONGEST)
    found.succeeded(COOLDOWN + LONGEST, second)
    assert found.closed


def test_a_server_that_answers_errors_is_a_last_resort_and_its_other_requests_are_no_trials() -> None:
    found = breaker()
    fail(found, 0.0, FAILS + 1, "status_500", answered=True)
    assert (found.state, found.allows(0.0), found.last_resort) == (OPEN, False, True)
    found.succeeded(0.0, found.begin(0.0))
    assert found.state == OPEN
    found.declare_alive(1.0)
    assert found.state == OPEN, "checks that pass do not say that requests succeed"
    found.succeeded(COOLDOWN, found.begin(COOLDOWN))
    assert (found.state, found.last_resort) == (CLOSED, False)
    fail(found, COOLDOWN, FAILS + 1)
    assert not found.last_resort


def test_what_answers_opened_and_no_request_tries_is_closed_by_its_checks_in_the_end() -> None:
    found = breaker()
    fail(found, 0.0, FAILS + 1, "status_503", answered=True)
    found.declare_alive(COOLDOWN + LONGEST - 1)
    assert found.state == OPEN
    found.declare_alive(COOLDOWN + LONGEST)
    assert (found.state, found.reason) == (CLOSED, "checks_passed")


def test_a_dead_server_gets_nothing_until_checks_find_it_alive() -> None:
    found = breaker()
    found.declare_dead(1.0, "timeout", 3.0)
    assert (found.state, found.reason, found.since, found.retry_at) == (DEAD, "timeout", 1.0, 3.0)
    assert not found.allows(1e9)
    found.declare_dead(2.0, "status_503", 4.0, answered=True)
    assert (found.since, found.retry_at, found.reason, found.last_resort) == (1.0, 4.0, "status_503", True)
    found.declare_alive(9.0)
    assert (found.state, found.reason, found.last_resort) == (CLOSED, "checks_passed", False)


def test_checks_that_pass_close_what_failed_connections_opened() -> None:
    found = opened()
    found.declare_alive(1.0)
    assert found.closed


def test_a_dead_server_that_nobody_checks_any_more_gets_a_trial() -> None:
    found = breaker()
    found.release(0.0)
    assert found.closed
    found.declare_dead(1.0, "timeout", 3.0)
    found.release(2.0)
    assert (found.state, found.allows(2.0), found.reason) == (OPEN, True, "checks_stopped")


def test_a_server_that_came_back_gets_its_share_slowly() -> None:
    found = opened()
    assert breaker().share(0.0) == 1.0
    found.succeeded(10.0, found.begin(10.0))
    assert found.share(10.0) == pytest.approx(FIRST_SHARE)
    assert found.share(10.0 + SLOW_START / 2) == pytest.approx((1 + FIRST_SHARE) / 2)
    assert found.share(10.0 + SLOW_START) == found.share(11.0) == 1.0


def test_without_a_slow_start_it_gets_all_at_once() -> None:
    found = opened(slow_start=0.0)
    found.declare_alive(1.0)
    assert found.share(1.0) == 1.0


def test_a_clock_that_was_set_back_lengthens_no_cool_down() -> None:
    found = opened(now=1e9)
    assert found.allows(5e8)
    found.begin(5e8)
    assert not found.allows(5e8 + 1)
    assert found.allows(4e8)


def test_failures_are_counted_by_reason_even_if_they_came_too_late_to_count() -> None:
    found = breaker()
    late = found.begin(0.0)
    fail(found, 0.0, FAILS + 1)
    found.failed(1.0, "timeout", late)
    assert found.failures == {"connection_refused": FAILS + 1, "timeout": 1}


def test_each_change_is_told_once() -> None:
    found, told = breaker(), list[Change]()
    found.on_change = told.append
    fail(found, 0.0, FAILS + 1)
    found.abandoned(5.0, found.begin(5.0))
    fail(found, 6.0)
    found.declare_dead(7.0, "timeout", 8.0)
    found.declare_dead(8.0, "timeout", 9.0)
    found.declare_alive(9.0)
    found.declare_alive(9.0)
    assert [(each.previous, each.state, each.reason) for each in told] == [
        (CLOSED, OPEN, "connection_refused"),
        (OPEN, HALF_OPEN, "connection_refused"),
        (HALF_OPEN, OPEN, "connection_refused"),
        (OPEN, DEAD, "timeout"),
        (DEAD, CLOSED, "checks_passed"),
    ]


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 408, 413, 422, 429, 499, 501, 505])
def test_a_status_that_speaks_of_the_request_is_no_fault(status: int) -> None:
    assert fault_of_status(status) is None


@pytest.mark.parametrize("status", [500, 502, 503, 504, 529])
def test_a_status_that_speaks_of_the_server_is_its_fault(status: int) -> None:
    assert fault_of_status(status) == f"status_{status}"


@given(jitter=st.floats(0, 1, exclude_max=True), trials=st.integers(0, 100))
def test_a_cool_down_is_never_over_its_bound(jitter: float, trials: int) -> None:
    found, now = opened(random=lambda: jitter), 0.0
    for nth in range(trials + 1):
        whole = min(COOLDOWN * 2**nth, LONGEST)
        assert whole * (1 - JITTER) <= found.retry_at - now <= whole + 1e-6
        now = found.retry_at
        fail(found, now)


class AnyBreaker(RuleBasedStateMachine):
    """Any order of what can happen to a breaker."""

    @initialize(allowed=st.integers(0, 4), jitter=st.floats(0, 1, exclude_max=True))
    def make(self, allowed: int, jitter: float) -> None:
        self.now = 100.0
        self.allowed = allowed
        self.breaker = breaker(allowed_fails=allowed, random=lambda: jitter, now=self.now)
        self.changes: list[Change] = []
        self.breaker.on_change = self.changes.append
        #: requests under way: their tickets, and whether they were sent where the breaker allowed it
        self.running: list[tuple[int, bool]] = []
        self.row = 0

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def send(self) -> None:
        allowed = self.breaker.allows(self.now)
        assert allowed or not self.breaker.closed
        if allowed or self.breaker.last_resort:
            self.running.append((self.breaker.begin(self.now), allowed))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), result=st.sampled_from(["succeeded", "failed", "answered", "abandoned"]))
    def end(self, data: st.DataObject, result: str) -> None:
        found = self.breaker
        ticket, allowed = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        before, since, current = found.state, found.since, ticket == found.ticket
        if result == "abandoned":
            found.abandoned(self.now, ticket)
            assert found.state == before
        elif result == "succeeded":
            found.succeeded(self.now, ticket)
            assert found.state == (CLOSED if before == HALF_OPEN and current else before)
        else:
            found.failed(self.now, "status_500", ticket, answered=result == "answered")
            if found.state != before:
                assert found.state == OPEN and current
        if not allowed:
            assert (found.state, found.since) == (before, since), "a last resort is no trial"

    @rule(answered=st.booleans())
    def die(self, answered: bool) -> None:
        self.breaker.declare_dead(self.now, "timeout", self.now + 2, answered=answered)
        assert not self.breaker.allows(self.now + 1e6)

    @rule()
    def revive(self) -> None:
        found = self.breaker
        early = found.last_resort and found.state != DEAD and self.now < found.retry_at + LONGEST
        found.declare_alive(self.now)
        assert found.closed != early

    @rule()
    def release(self) -> None:
        self.breaker.release(self.now)
        assert self.breaker.state != DEAD

    @invariant()
    def at_most_one_trial_is_under_way(self) -> None:
        found = self.breaker
        if found.state == HALF_OPEN:
            trials = [ticket for ticket, _ in self.running if ticket == found.ticket]
            assert len(trials) <= 1
            assert not trials or not found.allows(self.now) or self.now - found.since >= LONGEST

    @invariant()
    def it_is_never_shut_for_good(self) -> None:
        found = self.breaker
        if found.state != DEAD:
            # and a little, for the rounding of floats
            assert found.allows(self.now + LONGEST + 0.001)

    @invariant()
    def its_attributes_agree(self) -> None:
        found = self.breaker
        assert found.closed == (found.state == CLOSED)
        assert found.closed == (found.retry_at == 0.0) or found.state == DEAD
        assert not (found.closed and found.last_resort)
        assert found.since <= self.now
        assert found.retry_at <= self.now + LONGEST
        assert FIRST_SHARE <= found.share(self.now) <= 1.0

    @invariant()
    def changes_follow_one_another(self) -> None:
        states = [CLOSED, *(each.state for each in self.changes)]
        assert [each.previous for each in self.changes] == states[:-1]
        assert states[-1] == self.breaker.state


TestAnyBreaker = AnyBreaker.TestCase
