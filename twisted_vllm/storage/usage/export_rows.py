"""The rows of a day as the export reads them: by key set, a page in each transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, Table, func, select, tuple_

from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    DAY_US,
    RowKey,
    usage,
    usage_payers,
    usage_targets,
    usage_totals,
)
from twisted_vllm.usage.days import date_of, number_of


def rows_of_day(connection: Connection, day: int, after: RowKey | None, limit: int) -> list[Row[Any]]:
    """Return the next rows of a day, with the columns of `usage`, in the order of their keys.

    Args:
        connection: it is in a transaction.
        day: days since 1970 (UTC).
        after: the key of the last row of the page before; None for the first page.
        limit: the most rows.
    """
    begin = day * DAY_US if after is None else after[0]
    found = select(usage).where(usage.c.time >= begin, usage.c.time < (day + 1) * DAY_US)
    if after is not None:
        found = found.where(tuple_(usage.c.time, usage.c.id) > after)
    return list(connection.execute(found.order_by(usage.c.time, usage.c.id).limit(limit)))


def first_day(connection: Connection, since: int = 0) -> int | None:
    """Return the first day with a row, from a day on; None if no such row is kept."""
    found = select(usage.c.time).where(usage.c.time >= since * DAY_US).order_by(usage.c.time).limit(1)
    time = connection.execute(found).scalar()
    return None if time is None else time // DAY_US


def requests_of_days(connection: Connection, first: int, last: int) -> dict[int, int]:
    """Return how many requests the sums count of each day, of those from `first` to `last` that have any."""
    totals = usage_totals.c
    found = (
        select(totals.start, func.sum(totals.requests))
        .where(totals.dimension == ALL, totals.period == DAY, totals.value == "")
        .where(totals.start >= date_of(first), totals.start <= date_of(last))
        .group_by(totals.start)
    )
    return {number_of(start): int(count) for start, count in connection.execute(found)}


def payers_of(connection: Connection, ids: Iterable[int]) -> dict[int, Row[Any]]:
    """Return rows of `usage_payers` by id."""
    return _by_id(connection, usage_payers, ids)


def targets_of(connection: Connection, ids: Iterable[int]) -> dict[int, Row[Any]]:
    """Return rows of `usage_targets` by id."""
    return _by_id(connection, usage_targets, ids)


def _by_id(connection: Connection, table: Table, ids: Iterable[int]) -> dict[int, Row[Any]]:
    found: dict[int, Row[Any]] = {}
    for some in in_chunks(sorted(ids)):
        found.update((row.id, row) for row in connection.execute(select(table).where(table.c.id.in_(some))))
    return found
