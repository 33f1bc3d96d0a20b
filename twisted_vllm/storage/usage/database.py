"""The ledger's connection to the database, for the thread that writes the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline, WorkStopped
from twisted_vllm.storage.engine import begin, make_engine, parse_url, reason_of
from twisted_vllm.storage.sqlite_file import check_file, watch_file
from twisted_vllm.storage.usage.batch import References
from twisted_vllm.storage.usage.writes import AlsoPay, PeriodStart, RowsExist, delete_before, nobody_else, write
from twisted_vllm.usage.interfaces import DatabaseUnavailable, IUsageStore, RowsRejected, SpendUpdate
from twisted_vllm.usage.records import UsageRow

T = TypeVar("T")

#: Each payer's rows end in a page of their own of SQLite's index, and every batch touches those pages: 16 MB of pages
#: stay in memory, and the write-ahead log is copied into the file every 16 MB.
_SQLITE_PRAGMAS = ("cache_size = -16000", "wal_autocheckpoint = 4000")

#: Seconds for one transaction in PostgreSQL. The writer's batches take a tenth of one.
_SECONDS = 8.0

#: from when on rows must be kept, in microseconds since 1970; None for no time
HeldFrom = Callable[[Connection], int | None]


def nothing_held(_connection: Connection) -> int | None:
    """Return that no row must be kept."""
    return None


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
        held_from: HeldFrom = nothing_held,
    ) -> None:
        """Set up; it connects on first use.

        Args:
            url: an SQLAlchemy URL, ``sqlite:///FILE`` or ``postgresql://…``.
            period_start: when the budget period of a scope began; called in the writer's thread.
            now: Unix seconds.
            also_pay: whose budgets pay besides those of the payers; called in the writer's thread.
            held_from: from when on rows must be kept, however old they are; likewise.

        Raises:
            StoreError: the URL cannot be used.
        """
        self._url = url
        self._period_start = period_start
        self._now = now
        self._also_pay = also_pay
        self._held_from = held_from
        self._engine: Engine = make_engine(parse_url(url), connections=1)
        watch_file(self._engine)
        self.single_writer = self._engine.dialect.name == "sqlite"
        self._references = References()
        self._was_restored = False
        event.listen(self._engine, "connect", self._connected)

    def __repr__(self) -> str:
        return "<UsageDatabase>"

    def _connected(self, connection: Any, _record: object) -> None:
        # Another server, or another file, may lack references that the former one had.
        self._references.forget()
        if self.single_writer:
            for pragma in _SQLITE_PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")

    def write(self, rows: Sequence[UsageRow], own: bool) -> list[SpendUpdate]:
        """Store rows, their sums and spend in one transaction. Idempotent: a stored row is skipped.

        Raises:
            DatabaseUnavailable: nothing was stored, or the result is unknown; the same rows may be written again.
            RowsRejected: nothing was stored.
        """

        def work(connection: Connection, check_existing: bool = False) -> list[SpendUpdate]:
            return write(
                connection,
                rows,
                self._period_start,
                self._now(),
                own,
                self._references,
                check_existing=check_existing,
                also_pay=self._also_pay,
            )

        try:
            return self._transact(work)
        except RowsExist:
            pass
        return self._transact(lambda connection: work(connection, check_existing=True))

    def delete_before(self, time: int, limit: int) -> int:
        """Delete up to `limit` rows of requests that began before a time in microseconds; return how many.

        Raises:
            DatabaseUnavailable: nothing was deleted.
        """

        def work(connection: Connection) -> int:
            held = self._held_from(connection)
            return delete_before(connection, time if held is None else min(time, held), limit)

        return self._transact(work)

    def forget_references(self) -> None:
        """Assume from the next transaction on that no reference is stored: the database may have been restored.

        Any thread may call it.
        """
        self._was_restored = True

    def close(self) -> None:
        """Close the connection."""
        self._engine.dispose()

    def _transact(self, work: Callable[[Connection], T]) -> T:
        if self._was_restored:
            self._was_restored = False
            self._references.forget()
        self._references.trim()
        # SQLite would take the interpreter's lock to look at a deadline, and hold its own lock meanwhile.
        deadline = None if self.single_writer else Deadline(_SECONDS)
        try:
            with begin(self._engine, deadline, writes=True) as connection:
                result = work(connection)
            # The caller deletes what was stored from the spool.
            check_file(self._engine)
            return result
        except BaseException as error:
            # The transaction was rolled back.
            self._references.forget()
            problem = self._problem_of(error)
            if problem is None:
                raise
        # Outside the except block, so that the driver's error, which may show secrets, is not the context.
        raise problem

    def _problem_of(self, error: BaseException) -> RowsRejected | DatabaseUnavailable | None:
        if isinstance(error, WorkStopped):
            return DatabaseUnavailable(f"a batch took longer than {_SECONDS:g} s")
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
