"""What somebody used lately: a few days of the sums, each found by the primary key."""

from __future__ import annotations

from datetime import date
from typing import Any

import attrs
from sqlalchemy import BigInteger, Connection, cast, func, select

from twisted_vllm.storage.usage.queries.plan import MODEL
from twisted_vllm.storage.usage.queries.sums import payers_with
from twisted_vllm.storage.usage.tables import ALL, DAY, KEY, KINDS, PAYER, USER, name_id, usage_sums
from twisted_vllm.usage.days import date_of


@attrs.frozen
class RecentUse:
    """What somebody used in some days.

    Attributes:
        requests: how many requests.
        tokens: their tokens.
        cost: in picodollars.
        last_day: the last day with a request (UTC); None without any.
    """

    requests: int = 0
    tokens: int = 0
    cost: int = 0
    last_day: date | None = None


def recent_use(connection: Connection, kind: str, identity: str, last: int, days: int) -> RecentUse:
    """Return what somebody used in some days up to one.

    Args:
        connection: of a transaction that reads.
        kind: `KEY`, `USER`, `TEAM`, `ORGANIZATION`, `END_USER` or `MODEL`.
        identity: the permanent id of a key, or the id of the others.
        last: the last day, in days since 1970.
        days: how many days.
    """
    sums = usage_sums.c
    payers = payers_with({kind: identity}) if kind in (KEY, USER) else None
    dimension = PAYER if payers is not None else ALL if kind == MODEL else kind
    # Sums of all have the value 0.
    value = "" if kind == MODEL else identity
    added = (cast(func.sum(sums[name]), BigInteger) for name in ("requests", "total_tokens", "cost"))
    statement = select(*added, func.max(sums.start)).where(
        sums.kind == KINDS[dimension, DAY],
        # Named one by one, so that each value is found in each day.
        sums.start.in_(range(last - days + 1, last + 1)),
        sums.value == name_id(value) if payers is None else sums.value.in_(payers),
        *([sums.model == name_id(identity)] if kind == MODEL else []),
        sums.requests > 0,
    )
    row: Any = connection.execute(statement).one()
    requests, tokens, cost, day = row
    return RecentUse() if day is None else RecentUse(requests, tokens, cost, date_of(day))
