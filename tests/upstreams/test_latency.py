"""The peak latency of a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.upstreams.latency import DECAY, PeakEwma

SECONDS = st.floats(0, 1e4)


def test_nothing_is_known_before_the_first_answer() -> None:
    assert PeakEwma().value(1.0) == 0.0


def test_a_slow_answer_counts_at_once_and_whole() -> None:
    latency = PeakEwma()
    latency.observe(0.1, 0.0)
    latency.observe(3.0, 0.1)
    assert latency.value(0.1) == 3.0


def test_faster_answers_win_it_back_slowly() -> None:
    latency = PeakEwma()
    latency.observe(3.0, 0.0)
    latency.observe(0.1, 1.0)
    assert 2.5 < latency.value(1.0) < 3.0
    latency.observe(0.1, 1.0 + 10 * DECAY)
    assert latency.value(1.0 + 10 * DECAY) == pytest.approx(0.1, rel=0.01)


def test_a_server_that_nobody_asks_becomes_worth_asking() -> None:
    latency = PeakEwma()
    latency.observe(3.0, 0.0)
    assert latency.value(DECAY) == pytest.approx(3.0 / 2.718, rel=0.01)
    assert latency.value(20 * DECAY) < 0.001


@given(st.lists(st.tuples(SECONDS, st.floats(-10, 1e6)), min_size=1, max_size=20))
def test_it_is_never_over_the_slowest_answer_whatever_the_clock_does(answers: list[tuple[float, float]]) -> None:
    latency, now = PeakEwma(), 1e9
    for seconds, later in answers:
        now += later
        latency.observe(seconds, now)
        slowest = max(seconds for seconds, _ in answers)
        assert seconds - 1e-9 <= latency.value(now) <= slowest + 1e-9
        assert 0.0 <= latency.value(now + 5) <= latency.value(now)
        assert latency.value(now - 5) == latency.value(now)
