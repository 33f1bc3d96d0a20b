"""What each key, user, team and end user spent, as one transaction sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import sqlite

from twisted_vllm.auth.records import Spend
from twisted_vllm.storage import tables
from twisted_vllm.storage.repository import in_chunks

_MICROSECONDS = 10**6
_COLUMNS = (
    tables.spend.c.kind,
    tables.spend.c.id,
    tables.spend.c.spend,
    tables.spend.c.period_start,
    tables.spend.c.total_spend,
)


def _made(kind: str, identity: str, spend: int, period_start: int, total_spend: int) -> Spend:
    return Spend(kind, identity, spend, period_start // _MICROSECONDS, total_spend)


def spend_of(connection: Connection, kind: str, ids: Sequence[str]) -> dict[str, Spend]:
    """Return what each of these spent; nothing, for one of which nothing is known."""
    found = {identity: Spend(kind, identity) for identity in ids}
    for some in in_chunks(ids):
        asked = select(*_COLUMNS).where(tables.spend.c.kind == kind, tables.spend.c.id.in_(some))
        for row in connection.execute(asked):
            found[row.id] = _made(*row)
    return found


def all_spend(connection: Connection) -> list[Spend]:
    """Return what everybody spent."""
    return [_made(*row) for row in connection.execute(select(*_COLUMNS))]


class Spending:
    """The table of what was spent.

    Args:
        connection: the transaction's.
        touched: is told the kind and id of each whose spend is set.
    """

    def __init__(self, connection: Connection, touched: Callable[[str, str], None]) -> None:
        self._connection = connection
        self._touched = touched

    def of(self, kind: str, ids: Sequence[str]) -> dict[str, Spend]:
        """Return what each of these spent."""
        return spend_of(self._connection, kind, ids)

    def set(self, kind: str, identity: str, spend: int, period_start: int) -> None:
        """Set what was spent in the period that began then; what was spent in all stays.

        Args:
            kind: of whom.
            identity: of whom.
            spend: in picodollars.
            period_start: in Unix seconds.
        """
        values = {"spend": spend, "period_start": period_start * _MICROSECONDS}
        insert: Any = sqlite.insert
        if self._connection.dialect.name == "postgresql":
            # Imported here: it takes 2 MB, which SQLite's gateways need not hold.
            from sqlalchemy.dialects import postgresql

            insert = postgresql.insert
        # the ledger's writer may make the row at the same moment
        kept = insert(tables.spend).values(kind=kind, id=identity, total_spend=0, **values)
        self._connection.execute(kept.on_conflict_do_update(index_elements=["kind", "id"], set_=values))
        self._touched(kind, identity)

    def forget(self, kind: str, ids: Sequence[str]) -> None:
        """Forget what these spent, as they are not there any more; the ledger's rows stay."""
        for some in in_chunks(ids):
            self._connection.execute(
                delete(tables.spend).where(tables.spend.c.kind == kind, tables.spend.c.id.in_(some))
            )
