"""Reads sums of usage, a page at a time.

A page is one short transaction, so that no report keeps others from the database, however long it is or however slowly
its reader reads. Pages follow each other by the last group's values, which do not move when more is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from typing import Any, NamedTuple

import attrs
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    String,
    Text,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    type_coerce,
)

from twisted_vllm.store.usage_queries_plan import (
    DAILY,
    HOUR,
    HOUR_US,
    MODEL,
    ROUTE,
    ROWS,
    SERVER,
    TOTALS,
    Asked,
    Plan,
    Segment,
    moment_of,
    plan,
)
from twisted_vllm.store.usage_sums import DAY_US
from twisted_vllm.store.usage_tables import END_USER, KEY, TAG, TEAM, USER, usage, usage_daily, usage_tags, usage_totals

#: the sums of a group, in their order
SUMS = tuple(
    column.name for column in usage_daily.columns if isinstance(column.type, BigInteger) and not column.primary_key
)

#: groups of one page
PAGE = 5_000

#: requests that one page should add up, where they are added up from their rows
_WORK = 50_000
_WIDEST = 64 * DAY_US

# not a parameter: PostgreSQL could not tell that what is selected is what is grouped by
_NONE = literal_column("''", Text)

_ROW_COLUMNS = {
    KEY: usage.c.key_id,
    USER: func.coalesce(usage.c.user_id, _NONE),
    TEAM: func.coalesce(usage.c.team_id, _NONE),
    END_USER: func.coalesce(usage.c.end_user, _NONE),
    TAG: usage_tags.c.tag,
    MODEL: usage.c.model,
    ROUTE: usage.c.route,
    SERVER: usage.c.server,
}
_ROW_FILTERS = _ROW_COLUMNS | {USER: usage.c.user_id, TEAM: usage.c.team_id, END_USER: usage.c.end_user}
_STORED = {TOTALS: usage_totals, DAILY: usage_daily}
_EPOCH = date(1970, 1, 1).toordinal()
_DAILY_COLUMNS = {
    KEY: usage_daily.c.key_id,
    USER: usage_daily.c.user_id,
    TEAM: usage_daily.c.team_id,
    MODEL: usage_daily.c.model,
}


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
        high = min(segment.high, _end_of_piece(low, cursor.width, asked.asked.interval))
    rows = connection.execute(_statement(asked, segment, low, high, cursor.after, limit)).all()
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
        label = _date(segment.label).isoformat()
        return lambda _: label
    if asked.source != ROWS:
        return str
    if asked.asked.interval == HOUR:
        return lambda found: moment_of(found).strftime("%Y-%m-%dT%H:00:00Z")
    return lambda found: _date(found).isoformat()


def _statement(
    asked: Plan, segment: Segment, low: int, high: int, after: tuple[Any, ...] | None, limit: int
) -> Select[Any]:
    """Return the statement for a page."""
    build = {TOTALS: _from_totals, DAILY: _from_daily, ROWS: _from_rows}[asked.source]
    bucket, columns, sums, conditions = build(asked, segment, low, high)
    if complete := _is_stored(asked, segment):
        sums = [_STORED[asked.source].c[name] for name in SUMS]
    names: list[ColumnElement[Any]] = [columns[name] for name in asked.asked.group_by]
    if segment.label is None:
        names.insert(0, bucket)
    found = select(*(_as_stored(name) for name in names), *sums).where(*conditions)
    if asked.source == ROWS and TAG in (*asked.asked.group_by, *asked.asked.equals):
        found = found.join_from(
            usage, usage_tags, and_(usage_tags.c.usage_id == usage.c.id, usage_tags.c.time == usage.c.time)
        ).where(usage_tags.c.time >= low, usage_tags.c.time < high)
    if after is not None and names:
        found = found.where(tuple_(*names) > tuple_(*_values(names, after)))
    if names and not complete:
        found = found.group_by(*names)
    return found.order_by(*names).limit(limit)


def _is_stored(asked: Plan, segment: Segment) -> bool:
    """Say whether every row of the sums is a group by itself."""
    if asked.source == ROWS or segment.label is not None:
        return False
    named = {*asked.asked.group_by, *asked.asked.equals}
    return MODEL in named and (asked.source == TOTALS or named >= set(_DAILY_COLUMNS))


def _as_stored(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column whose dates SQLite gives as the text that it keeps."""
    return type_coerce(column, String) if column.type.python_type is date else column


def _values(names: list[ColumnElement[Any]], after: tuple[Any, ...]) -> Iterator[ColumnElement[Any]]:
    for name, value in zip(names, after, strict=True):
        is_date = name.type.python_type is date
        yield literal(date.fromisoformat(str(value)) if is_date else value, name.type)


_Parts = tuple[ColumnElement[Any], dict[str, Any], list[ColumnElement[Any]], list[ColumnElement[bool]]]


def _date(moment: int) -> date:
    return moment_of(moment).date()


def _added(columns: Any) -> list[ColumnElement[Any]]:
    # PostgreSQL's sum of bigints is numeric
    return [cast(func.sum(columns[name]), BigInteger) for name in SUMS]


def _from_totals(asked: Plan, segment: Segment, low: int, high: int) -> _Parts:
    table = usage_totals.c
    conditions = [
        table.dimension == asked.dimension,
        table.period == segment.period,
        table.start >= _date(low),
        table.start < _date(high),
    ]
    columns = {MODEL: table.model, asked.dimension: table.value}
    conditions += [columns[name] == value for name, value in asked.asked.equals.items()]
    return table.start, columns, _added(table), conditions


def _from_daily(asked: Plan, _segment: Segment, low: int, high: int) -> _Parts:
    table = usage_daily.c
    conditions = [table.day >= _date(low), table.day < _date(high)]
    conditions += [_DAILY_COLUMNS[name] == value for name, value in asked.asked.equals.items()]
    return table.day, _DAILY_COLUMNS, _added(table), conditions


def _from_rows(asked: Plan, _segment: Segment, low: int, high: int) -> _Parts:
    unit = HOUR_US if asked.asked.interval == HOUR else DAY_US
    bucket = usage.c.time - usage.c.time % literal_column(str(unit), BigInteger)
    successful = func.sum(case((and_(usage.c.outcome == "completed", usage.c.status < 400), 1), else_=0))
    counted = func.count()
    sums: list[ColumnElement[Any]] = [
        counted,
        cast(successful, Integer),
        cast(counted - successful, Integer),
        *(cast(func.sum(usage.c[name]), BigInteger) for name in SUMS[3:]),
    ]
    conditions: list[ColumnElement[bool]] = [usage.c.time >= low, usage.c.time < high]
    return bucket, _ROW_COLUMNS, sums, conditions + row_conditions(asked.asked.equals)


def row_conditions(equals: Any) -> list[ColumnElement[bool]]:
    """Return what holds of the rows whose dimensions have certain values; a tag's needs the table of tags beside."""
    found: list[ColumnElement[bool]] = [_ROW_FILTERS[name] == value for name, value in equals.items()]
    if equals.get(KEY):
        # what the partial index says, word for word
        found.append(usage.c.key_id != _NONE)
    return found
