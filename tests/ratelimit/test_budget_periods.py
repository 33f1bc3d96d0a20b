"""The periods of budgets."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.ratelimit.periods import period_of


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


#: a Wednesday
NOW = at("2026-02-18T15:42:07") + 0.5


@pytest.mark.parametrize(
    ("duration", "start", "end"),
    [
        ("30s", "2026-02-18T15:42:00", "2026-02-18T15:42:30"),
        ("15m", "2026-02-18T15:30:00", "2026-02-18T15:45:00"),
        ("1h", "2026-02-18T15:00:00", "2026-02-18T16:00:00"),
        ("12h", "2026-02-18T12:00:00", "2026-02-19T00:00:00"),
        ("24h", "2026-02-18", "2026-02-19"),
        ("1d", "2026-02-18", "2026-02-19"),
        ("7d", "2026-02-16", "2026-02-23"),
        ("1w", "2026-02-16", "2026-02-23"),
        ("2w", "2026-02-16", "2026-03-02"),
        ("30d", "2026-02-01", "2026-03-01"),
        ("1mo", "2026-02-01", "2026-03-01"),
        ("3mo", "2026-01-01", "2026-04-01"),
        ("12mo", "2026-01-01", "2027-01-01"),
    ],
)
def test_a_period_begins_with_the_calendar(duration: str, start: str, end: str) -> None:
    assert period_of(duration, NOW) == (at(start), at(end))


def test_without_a_duration_there_is_one_period_for_ever() -> None:
    assert period_of(None, NOW) == (0, None)


@pytest.mark.parametrize("wrong", ["", "30", "d", "0d", "1y", "-1d", "1.5h", "30d "])
def test_what_is_no_duration_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="must be a number above 0 and a unit"):
        period_of(wrong, NOW)


@given(
    st.builds("{}{}".format, st.integers(1, 999_999_999), st.sampled_from(["s", "m", "h", "d", "w", "mo"])),
    st.floats(0, 100 * 365 * 86_400),
)
def test_periods_follow_each_other_without_a_gap(duration: str, now: float) -> None:
    start, end = period_of(duration, now)
    assert end is not None
    assert start <= now < end
    assert period_of(duration, start) == (start, end)
    if end < at("2200-01-01"):
        assert period_of(duration, end)[0] == end
