"""The database, used on its own threads so that it never blocks the reactor."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import Deferred, fail, inlineCallbacks
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.engine import POSTGRESQL_CONNECTIONS, WRITES, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.interfaces import IDatabase
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.sqlite_file import DatabaseFileLost, check_file, watch_file, write_back

T = TypeVar("T")

_UNAVAILABLE = "The database does not answer at the moment. Try again in a few seconds."
_FILE_LOST = (
    "The database's file was removed or replaced while the gateway runs, so nothing is stored. "
    "Its operator finds in the log what to do."
)
_RETRY_SECONDS = 5

#: seconds between two lines in the log about a file that is lost
ALARM_INTERVAL = 300.0


class _DaemonPool(ThreadPool):
    """Daemon threads, which do not keep the process alive if its start fails after the database was opened."""

    threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]  # called as the class is


@implementer(IDatabase)
class Database:
    """A SQLite or PostgreSQL database. Each piece of work is one transaction.

    Attributes:
        file_is_lost: whether SQLite's file was removed or replaced, as the last transaction found.
    """

    _log = Logger()

    def __init__(
        self, reactor: IReactorFromThreads, url: Secret, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        """Set up; :meth:`open` connects.

        Args:
            reactor: Deferreds fire in its thread.
            url: an SQLAlchemy URL, ``sqlite:///FILE`` or ``postgresql://…``.
            seconds: the time in seconds, for `ALARM_INTERVAL`.
        """
        self.file_is_lost = False
        self._seconds = seconds
        self._next_alarm = 0.0
        self._reactor = reactor
        self._url = url
        self._engine: Engine | None = None
        self._pool: ThreadPool | None = None
        self._running = 0
        self._idle: Deferred[None] | None = None
        self._reachable = True

    def __repr__(self) -> str:
        return f"<Database {'started' if self._engine is not None else 'stopped'}>"

    def open(self) -> None:
        """Open the database and migrate it.

        It blocks. Call it before the reactor runs, so that twistd can report a failure.

        Raises:
            StoreError: it cannot be used; the message says why and names no password.
        """
        if self._pool is not None:
            raise RuntimeError("the database was started already")
        url = parse_url(self._url)
        threads = 1 if url.get_backend_name() == "sqlite" else POSTGRESQL_CONNECTIONS
        engine = make_engine(url)
        try:
            migrate(engine)
            watch_file(engine)
        except OSError as error:
            problem = StoreError(f"The database's file cannot be found: {error.strerror}")
        except SQLAlchemyError as error:
            problem = StoreError(f"The database cannot be used: {reason_of(error, self._url)}")
        except StoreError as error:
            problem = error
        else:
            self._engine = engine
            self._pool = _DaemonPool(0, threads, name="database")
            self._pool.start()
            return
        engine.dispose()
        # Outside the except block, so that the driver's error, which may show secrets, is not the context.
        raise problem from None

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], Any, None]:
        """Finish accepted work, then close every connection. The Deferred fires with ``None``."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        if self._running:
            self._idle = Deferred()
            yield self._idle
        yield self._in_thread(engine.dispose)
        self._stop_threads()

    def _stop_threads(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            # This joins the threads, which are idle by now.
            pool.stop()

    def run_now(self, work: Callable[[Connection], T]) -> T:
        """Do work that only reads, blocking: for the start, before the reactor runs.

        Raises:
            StoreUnavailable: the database failed, or is not open.
        """
        if self._engine is None:
            raise StoreUnavailable(_UNAVAILABLE)
        return self._result_of(self._transact(self._engine, work, False))

    def run(self, work: Callable[[Connection], T], *, writes: bool) -> Deferred[T]:
        """Do work in one transaction, in a thread, and commit it.

        Args:
            work: it must touch nothing but its connection.
            writes: whether it changes anything.

        Raises:
            StoreUnavailable: the database failed, or is not open; nothing was changed.
        """
        engine = self._engine
        if engine is None:
            return fail(StoreUnavailable(_UNAVAILABLE, retry_after=_RETRY_SECONDS))

        return self._in_thread(lambda: self._transact(engine, work, writes)).addCallback(self._result_of)

    def _transact(self, engine: Engine, work: Callable[[Connection], T], writes: bool) -> T | _Failed:
        try:
            with engine.execution_options(**{WRITES: writes}).begin() as connection:
                result = work(connection)
            if writes:
                check_file(engine)
            return result
        except DatabaseFileLost as error:
            return self._lost(engine, error)
        except SQLAlchemyError as error:
            return _Failed(reason_of(error, self._url))

    def _lost(self, engine: Engine, error: DatabaseFileLost) -> _Failed:
        if error.moved and not self.file_is_lost:
            try:
                write_back(engine)
            except (SQLAlchemyError, sqlite3.Error) as failed:
                return _Failed(f"{error} (Its write-ahead log could not be written back: {failed})", lost=True)
        return _Failed(str(error), lost=True)

    def _result_of(self, outcome: T | _Failed) -> T:
        if not isinstance(outcome, _Failed):
            self.file_is_lost = False
            if not self._reachable:
                self._reachable = True
                self._log.info("the database is back")
            return outcome
        if outcome.lost:
            if not self.file_is_lost or self._seconds() >= self._next_alarm:
                self._next_alarm = self._seconds() + ALARM_INTERVAL
                self._log.critical("the database's file is lost: {reason}", reason=outcome.reason)
            self.file_is_lost, self._reachable = True, False
            raise StoreUnavailable(_FILE_LOST, retry_after=_RETRY_SECONDS)
        if self._reachable:
            self._reachable = False
            self._log.error("the database failed: {reason}", reason=outcome.reason)
        else:
            self._log.debug("the database failed again: {reason}", reason=outcome.reason)
        raise StoreUnavailable(_UNAVAILABLE, retry_after=_RETRY_SECONDS)

    def ping(self) -> Deferred[bool]:
        """Return whether the database is reachable."""

        def ask(connection: Connection) -> bool:
            return connection.execute(select(1)).scalar() == 1

        def refused(failure: Failure) -> bool:
            failure.trap(StoreUnavailable)
            return False

        return self.run(ask, writes=False).addErrback(refused)

    def _in_thread(self, work: Callable[[], T]) -> Deferred[T]:
        assert self._pool is not None
        self._running += 1
        done: Deferred[T] = deferToThreadPool(self._reactor, self._pool, work)
        return done.addBoth(self._finished)

    def _finished(self, result: T) -> T:
        self._running -= 1
        if self._running == 0 and self._idle is not None:
            idle, self._idle = self._idle, None
            self._reactor.callFromThread(idle.callback, None)
        return result


class _Failed:
    """The outcome of a transaction that failed. A text, as the driver's error may show secrets."""

    def __init__(self, reason: str, lost: bool = False) -> None:
        self.reason = reason
        self.lost = lost
