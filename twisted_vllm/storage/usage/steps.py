"""Writes what was gathered, in steps of a fixed order. Each step adds the same, whoever makes it from the same rows."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from operator import add
from typing import Protocol

from sqlalchemy import Connection, select, update

from twisted_vllm.storage.tables import spend
from twisted_vllm.storage.usage.accepted import Insert, insert_all
from twisted_vllm.storage.usage.bulk_insert import BulkInsert, Values
from twisted_vllm.storage.usage.gathered import (
    SHARDS,
    AlsoPay,
    DerivedSums,
    GatheredSpend,
    GatheredSums,
    NameSums,
    PayerSums,
    PeriodStart,
    Scope,
    Sums,
)
from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.tables import (
    ALL,
    DAY,
    END_USER,
    KINDS,
    MONTH,
    ORGANIZATION,
    OTHER,
    PAYER,
    STORED_SUMS,
    TAG,
    TEAM,
    USER,
    name_id,
    usage_sums,
)
from twisted_vllm.storage.usage.top_names import TopNames
from twisted_vllm.usage.days import date_of, number_of
from twisted_vllm.usage.interfaces import SpendUpdate

#: how many a step of the spend has: two whole statements of SQLite
_SPEND_OF_STEP = 512
#: names that are sorted at once
_SORTED_AT_ONCE = 4_000

#: ``has_budget(kind, id)`` returns whether somebody has a budget
HasBudget = Callable[[str, str], bool]

_MICROSECONDS = 1_000_000
#: how far the clocks of two processes may be apart, in seconds
_CLOCK_SKEW = 300.0
_REQUESTS = STORED_SUMS.index("requests")
#: of the advisory lock of PostgreSQL under which sums of end users and tags are written; a random number
_TOP_NAMES_LOCK = 0x5C0E_61A7_2B9D_4F03


class Steps(Protocol):
    """Something to write in steps, which have names and an order."""

    def after(self, done: str) -> Iterator[str]:
        """Return the names of the steps after one; all for an empty name."""

    def write(self, connection: Connection, step: str, insert: Insert) -> tuple[int, Iterable[SpendUpdate]]:
        """Make a step; return how many rows it wrote, and the new spend of those whose spend it changed.

        Args:
            connection: in the transaction that moves the mark.
            step: which step.
            insert: inserts rows, all of them or those that the database accepts.
        """

    def written(self, connection: Connection, step: str) -> Iterable[SpendUpdate]:
        """Return the new spend of those whose spend a step changed that was committed already."""


def _adding_insert() -> BulkInsert:
    """Return an insert that adds to existing rows of the sums."""
    keys = ", ".join(f'"{column.name}"' for column in usage_sums.primary_key.columns)
    sums = ", ".join(f'"{name}" = "{usage_sums.name}"."{name}" + excluded."{name}"' for name in STORED_SUMS)
    return BulkInsert(usage_sums, f"ON CONFLICT ({keys}) DO UPDATE SET {sums}")


_add_sums = _adding_insert()

#: Dimensions in the order in which their shards are written. The numbers of the steps are in the database, as names: a
#: further dimension comes last.
_DIMENSIONS = (ALL, PAYER, USER, TEAM, ORGANIZATION, END_USER, TAG)


class SumsSteps:
    """Adds to the sums, in the order of dimensions, and shards of each. A step's name is its number."""

    def __init__(self, gathered: GatheredSums, references: References, end_users: TopNames, tags: TopNames) -> None:
        """Prepare.

        Args:
            gathered: what to add; nothing is gathered in it any more.
            references: stores the names.
            end_users: decides which end users have sums of their own.
            tags: likewise which tags.
        """
        self._gathered = gathered
        self._references = references
        self._top = {END_USER: end_users, TAG: tags}
        self._derived = DerivedSums(gathered)
        #: sums of names that clients gave
        self._given = {END_USER: gathered.end_users, TAG: gathered.tags}
        self._numbers = [number for number in range(len(_DIMENSIONS) * SHARDS) if self._has(number)]

    def after(self, done: str) -> Iterator[str]:
        """Return the names of the steps after one."""
        first = int(done) + 1 if done else 0
        return (str(number) for number in self._numbers if number >= first)

    def write(
        self, connection: Connection, step: str, insert: Insert = insert_all
    ) -> tuple[int, Iterable[SpendUpdate]]:
        """Make a step.

        Raises:
            SQLAlchemyError, UnicodeError, OverflowError: as `BulkInsert.run`.
        """
        dimension, shard = self._place(int(step))
        sums = self._sums(dimension)[shard]
        if dimension == ALL:
            self._references.write_names(connection, self._gathered.models.values(), insert)
        elif dimension != PAYER:
            names = self._derived.names
            self._references.write_names(connection, {names[value] for _, value, _ in sums}, insert)
        values = _by_period(dimension, sums.items())
        if dimension in self._given:
            values += self._named(connection, dimension, self._given[dimension][shard], insert)
        insert(_add_sums, connection, _sorted(values))
        return len(values), ()

    @staticmethod
    def _place(number: int) -> tuple[str, int]:
        """Return the dimension and the shard of a step."""
        index, shard = divmod(number, SHARDS)
        return _DIMENSIONS[index], shard

    def _sums(self, dimension: str) -> list[PayerSums]:
        return self._gathered.payers if dimension == PAYER else self._derived.sums[dimension]

    def _has(self, number: int) -> bool:
        """Return whether a step has anything to write."""
        dimension, shard = self._place(number)
        return bool(self._sums(dimension)[shard]) or (dimension in self._given and bool(self._given[dimension][shard]))

    def written(self, connection: Connection, step: str) -> Iterable[SpendUpdate]:
        """Return nothing: sums are nobody's spend."""
        return ()

    def _named(self, connection: Connection, dimension: str, named: NameSums, insert: Insert) -> list[Values]:
        """Return the sums of names that clients gave, in their own row or in that of `OTHER`."""
        if not named:
            return []
        if connection.dialect.name == "postgresql":
            # All shards may change the row of `OTHER`, so their order does not exclude deadlocks.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_TOP_NAMES_LOCK})")
        found: list[Values] = []
        for period in (DAY, MONTH):
            kind = KINDS[dimension, period]
            weights: defaultdict[int, dict[str, tuple[str, int]]] = defaultdict(dict)
            for (day, name, _), each in named.items():
                start = day if period == DAY else _month(day)
                _, weight = weights[start].get(name, ("", 0))
                weights[start][name] = (each.key_id, weight + each.sums[_REQUESTS])
            top = self._top[dimension]
            own = {
                start: top.own(connection, kind, start, names, lambda rows: insert(_add_sums, connection, rows))
                for start, names in weights.items()
            }
            for (day, name, model), each in named.items():
                start = day if period == DAY else _month(day)
                value = name if name in own[start] else OTHER
                found.append((kind, start, name_id(value), model, *each.sums))
            names = {name for some in own.values() for name in some}
            self._references.write_names(connection, {OTHER, *names}, insert)
        return found


def _by_period(dimension: str, sums: Iterable[tuple[tuple[int, int, int], Sums]]) -> list[Values]:
    """Return sums of days as rows of the table: by day and by month, as far as they are kept."""
    found: list[Values] = []
    by_day, by_month = KINDS.get((dimension, DAY)), KINDS[dimension, MONTH]
    for (day, value, model), each in sums:
        if by_day is not None:
            found.append((by_day, day, value, model, *each))
        found.append((by_month, _month(day), value, model, *each))
    return found


def _sorted(values: Sequence[Values]) -> list[Values]:
    """Return rows in the order of the table, those with one key added up."""
    found: dict[Values, Values] = {}
    for row in values:
        key, sums = row[:4], row[4:]
        former = found.get(key)
        found[key] = sums if former is None else tuple(map(add, former, sums))
    # Sorted, so that all processes lock in the same order, and pages are changed one after the other.
    return [(*key, *found[key]) for key in sorted(found)]  # type: ignore[type-var]


@lru_cache(maxsize=64)
def _month(day: int) -> int:
    """Return the first day of a day's month; both in days since 1970."""
    return number_of(date_of(day).replace(day=1))


# spend

_SPEND = spend.name
_ADD_SPEND = (
    # A row of a newer period starts from zero. One of an older period is too late for it, and counts in the total.
    "ON CONFLICT (kind, id) DO UPDATE SET "
    f"spend = CASE WHEN excluded.period_start > {_SPEND}.period_start THEN excluded.spend "
    f"WHEN excluded.period_start = {_SPEND}.period_start THEN {_SPEND}.spend + excluded.spend ELSE {_SPEND}.spend END, "
    f"period_start = CASE WHEN excluded.period_start > {_SPEND}.period_start "
    f"THEN excluded.period_start ELSE {_SPEND}.period_start END, "
    f"total_spend = {_SPEND}.total_spend + excluded.total_spend"
)
_add_spend = BulkInsert(spend, _ADD_SPEND)
_add_and_tell_spend = BulkInsert(
    spend, f"{_ADD_SPEND} RETURNING {_SPEND}.kind, {_SPEND}.id, {_SPEND}.period_start, {_SPEND}.spend"
)


class SpendSteps:
    """Adds the cost of rows to the spend of those who pay, in the order of the table.

    A step has some of them; its name is the last one's kind and id.
    """

    def __init__(
        self,
        gathered: GatheredSpend,
        also_pay: AlsoPay,
        period_start: PeriodStart,
        has_budget: HasBudget,
        now: float,
    ) -> None:
        """Prepare.

        Args:
            gathered: what to add; nothing is gathered in it any more.
            also_pay: who pays besides keys, users, teams, organizations and end users.
            period_start: when the budget period of a scope began.
            has_budget: whether anybody waits for the new spend of a scope.
            now: Unix seconds.
        """
        self._has_budget = has_budget
        self._spent = gathered.by_scope(also_pay, period_start)
        gathered.forget()
        self._scopes = in_table_order(self._spent)
        #: where the scopes of a step begin and end, by its name
        self._steps: dict[str, tuple[int, int]] = {}
        self._period_start = period_start
        self._now = now

    def after(self, done: str) -> Iterator[str]:
        """Return the names of the steps after one."""
        start, count = bisect_right(self._scopes, _scope_of(done)) if done else 0, len(self._scopes)
        while start < count:
            end = min(start + _SPEND_OF_STEP, count)
            name = _name_of(self._scopes[end - 1])
            self._steps[name] = (start, end)
            yield name
            start = end

    def write(
        self, connection: Connection, step: str, insert: Insert = insert_all
    ) -> tuple[int, Iterable[SpendUpdate]]:
        """Make a step. The updates are those of who has a budget; their amounts are what was added to the period.

        Raises:
            SQLAlchemyError, UnicodeError, OverflowError: as `BulkInsert.run`.
        """
        told: list[Values] = []
        untold: list[Values] = []
        scopes = self._in(step)
        for scope in scopes:
            start, amount, cost = self._spent[scope]
            values = (*scope, start * _MICROSECONDS, amount, cost)
            (told if self._has_budget(*scope) else untold).append(values)
        insert(_add_spend, connection, untold)
        updates: list[SpendUpdate] = []
        for kind, id, stored_us, total in insert(_add_and_tell_spend, connection, told):
            stored, (start, amount, _) = stored_us // _MICROSECONDS, self._spent[kind, id]
            if stored > start and stored > self._period_start(kind, id, self._now + _CLOCK_SKEW):
                # No period begins in the future, so the stored one has a length that the budget had before.
                stored = max(start, self._period_start(kind, id, self._now))
                total += amount if stored == start else 0
                _set_spend(connection, (kind, id), stored, total)
            updates.append(SpendUpdate(kind, id, amount if stored == start else 0, total, stored))
        return len(scopes), updates

    def written(self, connection: Connection, step: str) -> list[SpendUpdate]:
        """Return what `write` returned for a step that was committed already."""
        scopes = [scope for scope in self._in(step) if self._has_budget(*scope)]
        found = read_spend(connection, scopes)
        # Those that were deleted meanwhile have no spend.
        updates = []
        for scope in scopes:
            start, amount, _ = self._spent[scope]
            stored, total = found.get(scope, (start, 0))
            updates.append(SpendUpdate(*scope, amount if stored == start else 0, total, stored))
        return updates

    def _in(self, step: str) -> list[Scope]:
        """Return whose spend a step changes."""
        start, end = self._steps[step]
        return self._scopes[start:end]


def in_table_order(scopes: Iterable[Scope]) -> list[Scope]:
    """Return scopes sorted, so that all processes lock in the same order, and pages are changed one after the other.

    To sort 30,000 at once holds the interpreter's lock for 30 ms. In parts, no step takes more than 2 ms.
    """
    ids: dict[str, list[str]] = {}
    for kind, id in scopes:
        ids.setdefault(kind, []).append(id)
    found: list[Scope] = []
    for kind in sorted(ids):
        names = ids[kind]
        runs: list[str] = []
        for start in range(0, len(names), _SORTED_AT_ONCE):
            runs += sorted(names[start : start + _SORTED_AT_ONCE])
        # Few long runs are merged.
        runs.sort()
        found += [(kind, id) for id in runs]
    return found


def _name_of(scope: Scope) -> str:
    return f"{scope[0]} {scope[1]}"


def _scope_of(name: str) -> Scope:
    kind, _, id = name.partition(" ")
    return kind, id


def _set_spend(connection: Connection, scope: Scope, start: int, amount: int) -> None:
    statement = update(spend).where(spend.c.kind == scope[0], spend.c.id == scope[1])
    connection.execute(statement.values(period_start=start * _MICROSECONDS, spend=amount))


def read_spend(connection: Connection, scopes: Iterable[Scope]) -> dict[Scope, tuple[int, int]]:
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
