"""Deadlines fire never early, only a little late, and independently of each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.http.server_harness import LoggedFailures
from twisted_vllm.http.net.deadlines import INTERVAL, DeadlineSweeper


class Member:
    def __init__(self, deadline: float | None, act: Callable[[], None] = lambda: None) -> None:
        self.deadline = deadline
        self.calls = 0
        self._act = act

    def expired(self) -> None:
        self.calls += 1
        self.deadline = None
        self._act()


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1_000)
    return clock


@pytest.fixture
def deadlines(clock: Clock) -> DeadlineSweeper:
    return DeadlineSweeper(clock)


def test_a_deadline_is_acted_on_when_it_has_passed_and_once(clock: Clock, deadlines: DeadlineSweeper) -> None:
    member = Member(1_010.0)
    deadlines.add(member)
    clock.advance(9.9)
    deadlines.sweep()
    assert member.calls == 0
    clock.advance(0.2)
    deadlines.sweep()
    deadlines.sweep()
    assert member.calls == 1


def test_a_member_without_a_deadline_waits_for_ever(clock: Clock, deadlines: DeadlineSweeper) -> None:
    member = Member(None)
    deadlines.add(member)
    clock.advance(1e9)
    deadlines.sweep()
    assert member.calls == 0
    assert deadlines.after(None) is None


def test_a_discarded_member_is_not_called(clock: Clock, deadlines: DeadlineSweeper) -> None:
    member = Member(1_001.0)
    deadlines.add(member)
    assert len(deadlines) == 1
    deadlines.discard(member)
    deadlines.discard(member)
    clock.advance(10)
    deadlines.sweep()
    assert (member.calls, len(deadlines)) == (0, 0)


def test_a_deadline_that_is_not_moved_is_acted_on_at_each_check(clock: Clock, deadlines: DeadlineSweeper) -> None:
    class Stubborn(Member):
        def expired(self) -> None:
            self.calls += 1

    member = Stubborn(1_000.0)
    deadlines.add(member)
    deadlines.sweep()
    deadlines.sweep()
    assert member.calls == 2


def test_members_may_come_and_go_while_others_are_called(clock: Clock, deadlines: DeadlineSweeper) -> None:
    members: list[Member] = []

    def discard_all() -> None:
        for member in members:
            deadlines.discard(member)
        deadlines.add(Member(2_000.0))

    members += [Member(1_000.0, discard_all) for _ in range(3)]
    for member in members:
        deadlines.add(member)
    clock.advance(1)
    deadlines.sweep()
    assert sum(member.calls for member in members) == 1, "a member that was discarded is not called"
    assert len(deadlines) == 1


def test_a_deadline_that_another_moved_in_the_same_check_is_not_acted_on(
    clock: Clock, deadlines: DeadlineSweeper
) -> None:
    pair: list[Member] = []

    def move_both() -> None:
        for member in pair:
            member.deadline = 5_000.0

    pair += [Member(1_000.0, move_both) for _ in range(2)]
    for member in pair:
        deadlines.add(member)
    deadlines.sweep()
    assert sum(member.calls for member in pair) == 1


def test_one_that_fails_is_logged_and_does_not_keep_the_others(
    clock: Clock, deadlines: DeadlineSweeper, logged_failures: LoggedFailures
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    members = [Member(1_000.0, fail) for _ in range(3)]
    for member in members:
        deadlines.add(member)
    deadlines.sweep()
    assert [member.calls for member in members] == [1, 1, 1]
    assert len(logged_failures.flush(ZeroDivisionError)) == 3


def test_it_checks_by_itself_from_start_to_stop(clock: Clock, deadlines: DeadlineSweeper) -> None:
    deadlines.stop()
    deadlines.start()
    member = Member(deadlines.after(1.0))
    deadlines.add(member)
    clock.pump([INTERVAL / 2] * 20)
    assert member.calls == 1
    later = Member(deadlines.after(1.0))
    deadlines.add(later)
    deadlines.stop()
    clock.pump([INTERVAL / 2] * 20)
    assert later.calls == 0
    assert clock.getDelayedCalls() == []


@settings(deadline=None)
@given(seconds=st.floats(0, 1_000, allow_nan=False), age=st.floats(0, INTERVAL, exclude_max=True, allow_nan=False))
def test_a_deadline_is_never_early_and_at_most_two_intervals_late(seconds: float, age: float) -> None:
    clock = Clock()
    deadlines = DeadlineSweeper(clock)
    deadlines.start()
    # set somewhere between two checks
    clock.advance(age)
    set_at = clock.seconds()
    member = Member(deadlines.after(seconds))
    deadlines.add(member)
    checks = 0
    while not member.calls:
        clock.advance(INTERVAL)
        deadlines.sweep()
        checks += 1
    late = clock.seconds() - set_at - seconds
    assert -1e-9 <= late <= 2 * INTERVAL + 1e-9
    deadlines.stop()
