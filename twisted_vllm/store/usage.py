"""Writes the ledger: rows, sums and spending in one transaction, each row once."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import msgspec
from sqlalchemy import Connection, Table, delete, select
from sqlalchemy.exc import IntegrityError

from twisted_vllm.ledger.interfaces import Spent
from twisted_vllm.ledger.values import UsageRow
from twisted_vllm.store.bulk import BulkInsert, Values
from twisted_vllm.store.usage_spend import PeriodStart, by_scope, read_spend, write_spend
from twisted_vllm.store.usage_sums import BatchSums
from twisted_vllm.store.usage_tables import usage, usage_daily, usage_tags, usage_totals

_json = msgspec.json.Encoder().encode


def _adding(table: Table) -> BulkInsert:
    keys = ", ".join(f'"{column.name}"' for column in table.primary_key.columns)
    sums = ", ".join(
        f'{column.name} = "{table.name}".{column.name} + excluded.{column.name}'
        for column in table.columns
        if not column.primary_key
    )
    return BulkInsert(table, f"ON CONFLICT ({keys}) DO UPDATE SET {sums}")


# SQLite says by an error that a row is there already, which is rare: what asked for each would cost each.
_rows = BulkInsert(usage, postgresql_tail="ON CONFLICT (id) DO NOTHING RETURNING id")
_tags = BulkInsert(usage_tags, "ON CONFLICT DO NOTHING")
_daily = _adding(usage_daily)
_totals = _adding(usage_totals)


def write(
    connection: Connection, rows: Sequence[UsageRow], period_start: PeriodStart, now: float, own: bool = True
) -> list[Spent]:
    """Write rows in the transaction that a connection is in. A row whose id is there already changes nothing.

    Args:
        connection: in a transaction; of SQLite, one that has the write lock.
        rows: of requests.
        period_start: when the period of a scope's budget began.
        now: Unix seconds.
        own: whether this process served the requests.

    Returns:
        What each scope that paid has spent now. The amount is that of `rows`, whether they were there already or not:
        after the commit the database has them. It is 0 unless they are this process's own.
    """
    rows = list({row.id: row for row in rows}.values())
    new = _insert_new(connection, rows)
    if tagged := [(tag, row.time, row.id) for row in new if row.tags for tag in dict.fromkeys(row.tags)]:
        _tags.run(connection, tagged)
    sums = BatchSums(new)
    _daily.run(connection, sums.daily)
    _totals.run(connection, sums.totals)
    spent = write_spend(connection, new, period_start, now)
    if not own:
        return [attrs.evolve(each, amount=0) for each in spent.values()]
    if len(new) < len(rows):
        paid = by_scope(rows)
        for scope, (start, total) in read_spend(connection, paid).items():
            spent[scope] = Spent(*scope, sum([row.cost for row in paid[scope]]), total, start)
    return list(spent.values())


def _insert_new(connection: Connection, rows: list[UsageRow]) -> list[UsageRow]:
    """Insert the rows that are not there, and return them."""
    values = [_values(row) for row in rows]
    if connection.dialect.name == "postgresql":
        inserted = {found[0] for found in _rows.run(connection, values)}
        return rows if len(inserted) == len(rows) else [row for row in rows if row.id in inserted]
    savepoint = connection.begin_nested()
    try:
        _rows.run(connection, values)
    except IntegrityError:
        savepoint.rollback()
    else:
        savepoint.commit()
        return rows
    asked = select(usage.c.id).where(usage.c.id.in_([row.id for row in rows]))
    known = {found[0] for found in connection.execute(asked)}
    rows = [row for row in rows if row.id not in known]
    _rows.run(connection, [_values(row) for row in rows])
    return rows


def _values(row: UsageRow) -> Values:
    """Return a row's values in the order of the table's columns."""
    return (
        row.id,
        row.request_id,
        row.time,
        row.kind,
        row.key_id,
        row.key_hash,
        row.key_name,
        row.user_id,
        row.team_id,
        row.end_user,
        _json(row.tags).decode() if row.tags else "[]",
        _json(row.headers).decode() if row.headers else "{}",
        row.model,
        row.server,
        row.route,
        row.method,
        row.status,
        row.outcome,
        row.error,
        row.stream,
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
        row.reasoning_tokens,
        row.total_tokens,
        row.audio_ms,
        row.estimated,
        row.cost,
        _json(row.prices).decode() if row.prices else "{}",
        row.first_byte_us,
        row.total_us,
        row.bytes_in,
        row.bytes_out,
    )


def delete_before(connection: Connection, time: int, limit: int) -> int:
    """Delete the oldest rows that began before a time in microseconds, and return how many; the sums stay."""
    asked = select(usage.c.id, usage.c.time, usage.c.tags).where(usage.c.time < time).order_by(usage.c.time)
    found = connection.execute(asked.limit(limit).with_for_update(skip_locked=True)).all()
    for row in found:
        for tag in row.tags:
            own = (usage_tags.c.tag == tag, usage_tags.c.time == row.time, usage_tags.c.usage_id == row.id)
            connection.execute(delete(usage_tags).where(*own))
    connection.execute(delete(usage).where(usage.c.id.in_([row.id for row in found])))
    return len(found)
