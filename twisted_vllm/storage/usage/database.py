"""The ledger's connections to the database, for the thread that writes the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from typing import Any, TypeVar

import attrs
from sqlalchemy import Connection, event, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from twisted.logger import Logger
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline, WorkStopped
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.sqlite_file import check_file, watch_file
from twisted_vllm.storage.usage.accepted import is_broken_deadlock, is_rejection
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.bulk_insert import Values
from twisted_vllm.storage.usage.gathered import AlsoPay, PeriodStart, nobody_else
from twisted_vllm.storage.usage.known_partitions import Periods
from twisted_vllm.storage.usage.partitions import UNQUALIFIED
from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.retention import HeldFrom, drop_partitions, nothing_held
from twisted_vllm.storage.usage.row_store import make_row_store, use_pragmas
from twisted_vllm.storage.usage.spool_accounts import Accounting, JointAccounts, SpoolAccounts
from twisted_vllm.storage.usage.steps import HasBudget, SpendSteps, SumsSteps, read_spend
from twisted_vllm.storage.usage.tables import name_id, usage_payer_tags
from twisted_vllm.storage.usage.top_names import MAX_NAMES, TopNames
from twisted_vllm.usage.interfaces import BEGINNING, DatabaseUnavailable, IUsageStore, Position, RowsRejected
from twisted_vllm.usage.records import MAX_TEXT, UsageRow

T = TypeVar("T")

#: Seconds for one transaction in PostgreSQL. The writer's batches take a tenth of one.
_SECONDS = 8.0

#: the largest number of a row: a hundred of them can be added up
_MOST = 2**56
#: how often a transaction is tried that a deadlock breaks
_ATTEMPTS = 4


@implementer(IUsageStore)
class UsageDatabase:
    """An :class:`IUsageStore` on a SQLite or PostgreSQL database that is migrated already.

    Attributes:
        single_writer: whether only one writer can write at a time.
    """

    _log = Logger()

    def __init__(
        self,
        url: Secret,
        period_start: PeriodStart,
        now: Callable[[], float] = time.time,
        also_pay: AlsoPay = nobody_else,
        *,
        has_budget: HasBudget = lambda _kind, _id: True,
        monotonic: Callable[[], float] = time.monotonic,
        top_end_users: int = MAX_NAMES,
        top_tags: int = MAX_NAMES,
        periods: Periods | None = None,
        held_from: HeldFrom = nothing_held,
    ) -> None:
        """Set up; it connects on first use.

        Args:
            url: an SQLAlchemy URL, ``sqlite:///FILE`` or ``postgresql://…``.
            period_start: when the budget period of a scope began; called in the writer's thread.
            now: Unix seconds.
            also_pay: whose budgets pay besides those of the payers; called in the writer's thread.
            has_budget: whether somebody has a budget, so that its new spend is told; called in the writer's thread.
            monotonic: a clock, in seconds.
            top_end_users: how many end users have sums of their own in a day, and in a month.
            top_tags: likewise tags.
            periods: which partitions are made; None for months.
            held_from: from when on rows must be kept, however old they are; called in the writer's thread.

        Raises:
            StoreError: the URL cannot be used.
        """
        self._url = url
        self._engine: Engine = make_engine(parse_url(url), connections=1)
        watch_file(self._engine)
        self.single_writer = self._engine.dialect.name == "sqlite"
        if self.single_writer:
            use_pragmas(self._engine)
        self._references = References()
        self._end_users, self._tags = TopNames(top_end_users), TopNames(top_tags, _payer_tags)
        self._periods = periods or Periods(now=now)
        self._held_from = held_from
        self._rows = make_row_store(self._engine, self._periods, _SECONDS)
        self._accounting = Accounting(
            transact=self.transact,
            write_lookups=self._write_lookups,
            spend_steps=lambda gathered: SpendSteps(gathered, also_pay, period_start, has_budget, now()),
            sums_steps=lambda gathered: SumsSteps(gathered, self._references, self._end_users, self._tags),
            monotonic=monotonic,
        )
        self._was_restored = False
        self._connected_times = 0
        event.listen(self._engine, "connect", self._connected)

    def __repr__(self) -> str:
        return "<UsageDatabase>"

    def reconfigure(self, top_end_users: int, top_tags: int) -> None:
        """Use other settings from now on; the arguments are the constructor's."""
        self._end_users.most, self._tags.most = top_end_users, top_tags

    def _connected(self, _connection: Any, _record: object) -> None:
        # Another server, or another file, may lack references that the former one had.
        self._connected_times += 1
        self._forget()

    def _forget(self) -> None:
        # A transaction that failed may have made a partition.
        self._rows.forget(())
        self._references.forget()
        self._end_users.forget()
        self._tags.forget()

    # rows

    def write(self, rows: Sequence[UsageRow]) -> UsageBatch:
        """Store rows. Idempotent: a stored row is skipped.

        Raises:
            DatabaseUnavailable: nothing was stored, or the result is unknown; the same rows may be written again.
            RowsRejected: nothing was stored.
        """

        def work() -> UsageBatch:
            while True:
                connected = self._connected_times
                batch = UsageBatch.of(rows, self._references)
                _check(batch)
                self._rows.write(batch.columns, batch.times, self._references)
                if connected == self._connected_times:
                    break
                # It connected anew in between, and forgot what the rows refer to. Writing is idempotent.
            # what is kept until the sums are written
            return attrs.evolve(batch, columns=())

        self._references.trim()
        return self._guarded(work)

    def drop_before(self, time: int) -> int:
        """Drop the partitions whose rows are all of requests that began before a time in microseconds; return how many.

        Prompts and answers of such requests go as well.

        Raises:
            DatabaseUnavailable: some may be left, for the next call.
        """

        # once an hour, and only where rows are not kept for ever
        from twisted_vllm.storage.request_contents import trim_contents

        def work() -> list[str]:
            self._rows.forget_dropped()
            names = drop_partitions(self._engine, time, self._held_from, int(self._periods.now() * 1e6))
            self._rows.forget(names)
            # Nobody finds them without the rows, also where nothing is kept any more.
            trim_contents(self._engine, time, None, _SECONDS)
            return names

        names = self._guarded(work)
        if names:
            self._log.info(
                "Rows of the ledger that are older than usage_retention were dropped: {names}", names=", ".join(names)
            )
        return len(names)

    def missing(self, rows: Sequence[UsageRow]) -> list[UsageRow]:
        """Return the rows that are not stored, each once.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        unique = {(row.time, row.id): row for row in rows}
        try:
            existing = self._guarded(lambda: self._rows.existing(list(unique)))
        except RowsRejected:
            # A time that no database can store: look for one after the other.
            return list(rows) if len(unique) == 1 else [each for row in unique.values() for each in self.missing([row])]
        return [row for key, row in unique.items() if key not in existing]

    def open_accounts(self, name: str, *, own: bool, told_to: Position = BEGINNING) -> SpoolAccounts:
        """Return the accounts of a spool, from where the database is; see `IUsageStore`.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        return SpoolAccounts(name, told_to if own else None, self._accounting)

    def open_joint_accounts(self) -> JointAccounts:
        """Return accounts of several spools; see `IUsageStore`."""
        return JointAccounts(self._accounting)

    def spend_of(self, scopes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
        """Return the start of the period of some who spend, and the spend in it; see `IUsageStore`.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        return self.transact(lambda connection: read_spend(connection, scopes), writes=False)

    # connections

    def forget_references(self) -> None:
        """Assume from the next transaction on that no reference is stored: the database may have been restored.

        Any thread may call it.
        """
        self._was_restored = True

    def close(self) -> None:
        """Close the connections."""
        self._rows.close()
        self._engine.dispose()

    def _write_lookups(self, lookups: Sequence[Values]) -> None:
        self._guarded(lambda: self._rows.write_lookups(lookups))

    def transact(self, work: Callable[[Connection], T], writes: bool) -> T:
        """Do work in one transaction of the main database.

        Raises:
            DatabaseUnavailable: nothing was changed, or the result is unknown.
            RowsRejected, MarkMoved: nothing was changed.
        """

        def transaction() -> T:
            # SQLite would take the interpreter's lock to look at a deadline, and hold its own lock meanwhile.
            deadline = None if self.single_writer else Deadline(_SECONDS)
            with begin(self._engine, deadline, writes=writes) as connection:
                result = work(connection.execution_options(**UNQUALIFIED))
            # The caller deletes what was stored from the spool.
            check_file(self._engine)
            return result

        return self._guarded(transaction)

    def _guarded(self, work: Callable[[], T]) -> T:
        """Do work in transactions, again if a deadlock broke it; raise what its errors mean, without their secrets."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._once(work)
            except _DeadlockBroken:
                # Whoever it waited for goes on.
                continue
        return self._once(work)

    def _once(self, work: Callable[[], T]) -> T:
        if self._was_restored:
            self._was_restored = False
            self._forget()
        try:
            return work()
        except BaseException as error:
            # The transaction was rolled back.
            self._forget()
            problem = self._problem_of(error)
            if problem is None:
                raise
        # Outside the except block, so that the driver's error, which may show secrets, is not the context.
        raise problem

    def _problem_of(self, error: BaseException) -> RowsRejected | DatabaseUnavailable | None:
        if isinstance(error, WorkStopped):
            return DatabaseUnavailable(f"a batch took longer than {_SECONDS:g} s")
        if isinstance(error, StoreError):
            return DatabaseUnavailable(str(error))
        if isinstance(error, OSError):
            return DatabaseUnavailable(": ".join(str(each) for each in (error.filename, error.strerror) if each))
        if isinstance(error, SQLAlchemyError):
            reason = reason_of(error, self._url)
            if is_broken_deadlock(error):
                return _DeadlockBroken(reason)
            return RowsRejected(reason) if is_rejection(error) else DatabaseUnavailable(reason)
        if isinstance(error, Exception) and is_rejection(error):
            return RowsRejected(type(error).__name__)
        return None


def _check(batch: UsageBatch) -> None:
    """Refuse rows that have a place of their own, and whose sums or spend have none.

    Raises:
        OverflowError: a number adds up to more than a column holds, or a name is longer than an index takes.
    """
    if any(max(column) > _MOST or min(column) < -_MOST for column in batch.measures):
        raise OverflowError
    if any(batch.end_users) and max(len(name) for name in batch.end_users if name) > MAX_TEXT:
        raise OverflowError


class _DeadlockBroken(DatabaseUnavailable):
    """The transaction was rolled back because two waited for each other."""


def _payer_tags(connection: Connection) -> Set[int]:
    """Return the ids of the tags of keys: administrators choose them, so they are few."""
    return {name_id(tag) for tag in connection.scalars(select(usage_payer_tags.c.tag).distinct())}
