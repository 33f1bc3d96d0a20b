"""Whose request goes next, who is pushed out, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter, deque
from itertools import count

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from twisted_vllm.upstreams.fair_queue import AGED_TURN, AGING, FairQueue


def anything(_: object) -> bool:
    return True


def fill(queue: FairQueue[str], *items: str, priority: int = 0, now: float = 0.0) -> None:
    """Push items; what stands before the first figure is the key."""
    for item in items:
        assert queue.push(item, item.rstrip("0123456789"), priority, now) is None


def drain(queue: FairQueue[str], now: float = 0.0) -> list[str]:
    found = []
    while (item := queue.pop(anything, now)) is not None:
        found.append(item)
    return found


def test_requests_of_one_key_leave_in_the_order_of_arrival() -> None:
    queue: FairQueue[str] = FairQueue(10)
    fill(queue, "a1", "a2", "a3")
    assert list(queue) == ["a1", "a2", "a3"]
    assert drain(queue) == ["a1", "a2", "a3"]
    assert len(queue) == 0
    assert "a1" not in queue


def test_a_lower_priority_number_goes_first_whoever_came_first() -> None:
    queue: FairQueue[str] = FairQueue(10)
    fill(queue, "a1", "a2", priority=5)
    fill(queue, "b1", priority=0)
    fill(queue, "c1", priority=-3)
    assert drain(queue) == ["c1", "b1", "a1", "a2"]


def test_keys_of_one_priority_take_turns() -> None:
    queue: FairQueue[str] = FairQueue(100)
    fill(queue, "a1", "a2", "a3", "a4", "b1", "b2", "c1")
    assert drain(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


@given(
    arrivals=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.sampled_from([None, "x"])), max_size=40),
    served=st.integers(0, 20),
    more=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.none()), max_size=10),
)
def test_the_turns_are_those_in_which_requests_leave_unless_one_ages(
    arrivals: list[tuple[str, int, str | None]], served: int, more: list[tuple[str, int, None]]
) -> None:
    queue: FairQueue[str] = FairQueue(100)
    for number, (key, priority, where) in enumerate(arrivals):
        queue.push(f"{key}{number}", key, priority, 0.0, where)
    for _ in range(served):
        queue.pop(anything, 0.0)
    for number, (key, priority, where) in enumerate(more, 100):
        queue.push(f"{key}{number}", key, priority, 0.0, where)
    assert list(queue.in_turn()) == drain(queue)


@given(served=st.integers(0, 900))
def test_after_any_part_of_a_burst_of_1000_the_request_of_another_key_is_the_next(served: int) -> None:
    queue: FairQueue[str] = FairQueue(2000)
    fill(queue, *(f"a{number}" for number in range(1000)))
    for _ in range(served):
        queue.pop(anything, 0.0)
    fill(queue, "b1")
    # if nobody was served yet, the one that waits longest may go before it
    following = [queue.pop(anything, 0.0), queue.pop(anything, 0.0)]
    assert "b1" in (following if served == 0 else following[:1])


def test_a_key_that_sends_one_at_a_time_has_no_more_turns_than_one_with_a_burst() -> None:
    queue: FairQueue[str] = FairQueue(2000)
    fill(queue, *(f"a{number}" for number in range(100)))
    got: Counter[str] = Counter()
    for number in range(100):
        if "b" not in (waiting[0] for waiting in queue):
            fill(queue, f"b{number}")
        item = queue.pop(anything, 0.0)
        assert item is not None
        got[item[0]] += 1
    assert got == {"a": 50, "b": 50}


def test_what_left_or_was_given_up_is_not_served() -> None:
    queue: FairQueue[str] = FairQueue(10)
    fill(queue, "a1", "a2", "b1")
    assert queue.discard("a1", 0.0)
    assert not queue.discard("a1", 0.0)
    assert queue.discard("b1", 0.0)
    assert drain(queue) == ["a2"]


def test_a_queue_without_places_refuses_everything() -> None:
    queue: FairQueue[str] = FairQueue(0)
    assert queue.push("a1", "a", 0, 0.0) == "a1"
    assert len(queue) == 0


def test_a_full_queue_gives_each_key_its_share_and_pushes_out_the_newest_of_the_largest() -> None:
    queue: FairQueue[str] = FairQueue(4)
    fill(queue, "a1", "a2", "a3", "a4")
    assert queue.push("a5", "a", 0, 0.0) == "a5"
    assert queue.push("b1", "b", 0, 0.0) == "a4"
    assert queue.push("b2", "b", 0, 0.0) == "a3"
    assert queue.push("b3", "b", 0, 0.0) == "b3"
    # a third of four places is one
    assert queue.push("c1", "", 0, 0.0) in ("a2", "b2")
    assert queue.push("c2", "", 0, 0.0) == "c2"
    assert len(queue) == 4
    assert drain(queue)[:3] == ["a1", "b1", "c1"]


def test_a_larger_capacity_holds_at_once_and_a_smaller_one_pushes_nobody_out() -> None:
    queue: FairQueue[str] = FairQueue(2)
    fill(queue, "a1", "a2")
    queue.capacity = 3
    fill(queue, "a3")
    queue.capacity = 1
    assert queue.push("a4", "a", 0, 0.0) == "a4"
    assert drain(queue) == ["a1", "a2", "a3"]


def test_a_server_gets_only_what_it_accepts_and_the_rest_keeps_its_turn() -> None:
    queue: FairQueue[str] = FairQueue(10)
    fill(queue, "a1", "b1", "a2", "b2")
    assert queue.pop(lambda item: item == "b1", 0.0) == "b1"
    assert queue.pop(lambda item: item == "c1", 0.0) is None
    assert drain(queue) == ["a1", "b2", "a2"]


def test_requests_bound_to_one_server_do_not_hold_up_those_behind_them_and_are_asked_for_once() -> None:
    queue: FairQueue[int] = FairQueue(2000)
    for number in range(999):
        queue.push(number, "a" if number % 2 else "b", 0, 0.0, "server 1")
    queue.push(999, "a", 0, 0.0)
    asked = []

    def accepts(item: int) -> bool:
        asked.append(item)
        return item == 999

    assert queue.pop(accepts, 0.0) == 999
    assert len(asked) <= 2
    asked.clear()
    assert queue.pop(accepts, 0.0) is None
    assert len(asked) == 1


def urgent_flood(queue: FairQueue[str], seconds: float, rate: float = 10.0) -> list[tuple[float, str]]:
    """Serve `rate` requests a second, with an urgent one of another key always there; return what left, and when."""
    left, numbers, now = [], count(), 0.0
    while now < seconds:
        while sum(item.startswith("urgent") for item in queue) < 3:
            queue.push(f"urgent{next(numbers)}", "urgent", 0, now)
        item = queue.pop(anything, now)
        assert item is not None
        left.append((now, item))
        now += 1.0 / rate
    return left


def test_a_less_urgent_request_waits_its_time_and_then_gets_every_fourth_turn() -> None:
    queue: FairQueue[str] = FairQueue(1000)
    fill(queue, *(f"late{number}" for number in range(200)), priority=9)
    left = urgent_flood(queue, 20.0)
    before = [item for now, item in left if now < AGING]
    after = [item for now, item in left if now >= AGING]
    assert [item for item in before if item.startswith("late")] == []
    assert sum(item.startswith("late") for item in after) == pytest.approx(len(after) / AGED_TURN, abs=1)


@given(
    waiting=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 4)), min_size=1, max_size=30, unique=False),
)
def test_nobody_starves_behind_a_flood_of_urgent_requests(waiting: list[tuple[str, int]]) -> None:
    """The bound of the documentation: `AGING` seconds, and `AGED_TURN` requests for each that has an equal right."""
    queue: FairQueue[str] = FairQueue(1000)
    for number, (key, priority) in enumerate(waiting):
        queue.push(f"{key}{number}", key, priority, 0.0)
    left = [item for now, item in urgent_flood(queue, AGING + 30.0) if now >= AGING]
    levels = len({priority for _, priority in waiting})
    for number, (key, priority) in enumerate(waiting):
        before = sum(each == (key, priority) for each in waiting[:number])
        keys = len({each for each, level in waiting if level == priority})
        bound = AGED_TURN * levels * keys * (before + 1)
        assert f"{key}{number}" in left[:bound]


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    queue: FairQueue[str] = FairQueue(10)
    fill(queue, "a1", priority=1, now=1000.0)
    fill(queue, "b1", "b2", now=10.0)
    assert drain(queue, 20.0) == ["b1", "b2", "a1"]


@attrs.frozen(eq=False)
class Waiting:
    """A request as the model sees it."""

    key: str
    priority: int
    where: str | None
    since: float


class AnyQueue(RuleBasedStateMachine):
    """Any interleaving of arrivals, releases of servers, departures and time, beside a list of what waits."""

    CAPACITY = 12

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Waiting] = FairQueue(self.CAPACITY)
        self.waiting: list[Waiting] = []
        self.now = 100.0
        self.out_of_turn: deque[bool] = deque(maxlen=AGED_TURN)

    def of(self, key: str) -> list[Waiting]:
        return [each for each in self.waiting if each.key == key]

    @rule(
        key=st.sampled_from(["", "a", "b", "c", "master"]),
        priority=st.sampled_from([-1, 0, 0, 7]),
        where=st.sampled_from([None, None, "x", "y"]),
    )
    def push(self, key: str, priority: int, where: str | None) -> None:
        item = Waiting(key, priority, where, self.now)
        full = len(self.waiting) == self.CAPACITY
        sharing = {each.key for each in self.waiting} | {key}
        refused = self.queue.push(item, key, priority, self.now, where)
        own = len(self.of(key))
        if refused is None:
            assert not full
        elif refused is item:
            assert full
            assert (own + 1) * len(sharing) > self.CAPACITY
            return
        else:
            assert full
            assert (own + 1) * len(sharing) <= self.CAPACITY
            most = len(self.of(refused.key))
            assert most == max(len(self.of(each.key)) for each in self.waiting)
            assert most > own + 1
            assert self.of(refused.key)[-1] is refused
            self.waiting.remove(refused)
        self.waiting.append(item)

    @rule(server=st.sampled_from(["x", "y", "z"]))
    def pop(self, server: str) -> None:
        def accepts(item: Waiting) -> bool:
            return item.where in (None, server)

        acceptable = [each for each in self.waiting if accepts(each)]
        item = self.queue.pop(accepts, self.now)
        if item is None:
            assert acceptable == []
            return
        assert accepts(item)
        # of one key and priority, the oldest
        assert item is next(each for each in acceptable if (each.key, each.priority) == (item.key, item.priority))
        urgent = min(each.priority for each in acceptable)
        self.out_of_turn.append(item.priority > urgent)
        if item.priority > urgent:
            assert sum(self.out_of_turn) == 1
            oldest = min(each.since for each in self.waiting if each.priority == item.priority)
            assert self.now - oldest >= AGING
        self.waiting.remove(item)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        assert self.queue.discard(item, self.now)
        self.waiting.remove(item)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.9, 5.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_lost_and_nothing_is_kept(self) -> None:
        assert list(self.queue) == self.waiting
        assert repr(self.queue) == (
            f"<FairQueue {len(self.waiting)} of {self.CAPACITY} wait, of {len({e.key for e in self.waiting})} keys>"
        )


TestAnyQueue = AnyQueue.TestCase


class Fairness(RuleBasedStateMachine):
    """Keys of one priority, while all servers take everything."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[tuple[str, int]] = FairQueue(10_000)
        self.numbers = count()
        self.waiting: Counter[str] = Counter()
        #: requests of either key that left since both have waited without a break
        self.together: dict[tuple[str, str], Counter[str]] = {}

    @rule(key=st.sampled_from("abcd"), burst=st.sampled_from([1, 1, 5, 40]))
    def push(self, key: str, burst: int) -> None:
        for _ in range(burst):
            self.queue.push((key, next(self.numbers)), key, 0, 0.0)
        if not self.waiting[key]:
            for other in self.waiting:
                if self.waiting[other]:
                    self.together[min(key, other), max(key, other)] = Counter()
        self.waiting[key] += burst

    @rule(times=st.integers(1, 30))
    def pop(self, times: int) -> None:
        for _ in range(times):
            item = self.queue.pop(anything, 0.0)
            if item is None:
                assert not +self.waiting
                return
            key = item[0]
            self.waiting[key] -= 1
            for pair, got in list(self.together.items()):
                if key in pair:
                    got[key] += 1
                    assert abs(got[pair[0]] - got[pair[1]]) <= 1, pair
                    if not self.waiting[key]:
                        del self.together[pair]


TestFairness = Fairness.TestCase
