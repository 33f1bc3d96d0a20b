"""Rows of requests that cost nothing are joined."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import usage_row
from twisted_vllm.usage.records import UsageRow
from twisted_vllm.usage.repeated_rows import MAX_HELD, SINGLE_ROWS, RepeatedRows
from twisted_vllm.usage.spool.format import encode_rows

HOUR = 3_600_000_000
SUMS = ("requests", "total_us", "bytes_in", "bytes_out")


def row(number: int, **fields: Any) -> UsageRow:
    return usage_row(number, **{"cost": 0, "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, **fields})


def written(rows: list[UsageRow], repeated: RepeatedRows | None = None) -> list[UsageRow]:
    """Return what a round writes."""
    repeated = RepeatedRows() if repeated is None else repeated
    found = [kept for each in rows if (kept := repeated.add(each)) is not None]
    return found + repeated.end_round()


def test_the_first_rows_of_a_round_are_written_as_they_come() -> None:
    rows = [row(number) for number in range(SINGLE_ROWS)]
    repeated = RepeatedRows()
    assert [repeated.add(each) for each in rows] == rows
    assert repeated.end_round() == []
    assert repeated.add(rows[0]) is rows[0]


def test_a_minute_of_six_hundred_equal_requests_is_eleven_rows_and_three_kilobytes() -> None:
    rows = [row(number, first_byte_us=5, bytes_in=1, bytes_out=2) for number in range(600)]
    found = written(rows)
    assert len(found) == SINGLE_ROWS + 1
    assert len(encode_rows(found)) < 3_000
    joined, first = found[-1], rows[SINGLE_ROWS]
    assert (joined.id, joined.time, joined.request_id, joined.first_byte_us) == (first.id, first.time, "", None)
    assert [getattr(joined, name) for name in SUMS] == [590, 590_000, 590, 1_180]


def test_a_single_request_of_a_kind_keeps_its_row() -> None:
    rows = [row(number) for number in range(SINGLE_ROWS + 1)]
    assert written(rows) == rows


KIND = st.fixed_dictionaries(
    {
        "key_id": st.sampled_from(["k1", "k2"]),
        "route": st.sampled_from(["/v1/models", "/metrics"]),
        "status": st.sampled_from([200, 404]),
        "outcome": st.sampled_from(["completed", "client_disconnected"]),
        "end_user": st.sampled_from([None, "eve"]),
        "headers": st.sampled_from([None, {"x-project": "p"}]),
        "time": st.sampled_from([HOUR - 1, HOUR, HOUR + 1]),
        "bytes_out": st.integers(0, 9),
    }
)


@given(st.lists(KIND, max_size=80))
def test_no_sum_changes_of_any_kind_hour_key_or_end_user(kinds: list[dict[str, Any]]) -> None:
    rows = [row(number, **kind) for number, kind in enumerate(kinds)]

    def sums(of: list[UsageRow]) -> dict[tuple[object, ...], Counter[str]]:
        found: dict[tuple[object, ...], Counter[str]] = {}
        for each in of:
            headers = None if each.headers is None else tuple(each.headers.items())
            key = (bytes(each.payer), bytes(each.target), each.status, each.outcome, each.end_user, headers)
            total = found.setdefault((*key, each.time // HOUR), Counter())
            total.update({name: getattr(each, name) for name in SUMS})
        return found

    assert sums(written(rows)) == sums(rows)


def test_what_is_held_is_bounded_and_the_rest_is_written_at_once() -> None:
    repeated = RepeatedRows()
    count = SINGLE_ROWS + MAX_HELD + 5
    written_at_once = sum(repeated.add(row(number, end_user=f"e{number}")) is not None for number in range(count))
    assert len(repeated) == MAX_HELD
    assert written_at_once == SINGLE_ROWS + 5
