"""What a batch of rows adds to what keys, users, teams and end users spent, each in its budget's period."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import Connection, select, update

from twisted_vllm.ledger.interfaces import Spent
from twisted_vllm.ledger.values import UsageRow
from twisted_vllm.store.bulk import BulkInsert, Values
from twisted_vllm.store.tables import spend

#: ``period_start(kind, id, time)``: when the period began that a time belongs to; both in Unix seconds
PeriodStart = Callable[[str, str, float], int]
Scope = tuple[str, str]

_MICROSECONDS = 1_000_000
#: how far the clocks of two processes may be apart, in seconds
_LEEWAY = 300.0

_T = spend.name
_insert = BulkInsert(
    spend,
    # A row of a newer period begins anew, one of an older period comes too late for it.
    "ON CONFLICT (kind, id) DO UPDATE SET "
    f"spend = CASE WHEN excluded.period_start > {_T}.period_start THEN excluded.spend "
    f"WHEN excluded.period_start = {_T}.period_start THEN {_T}.spend + excluded.spend ELSE {_T}.spend END, "
    f"period_start = CASE WHEN excluded.period_start > {_T}.period_start "
    f"THEN excluded.period_start ELSE {_T}.period_start END, "
    f"total_spend = {_T}.total_spend + excluded.total_spend "
    f"RETURNING {_T}.kind, {_T}.id, {_T}.period_start, {_T}.spend",
)


def by_scope(rows: Iterable[UsageRow]) -> dict[Scope, list[UsageRow]]:
    """Return the rows that cost something, for each scope that pays."""
    found: dict[Scope, list[UsageRow]] = {}
    for row in rows:
        if row.cost:
            scopes = (("key", row.key_id), ("user", row.user_id), ("team", row.team_id), ("end_user", row.end_user))
            for kind, name in scopes:
                if name:
                    found.setdefault((kind, name), []).append(row)
    return found


def write_spend(
    connection: Connection, rows: Sequence[UsageRow], period_start: PeriodStart, now: float
) -> dict[Scope, Spent]:
    """Add what rows cost, and return what each scope that pays has spent; the amounts are those of these rows."""
    paid = by_scope(rows)
    # sorted: every process takes the locks in this order
    latest = {scope: _latest_period(scope, paid[scope], period_start) for scope in sorted(paid)}
    values: list[Values] = [
        (*scope, start * _MICROSECONDS, amount, whole) for scope, (start, amount, whole) in latest.items()
    ]
    found: dict[Scope, Spent] = {}
    for kind, name, stored_us, total in _insert.run(connection, values):
        scope, stored = (kind, name), stored_us // _MICROSECONDS
        start, amount, whole = latest[scope]
        if stored > start and stored > period_start(kind, name, now + _LEEWAY):
            # No period begins in the future: the stored one is of another length, which the budget had before.
            stored = max(start, period_start(kind, name, now))
            total += amount if stored == start else 0
            _set(connection, scope, stored, total)
        found[scope] = Spent(kind, name, whole, total, stored)
    return found


def _latest_period(scope: Scope, rows: list[UsageRow], period_start: PeriodStart) -> tuple[int, int, int]:
    """Return the last period that there is, what was spent in it, and what was spent in all."""
    times = [row.time for row in rows]
    whole = sum([row.cost for row in rows])
    last = period_start(*scope, max(times) / _MICROSECONDS)
    if period_start(*scope, min(times) / _MICROSECONDS) == last:
        return last, whole, whole
    return last, sum([row.cost for row in rows if row.time >= last * _MICROSECONDS]), whole


def _set(connection: Connection, scope: Scope, start: int, amount: int) -> None:
    change = update(spend).where(spend.c.kind == scope[0], spend.c.id == scope[1])
    connection.execute(change.values(period_start=start * _MICROSECONDS, spend=amount))


def read_spend(connection: Connection, scopes: Iterable[Scope]) -> dict[Scope, tuple[int, int]]:
    """Return the period of each scope and what was spent in it; what never spent anything is not there."""
    asked: dict[str, list[str]] = {}
    for kind, name in scopes:
        asked.setdefault(kind, []).append(name)
    columns = (spend.c.kind, spend.c.id, spend.c.period_start, spend.c.spend)
    found: dict[Scope, tuple[int, int]] = {}
    for kind, names in asked.items():
        query = select(*columns).where(spend.c.kind == kind, spend.c.id.in_(names))
        for row in connection.execute(query):
            found[row[0], row[1]] = (row[2] // _MICROSECONDS, row[3])
    return found
