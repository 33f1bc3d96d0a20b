"""The recent requests of servers are counted without time, and in bounded numbers."""

from __future__ import annotations

import pytest

from twisted_vllm.upstreams.recent_requests import MEMORY, RecentRequests


def test_the_shares_follow_what_happens_now() -> None:
    recent = RecentRequests()
    for number in range(20 * MEMORY):
        recent.add("a" if number % 4 else "b", fresh=number % 2 == 0)
    a, b = recent.requests(["a", "b"])
    assert a / (a + b) == pytest.approx(0.75, abs=0.02)
    assert sum(recent.fresh(["a", "b"])) / (a + b) == pytest.approx(0.5, abs=0.02)
    for _ in range(10 * MEMORY):
        recent.add("b", fresh=False)
    a, b = recent.requests(["a", "b"])
    assert a / (a + b) < 0.01


def test_a_new_server_begins_the_count_anew() -> None:
    recent = RecentRequests()
    for _ in range(100):
        recent.add("a", fresh=True)
    assert recent.requests(["a", "new"]) == [0.0, 0.0]
    assert recent.fresh(["a", "new"]) == [0.0, 0.0]
    recent.add("newer", fresh=False)
    assert recent.requests(["a", "new", "newer"]) == [0.0, 0.0, 1.0]


def test_a_server_that_left_counts_no_more() -> None:
    recent = RecentRequests()
    recent.requests(["a", "b"])
    recent.add("a", fresh=False)
    recent.add("b", fresh=False)
    recent.forget("b")
    assert recent.requests(["a"])[0] == pytest.approx(1.0, abs=0.02)
    recent.forget("unknown")


def test_numbers_stay_finite_after_very_many_requests() -> None:
    recent = RecentRequests()
    for number in range(300 * MEMORY):
        recent.add("a", fresh=number % 2 == 0)
    assert recent.requests(["a"])[0] == pytest.approx(MEMORY, rel=0.05)
