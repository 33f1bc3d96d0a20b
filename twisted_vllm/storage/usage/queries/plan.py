"""What a report is asked, and which table answers it: plain values, decided without a database.

Sums by day and month are kept of one dimension at a time with the model, and of key, user, team and model together.
Whatever else is asked is added up from the rows, as far back as they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import attrs

from twisted_vllm.storage.usage.batch import DAY_US as DAY_US
from twisted_vllm.storage.usage.tables import ALL, DAY, END_USER, KEY, MONTH, TAG, TEAM, USER

HOUR = "hour"
HOUR_US = DAY_US // 24
MODEL, ROUTE, SERVER = "model", "route", "server"

#: what a report may be grouped by, in the order in which its columns stand
DIMENSIONS = (KEY, USER, TEAM, END_USER, TAG, MODEL, ROUTE, SERVER)

#: the tables that answer
TOTALS, DAILY, ROWS = "totals", "daily", "rows"

_TOGETHER = frozenset({KEY, USER, TEAM})
_ONE_AT_A_TIME = frozenset({USER, TEAM, END_USER, TAG})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unanswerable(ValueError):
    """Nothing that is kept answers this; the message says what can be asked."""


@attrs.frozen
class Asked:
    """What a report is asked.

    Attributes:
        group_by: some of `DIMENSIONS`, in their order.
        interval: ``hour``, ``day`` or ``month``.
        start: the first moment that counts, in microseconds since 1970.
        end: the first one that does not count any more.
        equals: dimensions and the value that each must have; a key's is its lasting id.
    """

    group_by: tuple[str, ...]
    interval: str
    start: int
    end: int
    equals: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Segment:
    """A stretch of time that one table answers.

    Attributes:
        low: where it begins, in microseconds since 1970.
        high: where it ends.
        period: of the sums of one dimension: ``day`` or ``month``.
        label: where the one interval began that all of it belongs to; None if it has several.
    """

    low: int
    high: int
    period: str = DAY
    label: int | None = None


@attrs.frozen
class Plan:
    """How a report is answered.

    Attributes:
        asked: what was asked.
        source: ``totals``, ``daily`` or ``rows``.
        dimension: of ``totals``: which of them.
        segments: in the order of time.
    """

    asked: Asked
    source: str
    dimension: str
    segments: tuple[Segment, ...]


def plan(asked: Asked) -> Plan:
    """Return how a report is answered.

    Raises:
        Unanswerable: by nothing that is kept.
    """
    dimensions = {name for name in (*asked.group_by, *asked.equals) if name != MODEL}
    whole_days = asked.start % DAY_US == 0 and asked.end % DAY_US == 0
    if asked.interval != HOUR and whole_days:
        if len(dimensions) <= 1 and dimensions <= _ONE_AT_A_TIME:
            return Plan(asked, TOTALS, next(iter(dimensions), ALL), _segments(asked))
        if dimensions <= _TOGETHER:
            return Plan(asked, DAILY, "", _segments(asked))
    if asked.interval == MONTH:
        raise Unanswerable(
            "Months are kept of whole days, of `model` with one of key, user, team, end_user and tag, or with key, "
            "user and team together. Ask for `interval=day` or `interval=hour`, which are added up from the rows."
        )
    return Plan(asked, ROWS, "", (Segment(asked.start, asked.end),))


def month_start(moment: int, months: int = 0) -> int:
    """Return when the month of a moment began, or one so many months later; all in microseconds since 1970."""
    found = moment_of(moment)
    year, month = divmod(found.year * 12 + found.month - 1 + months, 12)
    return microseconds(datetime(year, month + 1, 1, tzinfo=UTC))


def moment_of(number: int) -> datetime:
    """Return a moment that is given in microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=number)


def microseconds(moment: datetime) -> int:
    """Return a moment in microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _segments(asked: Asked) -> tuple[Segment, ...]:
    """Return the segments of sums; whole months are read as such."""
    if asked.interval == DAY:
        return (Segment(asked.start, asked.end),)
    found = []
    low = asked.start
    while low < asked.end:
        begin, following = month_start(low), month_start(low, 1)
        high = min(following, asked.end)
        if low == begin and high == following:
            last = month_start(asked.end)
            found.append(Segment(low, last, period=MONTH))
            high = last
        else:
            found.append(Segment(low, high, label=begin))
        low = high
    return tuple(found)
