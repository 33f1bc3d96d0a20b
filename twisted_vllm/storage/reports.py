"""Reads reports on connections and threads of their own, a few at a time, and stops those that nobody waits for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.engine import Engine
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import GatewayError, ReportsBusy, ReportTimeout, StoreUnavailable
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.errors import RETRY_SECONDS
from twisted_vllm.storage.interfaces import IReports
from twisted_vllm.storage.lane import Lane
from twisted_vllm.storage.report_queue import ReportCaller, ReportLimits, ReportQueue
from twisted_vllm.storage.sqlite_file import watch_file
from twisted_vllm.storage.transacting import FAULT_MESSAGES, NO_ANSWER, Failed, Fault, transact
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.partitions import SHOWN_FROM, detach_all
from twisted_vllm.storage.write_ahead_log import WriteAheadLog

T = TypeVar("T")

#: Seconds after which a thread that runs Python gives way to another, while reports run. Python's own 5 ms would delay
#: the reactor and the changes by 5 ms at each step, and they take many steps.
_SWITCH_SECONDS = 0.0005


class _Report(Generic[T]):
    """One report, or a part of one that is read in parts."""

    def __init__(
        self, caller: ReportCaller, work: Callable[[Transaction], T], cancel: Callable[[_Report[Any]], None]
    ) -> None:
        self.caller = caller
        self.work = work
        self.deferred: Deferred[T] = Deferred(lambda _: cancel(self))
        self.deadline: Deadline | None = None
        self.waiting: IDelayedCall | None = None

    def read(self, connection: Connection) -> T:
        return self.work(Transaction(connection))

    def refuse(self, error: GatewayError) -> None:
        if not self.deferred.called:
            self.deferred.errback(error)


@implementer(IReports)
class ReportReader:
    """An :class:`IReports` on SQLite or PostgreSQL.

    Attributes:
        queue: the reports that run and wait.
        stopped: how many reports were stopped because they took too long.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: Secret,
        limits: ReportLimits,
        seconds: float,
        shown_from: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Set up; `open` makes the threads.

        Args:
            reactor: Deferreds fire in its thread; it is the clock as well.
            url: of the database, which is migrated already.
            limits: how many reports may run and wait.
            seconds: how long a report may wait, and then how long it may take.
            shown_from: returns from when on rows are shown, in microseconds since 1970; None for all. Any thread calls
                it.
        """
        self.queue: ReportQueue[_Report[Any]] = ReportQueue(limits)
        self.stopped = 0
        self._reactor = reactor
        self._url = url
        self._threads = limits.running
        self._seconds = seconds
        self._shown_from = shown_from
        self._running: set[_Report[Any]] = set()
        self._engine: Engine | None = None
        self._lane: Lane | None = None
        self._log_file: WriteAheadLog | None = None
        self._pausing = self._emptying = self._failing = False
        self._ordinary_switching = sys.getswitchinterval()

    def reconfigure(self, limits: ReportLimits, seconds: float) -> None:
        """Use other settings from now on; there are as many threads as before.

        The arguments are the constructor's.
        """
        self.queue.reconfigure(limits)
        self._seconds = seconds

    def open(self) -> None:
        """Make the threads and the connections, which connect on first use.

        Raises:
            StoreError: the database's URL cannot be used.
        """
        url = parse_url(self._url)
        engine = make_engine(url, connections=self._threads, read_only=True, lock_seconds=1.0)
        watch_file(engine)
        engine.update_execution_options(**{SHOWN_FROM: self._shown_from})
        if engine.dialect.name == "sqlite":
            event.listen(engine, "checkin", _detach)
        self._engine, self._lane = engine, Lane(self._reactor, "reports", self._threads)
        if engine.dialect.name == "sqlite":
            self._log_file = WriteAheadLog(engine, self._reactor.seconds)

    def stop(self) -> Deferred[None]:
        """Stop the reports that run, refuse those that wait, and close the connections."""
        engine, self._engine = self._engine, None
        lane, self._lane = self._lane, None
        if engine is None or lane is None:
            return succeed(None)
        for report in self.queue.clear():
            self._no_longer_waits(report)
            report.refuse(StoreUnavailable(NO_ANSWER))
        for report in self._running:
            if report.deadline is not None:
                report.deadline.cancel()
        return lane.stop(self._reactor).addCallback(lambda _: engine.dispose())

    def read(self, caller: ReportCaller, work: Callable[[Transaction], T], *, begun: bool = False) -> Deferred[T]:
        """Read a report, or the next part of one. Cancel the Deferred to stop it.

        Args:
            caller: who asks.
            work: reads it; it must touch nothing but the transaction.
            begun: whether the caller has an earlier part: then it is not refused.

        Raises:
            TooManyReports, ReportsBusy: too many wait, or it waited too long.
            ReportTimeout: it took too long.
            StoreUnavailable: the database failed, or is not open.
        """
        if self._lane is None:
            return fail(StoreUnavailable(NO_ANSWER, retry_after=RETRY_SECONDS))
        report = _Report(caller, work, self._cancel)
        try:
            self.queue.add(caller, report, begun=begun)
        except GatewayError as error:
            return fail(error)
        if not begun:
            report.waiting = self._reactor.callLater(self._seconds, self._waited_too_long, report)
        self._start_more()
        return report.deferred

    def _start_more(self) -> None:
        lane, engine = self._lane, self._engine
        while lane is not None and engine is not None and self._log_file_allows(lane):
            report = self.queue.take()
            if report is None:
                return
            self._start(report, lane, engine)

    def _log_file_allows(self, lane: Lane) -> bool:
        """Return whether a report may start; if not, empty the write-ahead log once no report runs."""
        log_file = self._log_file
        if log_file is None or self._emptying:
            return not self._emptying
        self._pausing = self._pausing or log_file.is_too_large()
        if self._pausing and not self._running:
            self._pausing, self._emptying = False, True
            lane.run(log_file.empty).addBoth(self._emptied)
        return not (self._pausing or self._emptying)

    def _emptied(self, result: object) -> None:
        if isinstance(result, Failure):
            self._log.failure("The write-ahead log could not be emptied", result)
        self._emptying = False
        self._start_more()

    def _start(self, report: _Report[Any], lane: Lane, engine: Engine) -> None:
        self._no_longer_waits(report)
        if not self._running:
            sys.setswitchinterval(min(_SWITCH_SECONDS, self._ordinary_switching))
        self._running.add(report)
        deadline = report.deadline = Deadline(self._seconds)
        done = lane.run(lambda: transact(engine, self._url, report.read, deadline, writes=False))
        done.addBoth(self._finished, report)

    def _finished(self, outcome: Any, report: _Report[Any]) -> None:
        self._running.discard(report)
        if not self._running:
            sys.setswitchinterval(self._ordinary_switching)
        self.queue.finished(report.caller)
        if not report.deferred.called:
            if isinstance(outcome, Failed):
                report.deferred.errback(self._error_of(outcome))
            elif isinstance(outcome, Failure):
                report.deferred.errback(outcome)
            else:
                self._works()
                report.deferred.callback(outcome)
        self._start_more()

    def _error_of(self, failed: Failed) -> GatewayError:
        if failed.fault is Fault.TOO_SLOW:
            self.stopped += 1
            return ReportTimeout(
                f"The report was stopped after {self._seconds:g} s (passthrough.timeouts.report). Ask for fewer days, "
                "for a coarser interval or for one key."
            )
        level = self._log.debug if self._failing else self._log.error
        self._failing = True
        level("reports cannot be read: {reason}", reason=failed.reason)
        return StoreUnavailable(FAULT_MESSAGES[failed.fault], retry_after=RETRY_SECONDS)

    def _works(self) -> None:
        if self._failing:
            self._failing = False
            self._log.info("reports can be read again")

    def _cancel(self, report: _Report[Any]) -> None:
        self._no_longer_waits(report)
        if report.deadline is not None:
            report.deadline.cancel()
        else:
            self.queue.remove(report.caller, report)

    def _waited_too_long(self, report: _Report[Any]) -> None:
        report.waiting = None
        self.queue.remove(report.caller, report)
        report.refuse(
            ReportsBusy(
                f"The report waited {self._seconds:g} s (passthrough.timeouts.report) for others to end. Try again "
                "later.",
                retry_after=RETRY_SECONDS,
            )
        )

    def _no_longer_waits(self, report: _Report[Any]) -> None:
        waiting, report.waiting = report.waiting, None
        if waiting is not None:
            waiting.cancel()


def _detach(connection: Any, record: Any) -> None:
    """Close the files of partitions, whose space is free once a dropped one is closed."""
    if connection is not None:
        detach_all(connection, record.info)
