"""Reads the ledger's rows, a page at a time, the newest first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import attrs
from sqlalchemy import ColumnElement, Connection, Row, and_, func, not_, select

from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.tables import former_keys, keys
from twisted_vllm.storage.usage.queries.conditions import payers_that, row_conditions
from twisted_vllm.storage.usage.queries.newest import Stretch, newest_rows, rows_of
from twisted_vllm.storage.usage.queries.plan import MODEL, microseconds
from twisted_vllm.storage.usage.tables import ALL, DAY, usage, usage_totals

#: rows beyond these are not counted, and no page begins after them
MOST_COUNTED = 100_000

_DAY = timedelta(days=1)
_MADE_HERE = re.compile("[0-9a-f]{32}")


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
    """Return rows with who paid and what was asked, the newest first; `request_id` is the id where it has no other."""
    within = _within(connection, asked)
    if within is None:
        return []
    conditions = _conditions(asked)
    if asked.request_id is None:
        found = newest_rows(connection, payers_that(asked.equals), conditions, within, skip, limit)
    else:
        both = [
            newest_rows(connection, None, [*conditions, each], within, 0, skip + limit)
            for each in _named(asked.request_id)
        ]
        found = sorted((place for some in both for place in some), reverse=True)[skip : skip + limit]
    return rows_of(connection, found)


def count_rows(connection: Connection, asked: RowsAsked) -> int:
    """Return how many rows there are; of more than `MOST_COUNTED`, one more than that."""
    within = _within(connection, asked)
    if within is None:
        return 0
    conditions = [*_conditions(asked), *within.conditions()]
    searches = [()] if asked.request_id is None else [(each,) for each in _named(asked.request_id)]
    counted = 0
    for each in searches:
        found = select(usage.c.id).where(*conditions, *each).limit(MOST_COUNTED + 1).subquery()
        counted += connection.execute(select(func.count()).select_from(found)).scalar_one()
    return min(counted, MOST_COUNTED + 1)


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


def _within(connection: Connection, asked: RowsAsked) -> Stretch | None:
    """Return when the rows began; None where the sums say that there are none."""
    found = Stretch(asked.start, asked.end)
    if MODEL in asked.equals:
        # Models have no index: their rows are looked for on the days between which there are any.
        days = _days_of(connection, asked.equals[MODEL])
        if days is None:
            return None
        found = Stretch(max(asked.start or 0, days[0]), days[1] if asked.end is None else min(asked.end, days[1]))
    return found


def _conditions(asked: RowsAsked) -> list[ColumnElement[bool]]:
    found = row_conditions(asked.equals)
    if asked.successful is not None:
        success = and_(usage.c.outcome == "completed", usage.c.status < 400)
        found.append(success if asked.successful else not_(success))
    return found


def _named(request_id: str) -> list[ColumnElement[bool]]:
    """Return what holds of the rows of a request: apart from each other, as each has an index of its own."""
    found: list[ColumnElement[bool]] = [usage.c.request_id == request_id]
    if _MADE_HERE.fullmatch(request_id):
        # The second that it begins with tells where it is; the moment may have been rounded up.
        second = int(request_id[:8], 16) * 1_000_000
        found.append(
            and_(
                usage.c.time >= second,
                usage.c.time <= second + 1_000_000,
                usage.c.id == request_id,
                usage.c.request_id.is_(None),
            )
        )
    return found


def _days_of(connection: Connection, model: str) -> tuple[int, int] | None:
    """Return the first moment of the first day on which a model was used, and that of the day after the last."""
    table = usage_totals.c
    of_model = (table.dimension == ALL, table.period == DAY, table.value == "", table.model == model)
    first, last = connection.execute(select(func.min(table.start), func.max(table.start)).where(*of_model)).one()
    return None if first is None else (_midnight(first), _midnight(last + _DAY))


def _midnight(day: date) -> int:
    return microseconds(datetime.combine(day, time(), UTC))
