"""Counts by name in bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.ratelimit.minute_counts import MINUTE, MinuteCounts

NOW = 1_000_000.0


def test_a_minute_begins_with_its_first_count_and_says_how_long_it_lasts() -> None:
    counts = MinuteCounts()
    assert [counts.add("a", NOW), counts.add("a", NOW + 15)] == [(1, 60.0), (2, 45.0)]
    assert counts.add("a", NOW + MINUTE) == (1, 60.0)


def test_another_period_counts_as_long_as_it_lasts() -> None:
    counts = MinuteCounts(period=3600)
    assert [counts.add("a", NOW), counts.add("a", NOW + 900)] == [(1, 3600.0), (2, 2700.0)]
    assert [counts.count("a", NOW + 3599), counts.count("a", NOW + 3600)] == [2, 0]


def test_a_clock_that_was_set_back_begins_a_new_minute() -> None:
    counts = MinuteCounts()
    counts.add("a", NOW)
    assert counts.add("a", NOW - 3600) == (1, 60.0)


def test_names_are_bounded_and_the_one_counted_longest_ago_goes_first() -> None:
    counts = MinuteCounts(most=3)
    for name in ("a", "b", "a", "c", "d"):
        counts.add(name, NOW)
    assert len(counts) == 3
    assert [counts.add(name, NOW)[0] for name in ("a", "c", "d")] == [3, 2, 2]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 300)), max_size=60))
def test_no_name_has_more_than_twice_its_limit_in_any_minute(events: list[tuple[str, float]]) -> None:
    counts, limit = MinuteCounts(), 3
    passed = [
        (name, time) for name, time in sorted(events, key=lambda each: each[1]) if counts.add(name, time)[0] <= limit
    ]
    for name, start in passed:
        # two minutes may touch
        assert sum(other == name and start <= time < start + MINUTE for other, time in passed) <= 2 * limit
