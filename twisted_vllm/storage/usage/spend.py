"""What a batch of rows adds to what keys, users, teams and end users spent, each in its budget's period."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from sqlalchemy import Connection, select, update

from twisted_vllm.storage.tables import spend
from twisted_vllm.storage.usage.batch import Group, UsageBatch
from twisted_vllm.storage.usage.bulk_insert import BulkInsert, Values
from twisted_vllm.storage.usage.tables import END_USER, KEY, TEAM, USER
from twisted_vllm.usage.interfaces import Spent

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


def by_scope(batch: UsageBatch) -> dict[Scope, list[Group]]:
    """Return the groups of rows that cost something, for each scope that pays."""
    found: defaultdict[Scope, list[Group]] = defaultdict(list)
    for payer, _, group in batch.paid:
        if group.cost:
            for kind, name in ((KEY, payer.key_id), (USER, payer.user_id), (TEAM, payer.team_id)):
                if name:
                    found[kind, name].append(group)
    for end_user, _, group in batch.asked:
        if end_user and group.cost:
            found[END_USER, end_user].append(group)
    return found


def write_spend(connection: Connection, batch: UsageBatch, period_start: PeriodStart, now: float) -> dict[Scope, Spent]:
    """Add what rows cost, and return what each scope that pays has spent; the amounts are those of these rows."""
    paid = by_scope(batch)
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


def _latest_period(scope: Scope, groups: list[Group], period_start: PeriodStart) -> tuple[int, int, int]:
    """Return the last period that there is, what was spent in it, and what was spent in all."""
    whole = cost_of(groups)
    last = period_start(*scope, max([group.last for group in groups]) / _MICROSECONDS)
    start = last * _MICROSECONDS
    if start <= min([group.first for group in groups]):
        return last, whole, whole
    return last, sum([group.cost_since(start) for group in groups]), whole


def cost_of(groups: Iterable[Group]) -> int:
    """Return what rows cost together, in picodollars."""
    return sum([group.cost for group in groups])


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
