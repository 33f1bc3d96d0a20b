"""The ledger's connections to the database, for the thread that writes the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline, WorkStopped
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.sqlite_file import check_file, watch_file
from twisted_vllm.storage.usage.account import Account, Accounts
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.bulk_insert import Values
from twisted_vllm.storage.usage.gathered import AlsoPay, GatheredSums, PeriodStart, nobody_else
from twisted_vllm.storage.usage.marks import SPEND, SUMS, Mark, MarkMoved, delete_marks, move_mark, read_mark
from twisted_vllm.storage.usage.partitions import UNQUALIFIED
from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.row_store import make_row_store, use_pragmas
from twisted_vllm.storage.usage.steps import SpendSteps, Steps, SumsSteps
from twisted_vllm.storage.usage.top_names import MAX_NAMES, TopNames
from twisted_vllm.usage.interfaces import (
    DatabaseUnavailable,
    HistoryChanged,
    IUsageStore,
    Position,
    RowsRejected,
    SpendUpdate,
)
from twisted_vllm.usage.records import UsageRow

T = TypeVar("T")

#: Seconds for one transaction in PostgreSQL. The writer's batches take a tenth of one.
_SECONDS = 8.0

#: Seconds after which spend, and sums, are written; the delay for each thing to write; and how many are gathered.
#: Other processes learn of a budget's spend through the database.
SPEND_RHYTHM = (2.0, 0.001, 50_000)
SUMS_RHYTHM = (30.0, 0.01, 100_000)

#: rows of the sums, of the spend or look-ups in one transaction: some milliseconds of SQLite's lock
_TRANSACTION_ROWS = 2_000

#: PostgreSQL's class of errors for what exceeds the size of an index entry or a row
_PROGRAM_LIMIT_EXCEEDED = "54"


@implementer(IUsageStore)
class UsageDatabase:
    """An :class:`IUsageStore` on a SQLite or PostgreSQL database that is migrated already.

    Attributes:
        single_writer: whether only one writer can write at a time.
    """

    def __init__(
        self,
        url: Secret,
        period_start: PeriodStart,
        now: Callable[[], float] = time.time,
        also_pay: AlsoPay = nobody_else,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        top_end_users: int = MAX_NAMES,
        top_tags: int = MAX_NAMES,
    ) -> None:
        """Set up; it connects on first use.

        Args:
            url: an SQLAlchemy URL, ``sqlite:///FILE`` or ``postgresql://…``.
            period_start: when the budget period of a scope began; called in the writer's thread.
            now: Unix seconds.
            also_pay: whose budgets pay besides those of the payers; called in the writer's thread.
            monotonic: a clock, in seconds.
            top_end_users: how many end users have sums of their own in a day, and in a month.
            top_tags: likewise tags.

        Raises:
            StoreError: the URL cannot be used.
        """
        self._url = url
        self._period_start = period_start
        self._now = now
        self._also_pay = also_pay
        self._monotonic = monotonic
        self._engine: Engine = make_engine(parse_url(url), connections=1)
        watch_file(self._engine)
        self.single_writer = self._engine.dialect.name == "sqlite"
        if self.single_writer:
            use_pragmas(self._engine)
        self._references = References()
        self._end_users, self._tags = TopNames(top_end_users), TopNames(top_tags)
        self._rows = make_row_store(self._engine, lambda: False, _SECONDS)
        self._was_restored = False
        event.listen(self._engine, "connect", self._connected)

    def __repr__(self) -> str:
        return "<UsageDatabase>"

    def reconfigure(self, top_end_users: int, top_tags: int) -> None:
        """Use other settings from now on; the arguments are the constructor's."""
        self._end_users.most, self._tags.most = top_end_users, top_tags

    def _connected(self, _connection: Any, _record: object) -> None:
        # Another server, or another file, may lack references that the former one had.
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
            batch = UsageBatch.of(unique, self._references)
            self._rows.write(batch.columns, batch.times, self._references)
            # what is kept until the sums are written
            return attrs.evolve(batch, columns=())

        self._references.trim()
        return self._guarded(work)

    def delete_before(self, time: int, limit: int) -> int:
        """Delete nothing yet."""
        return 0

    # accounts

    def open_accounts(self, name: str, *, own: bool) -> Accounts:
        """Return the accounts of a spool, from where the database is.

        Raises:
            DatabaseUnavailable: the database cannot be read.
        """
        spend, sums = self._transact(
            lambda connection: (read_mark(connection, name, SPEND), read_mark(connection, name, SUMS)), writes=False
        )
        return Accounts(name, own, spend, sums, self._monotonic())

    def add(self, accounts: Accounts, written: Sequence[UsageBatch], end: Position | None) -> None:
        """Gather rows that were written."""
        accounts.add(written, end)

    def flush(self, accounts: Accounts, *, force: bool = False) -> tuple[bool, list[SpendUpdate]]:
        """Write a part of what was gathered, if it is due.

        Raises:
            DatabaseUnavailable: call it again.
            HistoryChanged: the accounts are worthless.
        """
        now = self._monotonic()
        for account, rhythm, steps in (
            (accounts.spend, SPEND_RHYTHM, self._spend_steps),
            (accounts.sums, SUMS_RHYTHM, self._sums_steps),
        ):
            if updates := self._resolve(accounts, account):
                return True, updates
            if account.cut is None and account.is_due(now, *rhythm, force=force):
                account.begin(now, steps)  # type: ignore[arg-type]
            if account.cut is not None:
                return True, self._write_part(accounts, account)
        return False, []

    def close_accounts(self, accounts: Accounts) -> None:
        """Forget the accounts of a spool of which nothing is left.

        Raises:
            DatabaseUnavailable: nothing was changed, or the result is unknown.
        """
        self._transact(lambda connection: delete_marks(connection, accounts.name))

    def _spend_steps(self, gathered: Any) -> Steps:
        return SpendSteps(gathered, self._also_pay, self._period_start, self._now())

    def _sums_steps(self, gathered: GatheredSums) -> Steps:
        return SumsSteps(gathered, self._references, self._end_users, self._tags)

    def _write_part(self, accounts: Accounts, account: Account[Any]) -> list[SpendUpdate]:
        """Write some steps in one transaction, or what comes before them."""
        cut = account.cut
        assert cut is not None
        if not cut.prepared:
            if account.what == SUMS:
                self._write_lookups(cut.gathered)
            cut.prepared = True
        old = account.mark
        updates: list[SpendUpdate] = []
        if old.is_between and old.to != cut.to:
            raise HistoryChanged("a former process's rows are not where they were")

        def work(connection: Connection) -> Mark:
            updates.clear()
            written, step = 0, old.done
            while step < cut.steps.count and written < _TRANSACTION_ROWS:
                count, changed = cut.steps.write(connection, step)
                written += count
                updates.extend(changed)
                step += 1
            account.sent = account.after(step)
            move_mark(connection, accounts.name, account.what, old, account.sent)
            return account.sent

        account.committed(self._transact(work))
        return _of(accounts, updates)

    def _resolve(self, accounts: Accounts, account: Account[Any]) -> list[SpendUpdate]:
        """Find out whether a transaction of which it is unknown was committed; if so, return what it returned."""
        sent, cut = account.sent, account.cut
        if sent is None or cut is None:
            return []
        found = self._transact(lambda connection: read_mark(connection, accounts.name, account.what), writes=False)
        if found == account.mark:
            account.sent = None
            return []
        if found != sent:
            raise HistoryChanged("its marks are others than this process made")
        steps = range(account.mark.done, sent.done or cut.steps.count)
        updates = self._transact(
            lambda connection: [each for step in steps for each in cut.steps.written(connection, step)], writes=False
        )
        account.committed(sent)
        return _of(accounts, updates)

    def _write_lookups(self, gathered: GatheredSums) -> None:
        """Write look-ups, in the order of their table. They are idempotent, so they need no mark."""
        pending: list[Values] = []
        for shard in gathered.lookups:
            pending += [(value, time) for value in sorted(shard) for time in sorted(set(shard[value]))]
            if len(pending) >= _TRANSACTION_ROWS:
                self._guarded(lambda: self._rows.write_lookups(pending))
                pending = []
        if pending:
            self._guarded(lambda: self._rows.write_lookups(pending))

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

    def _transact(self, work: Callable[[Connection], T], *, writes: bool = True) -> T:
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
        if isinstance(error, OSError):
            return DatabaseUnavailable(f"{error.strerror}")
        if isinstance(error, SQLAlchemyError):
            reason = reason_of(error, self._url)
            return RowsRejected(reason) if _is_rejection(error) else DatabaseUnavailable(reason)
        if isinstance(error, (OverflowError, UnicodeError)):
            # the driver's own error, before the database got a value
            return RowsRejected(type(error).__name__)
        return None


def _of(accounts: Accounts, updates: list[SpendUpdate]) -> list[SpendUpdate]:
    """Return updates with the amounts that this process spent."""
    return updates if accounts.own else [attrs.evolve(each, amount=0) for each in updates]


def _is_rejection(error: SQLAlchemyError) -> bool:
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return isinstance(error, (DataError, IntegrityError)) or str(state).startswith(_PROGRAM_LIMIT_EXCEEDED)
