"""Reads sums by day, key and model in pages, the last day first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, cast, func, select

from twisted_vllm.storage.usage.queries.plan import MODEL, moment_of
from twisted_vllm.storage.usage.queries.sums import SUMS
from twisted_vllm.storage.usage.tables import KEY, USER, usage_daily

_COLUMNS = {KEY: usage_daily.c.key_id, USER: usage_daily.c.user_id, MODEL: usage_daily.c.model}


def page_of_days(
    connection: Connection, equals: Mapping[str, str], start: int, end: int, skip: int, limit: int
) -> tuple[Sequence[Row[Any]], int]:
    """Return some of the sums of each day, key and model, and how many there are.

    Args:
        connection: of a transaction that reads.
        equals: of ``key``, ``user`` and ``model``, the value that each must have.
        start: the first day's beginning, in microseconds since 1970.
        end: the last day's end.
        skip: how many to leave out.
        limit: how many to return at the most.

    Returns:
        Rows of the day, the key's lasting id, the model and the sums, in their order.
    """
    table = usage_daily.c
    groups = (table.day, table.key_id, table.model)
    conditions = [table.day >= moment_of(start).date(), table.day < moment_of(end).date()]
    conditions += [_COLUMNS[name] == value for name, value in equals.items()]
    counted = select(*groups).where(*conditions).group_by(*groups).subquery()
    total = connection.execute(select(func.count()).select_from(counted)).scalar_one()
    sums = [cast(func.sum(table[name]), BigInteger) for name in SUMS]
    found = select(*groups, *sums).where(*conditions).group_by(*groups)
    found = found.order_by(*(column.desc() for column in groups)).offset(skip).limit(limit)
    return connection.execute(found).all(), total
