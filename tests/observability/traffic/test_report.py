"""What a report says of a period."""

from __future__ import annotations

from bisect import bisect_left

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.observability.traffic.report import MOST_POINTS, TrafficSeries, make_report, quantile
from twisted_vllm.observability.traffic.ring import COARSE, FINE, History
from twisted_vllm.observability.traffic.steps import BOUNDS, ModelStep, Step

#: a Unix time that begins an hour
START = 3_600_000


def history(seconds: int, since: float = START) -> History:
    """Return what is known after so many seconds with five requests in each step."""
    found = History(since)
    for at in range(START, START + seconds, FINE):
        model = ModelStep(5, 1, 50, 10, 100, 2_000_000_000, {8: 5}, {11: 5})
        found.add(Step(at // FINE, 3, {"draining": 1}, {"qwen": model}))
        found.tick(at + FINE)
    return found


@pytest.mark.parametrize(
    ("minutes", "spacing", "points"), [(5, 5, 60), (15, 5, 180), (60, 15, 240), (360, 120, 180), (1440, 360, 240)]
)
def test_a_period_has_so_many_points(minutes: int, spacing: int, points: int) -> None:
    now = START + 86_400.0 + 1.0
    report = make_report(history(86_400), now - minutes * 60, now)
    series = msgspec.structs.asdict(report.series)
    assert report.step_seconds == spacing
    assert {len(each) for each in series.values()} in ({points}, {points + 1}) and points <= MOST_POINTS
    assert report.series.time[1] - report.series.time[0] == spacing
    # every interval but a last one that has just begun
    assert {round(each or 0, 6) for each in report.series.requests_per_second} == {1.0}
    assert report.summary.requests == minutes * 60
    assert (report.summary.requests_per_second, report.now.requests_per_second) == (1.0, 1.0)
    assert report.summary.input_tokens_per_second == 10.0
    assert (report.now.in_flight, report.summary.most_in_flight) == (3, 3)
    assert report.summary.spend == pytest.approx(minutes * 12 * 2.0)
    assert [(each.cause, each.count) for each in report.errors] == [("draining", minutes * 12)]
    assert [(each.model, each.requests) for each in report.models] == [("qwen", minutes * 60)]


def test_before_the_gateway_began_nothing_is_known_and_rates_count_from_then_on() -> None:
    now = START + 61.0
    report = make_report(history(60), now - 300, now)
    rates = report.series.requests_per_second
    assert rates[:48] == [None] * 48 and rates[48:] == [1.0] * 12
    assert report.summary.requests_per_second == 1.0
    assert report.complete_since.timestamp() == START


def test_an_idle_gateway_has_rates_of_zero_and_no_times() -> None:
    now = START + 301.0
    report = make_report(History(START), now - 300, now)
    assert set(report.series.requests_per_second) == {0.0}
    assert set(report.series.ttft_p95) == {None}
    assert (report.now.requests, report.now.ttft.count, report.now.ttft.p50) == (0, 0, None)
    assert (report.errors, report.models) == ([], [])


def test_a_step_that_other_processes_may_still_tell_of_is_left_out() -> None:
    known = history(60)
    assert make_report(known, START, START + 60.5).summary.requests == 55
    assert make_report(known, START, START + 61.0).summary.requests == 60


def test_the_minutes_that_are_not_added_up_yet_are_in_a_long_period() -> None:
    seconds = 7_200 + 35
    now = START + seconds + 1.0
    report = make_report(history(seconds), now - 7_200, now)
    assert report.step_seconds >= COARSE
    assert report.series.requests_per_second[-1] == 1.0
    assert report.summary.requests_per_second == pytest.approx(1.0)


def test_a_start_in_the_future_or_long_ago_is_answered() -> None:
    known = history(60)
    assert len(make_report(known, START + 10_000, START + 61.0).series.time) == 1
    assert len(make_report(known, 0, START + 86_400 * 2.0).series.time) <= MOST_POINTS + 1


def test_a_report_of_a_day_is_small_and_made_in_milliseconds() -> None:
    now = START + 86_400.0 + 1.0
    body = msgspec.json.encode(make_report(history(86_400), now - 86_400, now))
    assert len(body) < 40_000
    assert len(TrafficSeries.__struct_fields__) == 12


@given(st.lists(st.floats(0.001, 500), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    buckets: dict[int, int] = {}
    for value in values:
        place = bisect_left(BOUNDS, value)
        buckets[place] = buckets.get(place, 0) + 1
    estimate = quantile(buckets, share)
    assert estimate is not None
    ordered = sorted(values)
    rank = share * len(values)
    true = ordered[min(int(-(-rank // 1)) - 1, len(values) - 1)]
    place = bisect_left(BOUNDS, true)
    low = BOUNDS[place - 1] if place else 0.0
    assert low <= estimate <= BOUNDS[place] + 1e-9


def test_what_is_above_the_last_bound_counts_as_that() -> None:
    assert quantile({len(BOUNDS): 3}, 0.5) == BOUNDS[-1]
    assert quantile({}, 0.5) is None
