"""Limits of servers, of queues and of entries hold for all workers together."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.upstreams.shared.worker_fleets import Workers
from tests.upstreams.test_dispatcher import Asked, capped
from twisted_vllm.config.settings import ModelEntry
from twisted_vllm.errors import ServerBusy
from twisted_vllm.upstreams.shared.fair_shares import fair_shares

GPU = "gpu-1:8000"


def entry(rpm: int | None = None, tpm: int | None = None, limit: int | None = None, name: str = GPU) -> ModelEntry:
    return attrs.evolve(ModelEntry("m", "m", capped(limit, places=10_000, name=name, seconds=None)), rpm=rpm, tpm=tpm)


def placed(asked: list[Asked]) -> int:
    return sum(1 for each in asked if each.placement is not None)


@given(st.integers(0, 50), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=6))
def test_shares_are_all_that_is_wanted_or_all_that_there_is(limit: int, wanted: list[tuple[int, int]]) -> None:
    shares = fair_shares(limit, wanted)
    assert all(0 <= share <= most for share, (most, _) in zip(shares, wanted, strict=True))
    assert sum(shares) == min(limit, sum(most for most, _ in wanted))


@given(st.integers(0, 50), st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_of_equals_nobody_who_lacks_something_has_two_less_than_another(limit: int, wanted: list[int]) -> None:
    shares = fair_shares(limit, [(most, 1) for most in wanted])
    lacking = [share for share, most in zip(shares, wanted, strict=True) if share < most]
    assert all(each >= max(shares) - 1 for each in lacking)


def test_two_workers_send_a_server_no_more_than_its_limit() -> None:
    workers = Workers(2, capped(8, places=2_000))
    asked = [[workers[number].ask() for _ in range(1_000)] for number in (1, 2)]
    workers.settle()
    assert sum(map(placed, asked)) == 8
    # what ends is followed by one that waits, and nobody starves
    done = [0, 0]
    for _ in range(400):
        for index, mine in enumerate(asked):
            running = next((each for each in mine if each.placement is not None), None)
            if running is not None:
                mine.remove(running)
                running.end()
                done[index] += 1
        workers.settle()
        assert workers.in_flight(GPU) == 8
    assert min(done) >= 395


def test_a_place_that_one_worker_does_not_use_goes_to_the_other_at_once() -> None:
    workers = Workers(2, capped(4))
    first = [workers[1].ask() for _ in range(4)]
    workers.settle()
    assert placed(first) == 4
    for each in first:
        each.end()
    second = [workers[2].ask() for _ in range(4)]
    workers.settle()
    assert placed(second) == 4
    assert workers.in_flight(GPU) == 4


def test_places_of_a_worker_that_dies_are_free_at_once() -> None:
    workers = Workers(2, capped(4))
    taken = [workers[1].ask() for _ in range(4)]
    waiting = [workers[2].ask() for _ in range(4)]
    workers.settle()
    assert (placed(taken), placed(waiting)) == (4, 0)
    workers.kill(1)
    assert placed(waiting) == 4


def test_without_places_in_the_queue_what_finds_no_room_is_refused() -> None:
    workers = Workers(2, capped(3, places=0))
    asked = [workers[number].ask() for _ in range(10) for number in (1, 2)]
    workers.settle()
    assert placed(asked) == 3
    assert sum(1 for each in asked if isinstance(each.error, ServerBusy)) == 17


def test_a_queue_is_as_long_as_its_bound_over_all_workers() -> None:
    workers = Workers(2, capped(1, places=10))
    asked = [workers[number].ask() for _ in range(50) for number in (1, 2)]
    workers.settle()
    assert placed(asked) == 1
    assert sum(each.waits for each in asked) == 10
    assert sum(1 for each in asked if isinstance(each.error, ServerBusy)) == 89


def test_a_key_at_another_worker_gets_a_place_in_a_queue_that_one_key_fills() -> None:
    workers = Workers(2, capped(1, places=10))
    many = [workers[1].ask("greedy") for _ in range(50)]
    workers.settle()
    one = workers[2].ask("modest")
    workers.settle()
    assert one.waits
    assert sum(each.waits for each in many) == 9


def test_an_entry_gets_its_requests_a_minute_from_all_workers_together_and_none_more() -> None:
    workers = Workers(2, entry(rpm=50))
    asked = [[workers[number].ask() for _ in range(1_000)] for number in (1, 2)]
    workers.settle()
    assert sum(map(placed, asked)) == 50
    assert min(map(placed, asked)) >= 15, "one worker took nearly all"
    for each in [each for mine in asked for each in mine]:
        if each.placement is not None:
            each.placement.used(0, sent=True)
            each.end()
    workers.sweep(59.0)
    assert sum(map(placed, asked)) == 50
    workers.sweep(3.0)
    assert sum(map(placed, asked)) == 100


def test_what_never_reached_the_server_does_not_count_for_its_entry() -> None:
    workers = Workers(2, entry(rpm=1))
    first = workers[1].ask()
    workers.settle()
    assert first.placement is not None
    first.placement.used(0, sent=False)
    first.end()
    second = workers[2].ask()
    workers.settle()
    assert second.placement is not None


def test_tokens_of_an_entry_are_counted_over_all_workers() -> None:
    workers = Workers(2, entry(tpm=100))
    asked = [workers[number].ask(tokens=30) for number in (1, 2, 1, 2, 1)]
    workers.settle()
    assert placed(asked) == 3
    running = next(each for each in asked if each.placement is not None)
    assert running.placement is not None
    running.placement.used(10, sent=True)
    running.end()
    workers.settle()
    assert placed(asked) == 4, "90 less 20 and 30 more are 100"


def test_a_limited_server_behind_a_limited_entry_gets_neither_more_at_once_nor_more_a_minute() -> None:
    workers = Workers(2, entry(rpm=50, limit=8))
    asked = [workers[number].ask() for _ in range(1_000) for number in (1, 2)]
    workers.settle()
    done = 0
    for _ in range(200):
        running = [each for each in asked if each.placement is not None]
        assert len(running) <= 8
        if not running:
            break
        for each in running:
            asked.remove(each)
            assert each.placement is not None
            each.placement.used(0, sent=True)
            each.end()
            done += 1
        workers.settle()
    assert done == 50


def test_a_lower_limit_after_a_reload_is_held_as_requests_end() -> None:
    workers = Workers(2, capped(8))
    asked = [workers[number].ask() for _ in range(4) for number in (1, 2)]
    workers.settle()
    assert placed(asked) == 8
    for number in (1, 2):
        workers[number].configure(ModelEntry("m", "m", capped(2)))
    workers.settle()
    later = [workers[number].ask() for _ in range(4) for number in (1, 2)]
    workers.settle()
    for each in asked[:6]:
        each.end()
        workers.settle()
    assert placed(later) == 0
    asked[6].end()
    workers.settle()
    assert placed(later) == 1


@pytest.mark.parametrize("count", [2, 3])
def test_what_waits_longer_than_it_may_is_refused(count: int) -> None:
    workers = Workers(count, capped(1, seconds=2.0))
    running = workers[1].ask()
    workers.settle()
    waiting = workers[2].ask()
    workers.settle()
    workers.sweep(4.0)
    assert isinstance(waiting.error, ServerBusy)
    running.end()
    workers.settle()
    again = workers[2].ask()
    workers.settle()
    assert again.placement is not None


class SharedLimits(RuleBasedStateMachine):
    """Whatever order messages come in: no limit is exceeded, and at rest nobody waits while there is room."""

    @initialize(limit=st.integers(1, 5), places=st.integers(0, 6), count=st.integers(2, 3))
    def begin(self, limit: int, places: int, count: int) -> None:
        self.limit, self.places = limit, places
        self.workers = Workers(count, capped(limit, places=places, seconds=None))
        self.asked: dict[int, list[Asked]] = {number: [] for number in self.workers.workers}

    @rule(data=st.data(), many=st.integers(1, 4), key=st.sampled_from("abc"))
    def ask(self, data: st.DataObject, many: int, key: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        self.asked[number] += [self.workers[number].ask(key) for _ in range(many)]

    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        running = [each for mine in self.asked.values() for each in mine if each.placement is not None]
        if running:
            ended = data.draw(st.sampled_from(running))
            for mine in self.asked.values():
                if ended in mine:
                    mine.remove(ended)
            ended.end()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiting = [each for mine in self.asked.values() for each in mine if each.waits]
        if waiting:
            gone = data.draw(st.sampled_from(waiting))
            gone.leave()
            for mine in self.asked.values():
                if gone in mine:
                    mine.remove(gone)

    @rule()
    def turn(self) -> None:
        self.workers.clock.advance(0.0)

    @rule()
    def tick(self) -> None:
        self.workers.clock.advance(0.05)

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        pairs = self.workers.processes.pairs
        if pairs:
            self.workers.processes.deliver(data.draw(st.sampled_from(pairs)))

    @precondition(lambda self: len(self.asked) > 1)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        del self.asked[number]
        self.workers.kill(number)

    @invariant()
    def no_more_than_the_limit(self) -> None:
        if hasattr(self, "workers"):
            assert self.workers.in_flight(GPU) <= self.limit
            for worker in self.workers.workers.values():
                lease = worker.state(GPU).lease
                assert lease is not None
                assert 0 <= worker.state(GPU).in_flight_here <= lease.held

    def teardown(self) -> None:
        if not hasattr(self, "workers"):
            return
        self.workers.settle()
        self.workers.pass_time(0.2)
        waiting = [each for mine in self.asked.values() for each in mine if each.waits]
        assert len(waiting) <= self.places
        if waiting:
            assert self.workers.in_flight(GPU) == self.limit


SharedLimits.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_any_order_of_messages = SharedLimits.TestCase
