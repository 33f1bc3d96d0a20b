"""Deadlines: never early, a little late at most, and each on its own."""

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
def sweeper(clock: Clock) -> DeadlineSweeper:
    return DeadlineSweeper(clock)


def test_a_deadline_is_acted_on_when_it_has_passed_and_once(clock: Clock, sweeper: DeadlineSweeper) -> None:
    member = Member(1_010.0)
    sweeper.add(member)
    clock.advance(9.9)
    sweeper.sweep()
    assert member.calls == 0
    clock.advance(0.2)
    sweeper.sweep()
    sweeper.sweep()
    assert member.calls == 1


def test_who_has_no_deadline_waits_for_ever(clock: Clock, sweeper: DeadlineSweeper) -> None:
    member = Member(None)
    sweeper.add(member)
    clock.advance(1e9)
    sweeper.sweep()
    assert member.calls == 0
    assert sweeper.after(None) is None


def test_who_was_let_go_is_not_called(clock: Clock, sweeper: DeadlineSweeper) -> None:
    member = Member(1_001.0)
    sweeper.add(member)
    assert len(sweeper) == 1
    sweeper.discard(member)
    sweeper.discard(member)
    clock.advance(10)
    sweeper.sweep()
    assert (member.calls, len(sweeper)) == (0, 0)


def test_a_deadline_that_is_not_moved_is_acted_on_at_each_look(clock: Clock, sweeper: DeadlineSweeper) -> None:
    class Stubborn(Member):
        def expired(self) -> None:
            self.calls += 1

    member = Stubborn(1_000.0)
    sweeper.add(member)
    sweeper.sweep()
    sweeper.sweep()
    assert member.calls == 2


def test_members_may_come_and_go_while_others_are_called(clock: Clock, sweeper: DeadlineSweeper) -> None:
    members: list[Member] = []

    def take_all_away() -> None:
        for member in members:
            sweeper.discard(member)
        sweeper.add(Member(2_000.0))

    members += [Member(1_000.0, take_all_away) for _ in range(3)]
    for member in members:
        sweeper.add(member)
    clock.advance(1)
    sweeper.sweep()
    assert sum(member.calls for member in members) == 1, "who was taken away is not called"
    assert len(sweeper) == 1


def test_a_deadline_that_another_moved_in_the_same_look_is_not_acted_on(clock: Clock, sweeper: DeadlineSweeper) -> None:
    pair: list[Member] = []

    def move_both() -> None:
        for member in pair:
            member.deadline = 5_000.0

    pair += [Member(1_000.0, move_both) for _ in range(2)]
    for member in pair:
        sweeper.add(member)
    sweeper.sweep()
    assert sum(member.calls for member in pair) == 1


def test_one_that_fails_is_logged_and_does_not_keep_the_others(
    clock: Clock, sweeper: DeadlineSweeper, logged_failures: LoggedFailures
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    members = [Member(1_000.0, fail) for _ in range(3)]
    for member in members:
        sweeper.add(member)
    sweeper.sweep()
    assert [member.calls for member in members] == [1, 1, 1]
    assert len(logged_failures.flush(ZeroDivisionError)) == 3


def test_it_looks_by_itself_from_start_to_stop(clock: Clock, sweeper: DeadlineSweeper) -> None:
    sweeper.stop()
    sweeper.start()
    member = Member(sweeper.after(1.0))
    sweeper.add(member)
    clock.pump([INTERVAL / 2] * 20)
    assert member.calls == 1
    later = Member(sweeper.after(1.0))
    sweeper.add(later)
    sweeper.stop()
    clock.pump([INTERVAL / 2] * 20)
    assert later.calls == 0
    assert clock.getDelayedCalls() == []


@settings(deadline=None)
@given(seconds=st.floats(0, 1_000, allow_nan=False), age=st.floats(0, INTERVAL, exclude_max=True, allow_nan=False))
def test_a_deadline_is_never_early_and_at_most_two_looks_late(seconds: float, age: float) -> None:
    clock = Clock()
    sweeper = DeadlineSweeper(clock)
    sweeper.start()
    # set somewhere between two looks
    clock.advance(age)
    set_at = clock.seconds()
    member = Member(sweeper.after(seconds))
    sweeper.add(member)
    looks = 0
    while not member.calls:
        clock.advance(INTERVAL)
        sweeper.sweep()
        looks += 1
    late = clock.seconds() - set_at - seconds
    assert -1e-9 <= late <= 2 * INTERVAL + 1e-9
    sweeper.stop()
