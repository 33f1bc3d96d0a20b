"""Reads sums of usage, page by page.

Each page is one short transaction, so that neither a long report nor a slow client blocks the database. A page
continues after the last group of the previous page, which new rows do not move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import attrs
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    String,
    Subquery,
    Table,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    type_coerce,
    union_all,
)

from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.usage.queries.plan import (
    DAILY,
    HOUR,
    HOUR_US,
    MODEL,
    ROWS,
    TOTALS,
    Plan,
    Segment,
    UsageQuery,
    moment_of,
    month_start,
    plan,
)
from twisted_vllm.storage.usage.queries.rows import COLUMNS, SUCCESSFUL, joined, row_conditions, tags_of_rows
from twisted_vllm.storage.usage.tables import (
    DAY,
    DAY_US,
    END_USER,
    KEY,
    MONTH,
    SUMS,
    TAG,
    TEAM,
    USER,
    usage,
    usage_daily,
    usage_monthly,
    usage_totals,
)

#: stands for the key where sums are not kept by key
NO_KEY = "-"

#: groups per page
PAGE = 5_000

#: rows to sum per page, if a report is made from rows
_PAGE_ROWS = 50_000
#: groups of a report that is built in memory
MAX_GROUPS = 200_000

_COST = SUMS.index("cost")
_MAX_WIDTH = 64 * DAY_US
_EPOCH = date(1970, 1, 1).toordinal()

_COMBINED = {KEY: "key_id", USER: "user_id", TEAM: "team_id", MODEL: "model"}


class Group(NamedTuple):
    """The usage of one group in one interval.

    Attributes:
        start: when the interval began, in UTC and ISO 8601: a date, or a moment where intervals are hours.
        values: the values of the report's dimensions, in order; ``""`` means none.
        sums: the sums in the order of `SUMS`; money is in picodollars.
    """

    start: str
    values: tuple[str, ...]
    sums: tuple[int, ...]


@attrs.frozen
class Cursor:
    """The position at which a report continues.

    Attributes:
        segment: the number of the plan's segment.
        low: the position in the segment, in microseconds since 1970; None for its beginning.
        width: the time span to read at once, in microseconds.
        after: the last group read: its interval, if the segment has several, and its values.
    """

    segment: int = 0
    low: int | None = None
    width: int = HOUR_US
    after: tuple[Any, ...] | None = None


@attrs.frozen
class ReportPage:
    """Groups in order, and the cursor of the next page; None at the end."""

    groups: list[Group]
    cursor: Cursor | None


def read_page(connection: Connection, planned: Plan, cursor: Cursor, limit: int = PAGE) -> ReportPage:
    """Return the next groups of a report, sorted by interval and values. A page before the end may be empty.

    Args:
        connection: the connection of a reading transaction.
        planned: the report.
        cursor: where it continues.
        limit: the maximum number of groups.
    """
    if cursor.segment >= len(planned.segments):
        return ReportPage([], None)
    segment = planned.segments[cursor.segment]
    low = segment.low if cursor.low is None else cursor.low
    high = segment.high
    has_intervals = segment.label is None
    if has_intervals and planned.source != TOTALS:
        # These tables are not in the report's order, so each page is sorted: read one slice of time at once.
        high = min(high, _end_of_slice(planned, segment, low, cursor.width))
    rows = connection.execute(_page_statement(planned, segment, low, high, cursor.after, limit)).all()
    first, count = int(has_intervals), int(has_intervals) + len(planned.query.group_by)
    name = _interval_namer(planned, segment)
    # Sums without GROUP BY return a row even without input.
    groups = [Group(name(row[0]), row[first:count], row[count:]) for row in rows if row[count]]
    if len(rows) == limit:
        last = rows[-1][:count]
        # The next page begins in the interval of the last group.
        low = _start_of(last[0]) if has_intervals else low
        return ReportPage(groups, attrs.evolve(cursor, low=low, after=last))
    if high < segment.high:
        return ReportPage(groups, Cursor(cursor.segment, high, _next_width(planned, groups, cursor.width)))
    following = cursor.segment + 1
    return ReportPage(groups, Cursor(following) if following < len(planned.segments) else None)


def read_all(connection: Connection, query: UsageQuery, limit: int = MAX_GROUPS) -> Iterator[Group]:
    """Return all groups of a small report.

    Raises:
        Unanswerable: nothing that is kept answers it.
        InvalidRequest: there are more than `limit`.
    """
    planned = plan(query)
    cursor: Cursor | None = Cursor()
    while cursor is not None:
        page = read_page(connection, planned, cursor)
        limit -= len(page.groups)
        _check_size(limit)
        yield from page.groups
        cursor = page.cursor


def read_totals(connection: Connection, query: UsageQuery, top: int | None = None) -> list[Group]:
    """Return the sums of each group over the whole time, the highest cost first; their `start` is ``""``.

    The database adds them up, as Python would hold up the process.

    Args:
        connection: of a transaction that reads.
        query: of whole days, which the sums by day and month answer.
        top: how many to return; None for all.

    Raises:
        Unanswerable: nothing that is kept answers it.
        InvalidRequest: there are more than `MAX_GROUPS`.
    """
    planned = plan(query)
    together = union_all(*(_sums_of_segment(planned, segment) for segment in planned.segments)).subquery()
    names = [together.c[name] for name in query.group_by]
    sums = _added(together.c)
    statement = select(*names, *sums).group_by(*names).order_by(sums[_COST].desc(), *names)
    rows = connection.execute(statement.limit(MAX_GROUPS + 1 if top is None else top)).all()
    _check_size(MAX_GROUPS - len(rows))
    count = len(names)
    # Sums without GROUP BY return a row even without input.
    return [Group("", row[:count], row[count:]) for row in rows if row[count]]


def _check_size(left: int) -> None:
    if left < 0:
        raise InvalidRequest(
            "This is too much to add up in one answer: ask for fewer days, or /usage/report.", param="start_date"
        )


@attrs.frozen
class Entities:
    """Whose usage a report by day shows, one by one.

    Attributes:
        dimension: ``user``, ``team``, ``organization``, ``end_user`` or ``tag``.
        among: the only values of it to show; None for all.
        without: values of it to leave out.
    """

    dimension: str
    among: Sequence[str] | None = None
    without: Sequence[str] = ()

    @property
    def has_keys(self) -> bool:
        """Whether their sums are kept by key."""
        return self.dimension in _COMBINED


def page_of_days(
    connection: Connection,
    entities: Entities,
    equals: Mapping[str, str],
    start: int,
    end: int,
    skip: int,
    limit: int,
) -> tuple[Sequence[Row[Any]], int]:
    """Return a page of the sums of each day, entity, key and model, newest first, and their number over all pages.

    Args:
        connection: of a transaction that reads.
        entities: the entities.
        equals: values that ``model`` must have, and, if `Entities.has_keys`, ``key``, ``user`` and ``team``.
        start: the start of the first day, in microseconds since 1970.
        end: the end of the last day.
        skip: how many to leave out.
        limit: how many to return at most.

    Returns:
        Rows of the day, the entity, the key's lasting id, the model and `SUMS`.
    """
    columns: Mapping[str, ColumnElement[Any]]
    if entities.has_keys:
        table: Any = usage_daily.c
        day, columns = table.day, {name: table[column] for name, column in _COMBINED.items()}
        conditions = []
    else:
        table = usage_totals.c
        day, columns = table.start, {entities.dimension: table.value, MODEL: table.model}
        conditions = [table.dimension == entities.dimension, table.period == DAY]
        if entities.dimension == END_USER:
            # what nobody's end users used is no customer's
            conditions.append(table.value != "")
    entity = columns[entities.dimension]
    groups = [day, entity, *([columns[KEY]] if entities.has_keys else []), columns[MODEL]]
    conditions += [day >= _date_of(start), day < _date_of(end)]
    conditions += [columns[name] == value for name, value in equals.items()]
    if entities.among is not None:
        conditions.append(entity.in_(entities.among))
    if entities.without:
        conditions.append(entity.not_in(entities.without))
    counted = select(*groups).where(*conditions).group_by(*groups).subquery()
    total = connection.execute(select(func.count()).select_from(counted)).scalar_one()
    shown = [day, entity, columns[KEY] if entities.has_keys else literal(NO_KEY).label("key_id"), columns[MODEL]]
    found = select(*shown, *_added(table)).where(*conditions).group_by(*groups)
    found = found.order_by(*(column.desc() for column in groups)).offset(skip).limit(limit)
    return connection.execute(found).all(), total


def names_used(connection: Connection, dimension: str, limit: int, among: Sequence[str] | None = None) -> list[str]:
    """Return the values of a dimension that ever had usage, in order, but ``""``; at most so many.

    Args:
        connection: of a transaction that reads.
        dimension: as in `Entities`.
        limit: how many to return at most.
        among: the only values to look for, as many as one statement takes; None for all.
    """
    totals = usage_totals.c
    wanted = [totals.dimension == dimension, totals.period == MONTH, totals.value != ""]
    if among is not None:
        wanted.append(totals.value.in_(among))
    found = select(totals.value).where(*wanted).distinct().order_by(totals.value).limit(limit)
    return list(connection.execute(found).scalars())


def first_row(connection: Connection) -> int | None:
    """Return when the request of the oldest row began, in microseconds since 1970."""
    found: int | None = connection.execute(select(func.min(usage.c.time))).scalar()
    return found


# intervals


def _end_of_slice(planned: Plan, segment: Segment, low: int, width: int) -> int:
    """Return where a slice of a segment ends. No interval is divided."""
    if segment.period == MONTH:
        return month_start(low, 1)
    unit = HOUR_US if planned.query.interval == HOUR else DAY_US
    return (low + max(width, unit)) // unit * unit


def _next_width(planned: Plan, groups: Sequence[Group], width: int) -> int:
    """Return the time span of the next page, based on the size of this one."""
    rows = sum(group.sums[0] for group in groups) if planned.source == ROWS else len(groups) * 10
    if rows < _PAGE_ROWS // 2:
        width *= 2
    elif rows > _PAGE_ROWS * 2:
        width //= 2
    return min(max(width, HOUR_US), _MAX_WIDTH)


def _start_of(interval: Any) -> int:
    """Return when an interval began, from the value that the database gives."""
    if isinstance(interval, int):
        return interval
    return (date.fromisoformat(str(interval)).toordinal() - _EPOCH) * DAY_US


def _interval_namer(planned: Plan, segment: Segment) -> Callable[[Any], str]:
    """Return a function that names an interval from the value that the database gives."""
    if segment.label is not None:
        label = _date_of(segment.label).isoformat()
        return lambda _: label
    if planned.source != ROWS:
        return str
    if planned.query.interval == HOUR:
        return lambda found: moment_of(found).strftime("%Y-%m-%dT%H:00:00Z")
    return lambda found: _date_of(found).isoformat()


def _date_of(moment: int) -> date:
    """Return the day of a moment in microseconds since 1970."""
    return moment_of(moment).date()


# statements


def _page_statement(
    planned: Plan, segment: Segment, low: int, high: int, after: tuple[Any, ...] | None, limit: int
) -> Select[Any]:
    """Return the statement for a page."""
    build = {TOTALS: _from_totals, DAILY: _from_combined, ROWS: _from_rows}[planned.source]
    interval, columns, sums, conditions = build(planned, segment, low, high)
    tags: Subquery | None = None
    if planned.source == ROWS and TAG in planned.query.group_by:
        tags = tags_of_rows([usage.c.time >= low, usage.c.time < high]).subquery()
        columns = {**columns, TAG: tags.c.tag}
        if TAG in planned.query.equals:
            # A request may have several tags: show only the wanted one.
            conditions = [*conditions, tags.c.tag == planned.query.equals[TAG]]
    if is_stored := _is_stored(planned, segment):
        table = usage_totals if planned.source == TOTALS else _combined_table(segment)[0]
        sums = [table.c[name] for name in SUMS]
    names: list[ColumnElement[Any]] = [columns[name] for name in planned.query.group_by]
    if segment.label is None:
        names.insert(0, interval)
    found = select(*(_as_stored(name) for name in names), *sums).where(*conditions)
    if planned.source == ROWS:
        found = joined(found.select_from(usage), planned.query.group_by)
        if tags is not None:
            found = found.join(tags, and_(tags.c.time == usage.c.time, tags.c.id == usage.c.id))
    if after is not None and names:
        found = found.where(tuple_(*names) > tuple_(*_literals(names, after)))
    if names and not is_stored:
        found = found.group_by(*names)
    return found.order_by(*names).limit(limit)


def _is_stored(planned: Plan, segment: Segment) -> bool:
    """Return whether each row of the table of sums is a group of the report, so that nothing is summed."""
    if planned.source == ROWS or segment.label is not None:
        return False
    named = {*planned.query.group_by, *planned.query.equals}
    return MODEL in named and (planned.source == TOTALS or named >= set(_COMBINED))


def _as_stored(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column whose dates are read as text where SQLite stores them as text."""
    return type_coerce(column, String) if column.type.python_type is date else column


def _literals(names: list[ColumnElement[Any]], after: tuple[Any, ...]) -> Iterator[ColumnElement[Any]]:
    for name, value in zip(names, after, strict=True):
        is_date = name.type.python_type is date
        yield literal(date.fromisoformat(str(value)) if is_date else value, name.type)


def _sums_of_segment(planned: Plan, segment: Segment) -> Select[Any]:
    """Return the statement for the sums of each group over a segment."""
    build = {TOTALS: _from_totals, DAILY: _from_combined}[planned.source]
    _, columns, sums, conditions = build(planned, segment, segment.low, segment.high)
    names = [columns[name].label(name) for name in planned.query.group_by]
    labelled = [each.label(name) for name, each in zip(SUMS, sums, strict=True)]
    return select(*names, *labelled).where(*conditions).group_by(*names)


#: the interval's column, the dimensions' columns, the sums and the conditions of a statement
_Parts = tuple[ColumnElement[Any], Mapping[str, Any], list[ColumnElement[Any]], list[ColumnElement[bool]]]


def _added(columns: Any) -> list[ColumnElement[Any]]:
    # PostgreSQL's sum of bigints is numeric.
    return [cast(func.sum(columns[name]), BigInteger) for name in SUMS]


def _from_totals(planned: Plan, segment: Segment, low: int, high: int) -> _Parts:
    table = usage_totals.c
    conditions = [
        table.dimension == planned.dimension,
        table.period == segment.period,
        table.start >= _date_of(low),
        table.start < _date_of(high),
    ]
    columns = {MODEL: table.model, planned.dimension: table.value}
    conditions += [columns[name] == value for name, value in planned.query.equals.items()]
    return table.start, columns, _added(table), conditions


def _combined_table(segment: Segment) -> tuple[Table, Column[date]]:
    """Return the table of combined sums by day or by month, and its column of dates."""
    return (usage_monthly, usage_monthly.c.month) if segment.period == MONTH else (usage_daily, usage_daily.c.day)


def _from_combined(planned: Plan, segment: Segment, low: int, high: int) -> _Parts:
    table, start = _combined_table(segment)
    columns = {name: table.c[column] for name, column in _COMBINED.items()}
    conditions = [start >= _date_of(low), start < _date_of(high)]
    conditions += [columns[name] == value for name, value in planned.query.equals.items()]
    return start, columns, _added(table.c), conditions


def _from_rows(planned: Plan, _segment: Segment, low: int, high: int) -> _Parts:
    query = planned.query
    unit = HOUR_US if query.interval == HOUR else DAY_US
    interval = usage.c.time - usage.c.time % literal_column(str(unit), BigInteger)
    requests = func.coalesce(usage.c.requests, literal_column("1", BigInteger))
    successful, counted = func.sum(case((SUCCESSFUL, requests), else_=0)), func.sum(requests)
    sums: list[ColumnElement[Any]] = [
        cast(counted, BigInteger),
        cast(successful, BigInteger),
        cast(counted - successful, BigInteger),
        *(cast(func.sum(usage.c[name]), BigInteger) for name in SUMS[3:]),
    ]
    conditions: list[ColumnElement[bool]] = [usage.c.time >= low, usage.c.time < high]
    return interval, COLUMNS, sums, conditions + row_conditions(query.equals)
