"""The rows of a day as the export reads them: by key set, a page in each transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, Table, func, select, tuple_

from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.usage.partitions import PartitionGone, all_partitions, partitions_of, rows_in
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    DAY_US,
    KINDS,
    RowKey,
    usage,
    usage_payers,
    usage_sums,
    usage_targets,
)


def rows_of_day(connection: Connection, day: int, after: RowKey | None, limit: int) -> list[Row[Any]]:
    """Return the next rows of a day, with the columns of `usage`, in the order of their keys.

    Args:
        connection: it is in a transaction.
        day: days since 1970 (UTC).
        after: the key of the last row of the page before; None for the first page.
        limit: the most rows.
    """
    partition = next((each for each in partitions_of(connection) if each.has(day * DAY_US)), None)
    if partition is None:
        return []
    try:
        rows_in(connection, partition)
    except PartitionGone:
        return []
    begin = day * DAY_US if after is None else after[0]
    found = select(usage).where(usage.c.time >= begin, usage.c.time < (day + 1) * DAY_US)
    if after is not None:
        found = found.where(tuple_(usage.c.time, usage.c.id) > after)
    return list(connection.execute(found.order_by(usage.c.time, usage.c.id).limit(limit)))


def first_day(connection: Connection, since: int = 0) -> int | None:
    """Return the first day of which rows are kept, from a day on; None if there is none."""
    kept = all_partitions(connection)
    if not kept:
        return None
    sums = usage_sums.c
    # The sums say on which days there were requests, so no row need be looked for.
    found: int | None = connection.execute(
        select(func.min(sums.start)).where(
            sums.kind == KINDS[ALL, DAY], sums.start >= max(since, kept[-1].start // DAY_US)
        )
    ).scalar()
    return found


def requests_of_days(connection: Connection, first: int, last: int) -> dict[int, int]:
    """Return how many requests the sums count of each day, of those from `first` to `last` that have any."""
    sums = usage_sums.c
    found = (
        select(sums.start, func.sum(sums.requests))
        .where(sums.kind == KINDS[ALL, DAY], sums.start >= first, sums.start <= last)
        .group_by(sums.start)
    )
    return {start: int(count) for start, count in connection.execute(found)}


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
