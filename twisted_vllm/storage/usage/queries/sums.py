"""Reads sums of usage, a page at a time.

A page is one short transaction, so that no report keeps others from the database, however long it is or however slowly
its reader reads. Pages follow each other by the last group's values, which do not move when more is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any, NamedTuple

import attrs
from sqlalchemy import Connection, func, select

from twisted_vllm.storage.usage.queries.plan import (
    DAY_US,
    HOUR,
    HOUR_US,
    ROWS,
    TOTALS,
    Asked,
    Plan,
    Segment,
    moment_of,
    month_start,
    plan,
)
from twisted_vllm.storage.usage.queries.statements import date_of, page_statement
from twisted_vllm.storage.usage.tables import MONTH, usage
from twisted_vllm.storage.usage.tables import SUMS as SUMS

#: groups of one page
PAGE = 5_000

#: requests that one page should add up, where they are added up from their rows
_WORK = 50_000
_WIDEST = 64 * DAY_US
_EPOCH = date(1970, 1, 1).toordinal()


class Group(NamedTuple):
    """What one group used in one interval.

    Attributes:
        start: when the interval began: a date, or of an hour a moment, in UTC and ISO 8601.
        values: of the dimensions that the report is grouped by, in their order; ``""`` is none.
        sums: as `SUMS` names them; money is in picodollars.
    """

    start: str
    values: tuple[str, ...]
    sums: tuple[int, ...]


@attrs.frozen
class Cursor:
    """How far a report is.

    Attributes:
        segment: the number of the plan's segment.
        low: from where on it is being read, in microseconds since 1970.
        width: how much of it is read at a time, likewise.
        after: the last group that was read: its interval, if there are several, and its values.
    """

    segment: int = 0
    low: int | None = None
    width: int = HOUR_US
    after: tuple[Any, ...] | None = None


@attrs.frozen
class SumsPage:
    """Some groups, in order, and where to read on; None at the end."""

    groups: list[Group]
    cursor: Cursor | None


def read_page(connection: Connection, asked: Plan, cursor: Cursor, limit: int = PAGE) -> SumsPage:
    """Return the next groups of a report, in the order of their intervals and values. They may be none before the end.

    Args:
        connection: of a transaction that reads.
        asked: the report.
        cursor: how far it is.
        limit: how many groups at the most.
    """
    if cursor.segment >= len(asked.segments):
        return SumsPage([], None)
    segment = asked.segments[cursor.segment]
    low = segment.low if cursor.low is None else cursor.low
    high = segment.high
    if segment.label is None and asked.source != TOTALS:
        # What is not stored in the order of the report is sorted for each page: a piece at a time, then
        piece = (
            month_start(low, 1) if segment.period == MONTH else _end_of_piece(low, cursor.width, asked.asked.interval)
        )
        high = min(segment.high, piece)
    rows = connection.execute(page_statement(asked, segment, low, high, cursor.after, limit)).all()
    several = segment.label is None
    first, count = int(several), int(several) + len(asked.asked.group_by)
    name = _namer(asked, segment)
    # without any group, there is one row also of nothing
    groups = [Group(name(row[0]), row[first:count], row[count:]) for row in rows if row[count]]
    if len(rows) == limit:
        last = rows[-1][:count]
        # what comes next begins in the last interval
        low = _moment(last[0]) if several else low
        return SumsPage(groups, attrs.evolve(cursor, low=low, after=last))
    if high < segment.high:
        work = sum(group.sums[0] for group in groups) if asked.source == ROWS else len(groups) * 10
        width = cursor.width * 2 if work < _WORK // 2 else cursor.width // 2 if work > _WORK * 2 else cursor.width
        return SumsPage(groups, Cursor(cursor.segment, high, min(max(width, HOUR_US), _WIDEST)))
    following = cursor.segment + 1
    return SumsPage(groups, Cursor(following) if following < len(asked.segments) else None)


def read_all(connection: Connection, asked: Asked) -> Iterator[Group]:
    """Return all groups of a report that is known to be small.

    Raises:
        Unanswerable: nothing that is kept answers it.
    """
    planned = plan(asked)
    cursor: Cursor | None = Cursor()
    while cursor is not None:
        page = read_page(connection, planned, cursor)
        yield from page.groups
        cursor = page.cursor


def first_row(connection: Connection) -> int | None:
    """Return when the oldest request began whose row is kept, in microseconds since 1970."""
    found: int | None = connection.execute(select(func.min(usage.c.time))).scalar()
    return found


def _end_of_piece(low: int, width: int, interval: str) -> int:
    """Return where a piece of a report ends: no interval is divided."""
    unit = HOUR_US if interval == HOUR else DAY_US
    return (low + max(width, unit)) // unit * unit


def _moment(bucket: Any) -> int:
    """Return when an interval began, as the database gives it."""
    return bucket if isinstance(bucket, int) else _midnight(date.fromisoformat(str(bucket)))


def _midnight(day: date) -> int:
    return (day.toordinal() - _EPOCH) * DAY_US


def _namer(asked: Plan, segment: Segment) -> Callable[[Any], str]:
    """Return what makes an interval's name of what the database gives."""
    if segment.label is not None:
        label = date_of(segment.label).isoformat()
        return lambda _: label
    if asked.source != ROWS:
        return str
    if asked.asked.interval == HOUR:
        return lambda found: moment_of(found).strftime("%Y-%m-%dT%H:00:00Z")
    return lambda found: date_of(found).isoformat()
