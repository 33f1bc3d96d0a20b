"""Chooses the tables for a report. No I/O.

Sums by day and month are stored for the model with one other dimension, and for the model with the payer, from which
those of key, user and team together follow. Everything else is summed from the rows, as far back as they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import attrs

from twisted_vllm.storage.usage.tables import ALL, DAY, DAY_US, END_USER, KEY, MONTH, TAG, TEAM, USER

HOUR = "hour"
HOUR_US = DAY_US // 24
MODEL, ROUTE, SERVER = "model", "route", "server"

#: what a report may be grouped by, in the order of its columns
DIMENSIONS = (KEY, USER, TEAM, END_USER, TAG, MODEL, ROUTE, SERVER)

#: the values of `Plan.source`
TOTALS, DAILY, ROWS = "totals", "daily", "rows"

_COMBINED = frozenset({KEY, USER, TEAM})
_SINGLE = frozenset({USER, TEAM, END_USER, TAG})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unanswerable(ValueError):
    """No stored table can answer the query. The message says which queries are possible."""


@attrs.frozen
class UsageQuery:
    """The query of a report.

    Attributes:
        group_by: some of `DIMENSIONS`, in their order.
        interval: ``hour``, ``day`` or ``month``.
        start: the start of the time range, in microseconds since 1970.
        end: its end, exclusive.
        equals: required values of dimensions; for a key its permanent id.
    """

    group_by: tuple[str, ...]
    interval: str
    start: int
    end: int
    equals: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Segment:
    """A part of the time range, read from one table.

    Attributes:
        low: its start, in microseconds since 1970.
        high: its end.
        period: of the sums: ``day`` or ``month``.
        label: the start of the interval that contains the segment; None for a segment of several intervals.
    """

    low: int
    high: int
    period: str = DAY
    label: int | None = None


@attrs.frozen
class Plan:
    """The plan of a report.

    Attributes:
        query: its query.
        source: ``totals``, ``daily`` or ``rows``.
        dimension: the dimension of ``totals``.
        segments: the segments, in order of time.
    """

    query: UsageQuery
    source: str
    dimension: str
    segments: tuple[Segment, ...]


def plan(query: UsageQuery) -> Plan:
    """Return the plan of a report.

    Raises:
        Unanswerable: no stored table can answer it.
    """
    dimensions = {name for name in (*query.group_by, *query.equals) if name != MODEL}
    whole_days = query.start % DAY_US == 0 and query.end % DAY_US == 0
    if query.interval != HOUR and whole_days:
        if len(dimensions) <= 1 and dimensions <= _SINGLE:
            return Plan(query, TOTALS, next(iter(dimensions), ALL), _segments(query))
        if dimensions <= _COMBINED:
            return Plan(query, DAILY, "", _segments(query))
    if query.interval == MONTH:
        raise Unanswerable(
            "Months are kept of whole days, of `model` with one of key, user, team, end_user and tag, or with key, "
            "user and team together. Ask for `interval=day` or `interval=hour`, which are added up from the rows."
        )
    return Plan(query, ROWS, "", (Segment(query.start, query.end),))


def month_start(moment: int, months: int = 0) -> int:
    """Return the start of a moment's month, or of one `months` later; in microseconds since 1970."""
    found = moment_of(moment)
    year, month = divmod(found.year * 12 + found.month - 1 + months, 12)
    return microseconds(datetime(year, month + 1, 1, tzinfo=UTC))


def moment_of(number: int) -> datetime:
    """Return the moment of a number of microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=number)


def microseconds(moment: datetime) -> int:
    """Return a moment in microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _segments(query: UsageQuery) -> tuple[Segment, ...]:
    """Return the segments of a report on sums. Whole months are read from the sums by month."""
    if query.interval == DAY:
        return (Segment(query.start, query.end),)
    found = []
    low = query.start
    while low < query.end:
        begin, following = month_start(low), month_start(low, 1)
        high = min(following, query.end)
        if low == begin and high == following:
            last = month_start(query.end)
            found.append(Segment(low, last, period=MONTH))
            high = last
        else:
            found.append(Segment(low, high, label=begin))
        low = high
    return tuple(found)
