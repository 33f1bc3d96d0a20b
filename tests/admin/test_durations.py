from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.admin.fields import expiry_of
from twisted_vllm.errors import InvalidRequest

NOW = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("duration", "length"),
    [
        ("30s", timedelta(seconds=30)),
        ("15m", timedelta(minutes=15)),
        ("12h", timedelta(hours=12)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_duration_is_a_number_and_a_unit(duration: str, length: timedelta) -> None:
    assert expiry_of(duration, NOW) == NOW + length


@pytest.mark.parametrize(
    ("duration", "end"),
    [("1mo", (2026, 2, 28)), ("2mo", (2026, 3, 31)), ("12mo", (2027, 1, 31)), ("25mo", (2028, 2, 29))],
)
def test_a_month_is_a_calendar_month(duration: str, end: tuple[int, int, int]) -> None:
    assert expiry_of(duration, NOW) == datetime(*end, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize("duration", [None, -1, "-1"])
def test_never_can_be_written_three_ways(duration: str | int | None) -> None:
    assert expiry_of(duration, NOW) is None


@pytest.mark.parametrize(
    "duration",
    ["", "30", "s", "30y", "1.5h", "-5s", "+5s", " 5s", "5 s", "5S", "٣s", "0s", "00mo", "5s\n", 5, 0, "999999999mo"],
)
def test_anything_else_is_refused(duration: str | int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        expiry_of(duration, NOW)
    assert refused.value.param == "duration"


@given(st.text() | st.from_regex(r"[0-9]{1,9}(s|m|h|d|w|mo)", fullmatch=True) | st.integers())
def test_every_end_lies_ahead_or_is_refused(duration: str | int) -> None:
    try:
        end = expiry_of(duration, NOW)
    except InvalidRequest:
        return
    assert end is None or end > NOW
