"""Who has labels of its own."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.observability.metrics.top_callers import IDLE, LEAD, REVIEW_INTERVAL, TopCallers


class Uses:
    def __init__(self) -> None:
        self.uses = 0


def top(most: int) -> TopCallers[Uses]:
    return TopCallers(most, Uses)


def test_the_first_get_the_places_and_the_rest_is_counted_together() -> None:
    callers = top(2)
    for id in ("a", "b", "c", "a", "d"):
        callers.of(id, 0.0)
    assert len(callers) == 2
    assert [each.uses for each in callers] == [2, 1]
    assert callers.others.uses == 2


def test_who_is_used_more_takes_the_place_of_the_least_used_at_the_next_review() -> None:
    callers = top(2)
    left: list[Uses] = []
    callers.on_left = left.append
    for id, times in (("a", 10), ("b", 4), ("c", 7)):
        for _ in range(times):
            callers.of(id, 0.0)
    weak = callers.of("b", 0.0)
    assert callers.of("c", 0.0) is callers.others
    found = callers.of("c", REVIEW_INTERVAL)
    assert found is not callers.others
    # it begins at 0: what was counted for the others stays there
    assert found.uses == 1 and callers.others.uses == 8
    assert left == [weak]
    assert callers.of("b", REVIEW_INTERVAL) is callers.others


def test_a_small_lead_takes_no_place() -> None:
    callers = top(1)
    for _ in range(100):
        callers.of("a", 0.0)
        callers.of("b", 0.0)
    for _ in range(int(100 * (LEAD - 1.1))):
        callers.of("b", 0.0)
    a = next(iter(callers))
    callers.of("b", REVIEW_INTERVAL)
    assert next(iter(callers)) is a


def test_use_of_long_ago_counts_less() -> None:
    callers = top(1)
    for _ in range(1_000):
        callers.of("a", 0.0)
    now = 0.0
    for _ in range(60):
        now += REVIEW_INTERVAL
        callers.of("a", now)
        for _ in range(5):
            callers.of("b", now)
    assert callers.of("b", now + REVIEW_INTERVAL) is not callers.others


def test_who_is_idle_for_an_hour_loses_its_place() -> None:
    callers = top(2)
    callers.of("a", 0.0)
    callers.of("b", 0.0)
    for minute in range(1, int(IDLE / REVIEW_INTERVAL) + 2):
        callers.of("b", minute * REVIEW_INTERVAL)
    assert len(callers) == 1
    assert callers.of("c", IDLE + 2 * REVIEW_INTERVAL) is not callers.others


def test_fewer_places_are_left_to_those_who_are_used_most() -> None:
    callers = top(3)
    for id, times in (("a", 1), ("b", 3), ("c", 2)):
        for _ in range(times):
            callers.of(id, 0.0)
    callers.of("b", REVIEW_INTERVAL)
    callers.reconfigure(1)
    assert [each.uses for each in callers] == [4]


def test_a_flood_of_strangers_takes_no_place_and_little_memory() -> None:
    callers = top(10)
    now = 0.0
    for number in range(100_000):
        now += 0.01
        callers.of(f"busy-{number % 10}", now)
        callers.of(f"stranger-{number}", now)
    assert callers.candidates <= 256
    assert len(callers) == 10
    assert all(callers.of(f"busy-{each}", now) is not callers.others for each in range(10))


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 90)), max_size=300), st.integers(1, 5))
def test_every_use_is_counted_once_and_places_are_never_more(uses: list[tuple[int, float]], most: int) -> None:
    callers = top(most)
    gone: list[Uses] = []
    callers.on_left = gone.append
    now, per_caller = 0.0, Counter[int]()
    for id, later in uses:
        now += later
        callers.of(str(id), now)
        per_caller[id] += 1
        assert len(callers) <= most
    counted = sum(each.uses for each in (*callers, *gone, callers.others))
    assert counted == per_caller.total()
