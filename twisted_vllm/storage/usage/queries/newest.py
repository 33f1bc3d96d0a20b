"""Finds the newest rows without sorting all that a filter leaves, be they millions or three of last year.

A key, a user or a team has one payer or thousands, and each payer's rows stand in the order of time in an index. When
the newest of them began is told by one look for each payer. From there on rows are looked for in windows of time that
grow, and what lies between two windows is leapt over likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from sqlalchemy import BigInteger, ColumnElement, Connection, Row, Select, func, literal_column, select

from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.usage.queries.conditions import joined
from twisted_vllm.storage.usage.queries.plan import MODEL
from twisted_vllm.storage.usage.row_keys import Place, at_places
from twisted_vllm.storage.usage.tables import KEY, usage, usage_payers, usage_targets

#: the first window, in microseconds, and how many times wider the next one is
_WINDOW, _GROWTH = 60_000_000, 8


@attrs.frozen
class Stretch:
    """A stretch of time, in microseconds since 1970; the end does not belong to it. None is open."""

    start: int | None
    end: int | None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return what holds of the rows that began within it."""
        found: list[ColumnElement[bool]] = []
        if self.start is not None:
            found.append(usage.c.time >= self.start)
        if self.end is not None:
            found.append(usage.c.time < self.end)
        return found


def newest_rows(
    connection: Connection,
    payers: Select[Any] | None,
    conditions: Sequence[ColumnElement[bool]],
    within: Stretch,
    skip: int,
    limit: int,
) -> list[Place]:
    """Return where rows are, the newest first.

    Args:
        connection: of a transaction that reads.
        payers: the numbers of those whose rows alone are wanted; None for everybody's.
        conditions: what holds of the rows, `payers` included.
        within: when they began.
        skip: how many to leave out.
        limit: how many to return at the most.
    """
    if payers is None:
        return _places(connection, conditions, within, skip, limit, in_order=True)
    found: list[Place] = []
    end, width = within.end, _WINDOW
    while len(found) < limit:
        newest = _newest(connection, payers, Stretch(within.start, end))
        if newest is None:
            break
        start = max(newest + 1 - width, within.start or 0)
        window = Stretch(start, newest + 1)
        some = _places(connection, conditions, window, skip, limit - len(found), in_order=False)
        if skip and not some:
            skip -= _count(connection, conditions, window)
        elif some:
            skip = 0
        found += some
        end, width = start, width * _GROWTH
    return found


def _newest(connection: Connection, payers: Select[Any], within: Stretch) -> int | None:
    """Return when the newest row of some payers began."""
    named = payers.subquery()
    of_one = select(func.max(usage.c.time)).where(usage.c.payer == named.c.id, *within.conditions())
    found: int | None = connection.execute(select(func.max(of_one.scalar_subquery())).select_from(named)).scalar()
    return found


def _places(
    connection: Connection,
    conditions: Sequence[ColumnElement[bool]],
    within: Stretch,
    skip: int,
    limit: int,
    *,
    in_order: bool,
) -> list[Place]:
    # The sum keeps SQLite, which does not know how many rows there are, from reading along the order of time.
    time = usage.c.time if in_order else usage.c.time + literal_column("0", BigInteger)
    asked = select(usage.c.time, usage.c.id).where(*conditions, *within.conditions())
    asked = asked.order_by(time.desc(), usage.c.id.desc()).offset(skip).limit(limit)
    return [(row.time, row.id) for row in connection.execute(asked)]


def _count(connection: Connection, conditions: Sequence[ColumnElement[bool]], within: Stretch) -> int:
    asked = select(func.count()).select_from(usage).where(*conditions, *within.conditions())
    return connection.execute(asked).scalar_one()


def rows_of(connection: Connection, places: Sequence[Place]) -> list[Row[Any]]:
    """Return the rows that are there with who paid and what was asked, in the order of the places."""
    own = [column for column in usage.columns if column.name not in ("payer", "target", "request_id")]
    others = [column for table in (usage_payers, usage_targets) for column in table.columns if column.name != "id"]
    asked = joined(
        select(func.coalesce(usage.c.request_id, usage.c.id).label("request_id"), *own, *others), (KEY, MODEL)
    )
    found: dict[Place, Row[Any]] = {}
    for some in in_chunks(places):
        for row in connection.execute(asked.where(*at_places(some))):
            found[row.time, row.id] = row
    # PostgreSQL may have deleted one meanwhile
    return [found[place] for place in places if place in found]
