"""What is kept of what passed: steps of 5 seconds for an hour, minutes for a day."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.observability.traffic.ring import COARSE, DAY, FINE, HOUR, LATE, MORE, History, Ring
from twisted_vllm.observability.traffic.steps import (
    BOUNDS,
    MAX_NAME,
    MOST_CAUSES,
    MOST_MODELS,
    OTHER,
    ModelStep,
    Step,
    encode,
    places_of,
)

#: a Unix time that begins a minute
START = 1_000_020


def step(number: int, requests: int = 1, model: str = "qwen", in_flight: int = 0, **causes: int) -> Step:
    return Step(number, in_flight, causes, {model: ModelStep(requests, sum(causes.values()))})


def all_of(ring: Ring) -> list[Step]:
    return list(ring.between(0, 1 << 40))


def test_a_step_in_which_nothing_happened_takes_no_room() -> None:
    ring = Ring(FINE, 10)
    ring.add(Step(7))
    assert len(ring) == 0


def test_steps_of_several_processes_at_the_same_time_add_up_in_whatever_order_they_come() -> None:
    ring = Ring(FINE, 10)
    for each in (step(2, 1, in_flight=3), step(4), step(2, 5, in_flight=4, draining=1), step(3)):
        ring.add(each)
    assert [each.number for each in all_of(ring)] == [2, 3, 4]
    first = all_of(ring)[0]
    assert (first.in_flight, first.causes, first.total().requests) == (7, {"draining": 1}, 6)


def test_what_is_too_old_is_forgotten() -> None:
    ring = Ring(FINE, 3)
    for number in range(10):
        ring.add(step(number))
    assert [each.number for each in all_of(ring)] == [7, 8, 9]
    ring.forget(11)
    assert [each.number for each in all_of(ring)] == [9]


def test_an_hour_is_kept_in_steps_and_a_day_in_minutes() -> None:
    history = History(START)
    for number in range(START // FINE, (START + 2 * HOUR) // FINE):
        history.add(step(number, in_flight=number % 12))
        history.tick((number + 1) * FINE)
    assert len(history.fine) == (HOUR + MORE) // FINE
    minutes = list(history.coarse.between(0, 1 << 40))
    assert len(minutes) == 2 * HOUR // COARSE - 1
    assert {(each.total().requests, each.in_flight) for each in minutes} == {(COARSE // FINE, 11)}
    history.tick(START + 3 * DAY)
    assert (len(history.fine), len(history.coarse)) == (0, 0)


def test_a_minute_waits_for_the_steps_of_other_processes() -> None:
    history = History(START)
    history.add(step(START // FINE))
    history.tick(START + COARSE + LATE - 1)
    assert len(history.coarse) == 0
    history.add(step(START // FINE + 1))
    history.tick(START + COARSE + LATE)
    [minute] = history.coarse.between(0, 1 << 40)
    assert minute.total().requests == 2


def test_what_another_process_kept_is_added_minutes_that_it_had_not_added_up_included() -> None:
    worker = History(START)
    for number in range(START // FINE, START // FINE + 36):
        worker.add(step(number))
        worker.tick((number + 1) * FINE)
    housekeeper = History(START + 3 * COARSE)
    housekeeper.take(worker.kept())
    housekeeper.take(worker.kept())
    housekeeper.tick(START + 3 * COARSE + LATE)
    assert [each.total().requests for each in housekeeper.coarse.between(0, 1 << 40)] == [24, 24, 24]


def test_a_step_has_a_bound_whatever_happens() -> None:
    full = dict.fromkeys(range(len(BOUNDS) + 1), 2**31)
    models = {
        str(number).zfill(MAX_NAME): ModelStep(number, 2**31, 2**50, 2**50, 2**50, 2**50, dict(full), dict(full))
        for number in range(500)
    }
    crowded = Step(2**30, 2**31, {f"server_status_{number}": number for number in range(600)}, models).bounded()
    assert len(crowded.models) == MOST_MODELS + 1 and len(crowded.causes) == MOST_CAUSES + 1
    assert crowded.total().requests == sum(range(500))
    assert sum(crowded.causes.values()) == sum(range(600))
    assert OTHER in crowded.models and str(499).zfill(MAX_NAME) in crowded.models
    # docs/bounds.md: 2,160 of these
    assert len(encode(crowded)) < 6_000


@given(st.lists(st.floats(0.0001, 2_000), min_size=1, max_size=30, unique=True).map(sorted))
def test_buckets_with_other_bounds_go_where_their_bound_is(bounds: list[float]) -> None:
    places = places_of(bounds)
    assert len(places) == len(bounds) + 1
    assert list(places) == sorted(places) and places[-1] == len(BOUNDS)
    for bound, place in zip(bounds, places, strict=False):
        assert place == len(BOUNDS) or bound <= BOUNDS[place]


def test_the_usual_buckets_are_their_own() -> None:
    assert places_of(BOUNDS) == tuple(range(len(BOUNDS) + 1))
