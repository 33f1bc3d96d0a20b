"""The ledger's connections to the database, for the thread that writes the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from twisted.logger import Logger
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline, WorkStopped
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.sqlite_file import check_file, watch_file
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.bulk_insert import Values
from twisted_vllm.storage.usage.gathered import AlsoPay, PeriodStart, nobody_else
from twisted_vllm.storage.usage.known_partitions import Periods
from twisted_vllm.storage.usage.marks import MarkMoved
from twisted_vllm.storage.usage.partitions import UNQUALIFIED
from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.retention import HeldFrom, drop_partitions, nothing_held
from twisted_vllm.storage.usage.row_store import make_row_store, use_pragmas
from twisted_vllm.storage.usage.spool_accounts import Accounting, SpoolAccounts
from twisted_vllm.storage.usage.steps import HasBudget, SpendSteps, SumsSteps
from twisted_vllm.storage.usage.top_names import MAX_NAMES, TopNames
from twisted_vllm.usage.interfaces import (
    DatabaseUnavailable,
    HistoryChanged,
    IUsageStore,
    RowsRejected,
)
from twisted_vllm.usage.records import UsageRow

T = TypeVar("T")

#: Seconds for one transaction in PostgreSQL. The writer's batches take a tenth of one.
_SECONDS = 8.0

#: PostgreSQL's class of errors for what exceeds the size of an index entry or a row
_PROGRAM_LIMIT_EXCEEDED = "54"


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
        self._monotonic = monotonic
        self._engine: Engine = make_engine(parse_url(url), connections=1)
        watch_file(self._engine)
        self.single_writer = self._engine.dialect.name == "sqlite"
        if self.single_writer:
            use_pragmas(self._engine)
        self._references = References()
        self._end_users, self._tags = TopNames(top_end_users), TopNames(top_tags)
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
        self._references.forget()
        self._end_users.forget()
        self._tags.forget()

    # rows

    def write(self, rows: Sequence[UsageRow], *, only_new: bool = False) -> UsageBatch | None:
        """Store rows. Idempotent: a stored row is skipped.

        Raises:
            DatabaseUnavailable: nothing was stored, or the result is unknown; the same rows may be written again.
            RowsRejected: nothing was stored.
        """

        def work() -> UsageBatch | None:
            unique = list({(row.time, row.id): row for row in rows}.values()) if only_new else rows
            if only_new:
                existing = self._rows.existing([(row.time, row.id) for row in unique])
                unique = [row for row in unique if (row.time, row.id) not in existing]
            if not unique:
                return None
            while True:
                connected = self._connected_times
                batch = UsageBatch.of(unique, self._references)
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

        Raises:
            DatabaseUnavailable: some may be left, for the next call.
        """

        def work() -> list[str]:
            self._rows.forget_dropped()
            names = drop_partitions(self._engine, time, self._held_from, int(self._periods.now() * 1e6))
            self._rows.forget(names)
            return names

        names = self._guarded(work)
        if names:
            self._log.info(
                "Rows of the ledger that are older than usage_retention were dropped: {names}", names=", ".join(names)
            )
        return len(names)

    def open_accounts(self, name: str, *, own: bool) -> SpoolAccounts:
        """Return the accounts of a spool, from where the database is.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        return SpoolAccounts(name, own, self._accounting, self._monotonic())

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
            RowsRejected, HistoryChanged: nothing was changed.
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
        """Do work in transactions; raise what its errors mean, without their secrets."""
        if self._was_restored:
            self._was_restored = False
            self._forget()
        try:
            return work()
        except MarkMoved:
            self._forget()
            raise HistoryChanged("its marks are others than this process made") from None
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
            return RowsRejected(reason) if _is_rejection(error) else DatabaseUnavailable(reason)
        if isinstance(error, (OverflowError, UnicodeError)):
            # the driver's own error, before the database got a value
            return RowsRejected(type(error).__name__)
        return None


def _is_rejection(error: SQLAlchemyError) -> bool:
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return isinstance(error, (DataError, IntegrityError)) or str(state).startswith(_PROGRAM_LIMIT_EXCEEDED)
