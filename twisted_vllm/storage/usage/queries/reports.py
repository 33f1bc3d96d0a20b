"""Reads sums of usage, page by page.

Each page is one short transaction, so that neither a long report nor a slow client blocks the database. A page
continues after the last group of the previous page, which new rows do not move.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Subquery,
    and_,
    case,
    cast,
    func,
    literal_column,
    select,
    tuple_,
)

from twisted_vllm.errors import InvalidRequest, StoreUnavailable
from twisted_vllm.storage.usage.partitions import (
    EVERYTHING,
    Partition,
    PartitionGone,
    all_partitions,
    partitions_of,
    rows_in,
    shown_from,
)
from twisted_vllm.storage.usage.queries.lookups import (
    COLUMNS,
    SUCCESSFUL,
    joined,
    looked_up,
    row_conditions,
    tags_of_rows,
)
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
from twisted_vllm.storage.usage.queries.sums import groups_at_least, highest_cost, iso_day, page_of_sums, whole_months
from twisted_vllm.storage.usage.tables import ALL, DAY_US, KEY, MONTH, SUMS, TAG, usage

#: groups per page
PAGE = 5_000

#: rows to sum per page, if a report is made from rows
_PAGE_ROWS = 50_000
#: groups to read at once for a report that is built in memory
_LARGE_PAGE = 50_000
#: groups of a report that is built in memory
MAX_GROUPS = 200_000

_COST = SUMS.index("cost")
_MAX_WIDTH = 64 * DAY_US
_YEAR = 366 * DAY_US


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
        rows_since: of a report on rows, where the oldest partition began when it was begun; None for none.
    """

    segment: int = 0
    low: int | None = None
    width: int = HOUR_US
    after: tuple[Any, ...] | None = None
    rows_since: int | None = None


@attrs.frozen
class ReportPage:
    """Groups in order, and the cursor of the next page; None at the end."""

    groups: list[Group]
    cursor: Cursor | None


def read_page(
    connection: Connection, planned: Plan, cursor: Cursor, limit: int = PAGE, wanted: Collection[str] = SUMS
) -> ReportPage:
    """Return the next groups of a report, sorted by interval and values. A page before the end may be empty.

    Args:
        connection: the connection of a reading transaction.
        planned: the report.
        cursor: where it continues.
        limit: the maximum number of groups.
        wanted: which of `SUMS` are needed; the others may be 0.

    Raises:
        StoreUnavailable: rows that it has not read yet were deleted.
    """
    groups: list[Group] = []
    following: Cursor | None = cursor
    while following is not None:
        page = _read_slice(connection, planned, following, limit - len(groups), wanted)
        groups += page.groups
        following = page.cursor
        # Sums are read soon: a small page takes some more slices of time.
        if planned.source == ROWS or len(groups) > limit // 2:
            break
    return ReportPage(groups, following)


def _read_slice(
    connection: Connection, planned: Plan, cursor: Cursor, limit: int, wanted: Collection[str]
) -> ReportPage:
    if cursor.segment >= len(planned.segments):
        return ReportPage([], None)
    segment = planned.segments[cursor.segment]
    low = segment.low if cursor.low is None else cursor.low
    high = segment.high
    if planned.source == ROWS:
        cursor = _with_oldest(connection, cursor, low)
        partition = _partition_from(connection, low, high)
        if partition is None:
            return ReportPage([], None)
        low = max(low, partition.start)
        high = min(high, partition.end)
    has_intervals = segment.label is None
    if has_intervals:
        # The tables are not in the report's order, so each page is sorted: read one slice of time at once.
        high = min(high, _end_of_slice(planned, segment, low, _width(planned, cursor.width)))
    if planned.source == ROWS:
        statement = _page_of_rows(planned, connection.dialect.name, low, high, cursor.after, limit)
    else:
        statement = page_of_sums(planned, segment, low, high, cursor.after, limit, {*wanted, "requests"})
    rows = connection.execute(statement).all()
    first, count = int(has_intervals), int(has_intervals) + len(planned.query.group_by)
    name = _interval_namer(planned, segment)
    # Sums without GROUP BY return a row even without input.
    groups = [Group(name(row[0]), tuple(row[first:count]), tuple(row[count:])) for row in rows if row[count]]
    if len(rows) == limit:
        last = tuple(rows[-1][:count])
        # The next page begins in the interval of the last group.
        low = last[0] * (1 if planned.source == ROWS else DAY_US) if has_intervals else low
        return ReportPage(groups, attrs.evolve(cursor, low=low, after=last))
    if high < segment.high:
        width = _next_width(planned, groups, cursor.width)
        return ReportPage(groups, attrs.evolve(cursor, low=high, width=width, after=None))
    following = cursor.segment + 1
    return ReportPage(groups, Cursor(following) if following < len(planned.segments) else None)


def _with_oldest(connection: Connection, cursor: Cursor, low: int) -> Cursor:
    """Return a cursor that knows the oldest partition.

    Raises:
        StoreUnavailable: partitions that it has not read yet were dropped.
    """
    partitions = all_partitions(connection)
    if cursor.rows_since is None:
        return (
            attrs.evolve(cursor, rows_since=max(partitions[-1].start, shown_from(connection))) if partitions else cursor
        )
    oldest = partitions[-1].start if partitions else EVERYTHING.end
    if max(low, cursor.rows_since) < oldest:
        raise _rows_deleted()
    return cursor


def _partition_from(connection: Connection, low: int, high: int) -> Partition | None:
    """Return the oldest partition with a time from `low` on and before `high`, opened; None if there is none.

    Raises:
        StoreUnavailable: its rows were deleted meanwhile.
    """
    for partition in reversed(partitions_of(connection)):
        if partition.end > low and partition.start < high:
            try:
                rows_in(connection, partition)
            except PartitionGone:
                raise _rows_deleted() from None
            return partition
    return None


def _rows_deleted() -> StoreUnavailable:
    return StoreUnavailable("Rows that the report needs were deleted while it was read (usage_retention). Ask again.")


def read_all(
    connection: Connection, query: UsageQuery, limit: int = MAX_GROUPS, *, wanted: Collection[str] = SUMS
) -> Iterator[Group]:
    """Return all groups of a small report.

    Args:
        connection: of a transaction that reads.
        query: the query.
        limit: the most groups.
        wanted: which of `SUMS` are needed; the others may be 0.

    Raises:
        Unanswerable: nothing that is kept answers it.
        InvalidRequest: there are more than `limit`.
    """
    planned = plan(query)
    if planned.source == DAILY and KEY in query.group_by:
        for segment in planned.segments:
            most = connection.execute(groups_at_least(planned, segment, limit + 1, by_start=True)).scalar_one()
            _check_size(limit - most)
    cursor: Cursor | None = Cursor()
    while cursor is not None:
        page = read_page(connection, planned, cursor, _LARGE_PAGE, wanted)
        limit -= len(page.groups)
        _check_size(limit)
        yield from page.groups
        cursor = page.cursor


def read_totals(
    connection: Connection,
    query: UsageQuery,
    top: int | None = None,
    *,
    wanted: Collection[str] = SUMS,
    payers: Select[Any] | None = None,
) -> list[Group]:
    """Return the sums of each group over the whole time, the highest cost first; their `start` is ``""``.

    The database adds them up, as Python would hold up the process.

    Args:
        connection: of a transaction that reads.
        query: of whole days, which the sums by day and month answer.
        top: how many to return; None for all.
        wanted: which of `SUMS` are needed; the others may be 0.
        payers: the ids of the only payers, of a query by key; None for all that the query leaves.

    Raises:
        Unanswerable: nothing that is kept answers it.
        InvalidRequest: there are more than `MAX_GROUPS`.
    """
    planned = plan(whole_months(connection, query))
    if not planned.segments:
        return []
    if (
        top is None
        and payers is None
        and not query.equals
        and planned.source == DAILY
        and {KEY, MODEL} <= {*query.group_by}
    ):
        # one month alone may be too much
        months = [each for each in planned.segments if each.period == MONTH][-1:]
        for segment in months:
            last = attrs.evolve(segment, low=month_start(segment.high, -1))
            most = connection.execute(groups_at_least(planned, last, MAX_GROUPS + 1, by_start=False)).scalar_one()
            _check_size(MAX_GROUPS - most)
    rows = connection.execute(highest_cost(planned, wanted, top, MAX_GROUPS + 1, payers)).all()
    _check_size(MAX_GROUPS - len(rows) if top is None else 0)
    count = len(query.group_by)
    return [Group("", tuple(row[:count]), tuple(row[count:])) for row in rows]


def _check_size(left: int) -> None:
    if left < 0:
        raise too_much()


def too_much() -> InvalidRequest:
    """Return the error for a report of more than `MAX_GROUPS`."""
    return InvalidRequest(
        "This is too much to add up in one answer: ask for fewer days, or /usage/report.", param="start_date"
    )


# intervals


def _end_of_slice(planned: Plan, segment: Segment, low: int, width: int) -> int:
    """Return where a slice of a segment ends. No interval is divided."""
    if segment.period == MONTH:
        return month_start(low, 1)
    unit = HOUR_US if planned.query.interval == HOUR else DAY_US
    return (low + max(width, unit)) // unit * unit


def _width(planned: Plan, width: int) -> int:
    """Return the time span of a page: a year of sums, if there are few in a day."""
    few = planned.source == TOTALS and (planned.dimension == ALL or planned.dimension in planned.query.equals)
    return _YEAR if few else width


def _next_width(planned: Plan, groups: Sequence[Group], width: int) -> int:
    """Return the time span of the next page, based on the size of this one."""
    rows = sum(group.sums[0] for group in groups) if planned.source == ROWS else len(groups) * 10
    if rows < _PAGE_ROWS // 2:
        width *= 2
    elif rows > _PAGE_ROWS * 2:
        width //= 2
    return min(max(width, HOUR_US), _MAX_WIDTH)


def _interval_namer(planned: Plan, segment: Segment) -> Callable[[Any], str]:
    """Return a function that names an interval from the value that the database gives."""
    if segment.label is not None:
        label = iso_day(segment.label // DAY_US)
        return lambda _: label
    if planned.source != ROWS:
        return iso_day
    if planned.query.interval == HOUR:
        return lambda found: moment_of(found).strftime("%Y-%m-%dT%H:00:00Z")
    return lambda found: iso_day(found // DAY_US)


# statements on rows


def _page_of_rows(
    planned: Plan, dialect: str, low: int, high: int, after: tuple[Any, ...] | None, limit: int
) -> Select[Any]:
    """Return the statement for a page that is added up from rows."""
    query = planned.query
    unit = HOUR_US if query.interval == HOUR else DAY_US
    interval = usage.c.time - usage.c.time % literal_column(str(unit), BigInteger)
    conditions: list[ColumnElement[bool]] = [usage.c.time >= low, usage.c.time < high]
    conditions += [*row_conditions(dialect, query.equals), *looked_up(dialect, query.equals, low, high)]
    columns: Mapping[str, ColumnElement[Any]] = COLUMNS
    tags: Subquery | None = None
    if TAG in query.group_by:
        tags = tags_of_rows(dialect, conditions).subquery("tags")
        columns = {**columns, TAG: tags.c.tag}
        if TAG in query.equals:
            # A request may have several tags: show only the wanted one.
            conditions.append(tags.c.tag == query.equals[TAG])
    names = [interval, *(columns[name] for name in query.group_by)]
    found = joined(select(*names, *_sums_of_rows()).select_from(usage), query.group_by)
    if tags is not None:
        found = found.join(tags, and_(tags.c.time == usage.c.time, tags.c.id == usage.c.id))
    if after is not None:
        conditions.append(tuple_(*names) > tuple_(*after))
    return found.where(*conditions).group_by(*names).order_by(*names).limit(limit)


def _sums_of_rows() -> list[ColumnElement[Any]]:
    requests = func.coalesce(usage.c.requests, literal_column("1", BigInteger))
    successful, counted = func.sum(case((SUCCESSFUL, requests), else_=0)), func.sum(requests)
    return [
        cast(counted, BigInteger),
        cast(successful, BigInteger),
        cast(counted - successful, BigInteger),
        *(cast(func.sum(usage.c[name]), BigInteger) for name in SUMS[3:]),
    ]
