"""Reads the sums of days, one by one, in pages.

A page of a year's days says how many pages there are. To count the sums of each day takes long, and most days no longer
change: counts are kept in memory as long as the requests of the day are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import attrs
from sqlalchemy import ColumnElement, Connection, Row, func, literal, select
from sqlalchemy.engine import Engine

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.storage.usage.marks import SUMS as SUMS_MARK
from twisted_vllm.storage.usage.queries.plan import MODEL
from twisted_vllm.storage.usage.queries.sums import (
    EMPTY,
    in_period,
    iso_day,
    payers_with,
    stored,
)
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    END_USER,
    KINDS,
    PAYER,
    SUMS,
    TEAM,
    USER,
    hash_id,
    name_id,
    usage_marks,
    usage_names,
    usage_payers,
    usage_sums,
)

#: stands for the key where sums are not kept by key
NO_KEY = "-"

#: counts of days that are kept: of all keys for ten years, or of some users and teams
MAX_COUNTS = 20_000

_COLUMNS = {USER: usage_payers.c.user_id, TEAM: usage_payers.c.team_id}
_ALL_DAYS = KINDS[ALL, DAY]


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
        return self.dimension in _COLUMNS


def page_of_days(
    connection: Connection,
    entities: Entities,
    equals: Mapping[str, str],
    start: int,
    end: int,
    skip: int,
    limit: int,
) -> tuple[Sequence[Row[Any]], int]:
    """Return a page of the stored sums of each day, newest first, and their number over all pages.

    A key whose name, user, team or tags changed has several stored sums in a day.

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
    kind = KINDS[PAYER if entities.has_keys else entities.dimension, DAY]
    conditions = _conditions(entities, equals)
    counts = _count(connection, kind, conditions, start, end)
    days, skip = _days_of_page(counts, skip, limit)
    if not days:
        return [], sum(counts.values())
    sums = usage_sums.c
    within = [sums.kind == kind, sums.start >= min(days), sums.start <= max(days), *conditions]
    if conditions:
        within[1:3] = [sums.start.in_(days)]
    needed = [sums[name] for name in SUMS if name != "failed"]
    order = (sums.start.desc(), sums.value.desc(), sums.model.desc())
    page = select(sums.start, sums.value, sums.model, *needed).where(*within).order_by(*order)
    rows = page.offset(skip).limit(limit).subquery("page")
    return connection.execute(_named(rows, entities)).all(), sum(counts.values())


def day_of(row: Row[Any]) -> str:
    """Return the date of a row of `page_of_days`."""
    return iso_day(row[0])


def _conditions(entities: Entities, equals: Mapping[str, str]) -> list[ColumnElement[bool]]:
    sums = usage_sums.c
    found: list[ColumnElement[bool]] = []
    if MODEL in equals:
        found.append(sums.model == name_id(equals[MODEL]))
    if entities.has_keys:
        payers = payers_with(equals)
        if payers is not None:
            found.append(sums.value.in_(payers))
        column = func.coalesce(_COLUMNS[entities.dimension], EMPTY)
        if entities.among is not None:
            # without an empty one, the index of the column is used
            named = _COLUMNS[entities.dimension] if all(entities.among) else column
            found.append(sums.value.in_(select(usage_payers.c.id).where(named.in_(entities.among))))
        if entities.without:
            found.append(sums.value.not_in(select(usage_payers.c.id).where(column.in_(entities.without))))
        return found
    if entities.dimension == END_USER:
        # what nobody's end users used is no customer's
        found.append(sums.value != 0)
    if entities.among is not None:
        found.append(sums.value.in_([name_id(name) for name in entities.among]))
    if entities.without:
        found.append(sums.value.not_in([name_id(name) for name in entities.without]))
    return found


def _named(page: Any, entities: Entities) -> Any:
    """Return the statement for a page with names in place of ids."""
    models = usage_names.alias("model_names")
    joined = page.outerjoin(models, models.c.id == page.c.model)
    if entities.has_keys:
        joined = joined.outerjoin(usage_payers, usage_payers.c.id == page.c.value)
        entity = func.coalesce(_COLUMNS[entities.dimension], EMPTY)
        key: ColumnElement[Any] = func.coalesce(usage_payers.c.key_id, EMPTY)
    else:
        values = usage_names.alias("value_names")
        joined = joined.outerjoin(values, values.c.id == page.c.value)
        entity, key = func.coalesce(values.c.name, EMPTY), literal(NO_KEY)
    model = func.coalesce(models.c.name, EMPTY).label("model_name")
    shown = (page.c.start, entity.label("entity"), key.label("key_id"), model)
    order = (page.c.start.desc(), page.c.value.desc(), page.c.model.desc())
    return select(*shown, *stored(page.c, SUMS)).select_from(joined).order_by(*order)


def _days_of_page(counts: Mapping[int, int], skip: int, limit: int) -> tuple[list[int], int]:
    """Return the days in which a page lies, and how many sums of the newest of them come before it."""
    found: list[int] = []
    for day in sorted(counts, reverse=True):
        if not found and skip >= counts[day]:
            skip -= counts[day]
            continue
        found.append(day)
        if sum(counts[each] for each in found) >= skip + limit:
            break
    return found, skip


# counts


class _Counts:
    """Counts of stored sums by filter and day, with the requests of the day."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: BoundedCache[tuple[int, int], tuple[int, int]] = BoundedCache(MAX_COUNTS, 0)

    def valid(self, asked: int, requests: Mapping[int, int]) -> dict[int, int]:
        """Return the counts of a filter that still hold."""
        with self._lock:
            kept = {day: self._kept.get((asked, day)) for day in requests}
        return {day: each[1] for day, each in kept.items() if each is not None and each[0] == requests[day]}

    def keep(self, asked: int, requests: Mapping[int, int], counted: Mapping[int, int]) -> None:
        """Keep counts."""
        with self._lock:
            for day, count in counted.items():
                self._kept.keep((asked, day), (requests[day], count), 0)


#: by database
_counts: WeakKeyDictionary[Engine, _Counts] = WeakKeyDictionary()


def _count(
    connection: Connection, kind: int, conditions: Sequence[ColumnElement[bool]], start: int, end: int
) -> dict[int, int]:
    """Return the number of stored sums of each day."""
    requests = _requests(connection, start, end)
    if not requests:
        return {}
    asked = _fingerprint(connection, kind, conditions)
    counts = _counts.setdefault(connection.engine, _Counts())
    found = counts.valid(asked, requests)
    missing = [day for day in requests if day not in found]
    if missing:
        counted = dict.fromkeys(missing, 0) | _count_days(connection, kind, conditions, missing)
        if _is_settled(connection):
            counts.keep(asked, requests, counted)
        found |= counted
    return found


def _requests(connection: Connection, start: int, end: int) -> dict[int, int]:
    """Return the requests of each day that has any."""
    sums = usage_sums.c
    within = in_period(_ALL_DAYS, start, end, DAY, named=False)
    found = select(sums.start, func.sum(sums.requests)).where(*within).group_by(sums.start)
    return {day: int(requests) for day, requests in connection.execute(found)}


def _count_days(
    connection: Connection, kind: int, conditions: Sequence[ColumnElement[bool]], days: Sequence[int]
) -> dict[int, int]:
    sums = usage_sums.c
    within: Iterable[ColumnElement[bool]] = [sums.start.in_(days)]
    if not conditions and max(days) - min(days) < 2 * len(days):
        within = [sums.start >= min(days), sums.start <= max(days)]
    found = select(sums.start, func.count()).where(sums.kind == kind, *within, *conditions).group_by(sums.start)
    wanted = set(days)
    return {day: count for day, count in connection.execute(found) if day in wanted}


def _is_settled(connection: Connection) -> bool:
    """Return whether no gateway is in the middle of writing sums: those of the day's requests come first."""
    marks = usage_marks.c
    between = select(marks.done).where(marks.what == SUMS_MARK, marks.done != "").limit(1)
    return connection.execute(between).first() is None


def _fingerprint(connection: Connection, kind: int, conditions: Sequence[ColumnElement[bool]]) -> int:
    """Return a number for a filter: users' and models' names may be long."""
    compiled = [each.compile(dialect=connection.dialect) for each in conditions]
    return hash_id(repr([kind, *((str(each), sorted(map(repr, each.params.items()))) for each in compiled)]).encode())
