"""Writes the ledger: rows, sums and spend in one transaction, each row once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from functools import lru_cache
from operator import attrgetter, itemgetter

import attrs
from sqlalchemy import Connection, Table, delete, select, tuple_, update

from twisted_vllm.ratelimit.allowance import PROXY
from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.tables import spend
from twisted_vllm.storage.usage.batch import Group, References, Sums, UsageBatch
from twisted_vllm.storage.usage.bulk_insert import BulkInsert, SparseInsert, Values
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    END_USER,
    KEY,
    MONTH,
    ORGANIZATION,
    TAG,
    TEAM,
    USER,
    RowKey,
    has_row_key,
    usage,
    usage_daily,
    usage_monthly,
    usage_request_tags,
    usage_totals,
)
from twisted_vllm.usage.interfaces import SpendUpdate
from twisted_vllm.usage.records import Payer, UsageRow

#: ``period_start(kind, id, time)`` returns when the budget period of a time began; both in Unix seconds
PeriodStart = Callable[[str, str, float], int]
#: who spends: kind and id
Scope = tuple[str, str]
#: ``also_pay(payers, model)`` returns whose budgets pay for a request of this model besides its payers
AlsoPay = Callable[[Iterable[Scope], str], Iterable[Scope]]

_MICROSECONDS = 1_000_000
#: how far the clocks of two processes may be apart, in seconds
_CLOCK_SKEW = 300.0
_EPOCH = date(1970, 1, 1)


def nobody_else(_payers: Iterable[Scope], _model: str) -> Iterable[Scope]:
    """Return nobody: the default of `AlsoPay`."""
    return ()


def _adding_insert(table: Table) -> BulkInsert:
    """Return an insert that adds to existing rows."""
    keys = ", ".join(f'"{column.name}"' for column in table.primary_key.columns)
    sums = ", ".join(
        f'{column.name} = "{table.name}".{column.name} + excluded.{column.name}'
        for column in table.columns
        if not column.primary_key
    )
    return BulkInsert(table, f"ON CONFLICT ({keys}) DO UPDATE SET {sums}")


# OR IGNORE and not ON CONFLICT: no error can end the statement half done, so SQLite need not save the pages it changes.
_insert_sqlite = SparseInsert(usage)
_insert_postgresql = BulkInsert(usage, postgresql_tail="ON CONFLICT (time, id) DO NOTHING RETURNING time, id")
_add_daily = _adding_insert(usage_daily)
_add_monthly = _adding_insert(usage_monthly)
_add_totals = _adding_insert(usage_totals)
_insert_request_tags = BulkInsert(usage_request_tags, "ON CONFLICT DO NOTHING")

_SPEND = spend.name
_add_spend = BulkInsert(
    spend,
    # A row of a newer period starts from zero. One of an older period is too late for it, and counts in the total.
    "ON CONFLICT (kind, id) DO UPDATE SET "
    f"spend = CASE WHEN excluded.period_start > {_SPEND}.period_start THEN excluded.spend "
    f"WHEN excluded.period_start = {_SPEND}.period_start THEN {_SPEND}.spend + excluded.spend ELSE {_SPEND}.spend END, "
    f"period_start = CASE WHEN excluded.period_start > {_SPEND}.period_start "
    f"THEN excluded.period_start ELSE {_SPEND}.period_start END, "
    f"total_spend = {_SPEND}.total_spend + excluded.total_spend "
    f"RETURNING {_SPEND}.kind, {_SPEND}.id, {_SPEND}.period_start, {_SPEND}.spend",
)

_id = attrgetter("id")
_key = itemgetter(0)


class RowsExist(Exception):
    """Some of the rows exist in SQLite. Roll back, and write again with ``check_existing``."""


def write(
    connection: Connection,
    rows: Sequence[UsageRow],
    period_start: PeriodStart,
    now: float,
    own: bool = True,
    references: References | None = None,
    *,
    check_existing: bool = False,
    also_pay: AlsoPay = nobody_else,
) -> list[SpendUpdate]:
    """Write rows in the connection's transaction. Idempotent: a stored row is skipped.

    Args:
        connection: in a transaction; on SQLite, one that holds the write lock.
        rows: of requests; each is identified by its time and id.
        period_start: when the budget period of a scope began.
        now: Unix seconds.
        own: whether this process served the requests.
        references: the payers and targets that are known to be stored; None for none.
        check_existing: on SQLite, whether to check first which rows exist.
        also_pay: who pays besides keys, users, teams, organizations and end users.

    Returns:
        The new spend of each scope that pays for the rows. The amounts are those of all `rows`, existing ones included:
        after the commit the database has them. They are 0 unless the rows are the process's own.

    Raises:
        RowsExist: on SQLite, some of the rows exist, and `check_existing` is false.
    """
    if not rows:
        return []
    references = References() if references is None else references
    if check_existing or connection.dialect.name != "sqlite":
        # otherwise SQLite's row count shows that one exists
        rows = _unique(rows)
    batch = UsageBatch(rows, references)
    references.write(connection)
    new = _insert_new(connection, rows, batch, references, check_existing)
    updates: dict[Scope, SpendUpdate] = {}
    if new is not None:
        _insert_request_tags.run(connection, new.request_tags)
        _write_sums(connection, new, references)
        updates = _write_spend(connection, _groups_by_scope(new, also_pay), period_start, now)
    if not own:
        return [attrs.evolve(each, amount=0) for each in updates.values()]
    if new is not batch:
        costs = {
            scope: sum(group.cost for group in groups) for scope, groups in _groups_by_scope(batch, also_pay).items()
        }
        for scope, (start, total) in _read_spend(connection, costs).items():
            updates[scope] = SpendUpdate(*scope, costs[scope], total, start)
    return list(updates.values())


def delete_before(connection: Connection, time: int, limit: int) -> int:
    """Delete the oldest rows of requests that began before a time in microseconds; return how many.

    Sums, payers and targets stay.
    """
    columns = (usage.c.time, usage.c.id, usage.c.request_tags)
    old = select(*columns).where(usage.c.time < time).order_by(usage.c.time, usage.c.id)
    found = connection.execute(old.limit(limit).with_for_update(skip_locked=True)).all()
    tagged = [(tag, row.time, row.id) for row in found for tag in row.request_tags or ()]
    for some in in_chunks(tagged):
        named = tuple_(usage_request_tags.c.tag, usage_request_tags.c.time, usage_request_tags.c.id).in_(some)
        # the tags say nothing more, but SQLite uses its index for them
        by_tag = usage_request_tags.c.tag.in_({tag for tag, _, _ in some})
        connection.execute(delete(usage_request_tags).where(by_tag, named))
    for chunk in in_chunks([(row.time, row.id) for row in found]):
        connection.execute(delete(usage).where(*has_row_key(chunk)))
    return len(found)


# rows


def _insert_new(
    connection: Connection,
    rows: Sequence[UsageRow],
    batch: UsageBatch,
    references: References,
    check_existing: bool,
) -> UsageBatch | None:
    """Insert the rows that do not exist yet, and return them; None if all exist."""
    if connection.dialect.name == "postgresql":
        inserted = _insert_postgresql.run(connection, list(zip(*batch.columns, strict=True)))
        if len(inserted) == len(rows):
            return batch
        existing = {(row.time, row.id) for row in rows} - {(time, id) for time, id in inserted}
    elif check_existing:
        existing = _existing(connection, rows)
    else:
        # Checking each row would cost time for each, and rows hardly ever exist.
        if _insert_sqlite.run(connection, batch.columns) < len(rows):
            raise RowsExist
        return batch
    new = [row for row in rows if (row.time, row.id) not in existing]
    if not new:
        return None
    batch = UsageBatch(new, references)
    if connection.dialect.name == "sqlite":
        _insert_sqlite.run(connection, batch.columns)
    return batch


def _unique(rows: Sequence[UsageRow]) -> Sequence[UsageRow]:
    """Return the rows without duplicates."""
    if len(set(map(_id, rows))) == len(rows):
        return rows
    return list({(row.time, row.id): row for row in rows}.values())


def _existing(connection: Connection, rows: Sequence[UsageRow]) -> set[RowKey]:
    """Return the keys of the existing rows."""
    found: set[RowKey] = set()
    for chunk in in_chunks([(row.time, row.id) for row in rows]):
        statement = select(usage.c.time, usage.c.id).where(*has_row_key(chunk))
        found.update((time, id) for time, id in connection.execute(statement))
    return found


# sums

#: sums to add up, by the key of the row that they belong to
_Addends = defaultdict[tuple[str, ...], list[Sums]]


def _write_sums(connection: Connection, batch: UsageBatch, references: References) -> None:
    """Add rows to the sums of their days and months. Sorted, so that all processes lock in the same order."""
    daily: _Addends = defaultdict(list)
    totals: _Addends = defaultdict(list)
    for payer, target, group in batch.by_payer:
        day, model, sums = _day(group.day), target.model, group.sums
        daily[day, payer.key_id, payer.user_id or "", payer.team_id or "", model].append(sums)
        if payer.organization_id:
            totals[ORGANIZATION, DAY, day, payer.organization_id, model].append(sums)
        for tag in dict.fromkeys(payer.tags):
            totals[TAG, DAY, day, tag, model].append(sums)
    for end_user, target, group in batch.by_end_user:
        totals[END_USER, DAY, _day(group.day), end_user, target.model].append(group.sums)
    for payer, tag, target, group in batch.by_request_tag:
        day = _day(group.day)
        named = references.daily_tags.name(connection, day, payer.key_id, tag)
        totals[TAG, DAY, day, named, target.model].append(group.sums)
    monthly: _Addends = defaultdict(list)
    for (day, key_id, user_id, team_id, model), added in daily.items():
        monthly[_month(day), key_id, user_id, team_id, model] += added
        totals[ALL, DAY, day, "", model] += added
        totals[USER, DAY, day, user_id, model] += added
        totals[TEAM, DAY, day, team_id, model] += added
    for (dimension, _, day, value, model), added in list(totals.items()):
        totals[dimension, MONTH, _month(day), value, model] += added
    _add_daily.run(connection, _added(daily))
    _add_monthly.run(connection, _added(monthly))
    _add_totals.run(connection, _added(totals))


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    """Return a day, given in days since 1970, in ISO 8601."""
    return (_EPOCH + timedelta(days=number)).isoformat()


def _month(day: str) -> str:
    """Return the first day of a day's month."""
    return f"{day[:-2]}01"


def _added(addends: _Addends) -> list[Values]:
    return [
        (*key, *(sums[0] if len(sums) == 1 else map(sum, zip(*sums, strict=True))))
        for key, sums in sorted(addends.items(), key=_key)
    ]


# spend


def _groups_by_scope(batch: UsageBatch, also_pay: AlsoPay) -> dict[Scope, list[Group]]:
    """Return the rows with a cost, by the scope that pays for them."""
    found: defaultdict[Scope, list[Group]] = defaultdict(list)
    for payer, target, group in batch.by_payer:
        if group.cost:
            payers = [(kind, id) for kind, id in _payers(payer) if id]
            for scope in (*payers, *also_pay(payers, target.model)):
                found[scope].append(group)
    for end_user, target, group in batch.by_end_user:
        if end_user and group.cost:
            payers = [(END_USER, end_user)]
            for scope in (*payers, *(each for each in also_pay(payers, target.model) if each[0] != PROXY)):
                found[scope].append(group)
    return found


def _payers(payer: Payer) -> tuple[tuple[str, str | None], ...]:
    return (
        (KEY, payer.key_id),
        (USER, payer.user_id),
        (TEAM, payer.team_id),
        (ORGANIZATION, payer.organization_id),
    )


def _write_spend(
    connection: Connection, groups: dict[Scope, list[Group]], period_start: PeriodStart, now: float
) -> dict[Scope, SpendUpdate]:
    """Add the cost of rows to the spend of each scope; return the new spend."""
    # Sorted, so that all processes lock in the same order.
    periods = {scope: _latest_period(scope, groups[scope], period_start) for scope in sorted(groups)}
    values: list[Values] = [
        (*scope, start * _MICROSECONDS, amount, cost) for scope, (start, amount, cost) in periods.items()
    ]
    updates: dict[Scope, SpendUpdate] = {}
    for kind, id, stored_us, total in _add_spend.run(connection, values):
        scope, stored = (kind, id), stored_us // _MICROSECONDS
        start, amount, cost = periods[scope]
        if stored > start and stored > period_start(kind, id, now + _CLOCK_SKEW):
            # No period begins in the future, so the stored one has a length that the budget had before.
            stored = max(start, period_start(kind, id, now))
            total += amount if stored == start else 0
            _set_spend(connection, scope, stored, total)
        updates[scope] = SpendUpdate(kind, id, cost, total, stored)
    return updates


def _latest_period(scope: Scope, groups: list[Group], period_start: PeriodStart) -> tuple[int, int, int]:
    """Return the start of the last period with rows, the rows' cost in that period, and their total cost."""
    cost = sum(group.cost for group in groups)
    start = period_start(*scope, max(group.last for group in groups) / _MICROSECONDS)
    start_us = start * _MICROSECONDS
    if start_us <= min(group.first for group in groups):
        return start, cost, cost
    return start, sum(group.cost_since(start_us) for group in groups), cost


def _set_spend(connection: Connection, scope: Scope, start: int, amount: int) -> None:
    statement = update(spend).where(spend.c.kind == scope[0], spend.c.id == scope[1])
    connection.execute(statement.values(period_start=start * _MICROSECONDS, spend=amount))


def _read_spend(connection: Connection, scopes: Iterable[Scope]) -> dict[Scope, tuple[int, int]]:
    """Return the start of each scope's period and the spend in it; scopes without spend are omitted."""
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for kind, id in scopes:
        ids[kind].append(id)
    columns = (spend.c.kind, spend.c.id, spend.c.period_start, spend.c.spend)
    found: dict[Scope, tuple[int, int]] = {}
    for kind, some in ids.items():
        statement = select(*columns).where(spend.c.kind == kind, spend.c.id.in_(some))
        for row in connection.execute(statement):
            found[row[0], row[1]] = (row[2] // _MICROSECONDS, row[3])
    return found
