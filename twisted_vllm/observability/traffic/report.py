"""What `GET /gateway/traffic` answers, made of steps. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from math import ceil
from typing import Annotated, Any

import msgspec

from twisted_vllm.money import float_dollars
from twisted_vllm.observability.traffic.causes import By, meaning_of
from twisted_vllm.observability.traffic.ring import COARSE, DAY, FINE, HOUR, History
from twisted_vllm.observability.traffic.steps import BOUNDS, PICO_IN_NANO, Buckets, ModelStep, Step

#: the most points of a series, and the seconds that lie between two
MOST_POINTS = 240
SPACINGS = (5, 10, 15, 30, 60, 120, 300, 360, 600)
#: The newest steps of all processes are there so many seconds after their end.
SETTLED = 1.0
#: the seconds that what is called now is averaged over
NOW_SECONDS = 30

_SHARES = (0.5, 0.95, 0.99)

Rate = Annotated[float, msgspec.Meta(description="For each second.")]
Seconds = Annotated[float | None, msgspec.Meta(description="Seconds; null if nothing was measured.")]
Numbers = list[float | None]


class Quantiles(msgspec.Struct, kw_only=True):
    """How long it took: estimates from the counts of buckets, as Prometheus' histogram_quantile makes them."""

    count: Annotated[int, msgspec.Meta(description="How many were measured.")]
    p50: Seconds
    p95: Seconds
    p99: Seconds


class TrafficSums(msgspec.Struct, kw_only=True):
    """What passed in a time. Tokens and spend are those of requests that are over."""

    requests: int
    requests_per_second: Rate
    failed: Annotated[
        int,
        msgspec.Meta(
            description="Requests that were refused, cut, left by their client, or answered with a status of 400 or "
            "more."
        ),
    ]
    input_tokens: int
    cached_tokens: Annotated[int, msgspec.Meta(description="Input tokens that the server had in its prefix cache.")]
    output_tokens: int
    input_tokens_per_second: Rate
    output_tokens_per_second: Rate
    spend: Annotated[float, msgspec.Meta(description="US dollars.")]
    ttft: Annotated[Quantiles, msgspec.Meta(description="From a request to the first event of its stream.")]
    duration: Annotated[Quantiles, msgspec.Meta(description="Whole requests that a server got.")]


class TrafficNow(TrafficSums, kw_only=True):
    """What passes now: the mean of the last 30 seconds."""

    in_flight: Annotated[int, msgspec.Meta(description="Requests in flight, 6 seconds ago at most.")]


class TrafficSummary(TrafficSums, kw_only=True):
    """What passed in the whole period."""

    most_in_flight: Annotated[int, msgspec.Meta(description="The most requests in flight, looked at every 5 seconds.")]


class ModelTraffic(TrafficSums, kw_only=True):
    """What passed of one model."""

    model: Annotated[str, msgspec.Meta(description="The model; empty for requests without one, `other` for the rest.")]


class ErrorCount(msgspec.Struct, kw_only=True):
    """Errors with one cause."""

    cause: Annotated[
        str,
        msgspec.Meta(
            description="A code of the gateway's errors, `server_status_` and the status of a server, "
            "`client_disconnected`, `answer_cut`, `stream_error`, `revoked`, `cut` or `other`."
        ),
    ]
    by: Annotated[
        By,
        msgspec.Meta(description="Who answered with the error, or ended the request."),
    ]
    meaning: str
    count: int


class TrafficSeries(msgspec.Struct, kw_only=True):
    """The same by time: lists of equal length. null where it is not known, or where nothing was measured."""

    time: Annotated[list[int], msgspec.Meta(description="When each interval begins, in Unix seconds.")]
    requests_per_second: Numbers
    failed_per_second: Numbers
    input_tokens_per_second: Numbers
    output_tokens_per_second: Numbers
    in_flight: Numbers
    ttft_p50: Numbers
    ttft_p95: Numbers
    ttft_p99: Numbers
    duration_p50: Numbers
    duration_p95: Numbers
    duration_p99: Numbers


class TrafficReport(msgspec.Struct, kw_only=True):
    """What passed through the gateway of late."""

    start: datetime
    end: datetime
    step_seconds: Annotated[int, msgspec.Meta(description="Seconds between two points of the series.")]
    complete_since: Annotated[
        datetime,
        msgspec.Meta(description="From when on everything is counted: a restart of the gateway begins anew."),
    ]
    of_one_process: Annotated[
        bool, msgspec.Meta(description="Whether it is that of one worker alone, as the housekeeper does not answer.")
    ]
    now: TrafficNow
    summary: TrafficSummary
    errors: Annotated[list[ErrorCount], msgspec.Meta(description="Errors of the period by cause, most first.")]
    models: Annotated[list[ModelTraffic], msgspec.Meta(description="The period by model, most requests first.")]
    series: TrafficSeries


def quantile(buckets: Buckets, share: float) -> float | None:
    """Return the value that a share of the measurements is at most; None without any.

    Within a bucket the values are taken to be evenly spread, as in Prometheus. What is above the last bound counts as
    that bound.
    """
    total = sum(buckets.values())
    if not total:
        return None
    rank, before = share * total, 0
    for place in sorted(buckets):
        count = buckets[place]
        if before + count >= rank:
            if place >= len(BOUNDS):
                break
            low = BOUNDS[place - 1] if place else 0.0
            return low + (BOUNDS[place] - low) * (rank - before) / count
        before += count
    return BOUNDS[-1]


def quantiles(buckets: Buckets) -> Quantiles:
    """Return the median, the 95th and the 99th percentile."""
    p50, p95, p99 = (_shown(quantile(buckets, share)) for share in _SHARES)
    return Quantiles(count=sum(buckets.values()), p50=p50, p95=p95, p99=p99)


def earliest(now: float) -> float:
    """Return from when on a report can begin, in Unix seconds."""
    return now - DAY


def make_report(history: History, start: float, now: float, *, of_one_process: bool = False) -> TrafficReport:
    """Return a report.

    Args:
        history: the steps.
        start: when it begins, in Unix seconds; what is older than a day is not known.
        now: the time.
        of_one_process: as in `TrafficReport`.
    """
    end = int((now - SETTLED) // FINE) * FINE
    first = min(max(start, earliest(now)), end - FINE)
    spacing = next((each for each in SPACINGS if (end - first) / each <= MOST_POINTS), SPACINGS[-1])
    if end - first > HOUR:
        spacing = max(spacing, COARSE)
    begin = int(first // spacing) * spacing
    points = _points(history, begin, end, spacing)
    known = max(begin, history.since)
    whole = _merged(points.values())
    seconds = max(end - known, 1.0)
    models = sorted(whole.models.items(), key=lambda item: item[1].requests, reverse=True)
    return TrafficReport(
        start=_moment(begin),
        end=_moment(end),
        step_seconds=spacing,
        complete_since=_moment(history.since),
        of_one_process=of_one_process,
        now=make_now(history, now),
        summary=TrafficSummary(most_in_flight=whole.in_flight, **_sums(whole.total(), seconds)),
        errors=_errors(whole.causes),
        models=[ModelTraffic(model=name, **_sums(each, seconds)) for name, each in models],
        series=_series(points, begin, end, spacing, history.since),
    )


def make_now(history: History, now: float) -> TrafficNow:
    """Return what passes at a time in Unix seconds."""
    end = int((now - SETTLED) // FINE) * FINE
    recent = list(history.fine.between((end - NOW_SECONDS) // FINE, end // FINE))
    is_current = bool(recent) and recent[-1].number == end // FINE - 1
    seconds = min(max(end - history.since, 1.0), NOW_SECONDS)
    return TrafficNow(in_flight=recent[-1].in_flight if is_current else 0, **_sums(_merged(recent).total(), seconds))


def _errors(causes: Mapping[str, int]) -> list[ErrorCount]:
    found = []
    for cause, count in sorted(causes.items(), key=lambda item: (-item[1], item[0])):
        by, meaning = meaning_of(cause)
        found.append(ErrorCount(cause=cause, by=by, meaning=meaning, count=count))
    return found


def _points(history: History, begin: int, end: int, spacing: int) -> Mapping[int, Step]:
    """Return what happened, by the number of the interval."""
    found: dict[int, Step] = {}
    for at, step in _steps(history, begin, end, spacing):
        number = at // spacing
        if number in found:
            found[number].add(step, same_time=False)
        else:
            found[number] = step
    return found


def _steps(history: History, begin: int, end: int, spacing: int) -> Iterator[tuple[int, Step]]:
    fine_from = begin
    if spacing >= COARSE:
        fine_from = max(begin, history.added_up)
        for step in history.coarse.between(begin // COARSE, fine_from // COARSE):
            yield step.number * COARSE, step
    for step in history.fine.between(fine_from // FINE, end // FINE):
        yield step.number * FINE, step


def _merged(steps: Iterable[Step]) -> Step:
    found = Step(0)
    for each in steps:
        found.add(each, same_time=False)
    return found


def _sums(passed: ModelStep, seconds: float) -> dict[str, Any]:
    return {
        "requests": passed.requests,
        "requests_per_second": _rounded(passed.requests / seconds),
        "failed": passed.failed,
        "input_tokens": passed.prompt,
        "cached_tokens": passed.cached,
        "output_tokens": passed.completion,
        "input_tokens_per_second": _rounded(passed.prompt / seconds),
        "output_tokens_per_second": _rounded(passed.completion / seconds),
        "spend": float_dollars(passed.cost * PICO_IN_NANO),
        "ttft": quantiles(passed.first),
        "duration": quantiles(passed.duration),
    }


def _series(points: Mapping[int, Step], begin: int, end: int, spacing: int, since: float) -> TrafficSeries:
    times = list(range(begin, end, spacing))
    columns: list[Sequence[float | None]] = []
    for time in times:
        # an interval that is not over, or that began before the gateway did
        seconds = min(time + spacing, end) - max(float(time), since)
        columns.append([None] * 11 if seconds <= 0 else _point(points.get(time // spacing), seconds))
    names = TrafficSeries.__struct_fields__[1:]
    by_name = dict(zip(names, map(list, zip(*columns, strict=True)), strict=True))
    return TrafficSeries(time=times, **by_name)


def _point(step: Step | None, seconds: float) -> Sequence[float | None]:
    if step is None:
        return (0.0, 0.0, 0.0, 0.0, 0, *(None,) * 6)
    total = step.total()
    rates = (total.requests, total.failed, total.prompt, total.completion)
    quantiles = (quantile(buckets, share) for buckets in (total.first, total.duration) for share in _SHARES)
    return (
        *(_rounded(count / seconds) for count in rates),
        step.in_flight,
        *map(_shown, quantiles),
    )


def _rounded(value: float) -> float:
    """Return a number with four digits, for the eye: every byte is sent again and again."""
    return float(f"{value:.4g}")


def _shown(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(ceil(seconds), UTC)
