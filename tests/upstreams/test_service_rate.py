"""Whether Retry-After tells the truth: a client that comes back then finds room."""

from __future__ import annotations

import heapq
from itertools import count
from random import Random
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twisted_vllm.upstreams.fair_queue import FairQueue
from twisted_vllm.upstreams.service_rate import LEAST, MOST, ServiceRate


@attrs.define
class Outcome:
    """What became of a burst.

    Attributes:
        told: the seconds that refused clients were told, in order.
        found_room: how many that came back then found room.
        refused_again: how many did not.
    """

    told: list[int] = attrs.field(factory=list)
    found_room: int = 0
    refused_again: int = 0

    @property
    def honest(self) -> float:
        """The part that found room."""
        back = self.found_room + self.refused_again
        return self.found_room / back if back else 1.0


def simulate(
    *, places: int, capacity: int, burst: int, seconds: float, seed: int, warm: bool, exponential: bool, keys: int = 1
) -> Outcome:
    """Send a burst to servers with so many places; whoever is refused comes back when told.

    Args:
        places: requests that the servers work on at a time.
        capacity: places of the queue.
        burst: requests at once.
        seconds: the mean time of a request at a server.
        seed: of the random times.
        warm: whether 20 requests were served before.
        exponential: whether times have an exponential distribution, or are from half of the mean to 1.5 times.
        keys: how many keys send the burst.
    """
    random, order = Random(seed), count()
    queue: FairQueue[tuple[int, bool]] = FairQueue(capacity)
    outcome, busy = Outcome(), 0
    events: list[tuple[float, int, Any]] = []

    def at(time: float, event: Any) -> None:
        heapq.heappush(events, (time, next(order), event))

    def start(now: float) -> None:
        queue.rate.began(now)
        at(now + (random.expovariate(1 / seconds) if exponential else seconds * random.uniform(0.5, 1.5)), None)

    for _ in range(20 * warm):
        queue.rate.began(100.0)
    for _ in range(20 * warm):
        queue.rate.ended(100.0 + seconds)
    for number in range(burst):
        at(110.0 + random.uniform(0.0, 0.2), (number, False))
    while events:
        now, _, request = heapq.heappop(events)
        if request is None:
            queue.rate.ended(now)
            if queue.pop(lambda _: True, now) is None:
                busy -= 1
            else:
                start(now)
            continue
        number, returns = request
        if busy < places:
            busy += 1
            start(now)
            outcome.found_room += returns
            continue
        refused = queue.push(request, str(number % keys), 0, now)
        if refused is not request:
            outcome.found_room += returns
        else:
            outcome.refused_again += returns
        if refused is not None:
            told = queue.retry_after(places, now)
            outcome.told.append(told)
            at(now + told + random.uniform(0.0, 0.05), (refused[0], True))
    return outcome


@given(
    places=st.sampled_from([1, 2, 8, 32, 100]),
    capacity=st.sampled_from([10, 20, 100, 200]),
    seconds=st.sampled_from([0.1, 0.5, 2.0, 5.0]),
    load=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
    warm=st.booleans(),
    exponential=st.booleans(),
    keys=st.sampled_from([1, 5]),
)
def test_most_clients_that_come_back_when_they_were_told_find_room(
    places: int, capacity: int, seconds: float, load: float, seed: int, warm: bool, exponential: bool, keys: int
) -> None:
    # bursts of up to 40 seconds of work: within what may be told
    rate = places / seconds
    assume(capacity / rate < 25)
    extra = int(min(rate, capacity + places) * (40 - capacity / rate) * load)
    assume(1 <= extra <= 2000)
    outcome = simulate(
        places=places,
        capacity=capacity,
        burst=places + capacity + extra,
        seconds=seconds,
        seed=seed,
        warm=warm,
        exponential=exponential,
        keys=keys,
    )
    assert outcome.honest >= 0.5


def test_of_many_bursts_nine_of_ten_clients_find_room() -> None:
    found_room = refused_again = 0
    for seed in range(60):
        random = Random(seed)
        places, capacity, seconds = random.choice([2, 8, 32]), random.choice([20, 100]), random.choice([0.5, 2.0])
        outcome = simulate(
            places=places,
            capacity=capacity,
            burst=places + capacity + random.randint(1, int(min(places / seconds, capacity) * 20)),
            seconds=seconds,
            seed=seed,
            warm=True,
            exponential=True,
        )
        if max(outcome.told, default=MOST) < MOST:
            found_room += outcome.found_room
            refused_again += outcome.refused_again
    assert found_room >= 1000
    assert found_room >= 9 * refused_again


@pytest.mark.parametrize("places", [1, 8, 64])
def test_who_is_refused_first_is_told_the_time_that_the_queue_takes(places: int) -> None:
    seconds, capacity = 0.5 * places / 8, 100
    burst = places + capacity + 50
    outcome = simulate(
        places=places, capacity=capacity, burst=burst, seconds=seconds, seed=1, warm=True, exponential=False
    )
    expected = capacity / (places / seconds)
    assert outcome.told[0] == pytest.approx(expected, abs=2)
    assert outcome.told == sorted(outcome.told)


def test_nobody_is_told_less_than_a_second_or_more_than_a_minute() -> None:
    fast = ServiceRate()
    fast.waiting(100.0)
    for _ in range(1000):
        fast.served(100.001)
    assert fast.promise(1, 100, 10, 100.002) == LEAST
    hangs = ServiceRate()
    hangs.began(100.0)
    hangs.waiting(100.0)
    assert hangs.promise(100, 100, 1, 400.0) == MOST
    assert ServiceRate().promise(100, 100, 0, 100.0) == MOST


def test_those_who_are_refused_together_are_told_different_times() -> None:
    rate = ServiceRate()
    rate.began(99.0)
    rate.ended(100.0)
    told = [rate.promise(10, 10, 5, 100.0) for _ in range(30)]
    assert told == sorted(told)
    assert max(told) >= told[0] + 5


def test_the_rate_follows_the_servers_when_one_of_two_dies() -> None:
    rate = ServiceRate()
    rate.waiting(100.0)
    now = 100.0
    for _ in range(1000):
        now += 0.1
        rate.served(now)
    assert rate.rate(20, now) == pytest.approx(10.0, rel=0.3)
    for _ in range(300):
        now += 0.2
        rate.served(now)
    assert rate.rate(10, now) == pytest.approx(5.0, rel=0.5)


def test_a_promise_is_never_above_the_most_by_rounding() -> None:
    rate = ServiceRate()
    rate.began(0.0)
    # 60 s later, less the same time, is more than 60 s in floating-point numbers
    now = 8132.657415773704
    assert (now + MOST) - now > MOST
    rate.began(now - 700.0)
    assert rate.promise(10_000, 10, 1, now) == MOST


@given(st.lists(st.tuples(st.sampled_from("bewsxp"), st.floats(-5.0, 1000.0)), max_size=60))
def test_whatever_happened_the_promise_is_a_number_within_its_bounds(events: list[tuple[str, float]]) -> None:
    rate, now = ServiceRate(), 1000.0
    for event, passed in events:
        now += passed
        if event == "b":
            rate.began(now)
        elif event == "e":
            rate.ended(now)
        elif event == "w":
            rate.waiting(now)
        elif event == "s":
            rate.served(now)
        elif event == "x":
            rate.empty(now)
        else:
            assert LEAST <= rate.promise(3, 10, 4, now) <= MOST
