"""Reads costs of days by name, and the names themselves.

The sums have ids. Names are read once for a whole report, and not for each day: so a report of a thousand teams over a
month takes a third of the time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import BigInteger, ColumnElement, Connection, cast, func, select

from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.usage.queries.sums import in_period, iso_day, payers_with
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    KINDS,
    MONTH,
    OTHER,
    PAYER,
    name_id,
    usage_names,
    usage_payers,
    usage_sums,
)

#: costs in picodollars, by day and name
CostsByDay = dict[str, dict[str, int]]


def names_used(connection: Connection, dimension: str, limit: int, among: Sequence[str] | None = None) -> list[str]:
    """Return the values of a dimension that ever had usage, in order, but ``""`` and `OTHER`; at most so many.

    Of more, those of the newest months are returned: the others are not read.

    Args:
        connection: of a transaction that reads.
        dimension: as in `Entities`.
        limit: how many to return at most.
        among: the only values to look for, as many as one statement takes; None for all.
    """
    sums = usage_sums.c
    months = select(sums.start).where(sums.kind == KINDS[ALL, MONTH]).distinct().order_by(sums.start.desc())
    of_month = [sums.kind == KINDS[dimension, MONTH], sums.value.not_in((0, name_id(OTHER)))]
    if among is not None:
        of_month.append(sums.value.in_([name_id(name) for name in among]))
    found: set[int] = set()
    for month in connection.execute(months).scalars().all():
        values = select(sums.value).where(sums.start == month, *of_month).distinct().order_by(sums.value)
        found.update(connection.execute(values.limit(limit)).scalars())
        if len(found) >= limit:
            break
    return sorted(_names(connection, sorted(found)[:limit]).values())


def costs_by_day(connection: Connection, dimension: str, start: int, end: int, limit: int) -> CostsByDay | None:
    """Return the costs of each day by the values of a dimension; None if there are more than `limit`.

    Args:
        connection: of a transaction that reads.
        dimension: ``team``, ``organization``, ``end_user`` or ``tag``.
        start: the start of the first day, in microseconds since 1970.
        end: the end of the last day.
        limit: the most costs.
    """
    found = _costs(connection, in_period(KINDS[dimension, DAY], start, end, DAY, named=False), limit)
    if found is None:
        return None
    names = _names(connection, {value for _, value, _ in found})
    return _by_day((day, names.get(value, ""), cost) for day, value, cost in found)


def costs_of_keys_and_users(
    connection: Connection, equals: Mapping[str, str], start: int, end: int, limit: int
) -> tuple[CostsByDay, CostsByDay] | None:
    """Return the costs of each day by key (its lasting id) and by user; None if there are more than `limit` payers.

    Args:
        connection: of a transaction that reads.
        equals: values that ``key``, ``user`` and ``team`` must have.
        start: the start of the first day, in microseconds since 1970.
        end: the end of the last day.
        limit: the most costs of payers.
    """
    payers = payers_with(equals)
    within = in_period(KINDS[PAYER, DAY], start, end, DAY, named=payers is not None)
    if payers is not None:
        within.append(usage_sums.c.value.in_(payers))
    found = _costs(connection, within, limit)
    if found is None:
        return None
    keys, users = _keys_and_users(connection, {value for _, value, _ in found})
    by_key = _by_day((day, keys.get(value, ""), cost) for day, value, cost in found)
    return by_key, _by_day((day, users.get(value, ""), cost) for day, value, cost in found)


def _costs(
    connection: Connection, within: Sequence[ColumnElement[bool]], limit: int
) -> Sequence[tuple[int, int, int]] | None:
    sums = usage_sums.c
    columns = (sums.start, sums.value)
    statement = select(*columns, cast(func.sum(sums.cost), BigInteger)).where(*within).group_by(*columns)
    rows = connection.execute(statement.order_by(*columns).limit(limit + 1)).all()
    return None if len(rows) > limit else [(day, value, cost) for day, value, cost in rows]


def _by_day(costs: Iterable[tuple[int, str, int]]) -> CostsByDay:
    days: dict[int, dict[str, int]] = {}
    for day, name, cost in costs:
        of_day = days.setdefault(day, {})
        of_day[name] = of_day.get(name, 0) + cost
    return {iso_day(day): of_day for day, of_day in days.items()}


def _names(connection: Connection, ids: Collection[int]) -> dict[int, str]:
    """Return the names in the sums by their ids; 0 has none."""
    names = usage_names.c
    found: dict[int, str] = {}
    for chunk in in_chunks(sorted(ids)):
        rows = connection.execute(select(names.id, names.name).where(names.id.in_(chunk)))
        found.update((id, name) for id, name in rows)
    return found


def _keys_and_users(connection: Connection, ids: Collection[int]) -> tuple[dict[int, str], dict[int, str]]:
    """Return the key and the user of payers, each by the payer's id."""
    payers = usage_payers.c
    keys: dict[int, str] = {}
    users: dict[int, str] = {}
    for chunk in in_chunks(sorted(ids)):
        for id, key, user in connection.execute(
            select(payers.id, payers.key_id, payers.user_id).where(payers.id.in_(chunk))
        ):
            keys[id], users[id] = key, user or ""
    return keys, users
