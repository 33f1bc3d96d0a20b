"""The database, used on its own threads so that it never blocks the reactor."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import Deferred, fail, gatherResults, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.config.alert_types import DATABASE_ALERT
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.histogram import Histogram
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import DEFAULT_SECONDS, make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import RETRY_SECONDS, StoreError
from twisted_vllm.storage.interfaces import IDatabase
from twisted_vllm.storage.lane import Lane
from twisted_vllm.storage.schema import migrate
from twisted_vllm.storage.sqlite_file import DatabaseFileLost, watch_file
from twisted_vllm.storage.transacting import FAULT_MESSAGES, NO_ANSWER, Failed, Fault, transact
from twisted_vllm.storage.usage.partition_files import make_missing_files
from twisted_vllm.storage.write_ahead_log import empty_log

T = TypeVar("T")

#: seconds that a piece of work may take, with its wait for a thread
DATABASE_SECONDS = 5.0
#: seconds that the start may take to read the keys
START_SECONDS = 300.0
#: the kinds of transactions, as metrics name them
READ, WRITE = "read", "write"
#: upper bounds of the seconds of a transaction, and of its wait for a thread
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: Threads, each with a connection: changes run one at a time in any case, and do not wait for what only reads.
CHANGE_THREADS, READ_THREADS = 1, 3

_UNCERTAIN = "The database does not answer. What was asked may have been done: look before trying again."

#: milliseconds that the end of the process waits for reports that read from the log of a file that is lost
_LAST_PATIENCE = 1_000

#: seconds between two lines in the log about a file that is lost
ALARM_INTERVAL = 300.0


@implementer(IDatabase)
class Database:
    """A SQLite or PostgreSQL database. Each piece of work is one transaction.

    Attributes:
        reachable: whether the last work found the database, changes that it refused (a lock, a full disk) included.
        file_is_lost: whether SQLite's file was removed or replaced, as the last transaction found.
        durations: seconds of transactions, by kind: `READ` and `WRITE`; those that failed included.
        waits: seconds that they waited for a thread, likewise.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: Secret,
        seconds: float = DATABASE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; :meth:`open` connects.

        Args:
            reactor: Deferreds fire in its thread.
            url: an SQLAlchemy URL, ``sqlite:///FILE`` or ``postgresql://…``.
            seconds: how long a piece of work may take, with its wait for a thread.
            monotonic: seconds, from any start, for `ALARM_INTERVAL`.
        """
        self.reachable = True
        self.file_is_lost = False
        self.durations = {kind: Histogram(BUCKETS) for kind in (READ, WRITE)}
        self.waits = {kind: Histogram(BUCKETS) for kind in (READ, WRITE)}
        self._monotonic = monotonic
        self._next_alarm = 0.0
        # of the lost file: whether it is whole, and whether its write-ahead log is known to hold something
        self._is_whole = self._log_is_left = False
        self._is_emptying = False
        self._reactor = reactor
        self._url = url
        self.reconfigure(seconds)
        self._engine: Engine | None = None
        self._changes: Lane | None = None
        self._reads: Lane | None = None
        self._changeable = True

    def reconfigure(self, seconds: float) -> None:
        """Give each piece of work another time from now on; an open connection keeps its time for locks."""
        self._seconds = seconds

    def __repr__(self) -> str:
        return f"<Database {'started' if self._engine is not None else 'stopped'}>"

    def open(self) -> None:
        """Open the database and migrate it.

        It blocks. Call it before the reactor runs, so that twistd can report a failure.

        Raises:
            StoreError: it cannot be used; the message says why and names no password.
        """
        if self._engine is not None:
            raise RuntimeError("the database was started already")
        url = parse_url(self._url)
        engine = make_engine(url, connections=CHANGE_THREADS + READ_THREADS, lock_seconds=self._seconds)
        try:
            migrate(engine)
            make_missing_files(engine)
            watch_file(engine)
        except OSError as error:
            problem = StoreError(f"The database's file cannot be found: {error.strerror}")
        except SQLAlchemyError as error:
            problem = StoreError(f"The database cannot be used: {reason_of(error, self._url)}")
        except StoreError as error:
            problem = error
        else:
            self._engine = engine
            self._changes = Lane(self._reactor, "database-changes", CHANGE_THREADS)
            self._reads = Lane(self._reactor, "database-reads", READ_THREADS)
            return
        engine.dispose()
        # Outside the except block, so that the driver's error, which may show secrets, is not the context.
        raise problem from None

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], Any, None]:
        """Finish accepted work, for a few seconds at most, and close the connections. The Deferred fires with None."""
        engine, self._engine = self._engine, None
        changes, reads = self._changes, self._reads
        if engine is None or changes is None or reads is None:
            return
        self._changes = self._reads = None
        if self.file_is_lost and self._is_whole:
            # The next start would apply what is left of the log to the file that is at the path then. The reports that
            # read from it end at the same time.
            changes.run(lambda: empty_log(engine, patience=_LAST_PATIENCE)).addErrback(self._not_emptied)
        yield gatherResults([changes.stop(self._reactor), reads.stop(self._reactor)])
        # It does not wait: only connections that nothing uses are closed.
        engine.dispose()

    def run_now(self, work: Callable[[Connection], T]) -> T:
        """Do work that only reads, blocking: for the start, before the reactor runs.

        Raises:
            StoreUnavailable: the database failed, or is not open.
        """
        if self._engine is None:
            raise StoreUnavailable(NO_ANSWER)
        outcome = transact(self._engine, self._url, work, Deadline(START_SECONDS, DEFAULT_SECONDS), writes=False)
        return self._result_of(outcome, False)

    def run(self, work: Callable[[Connection], T], *, writes: bool, seconds: float | None = None) -> Deferred[T]:
        """Do work in one transaction, in a thread, and commit it.

        Args:
            work: it must touch nothing but its connection.
            writes: whether it changes anything. Changes have a thread of their own, which does them in order.
            seconds: how long it may take, with its wait for a thread; None for what the constructor was told.

        Raises:
            StoreUnavailable: the database failed, or is not open. Nothing was changed, unless the message says that it
                may have been.
        """
        engine, lane = self._engine, self._changes if writes else self._reads
        if engine is None or lane is None:
            return fail(StoreUnavailable(NO_ANSWER, retry_after=RETRY_SECONDS))
        deadline = Deadline(self._seconds if seconds is None else seconds, self._seconds)
        asked = self._monotonic()
        # when it began and ended, as its thread found
        times: list[float] = []

        def timed() -> T | Failed:
            times.append(self._monotonic())
            try:
                return transact(engine, self._url, work, deadline, writes=writes)
            finally:
                times.append(self._monotonic())

        done = lane.run(timed)
        done.addBoth(self._measured, WRITE if writes else READ, asked, times)
        return done.addCallback(self._result_of, writes)

    @property
    def unfinished(self) -> dict[str, int]:
        """How many transactions run or wait for a thread, by kind."""
        lanes = ((READ, self._reads), (WRITE, self._changes))
        return {kind: 0 if lane is None else lane.unfinished for kind, lane in lanes}

    def _measured(self, outcome: T, kind: str, asked: float, times: Sequence[float]) -> T:
        """Count how long a transaction took; one that a full lane refused has no times."""
        if times:
            began, ended = times
            self.waits[kind].observe(began - asked)
            self.durations[kind].observe(ended - began)
        return outcome

    def _result_of(self, outcome: T | Failed, writes: bool) -> T:
        if not isinstance(outcome, Failed):
            self.file_is_lost = False
            if not self.reachable:
                self.reachable = True
                self._log.info("the database is back", **DATABASE_ALERT)
            if writes and not self._changeable:
                self._changeable = True
                self._log.info("the database takes changes again", **DATABASE_ALERT)
            return outcome
        if outcome.fault is Fault.FILE_LOST:
            self._note_lost_file(outcome)
        elif outcome.fault is Fault.UNAVAILABLE:
            level = self._log.error if self.reachable else self._log.debug
            again = "" if self.reachable else " again"
            self.reachable = False
            level("the database failed{again}: {reason}", again=again, reason=outcome.reason, **DATABASE_ALERT)
        elif writes and self.reachable:
            level = self._log.error if self._changeable else self._log.debug
            self._changeable = False
            level("the database takes no changes: {reason}", reason=outcome.reason, **DATABASE_ALERT)
        else:
            self._log.debug("the database took too long: {reason}", reason=outcome.reason)
        message = _UNCERTAIN if outcome.uncertain else FAULT_MESSAGES[outcome.fault]
        raise StoreUnavailable(message, retry_after=RETRY_SECONDS)

    def _note_lost_file(self, outcome: Failed) -> None:
        """Say at once that nothing can be stored, and again from time to time."""
        engine, changes = self._engine, self._changes
        self._is_whole = outcome.moved
        if outcome.moved and not self._is_emptying and engine is not None and changes is not None:
            # The next start would apply what is left of the log to the file that is at the path then. At each failure:
            # a report may still read the file, and then its log cannot be emptied.
            self._is_emptying = True
            changes.run(lambda: empty_log(engine, patience=0)).addBoth(self._emptied)
        if not self.file_is_lost or self._monotonic() >= self._next_alarm:
            self._next_alarm = self._monotonic() + ALARM_INTERVAL
            self._log.critical("the database's file is lost: {reason}", reason=outcome.reason, **DATABASE_ALERT)
        self.file_is_lost, self.reachable = True, False

    def _emptied(self, result: bool | Failure) -> None:
        self._is_emptying = False
        if isinstance(result, Failure):
            self._not_emptied(result)
        elif result and self._log_is_left:
            self._log_is_left = False
            self._log.info("the write-ahead log of the database's lost file is written back to it")
        elif not result and not self._log_is_left:
            self._log_is_left = True
            self._log.warn(
                "the write-ahead log of the database's lost file is in use, by a report or another process: do not "
                "restart before it is written back, or it is applied to the file that is there now"
            )

    def _not_emptied(self, failure: Failure) -> None:
        failure.trap(SQLAlchemyError, sqlite3.Error, StoreUnavailable)
        if failure.check(DatabaseFileLost):
            # All connections were in use, and no other may be made: the next failure tries again.
            return
        level = self._log.debug if self._log_is_left else self._log.critical
        self._log_is_left = True
        level(
            "the write-ahead log of the database's lost file could not be written back to it: {reason}",
            reason=failure.getErrorMessage(),
        )
