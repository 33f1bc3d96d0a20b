"""Statements on the stored sums, `usage_sums`.

The database adds up by ids, which are the order of the table, and joins names with what is left. Where a report is of
some values only, it names its days: the primary key then finds each value in each day, and others are not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Subquery,
    Text,
    cast,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)

from twisted_vllm.storage.usage.queries.plan import (
    DAILY,
    MODEL,
    Plan,
    Segment,
    UsageQuery,
    month_start,
)
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    DAY_US,
    KEY,
    KINDS,
    PAYER,
    SUMS,
    TEAM,
    USER,
    name_id,
    usage_names,
    usage_payers,
    usage_sums,
)
from twisted_vllm.usage.days import date_of

#: days or months that a statement names; a longer time is read as a range
_MOST_STARTS = 800

# Not a parameter: PostgreSQL could not tell that the selected expression is the one in GROUP BY.
EMPTY = literal_column("''", Text)
_ZERO = literal_column("0", BigInteger)

_PAYER_COLUMNS = {KEY: usage_payers.c.key_id, USER: usage_payers.c.user_id, TEAM: usage_payers.c.team_id}
#: what else the sums need for some of `SUMS`
_NEEDED = {"failed": ("requests", "successful")}


def iso_day(day: int) -> str:
    """Return the date of a day that is counted from 1970."""
    return date_of(day).isoformat()


def newest_day(connection: Connection) -> int | None:
    """Return the newest day with sums, in days since 1970."""
    sums = usage_sums.c
    newest = select(sums.start).where(sums.kind == KINDS[ALL, DAY]).order_by(sums.start.desc()).limit(1)
    found: int | None = connection.execute(newest).scalar()
    return found


def starts_between(low: int, high: int, period: str) -> list[int]:
    """Return the starts of the days or months that begin in a time, in days since 1970.

    Args:
        low: the start of the time, in microseconds since 1970.
        high: its end.
        period: ``day`` or ``month``.
    """
    if period == DAY:
        return list(range(-(-low // DAY_US), -(-high // DAY_US)))
    found = []
    month = month_start(low)
    if month < low:
        month = month_start(low, 1)
    while month < high:
        found.append(month // DAY_US)
        month = month_start(month, 1)
    return found


def added(columns: Any, wanted: Collection[str]) -> list[ColumnElement[Any]]:
    """Return the expressions for `SUMS`, added up from stored sums; 0 for those that nobody wants."""

    def of(name: str) -> ColumnElement[Any]:
        if name not in wanted:
            return _ZERO.label(name)
        # PostgreSQL's sum of bigints is numeric.
        total = func.sum(columns["requests"] - columns["successful"] if name == "failed" else columns[name])
        return cast(total, BigInteger).label(name)

    return [of(name) for name in SUMS]


def stored(columns: Any, wanted: Collection[str]) -> list[ColumnElement[Any]]:
    """Return the expressions for `SUMS` of one row of stored sums."""
    return [
        _ZERO.label(name)
        if name not in wanted
        else (columns["requests"] - columns["successful"] if name == "failed" else columns[name]).label(name)
        for name in SUMS
    ]


def in_period(kind: int, low: int, high: int, period: str, *, named: bool) -> list[ColumnElement[bool]]:
    """Return the conditions for sums of a kind in a time.

    Args:
        kind: one of `KINDS`.
        low: the start of the time, in microseconds since 1970.
        high: its end.
        period: of the kind.
        named: whether only some values are wanted.
    """
    sums = usage_sums.c
    if high - low < _MOST_STARTS * (DAY_US if period == DAY else 28 * DAY_US):
        starts = starts_between(low, high, period)
        if len(starts) == 1:
            # The rows of one day or month are in the order of values: nothing is sorted.
            return [sums.kind == kind, sums.start == starts[0]]
        if named:
            return [sums.kind == kind, sums.start.in_(starts)]
    return [sums.kind == kind, sums.start >= -(-low // DAY_US), sums.start < -(-high // DAY_US)]


def payers_with(equals: Mapping[str, str]) -> Select[Any] | None:
    """Return the statement for the ids of the payers with these keys, users and teams; None if all match."""
    conditions = [has_value(_PAYER_COLUMNS[name], value) for name, value in equals.items() if name in _PAYER_COLUMNS]
    return select(usage_payers.c.id).where(*conditions) if conditions else None


def has_value(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    """Return the condition for a column with a value, of which the empty one may be stored as NULL."""
    return column == value if value else or_(column.is_(None), column == value)


class SumsOf:
    """The sums of a part of a report."""

    def __init__(
        self, planned: Plan, segment: Segment, wanted: Collection[str] = SUMS, payers: Select[Any] | None = None
    ) -> None:
        """Choose the kind of sums.

        Args:
            planned: the report.
            segment: the part.
            wanted: which of `SUMS` to read.
            payers: the ids of the only payers, of sums by payer; None for all that the report's values leave.
        """
        query = planned.query
        self._query = query
        self._payers = payers_with(query.equals) if payers is None else payers
        self._period = segment.period
        self._wanted = wanted
        dimension = PAYER if planned.source == DAILY else planned.dimension
        if (dimension, segment.period) not in KINDS:
            # sums of users by day follow from those of payers
            dimension = PAYER
        self._kind = KINDS[dimension, segment.period]
        self.by_payer = dimension == PAYER
        self._dimension = dimension
        self._has_value = any(name != MODEL for name in query.group_by)
        self._has_model = MODEL in query.group_by

    def by_ids(self, low: int, high: int, *, by_start: bool) -> Select[Any]:
        """Return the statement for the sums by the ids of the values and models.

        Args:
            low: the start of the time, in microseconds since 1970.
            high: its end.
            by_start: whether each day or month is shown.
        """
        sums = usage_sums.c
        columns = self._columns(by_start=by_start)
        conditions = self._conditions(low, high)
        needed = {part for name in self._wanted for part in _NEEDED.get(name, (name,))}
        if self._is_stored(by_start=by_start):
            return select(*columns, *(sums[name] for name in SUMS if name in needed)).where(*conditions)
        totals = [cast(func.sum(sums[name]), BigInteger).label(name) for name in SUMS if name in needed]
        return select(*columns, *totals).where(*conditions).group_by(*columns)

    def ids(self, low: int, high: int, *, by_start: bool) -> Select[Any]:
        """Return the statement for the ids that `by_ids` has, each once."""
        return select(*self._columns(by_start=by_start)).where(*self._conditions(low, high)).distinct()

    def _columns(self, *, by_start: bool) -> list[ColumnElement[Any]]:
        sums = usage_sums.c
        columns: list[ColumnElement[Any]] = [sums.start] if by_start else []
        columns += [sums.value] if self._has_value else []
        return [*columns, sums.model] if self._has_model else columns

    def _conditions(self, low: int, high: int) -> list[ColumnElement[bool]]:
        sums, equals = usage_sums.c, self._query.equals
        named = self._payers is not None or any(name != MODEL for name in equals)
        conditions = in_period(self._kind, low, high, self._period, named=named)
        if MODEL in equals:
            conditions.append(sums.model == name_id(equals[MODEL]))
        if self.by_payer and self._payers is not None:
            conditions.append(sums.value.in_(self._payers))
        elif self._dimension in equals:
            conditions.append(sums.value == name_id(equals[self._dimension]))
        return conditions

    def _is_stored(self, *, by_start: bool) -> bool:
        """Return whether each stored row is a group of its own, so that nothing is added up."""
        equals = self._query.equals
        one_model = self._has_model or MODEL in equals
        one_value = self._has_value or self._dimension == ALL or (not self.by_payer and self._dimension in equals)
        return by_start and one_model and one_value

    def named(self, sums: Subquery) -> tuple[Select[Any], list[ColumnElement[Any]]]:
        """Return the statement for sums by the names of what `by_ids` has the ids of, and the columns of the names."""
        group_by = self._query.group_by
        joined: Any = sums
        columns: dict[str, ColumnElement[Any]] = {}
        # Outer joins: SQLite reads the sums first, and looks names up for what is left of them.
        if self._has_value and self.by_payer:
            joined = joined.outerjoin(usage_payers, usage_payers.c.id == sums.c.value)
            columns = {name: func.coalesce(column, EMPTY) for name, column in _PAYER_COLUMNS.items()}
        elif self._has_value:
            values = usage_names.alias("value_names")
            joined = joined.outerjoin(values, values.c.id == sums.c.value)
            columns = {self._dimension: func.coalesce(values.c.name, EMPTY)}
        if self._has_model:
            models = usage_names.alias("model_names")
            joined = joined.outerjoin(models, models.c.id == sums.c.model)
            columns[MODEL] = func.coalesce(models.c.name, EMPTY)
        names: list[ColumnElement[Any]] = [columns[name].label(f"name_of_{name}") for name in group_by]
        starts = [sums.c.start] if "start" in sums.c else []
        if self.by_payer and self._has_value:
            # a key may have had several payers, and a user several keys
            statement: Select[Any] = select(*starts, *names, *added(sums.c, self._wanted))
            return statement.select_from(joined).group_by(*starts, *names), names
        statement = select(*starts, *names, *stored(sums.c, self._wanted))
        return statement.select_from(joined), names


def page_of_sums(
    planned: Plan,
    segment: Segment,
    low: int,
    high: int,
    after: tuple[Any, ...] | None,
    limit: int,
    wanted: Collection[str] = SUMS,
) -> Select[Any]:
    """Return the statement for groups of a report in order: of the interval, if the segment has several, and names.

    Args:
        planned: the report.
        segment: the part of it to read.
        low: the start of the time, in microseconds since 1970.
        high: its end.
        after: the last group that was read.
        limit: the maximum number of groups.
        wanted: which of `SUMS` to read; the others are 0.
    """
    part = SumsOf(planned, segment, wanted)
    sums = part.by_ids(low, high, by_start=segment.label is None).subquery("sums")
    statement, names = part.named(sums)
    keys: list[ColumnElement[Any]] = [*([sums.c.start] if segment.label is None else []), *names]
    if after is not None and keys:
        statement = statement.where(_after([_bare(key) for key in keys], after))
    return statement.order_by(*keys).limit(limit)


def groups_at_least(planned: Plan, segment: Segment, limit: int, *, by_start: bool) -> Select[Any]:
    """Return the statement for the number of stored groups of payers, up to a limit: it is known soon.

    Args:
        planned: a report by key.
        segment: the part to count.
        limit: the number at which to stop.
        by_start: whether each day or month counts by itself.
    """
    ids = SumsOf(planned, segment).ids(segment.low, segment.high, by_start=by_start)
    return select(func.count()).select_from(ids.limit(limit).subquery("ids"))


def _bare(column: ColumnElement[Any]) -> Any:
    """Return an expression without its label."""
    return getattr(column, "element", column)


def _after(columns: Sequence[Any], values: Sequence[Any]) -> ColumnElement[bool]:
    return tuple_(*columns) > tuple_(*values)


def highest_cost(
    planned: Plan, wanted: Collection[str], top: int | None, limit: int, payers: Select[Any] | None = None
) -> Select[Any]:
    """Return the statement for the sums of each group over all segments, the highest cost first.

    Args:
        planned: the report.
        wanted: which of `SUMS` to read.
        top: how many groups are wanted; None for all.
        limit: the maximum number of groups.
        payers: as in `SumsOf`.
    """
    wanted = {*wanted, "requests", "cost"}
    parts: dict[bool, SumsOf] = {}
    by_kind: dict[bool, list[Select[Any]]] = {}
    for segment in planned.segments:
        part = SumsOf(planned, segment, wanted, payers)
        parts[part.by_payer] = part
        by_kind.setdefault(part.by_payer, []).append(part.by_ids(segment.low, segment.high, by_start=False))
    found: list[Select[Any]] = []
    for by_payer, statements in by_kind.items():
        part = parts[by_payer]
        ids = _together(statements)
        by_key_alone = by_payer and planned.query.group_by == (KEY,)
        if top is not None and len(by_kind) == 1 and (by_key_alone or not by_payer):
            keys = [ids.c[name] for name in ("value", "model") if name in ids.c]
            if by_key_alone:
                everybody = payers is None and payers_with(planned.query.equals) is None
                ids = _top_keys(planned, wanted, ids, top) if everybody else _by_first_payer(ids, _several())
                keys = [ids.c.value]
            ids = select(ids).order_by(ids.c.cost.desc(), *keys).limit(top).subquery("top_ids")
        found.append(part.named(ids)[0])
    group_by = [f"name_of_{name}" for name in planned.query.group_by]
    result = found[0].subquery("groups")
    if len(found) > 1:
        whole = union_all(*found).subquery("named")
        names = [whole.c[name] for name in group_by]
        totals = [cast(func.sum(whole.c[name]), BigInteger).label(name) for name in SUMS]
        result = select(*names, *totals).group_by(*names).subquery("groups")
    names = [result.c[name] for name in group_by]
    statement = select(*names, *(result.c[name] for name in SUMS)).where(result.c.requests != 0)
    return statement.order_by(result.c.cost.desc(), *names).limit(limit if top is None else top)


def _together(statements: Sequence[Select[Any]]) -> Subquery:
    """Return the sums of several segments, added up by ids."""
    if len(statements) == 1:
        return statements[0].subquery("ids")
    together = union_all(*statements).subquery("parts")
    keys = [together.c[name] for name in ("value", "model") if name in together.c]
    needed = [column for column in together.c if column.name not in ("value", "model")]
    return select(*keys, *_added_up(needed)).group_by(*keys).subquery("ids")


def _added_up(columns: Iterable[ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    return [cast(func.sum(column), BigInteger).label(column.name) for column in columns]


def _several() -> CTE:
    """Return the payers of keys that have several, each with the first of its key."""
    payers = usage_payers.c
    first = select(payers.key_id, func.min(payers.id).label("first")).group_by(payers.key_id)
    several = first.having(func.count() > 1).subquery("several")
    return select(payers.id, several.c.first).join(several, several.c.key_id == payers.key_id).cte("others")


def _by_first_payer(ids: Subquery, others: CTE) -> Subquery:
    """Return sums by payer, those of a key with several payers added up under one of them.

    So only the keys with most spend are named.
    """
    value = func.coalesce(others.c.first, ids.c.value)
    sums = _added_up(column for column in ids.c if column.name != "value")
    added_up = select(value.label("value"), *sums).select_from(ids.outerjoin(others, others.c.id == ids.c.value))
    return added_up.group_by(value).subquery("by_key")


def _top_keys(planned: Plan, wanted: Collection[str], ids: Subquery, top: int) -> Subquery:
    """Return what `_by_first_payer` does, of the keys with most spend and some others.

    Most keys have one payer: their sums are not added up once more. Those of the others are looked up.
    """
    others = _several()
    alone = select(ids).select_from(ids.outerjoin(others, others.c.id == ids.c.value)).where(others.c.id.is_(None))
    most = select(alone.order_by(ids.c.cost.desc(), ids.c.value).limit(top).subquery("alone"))
    parts = [SumsOf(planned, segment, wanted, select(others.c.id)) for segment in planned.segments]
    statements = [
        part.by_ids(segment.low, segment.high, by_start=False)
        for part, segment in zip(parts, planned.segments, strict=True)
    ]
    return union_all(most, select(_by_first_payer(_together(statements), others))).subquery("by_key")


def whole_months(connection: Connection, query: UsageQuery) -> UsageQuery:
    """Return a query with the same sums that ends with a month, if nothing is stored after its end.

    So a report up to today reads the sums of the month and not of each of its days.
    """
    newest = newest_day(connection)
    last = month_start(query.end)
    if last == query.end or newest is None or (newest + 1) * DAY_US > query.end or query.start >= query.end:
        return query
    return UsageQuery(query.group_by, query.interval, query.start, month_start(query.end, 1), query.equals)
