"""The statements that read sums of usage, from the table that a plan names."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
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
    Plan,
    Segment,
    moment_of,
)
from twisted_vllm.store.usage_sums import DAY_US
from twisted_vllm.store.usage_tables import END_USER, KEY, TAG, TEAM, USER, usage, usage_daily, usage_tags, usage_totals

#: the sums of a group, in their order
SUMS = tuple(
    column.name for column in usage_daily.columns if isinstance(column.type, BigInteger) and not column.primary_key
)

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
_DAILY_COLUMNS = {
    KEY: usage_daily.c.key_id,
    USER: usage_daily.c.user_id,
    TEAM: usage_daily.c.team_id,
    MODEL: usage_daily.c.model,
}


def page_statement(
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


def date_of(moment: int) -> date:
    """Return the day of a moment in microseconds since 1970."""
    return moment_of(moment).date()


def _added(columns: Any) -> list[ColumnElement[Any]]:
    # PostgreSQL's sum of bigints is numeric
    return [cast(func.sum(columns[name]), BigInteger) for name in SUMS]


def _from_totals(asked: Plan, segment: Segment, low: int, high: int) -> _Parts:
    table = usage_totals.c
    conditions = [
        table.dimension == asked.dimension,
        table.period == segment.period,
        table.start >= date_of(low),
        table.start < date_of(high),
    ]
    columns = {MODEL: table.model, asked.dimension: table.value}
    conditions += [columns[name] == value for name, value in asked.asked.equals.items()]
    return table.start, columns, _added(table), conditions


def _from_daily(asked: Plan, _segment: Segment, low: int, high: int) -> _Parts:
    table = usage_daily.c
    conditions = [table.day >= date_of(low), table.day < date_of(high)]
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
