"""The ledger's own connection to the database, for the thread that writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import WRITES, make_engine, parse_url, reason_of
from twisted_vllm.storage.usage.references import Numbers
from twisted_vllm.storage.usage.spend import PeriodStart
from twisted_vllm.storage.usage.writes import RowsAreThere, delete_before, write
from twisted_vllm.usage.interfaces import DatabaseAway, IUsageStore, RowsRefused, Spent
from twisted_vllm.usage.records import UsageRow

T = TypeVar("T")

#: Each payer's rows end at a page of their own in SQLite's index, which every batch touches: 16 MB of pages are kept in
#: memory, and go from the log into the file after 16 MB.
_SQLITE = ("cache_size = -16000", "wal_autocheckpoint = 4000")

#: PostgreSQL's class of errors for what is larger than an index or a row can be
_PROGRAM_LIMIT = "54"


@implementer(IUsageStore)
class UsageDatabase:
    """An :class:`IUsageStore` on a SQLite or PostgreSQL database whose schema is up to date.

    Attributes:
        has_one_lock: whether all that write wait for each other, whatever they write.
    """

    def __init__(self, url: Secret, period_start: PeriodStart, now: Callable[[], float] = time.time) -> None:
        """Prepare; it connects when it is first used.

        Args:
            url: an SQLAlchemy URL, ``sqlite:///FILE`` or ``postgresql://…``.
            period_start: when the period of a scope's budget began; the writer's thread calls it.
            now: Unix seconds.

        Raises:
            StoreError: the URL cannot be used.
        """
        self._url = url
        self._period_start = period_start
        self._now = now
        self._engine: Engine = make_engine(parse_url(url))
        self.has_one_lock = self._engine.dialect.name == "sqlite"
        self._numbers = Numbers()
        event.listen(self._engine, "connect", self._connected)

    def __repr__(self) -> str:
        return "<UsageDatabase>"

    def _connected(self, connection: Any, _record: object) -> None:
        # another server, or another file, may lack what the former one had
        self._numbers.forget()
        if self.has_one_lock:
            for pragma in _SQLITE:
                connection.execute(f"PRAGMA {pragma}")

    def write(self, rows: Sequence[UsageRow], own: bool) -> list[Spent]:
        """Keep rows, add them up and commit; a row whose id is there already changes nothing.

        Raises:
            DatabaseAway: nothing was kept, or it is not known; the same rows may be written again.
            RowsRefused: nothing was kept.
        """

        def work(connection: Connection, checked: bool = False) -> list[Spent]:
            return write(connection, rows, self._period_start, self._now(), own, self._numbers, checked=checked)

        try:
            return self._transact(work)
        except RowsAreThere:
            pass
        return self._transact(lambda connection: work(connection, checked=True))

    def delete_before(self, time: int, limit: int) -> int:
        """Delete up to `limit` rows of requests that began before a time in microseconds; return how many.

        Raises:
            DatabaseAway: nothing was deleted.
        """
        return self._transact(lambda connection: delete_before(connection, time, limit))

    def close(self) -> None:
        """Give up the connection."""
        self._engine.dispose()

    def _commit(self, work: Callable[[Connection], T]) -> T:
        self._numbers.bound()
        try:
            with self._engine.execution_options(**{WRITES: True}).begin() as connection:
                return work(connection)
        except BaseException:
            # what was new to the database is so again
            self._numbers.forget()
            raise

    def _transact(self, work: Callable[[Connection], T]) -> T:
        try:
            return self._commit(work)
        except SQLAlchemyError as error:
            reason = reason_of(error, self._url)
            problem = RowsRefused(reason) if _is_refusal(error) else DatabaseAway(reason)
        except (OverflowError, UnicodeError) as error:
            # the driver's own, before the database saw a value
            problem = RowsRefused(type(error).__name__)
        # Raised here, where the driver's error is no longer its context: that may hold what must not be shown.
        raise problem


def _is_refusal(error: SQLAlchemyError) -> bool:
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return isinstance(error, (DataError, IntegrityError)) or str(state).startswith(_PROGRAM_LIMIT)
