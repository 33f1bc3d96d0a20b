"""The account of the bodies in memory: who gets room, who waits, and that nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from twisted_vllm.errors import GatewayError, NoRoomForBody
from twisted_vllm.http.server.held_bodies import GRACE, MIN_RATE, SMALL_BODY, HeldBodies, Holding

MIB = 1_048_576
TOTAL = 64 * MIB
LARGE = 10 * MIB


class Body:
    """A request's body.

    Attributes:
        holding: its room.
        granted: how often it was told that there is room.
        error: what it was refused with.
    """

    def __init__(self, received: int = 0) -> None:
        self.body_received = received
        self.granted = 0
        self.error: GatewayError | None = None
        self.on_room: Callable[[], None] = lambda: None
        self.holding: Holding

    @property
    def waits(self) -> bool:
        return self.holding.waiting

    def room_granted(self) -> None:
        self.granted += 1
        self.on_room()

    def room_refused(self, error: GatewayError) -> None:
        self.error = error


class Account:
    """An account, with its clock."""

    def __init__(self, total: int = TOTAL, per_key: int | None = None, patience: float | None = 30.0) -> None:
        self.now = 1_000.0
        self.bodies = HeldBodies(total, per_key, patience, lambda: self.now)

    def ask(self, key: str, size: int = LARGE, received: int = 0) -> Body:
        body = Body(received)
        body.holding = self.bodies.ask(body, key, size)
        return body

    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.bodies.deadline is not None and self.bodies.deadline <= self.now:
            self.bodies.expired()

    def assert_empty(self) -> None:
        assert (self.bodies.held, self.bodies.waiting, len(self.bodies), self.bodies.deadline) == (0, 0, 0, None)


def test_a_body_that_fits_gets_room_at_once() -> None:
    account = Account()
    body = account.ask("a")
    assert not body.waits
    assert body.granted == 0
    assert account.bodies.held == LARGE
    body.holding.release()
    body.holding.release()
    account.assert_empty()


def test_a_body_without_room_waits_until_another_ends() -> None:
    account = Account(per_key=TOTAL)
    bodies = [account.ask("a") for _ in range(6)]
    assert [body.waits for body in bodies] == [False] * 5 + [True]
    assert account.bodies.waiting == 1
    bodies[0].holding.release()
    assert (bodies[5].waits, bodies[5].granted) == (False, 1)


def test_a_body_goes_ahead_alone_whatever_its_size() -> None:
    account = Account(total=LARGE, per_key=1)
    first, second = account.ask("a", 5 * LARGE), account.ask("b", 5 * LARGE)
    assert (first.waits, second.waits) == (False, True)
    first.holding.release()
    assert not second.waits


def test_one_key_gets_a_quarter_unless_the_operator_says_otherwise() -> None:
    account = Account()
    assert [account.ask("a", 8 * MIB).waits for _ in range(3)] == [False, False, True]
    assert not account.ask("b", 8 * MIB).waits


def test_a_key_that_waits_for_its_own_share_keeps_nobody_else_waiting() -> None:
    account = Account()
    flood = [account.ask("a") for _ in range(32)]
    assert sum(body.waits for body in flood) == 31
    others = [account.ask(key) for key in "bcd"]
    assert not any(body.waits for body in others)


def test_in_open_mode_nobody_has_a_share() -> None:
    account = Account()
    assert [account.ask("").waits for _ in range(6)] == [False] * 5 + [True]


def test_keys_that_wait_take_turns() -> None:
    account = Account(per_key=TOTAL)
    first = [account.ask("a") for _ in range(5)]
    waiting = [account.ask("a") for _ in range(3)] + [account.ask("b"), account.ask("b"), account.ask("c")]
    served: list[str] = []
    for body, name in zip(waiting, ("a1", "a2", "a3", "b1", "b2", "c1"), strict=True):
        body.on_room = lambda name=name: served.append(name)  # type: ignore[misc]  # the name is bound now
    for body in [*first, waiting[0]]:
        body.holding.release()
    assert served == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_large_body_is_not_passed_by_others_for_ever() -> None:
    account = Account(per_key=TOTAL)
    running = [account.ask(key) for key in "abcde"]
    huge = account.ask("f", 50 * MIB)
    later = account.ask("g", MIB)
    assert huge.waits
    assert later.waits, "it would fit, but so would the next and the next"
    for body in running:
        body.holding.release()
    assert not huge.waits
    assert not later.waits


def test_a_small_body_passes_large_ones_that_wait() -> None:
    account = Account(per_key=TOTAL)
    running = [account.ask("a") for _ in range(5)]
    assert account.ask("a").waits
    assert not account.ask("b", SMALL_BODY).waits
    assert len(running) == 5


def test_small_bodies_use_an_eighth_beside_the_large_ones() -> None:
    account = Account(per_key=TOTAL)
    account.ask("a", 50 * MIB)
    small = [account.ask("b", SMALL_BODY) for _ in range(200)]
    assert sum(not body.waits for body in small) * SMALL_BODY == 6 * MIB, "what is left of seven eighths"
    assert account.bodies.held <= TOTAL


def test_a_body_that_waited_too_long_is_refused_and_told_what_to_do() -> None:
    account = Account()
    first, second = account.ask("a", 16 * MIB, received=16 * MIB), account.ask("a", 16 * MIB)
    account.wait(29.9)
    assert second.waits
    account.wait(0.2)
    error = second.error
    assert isinstance(error, NoRoomForBody)
    assert (error.status, error.code, error.retry_after) == (503, "no_room_for_body", 5)
    assert "max_held_total_bytes" in error.message
    assert "max_held_bytes_per_key" in error.message
    assert account.bodies.refused == 1
    assert first.error is None
    first.holding.release()
    account.assert_empty()


def test_a_body_that_gets_room_while_another_is_refused_is_not_refused_itself() -> None:
    account = Account(per_key=TOTAL)
    running = account.ask("a", 50 * MIB, received=50 * MIB)
    huge, small = account.ask("b", 50 * MIB), account.ask("c", MIB)
    assert small.waits
    account.wait(31)
    assert isinstance(huge.error, NoRoomForBody)
    assert (small.error, small.granted) == (None, 1)
    assert running.error is None


def test_without_patience_limits_a_body_waits_on() -> None:
    account = Account(patience=None)
    account.ask("a", 16 * MIB, received=16 * MIB)
    second = account.ask("a", 16 * MIB)
    account.wait(1e6)
    assert second.waits


def test_what_arrived_of_waiting_bodies_has_a_bound_and_more_are_refused_at_once() -> None:
    account = Account()
    account.ask("a", 16 * MIB)
    bodies = [account.ask("a", received=SMALL_BODY) for _ in range(32)]
    assert all(body.waits for body in bodies)
    with pytest.raises(NoRoomForBody):
        account.ask("a", received=SMALL_BODY)
    assert account.ask("b", 17 * MIB, received=SMALL_BODY).error is None
    assert account.bodies.refused == 1
    assert account.bodies.waiting == 32


def test_a_chunked_body_keeps_only_what_came() -> None:
    account = Account()
    body = account.ask("a", SMALL_BODY, received=SMALL_BODY)
    body.holding.grow(LARGE)
    assert account.bodies.held == LARGE
    body.body_received = 100_000
    body.holding.complete()
    assert account.bodies.held == 100_000
    body.holding.release()
    account.assert_empty()


def test_an_empty_chunked_body_gives_everything_back() -> None:
    account = Account()
    body = account.ask("a", SMALL_BODY)
    body.holding.complete()
    assert account.bodies.held == 0
    body.holding.release()
    account.assert_empty()


def test_many_bodies_that_grow_at_once_all_end() -> None:
    """Each could hold what another needs: nobody keeps a part of a large body while waiting for the rest."""
    account = Account(per_key=TOTAL)
    bodies = [account.ask("abc"[number % 3], SMALL_BODY, received=SMALL_BODY) for number in range(60)]
    for body in bodies:
        body.holding.grow(LARGE)
    assert account.bodies.waiting == 55
    done = 0
    while ready := [body for body in bodies if not body.waits and not body.holding.ended]:
        for body in ready:
            body.body_received = LARGE
            body.holding.complete()
            body.holding.release()
            done += 1
    assert done == 60
    account.assert_empty()


def test_a_silent_body_that_others_wait_for_is_cut() -> None:
    account = Account(total=MIB, patience=None)
    silent = account.ask("a", MIB)
    account.wait(1_000)
    assert silent.error is None, "nobody waits for it"
    other = account.ask("b", MIB)
    account.wait(0.3)
    assert silent.error is not None
    assert silent.error.status == 408
    assert not other.waits


def test_a_body_that_arrives_at_the_lowest_rate_is_not_cut_and_a_slower_one_is() -> None:
    account = Account(total=128 * MIB, per_key=128 * MIB, patience=None)
    steady, slow = account.ask("a", 50 * MIB), account.ask("b", 50 * MIB)
    waiting = account.ask("c", 50 * MIB)
    for second in range(200):
        steady.body_received += MIN_RATE
        slow.body_received += MIN_RATE // 2
        account.wait(1)
        assert steady.error is None
        if second < GRACE:
            assert slow.error is None
    assert slow.error is not None
    assert not waiting.waits


def test_a_body_that_the_gateway_does_not_read_is_not_cut() -> None:
    account = Account(total=MIB, patience=None)
    paused = account.ask("a", MIB, received=1)
    account.ask("b", MIB)
    paused.holding.stop_timing()
    account.wait(1_000)
    assert paused.error is None


def test_a_silent_body_is_not_cut_for_another_key_that_waits_for_its_own_share() -> None:
    account = Account(patience=None)
    silent = account.ask("a", LARGE)
    account.ask("b", 16 * MIB, received=16 * MIB)
    assert account.ask("b", 16 * MIB).waits
    account.wait(1_000)
    assert silent.error is None


def test_a_body_that_ends_at_once_when_it_gets_room_lets_the_next_in_without_recursion() -> None:
    account = Account(per_key=TOTAL)
    first = account.ask("a", 50 * MIB)
    bodies = [account.ask("a", 50 * MIB) for _ in range(5_000)]
    for body in bodies:
        body.on_room = body.holding.release
    first.holding.release()
    assert [body.granted for body in bodies] == [1] * 5_000
    account.assert_empty()


def test_unparsed_bytes_of_connections_have_a_bound() -> None:
    account = Account()
    taken = 0
    while account.bodies.take_unparsed(80_000):
        taken += 80_000
    assert 7.9 * MIB < taken <= 8 * MIB
    account.bodies.drop_unparsed(taken)
    account.assert_empty()


class AnyRequests(RuleBasedStateMachine):
    """Any requests, in any order: the account keeps its bounds, forgets nobody, and is empty at the end."""

    sizes = st.one_of(st.integers(0, 100), st.integers(0, 5_000))

    @initialize(total=st.integers(2_000, 4_000), per_key=st.one_of(st.none(), st.integers(1, 4_000)))
    def begin(self, total: int, per_key: int | None) -> None:
        self.total = total
        self.account = Account(total, per_key)
        self.bodies: list[Body] = []
        self.unparsed = 0

    def _live(self) -> list[Body]:
        return [body for body in self.bodies if not body.holding.ended]

    @rule(key=st.sampled_from(["", "a", "b", "c"]), size=sizes, received=st.integers(0, 50))
    def ask(self, key: str, size: int, received: int) -> None:
        try:
            self.bodies.append(self.account.ask(key, size, min(received, size)))
        except NoRoomForBody:
            assert self.account.bodies.refused

    @rule(number=st.integers(0), extra=st.integers(0, 3_000))
    def grow(self, number: int, extra: int) -> None:
        bodies = [body for body in self._live() if not body.waits]
        if bodies:
            body = bodies[number % len(bodies)]
            try:
                body.holding.grow(body.holding.size + extra)
            except NoRoomForBody:
                assert body.holding.ended

    @rule(number=st.integers(0), received=st.integers(0, 5_000))
    def complete(self, number: int, received: int) -> None:
        bodies = [body for body in self._live() if not body.waits]
        if bodies:
            body = bodies[number % len(bodies)]
            body.body_received = min(received, body.holding.size)
            body.holding.complete()

    @rule(number=st.integers(0))
    def release(self, number: int) -> None:
        """It was answered, cancelled or revoked, or its client left."""
        if self.bodies:
            self.bodies[number % len(self.bodies)].holding.release()

    @rule(size=st.integers(1, 400))
    def pipeline(self, size: int) -> None:
        if self.account.bodies.take_unparsed(size):
            self.unparsed += size

    @rule()
    def read_pipeline(self) -> None:
        self.account.bodies.drop_unparsed(self.unparsed)
        self.unparsed = 0

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.account.wait(seconds)

    @invariant()
    def never_more_than_the_total(self) -> None:
        running = [body for body in self._live() if not body.waits]
        held = self.account.bodies.held
        largest = max((body.holding.size for body in running), default=0)
        # one body may be larger than everything: it goes ahead alone
        assert held <= max(self.total, largest + 3 * self.total // 8)

    @invariant()
    def nobody_waits_while_nothing_is_held(self) -> None:
        running = [body for body in self._live() if not body.waits]
        if not running:
            assert self.account.bodies.waiting == 0

    @invariant()
    def whoever_waits_is_known(self) -> None:
        assert self.account.bodies.waiting == sum(body.waits for body in self._live())

    def teardown(self) -> None:
        """End all that run, again and again: whoever waits gets a turn, and nothing is left."""
        if not hasattr(self, "account"):
            return
        self.read_pipeline()
        waiting = [body for body in self._live() if body.waits]
        while live := self._live():
            running = [body for body in live if not body.waits]
            assert running, "somebody waits, and nobody is left who could make room"
            running[0].holding.release()
        assert all(body.granted for body in waiting)
        self.account.assert_empty()


AnyRequestsTest = AnyRequests.TestCase
AnyRequestsTest.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_more_room_goes_to_the_bodies_that_wait_and_less_takes_none_away() -> None:
    account = Account(total=16 * MIB, per_key=16 * MIB)
    first, second = account.ask("a"), account.ask("b")
    assert (first.waits, second.waits) == (False, True)
    account.bodies.reconfigure(TOTAL, 16 * MIB, 30.0)
    assert (second.waits, second.granted, account.bodies.held) == (False, 1, 2 * LARGE)
    account.bodies.reconfigure(MIB, MIB, 1.0)
    assert account.bodies.held == 2 * LARGE
    third = account.ask("a")
    assert third.waits
    account.wait(2)
    assert isinstance(third.error, NoRoomForBody)
    first.holding.release()
    second.holding.release()
    account.assert_empty()
