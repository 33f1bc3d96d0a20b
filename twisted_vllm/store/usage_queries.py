"""Reads the ledger's rows, a page at a time, the newest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import attrs
from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, not_, select

from twisted_vllm.store.repository import in_chunks
from twisted_vllm.store.tables import former_keys, keys
from twisted_vllm.store.usage_queries_plan import MODEL, microseconds
from twisted_vllm.store.usage_queries_statements import row_conditions
from twisted_vllm.store.usage_tables import ALL, DAY, TAG, usage, usage_tags, usage_totals

#: rows beyond these are not counted, and no page begins after them
MOST_COUNTED = 100_000

_DAY = timedelta(days=1)


@attrs.frozen
class RowsAsked:
    """Which rows are asked for.

    Attributes:
        start: the first moment that counts, in microseconds since 1970; None for no first one.
        end: the first one that does not count any more, likewise.
        equals: dimensions and the value that each must have; a key's is its lasting id.
        request_id: that of the request.
        successful: whether the client got the whole of an answer that is no error; None for either.
    """

    start: int | None = None
    end: int | None = None
    equals: Mapping[str, str] = attrs.field(factory=dict)
    request_id: str | None = None
    successful: bool | None = None


@attrs.frozen
class KeyLabel:
    """What a key is recognised by.

    Attributes:
        token: its SHA-256.
        key_name: ``sk-...`` and its last four characters.
        key_alias: the name that an administrator gave it.
        user_id: whose it is.
        team_id: which team's.
    """

    token: str
    key_name: str
    key_alias: str | None
    user_id: str | None
    team_id: str | None


def page_of_rows(connection: Connection, asked: RowsAsked, skip: int, limit: int) -> Sequence[Row[Any]]:
    """Return rows, the newest first."""
    conditions = _conditions(connection, asked)
    if conditions is None:
        return []
    found = _from(asked, select(usage)).where(*conditions).order_by(usage.c.time.desc(), usage.c.id.desc())
    return connection.execute(found.offset(skip).limit(limit)).all()


def count_rows(connection: Connection, asked: RowsAsked) -> int:
    """Return how many rows there are; of more than `MOST_COUNTED`, one more than that."""
    conditions = _conditions(connection, asked)
    if conditions is None:
        return 0
    found = _from(asked, select(usage.c.id)).where(*conditions).limit(MOST_COUNTED + 1).subquery()
    return connection.execute(select(func.count()).select_from(found)).scalar_one()


def key_id_of(connection: Connection, token: str) -> str | None:
    """Return the lasting id of the key whose hash this is, or was before it was regenerated."""
    for table in (keys, former_keys):
        found: str | None = connection.execute(select(table.c.key_id).where(table.c.token == token)).scalar()
        if found is not None:
            return found
    return None


def key_labels(connection: Connection, key_ids: Sequence[str]) -> dict[str, KeyLabel]:
    """Return what the keys of these ids are recognised by; a deleted one has nothing."""
    columns = (keys.c.key_id, keys.c.token, keys.c.key_name, keys.c.key_alias, keys.c.user_id, keys.c.team_id)
    found = {}
    for some in in_chunks(key_ids):
        for key_id, *values in connection.execute(select(*columns).where(keys.c.key_id.in_(some))):
            found[key_id] = KeyLabel(*values)
    return found


def _from(asked: RowsAsked, statement: Select[Any]) -> Select[Any]:
    if TAG not in asked.equals:
        return statement
    joined = and_(usage_tags.c.usage_id == usage.c.id, usage_tags.c.time == usage.c.time)
    return statement.join_from(usage, usage_tags, joined)


def _conditions(connection: Connection, asked: RowsAsked) -> list[ColumnElement[bool]] | None:
    """Return what holds of the rows; None where the sums say that there are none."""
    start, end = asked.start, asked.end
    if MODEL in asked.equals:
        # Models have no index: their rows are looked for on the days between which there are any.
        days = _days_of(connection, asked.equals[MODEL])
        if days is None:
            return None
        start = max(start or 0, days[0])
        end = days[1] if end is None else min(end, days[1])
    found = row_conditions(asked.equals)
    times = (usage.c.time, *((usage_tags.c.time,) if TAG in asked.equals else ()))
    for column in times:
        if start is not None:
            found.append(column >= start)
        if end is not None:
            found.append(column < end)
    if asked.request_id is not None:
        found.append(usage.c.request_id == asked.request_id)
    if asked.successful is not None:
        success = and_(usage.c.outcome == "completed", usage.c.status < 400)
        found.append(success if asked.successful else not_(success))
    return found


def _days_of(connection: Connection, model: str) -> tuple[int, int] | None:
    """Return the first moment of the first day on which a model was used, and that of the day after the last."""
    table = usage_totals.c
    of_model = (table.dimension == ALL, table.period == DAY, table.value == "", table.model == model)
    first, last = connection.execute(select(func.min(table.start), func.max(table.start)).where(*of_model)).one()
    return None if first is None else (_midnight(first), _midnight(last + _DAY))


def _midnight(day: date) -> int:
    return microseconds(datetime.combine(day, time(), UTC))
