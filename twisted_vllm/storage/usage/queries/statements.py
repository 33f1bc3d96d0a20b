"""The statements that read sums of usage, from the table that a plan names."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    Select,
    String,
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
)

from twisted_vllm.storage.usage.queries.conditions import COLUMNS, joined, row_conditions
from twisted_vllm.storage.usage.queries.plan import (
    DAILY,
    DAY_US,
    HOUR,
    HOUR_US,
    MODEL,
    ROWS,
    TOTALS,
    Plan,
    Segment,
    moment_of,
)
from twisted_vllm.storage.usage.tables import (
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

_TOGETHER = {KEY: "key_id", USER: "user_id", TEAM: "team_id", MODEL: "model"}


def page_statement(
    asked: Plan, segment: Segment, low: int, high: int, after: tuple[Any, ...] | None, limit: int
) -> Select[Any]:
    """Return the statement for a page."""
    build = {TOTALS: _from_totals, DAILY: _from_together, ROWS: _from_rows}[asked.source]
    bucket, columns, sums, conditions = build(asked, segment, low, high)
    if complete := _is_stored(asked, segment):
        table = usage_totals if asked.source == TOTALS else _together(segment)[0]
        sums = [table.c[name] for name in SUMS]
    names: list[ColumnElement[Any]] = [columns[name] for name in asked.asked.group_by]
    if segment.label is None:
        names.insert(0, bucket)
    found = select(*(_as_stored(name) for name in names), *sums).where(*conditions)
    if asked.source == ROWS:
        found = joined(found.select_from(usage), asked.asked.group_by)
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
    return MODEL in named and (asked.source == TOTALS or named >= set(_TOGETHER))


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


def _together(segment: Segment) -> tuple[Table, Column[date]]:
    """Return the table of sums of what belongs together, by day or by month, and its column of dates."""
    return (usage_monthly, usage_monthly.c.month) if segment.period == MONTH else (usage_daily, usage_daily.c.day)


def _from_together(asked: Plan, segment: Segment, low: int, high: int) -> _Parts:
    table, start = _together(segment)
    columns = {name: table.c[column] for name, column in _TOGETHER.items()}
    conditions = [start >= date_of(low), start < date_of(high)]
    conditions += [columns[name] == value for name, value in asked.asked.equals.items()]
    return start, columns, _added(table.c), conditions


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
    if TAG in asked.asked.equals and TAG in asked.asked.group_by:
        # of a request's several tags the one
        conditions.append(COLUMNS[TAG] == asked.asked.equals[TAG])
    return bucket, dict(COLUMNS), sums, conditions + row_conditions(asked.asked.equals)
