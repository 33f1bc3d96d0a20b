"""Writes the ledger: rows, sums and spending in one transaction, each row once."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import attrs
from sqlalchemy import Connection, Table, delete, select

from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.bulk_insert import BulkInsert, SparseInsert
from twisted_vllm.storage.usage.references import Numbers
from twisted_vllm.storage.usage.row_keys import Place, at_places
from twisted_vllm.storage.usage.spend import PeriodStart, Scope, by_scope, cost_of, read_spend, write_spend
from twisted_vllm.storage.usage.sums import BatchSums
from twisted_vllm.storage.usage.tables import usage, usage_daily, usage_monthly, usage_totals
from twisted_vllm.usage.interfaces import Spent
from twisted_vllm.usage.records import UsageRow


def _adding(table: Table) -> BulkInsert:
    keys = ", ".join(f'"{column.name}"' for column in table.primary_key.columns)
    sums = ", ".join(
        f'{column.name} = "{table.name}".{column.name} + excluded.{column.name}'
        for column in table.columns
        if not column.primary_key
    )
    return BulkInsert(table, f"ON CONFLICT ({keys}) DO UPDATE SET {sums}")


_rows = BulkInsert(usage, postgresql_tail="ON CONFLICT (time, id) DO NOTHING RETURNING time, id")
# No error ends these statements half done: SQLite need not copy the pages that they change, for going back.
_sqlite_rows = SparseInsert(usage)
_daily = _adding(usage_daily)
_monthly = _adding(usage_monthly)
_totals = _adding(usage_totals)


_id = attrgetter("id")


class RowsAreThere(Exception):
    """Some of the rows are in SQLite already: the transaction must be rolled back, and the rows written `checked`."""


def write(
    connection: Connection,
    rows: Sequence[UsageRow],
    period_start: PeriodStart,
    now: float,
    own: bool = True,
    numbers: Numbers | None = None,
    *,
    checked: bool = False,
) -> list[Spent]:
    """Write rows in the transaction that a connection is in. A row that is there already changes nothing.

    Args:
        connection: in a transaction; of SQLite, one that has the write lock.
        rows: of requests; each is known by its time and its id.
        period_start: when the period of a scope's budget began.
        now: Unix seconds.
        own: whether this process served the requests.
        numbers: the payers and targets that are known to be in the database; without, none is.
        checked: of SQLite: to ask first which rows are there.

    Returns:
        What each scope that paid has spent now. The amount is that of `rows`, whether they were there already or not:
        after the commit the database has them. It is 0 unless they are this process's own.

    Raises:
        RowsAreThere: some of the rows are, and they were not `checked`.
    """
    if not rows:
        return []
    numbers = Numbers() if numbers is None else numbers
    if checked or connection.dialect.name != "sqlite":
        # else SQLite tells that one was there
        rows = _different(rows)
    batch = UsageBatch(rows, numbers)
    numbers.write(connection)
    new = _insert_new(connection, rows, batch, numbers, checked)
    spent = {} if new is None else _add(connection, new, period_start, now)
    if not own:
        return [attrs.evolve(each, amount=0) for each in spent.values()]
    if new is not batch:
        paid = by_scope(batch)
        for scope, (start, total) in read_spend(connection, paid).items():
            spent[scope] = Spent(*scope, cost_of(paid[scope]), total, start)
    return list(spent.values())


def _add(connection: Connection, batch: UsageBatch, period_start: PeriodStart, now: float) -> dict[Scope, Spent]:
    sums = BatchSums(batch)
    _daily.run(connection, sums.daily)
    _monthly.run(connection, sums.monthly)
    _totals.run(connection, sums.totals)
    return write_spend(connection, batch, period_start, now)


def _insert_new(
    connection: Connection, rows: Sequence[UsageRow], batch: UsageBatch, numbers: Numbers, checked: bool
) -> UsageBatch | None:
    """Insert the rows that are not there, and return them; None where all are."""
    if connection.dialect.name == "postgresql":
        inserted = {(time, id) for time, id in _rows.run(connection, batch.rows())}
        if len(inserted) == len(rows):
            return batch
        new = [row for row in rows if (row.time, row.id) in inserted]
        return UsageBatch(new, numbers) if new else None
    if not checked:
        # to ask for each row would cost each, and hardly any is there
        if _sqlite_rows.run(connection, batch.values) < len(rows):
            raise RowsAreThere
        return batch
    known = _known(connection, rows)
    new = [row for row in rows if (row.time, row.id) not in known]
    if not new:
        return None
    batch = UsageBatch(new, numbers)
    _rows.run(connection, batch.rows())
    return batch


def _different(rows: Sequence[UsageRow]) -> Sequence[UsageRow]:
    """Return rows, each once."""
    if len(set(map(_id, rows))) == len(rows):
        return rows
    return list({(row.time, row.id): row for row in rows}.values())


def _known(connection: Connection, rows: Sequence[UsageRow]) -> set[Place]:
    """Return of which rows some are there, by their time and id."""
    found: set[Place] = set()
    for some in in_chunks([(row.time, row.id) for row in rows]):
        asked = select(usage.c.time, usage.c.id).where(*at_places(some))
        found.update((time, id) for time, id in connection.execute(asked))
    return found


def delete_before(connection: Connection, time: int, limit: int) -> int:
    """Delete the oldest rows that began before a time in microseconds, and return how many.

    Sums stay, and what says who paid and what was asked.
    """
    asked = select(usage.c.time, usage.c.id).where(usage.c.time < time).order_by(usage.c.time, usage.c.id)
    found = connection.execute(asked.limit(limit).with_for_update(skip_locked=True)).all()
    for some in in_chunks([(row.time, row.id) for row in found]):
        connection.execute(delete(usage).where(*at_places(some)))
    return len(found)
