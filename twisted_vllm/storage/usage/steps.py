"""Writes what was gathered, in steps of a fixed order. Each step adds the same, whoever makes it from the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
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
    PeriodStart,
    Scope,
    Spent,
    Sums,
    derive,
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
from twisted_vllm.usage.interfaces import SpendUpdate

_MICROSECONDS = 1_000_000
#: how far the clocks of two processes may be apart, in seconds
_CLOCK_SKEW = 300.0
_EPOCH = date(1970, 1, 1).toordinal()
_REQUESTS = STORED_SUMS.index("requests")
#: of the advisory lock of PostgreSQL under which sums of end users and tags are written; a random number
_TOP_NAMES_LOCK = 0x5C0E_61A7_2B9D_4F03


class Steps(Protocol):
    """Something to write in steps.

    Attributes:
        count: how many steps there are.
    """

    count: int

    def write(self, connection: Connection, number: int, insert: Insert) -> tuple[int, Iterable[SpendUpdate]]:
        """Make a step; return how many rows it wrote, and the new spend of those whose spend it changed.

        Args:
            connection: in the transaction that moves the mark.
            number: which step.
            insert: inserts rows, all of them or those that the database accepts.
        """

    def written(self, connection: Connection, number: int) -> Iterable[SpendUpdate]:
        """Return the new spend of those whose spend a step changed that was committed already."""


def _adding_insert() -> BulkInsert:
    """Return an insert that adds to existing rows of the sums."""
    keys = ", ".join(f'"{column.name}"' for column in usage_sums.primary_key.columns)
    sums = ", ".join(f'"{name}" = "{usage_sums.name}"."{name}" + excluded."{name}"' for name in STORED_SUMS)
    return BulkInsert(usage_sums, f"ON CONFLICT ({keys}) DO UPDATE SET {sums}")


_add_sums = _adding_insert()

#: Dimensions in the order in which their shards are written. The numbers of the steps are in the database: a further
#: dimension comes last.
_DIMENSIONS = (ALL, PAYER, USER, TEAM, ORGANIZATION, END_USER, TAG)


class SumsSteps:
    """Adds to the sums, in the order of dimensions, and shards of each."""

    count = len(_DIMENSIONS) * SHARDS

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
        self._derived: DerivedSums = derive(gathered)

    def write(
        self, connection: Connection, number: int, insert: Insert = insert_all
    ) -> tuple[int, Iterable[SpendUpdate]]:
        """Make a step.

        Raises:
            SQLAlchemyError, UnicodeError, OverflowError: as `BulkInsert.run`.
        """
        index, shard = divmod(number, SHARDS)
        dimension = _DIMENSIONS[index]
        derived = self._derived
        models = self._gathered.models
        if dimension == PAYER:
            values = _by_period(dimension, self._gathered.payers[shard].items())
        elif dimension == ALL:
            self._references.write_names(connection, models.values() if not shard else (), insert)
            values = _by_period(dimension, _by_value(derived.all) if not shard else ())
        elif dimension == END_USER:
            values = self._named(connection, dimension, self._gathered.end_users[shard], insert)
            if not shard:
                values += _by_period(dimension, _by_value(derived.no_end_user))
        else:
            shards = {
                USER: derived.users,
                TEAM: derived.teams,
                ORGANIZATION: derived.organizations,
                TAG: derived.tags,
            }[dimension]
            self._references.write_names(connection, {name for _, name, _ in shards[shard]}, insert)
            values = _by_period(dimension, _by_value(shards[shard]))
            if dimension == TAG:
                values += self._named(connection, dimension, self._gathered.tags[shard], insert)
        insert(_add_sums, connection, _sorted(values))
        return len(values), ()

    def written(self, connection: Connection, number: int) -> Iterable[SpendUpdate]:
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


def _by_value(sums: Mapping[tuple[int, str, int], Sums]) -> Iterator[tuple[tuple[int, int, int], Sums]]:
    return (((day, name_id(name), model), each) for (day, name, model), each in sums.items())


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
    return date.fromordinal(day + _EPOCH).replace(day=1).toordinal() - _EPOCH


# spend

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


class SpendSteps:
    """Adds the cost of rows to the spend of those who pay, shard by shard."""

    count = SHARDS

    def __init__(self, gathered: GatheredSpend, also_pay: AlsoPay, period_start: PeriodStart, now: float) -> None:
        """Prepare.

        Args:
            gathered: what to add; nothing is gathered in it any more.
            also_pay: who pays besides keys, users, teams, organizations and end users.
            period_start: when the budget period of a scope began.
            now: Unix seconds.
        """
        self._shards = gathered.by_scope(also_pay, period_start)
        self._period_start = period_start
        self._now = now

    def write(
        self, connection: Connection, number: int, insert: Insert = insert_all
    ) -> tuple[int, Iterable[SpendUpdate]]:
        """Make a step; the amounts of the updates are the costs that were added.

        Raises:
            SQLAlchemyError, UnicodeError, OverflowError: as `BulkInsert.run`.
        """
        shard = self._shards[number]
        # Sorted, so that all processes lock in the same order.
        values: list[Values] = [
            (*scope, spent.start * _MICROSECONDS, spent.amount, spent.cost) for scope, spent in sorted(shard.items())
        ]
        updates: list[SpendUpdate] = []
        for kind, id, stored_us, total in insert(_add_spend, connection, values):
            stored, spent = stored_us // _MICROSECONDS, shard[kind, id]
            start = spent.start
            if stored > start and stored > self._period_start(kind, id, self._now + _CLOCK_SKEW):
                # No period begins in the future, so the stored one has a length that the budget had before.
                stored = max(start, self._period_start(kind, id, self._now))
                total += spent.amount if stored == start else 0
                _set_spend(connection, (kind, id), stored, total)
            updates.append(SpendUpdate(kind, id, spent.cost, total, stored))
        return len(values), updates

    def written(self, connection: Connection, number: int) -> list[SpendUpdate]:
        """Return what `write` returned for a step that was committed already."""
        shard = self._shards[number]
        found = read_spend(connection, shard)
        # Those that were deleted meanwhile have no spend.
        stored = {scope: found.get(scope, (spent.start, 0)) for scope, spent in shard.items()}
        return [SpendUpdate(*scope, shard[scope].cost, total, start) for scope, (start, total) in stored.items()]


def _set_spend(connection: Connection, scope: Scope, start: int, amount: int) -> None:
    statement = update(spend).where(spend.c.kind == scope[0], spend.c.id == scope[1])
    connection.execute(statement.values(period_start=start * _MICROSECONDS, spend=amount))


def read_spend(connection: Connection, scopes: Mapping[Scope, Spent]) -> dict[Scope, tuple[int, int]]:
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
