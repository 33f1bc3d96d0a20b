"""Decides in the gateway which day is exported when, and has a process of its own do it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.secret import Secret
from twisted_vllm.config.usage_export import UsageExportSettings
from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.interfaces import IDatabase
from twisted_vllm.storage.usage.exports import (
    ExportState,
    Schedule,
    Work,
    fail,
    find_work,
    keeps_from,
    release,
    state_of,
    take_work,
)
from twisted_vllm.usage.days import DAY_US, date_of, number_of

if TYPE_CHECKING:
    from twisted_vllm.usage_export.job import Report
    from twisted_vllm.usage_export.starting import ExportProcess

#: seconds between two looks for a day to export, and until the first one
LOOK_SECONDS, FIRST_LOOK_SECONDS = 300.0, 5.0
#: seconds between two warnings that rows are kept for longer than the settings say
WARN_SECONDS = 3_600.0
#: seconds that the end waits for the process
STOP_SECONDS = 5.0
#: seconds that a look at the state may take
STATE_SECONDS = 30.0

#: starts a process with a protocol
Spawn = Callable[["ExportProcess"], object]


class UsageExport:
    """Exports closed days, one at a time. All methods belong to the reactor's thread.

    Attributes:
        state: how far the export is, as the last look found.
        rows: rows that this process exported.
        days: days that it exported.
        failures: attempts that failed.
        look_elsewhere: called by `look_soon` where this process does not export: has the one look that does.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        database: IDatabase,
        database_url: Secret,
        settings: UsageExportSettings,
        retention: float | None = None,
        *,
        now: Callable[[], float],
        randbytes: Callable[[int], bytes],
        spawn: Spawn | None = None,
    ) -> None:
        """Set up.

        Args:
            reactor: the clock, and what starts processes.
            database: where days are claimed.
            database_url: what the process reads from.
            settings: which rows go where.
            retention: the age in seconds at which rows are deleted, for a warning; None if they are not.
            now: Unix seconds.
            randbytes: returns that many bytes, for names of claims.
            spawn: starts a process; None for a real one.
        """
        self.state = ExportState()
        self.rows = self.days = self.failures = 0
        self.look_elsewhere: Callable[[], None] | None = None
        self._reactor = reactor
        self._database = database
        self._url = database_url
        self._now = now
        self._randbytes = randbytes
        self._spawn = spawn
        self._next: IDelayedCall | None = None
        self._running = False
        self._looking = self._look_again = False
        self._process: ExportProcess | None = None
        self._stopped: Deferred[None] | None = None
        self._work: Work | None = None
        self._next_warning = 0.0
        self._settings, self._retention = settings, retention

    @property
    def enabled(self) -> bool:
        """Whether anything is exported."""
        return self._settings.enabled

    @property
    def target(self) -> str:
        """Where the files go, in words."""
        return self._settings.target

    @property
    def schedule(self) -> Schedule:
        """When days are exported."""
        found = self._settings
        begin = None if found.begin is None else number_of(found.begin)
        return Schedule(begin, int(found.delay * 1e6), found.recheck_days)

    @property
    def overdue(self) -> float:
        """For how many seconds the oldest day that is missing should have been exported; 0 if none is."""
        due = self.state.due
        return 0.0 if due is None or not self.enabled else max(self._now() - due / 1e6, 0.0)

    def reconfigure(self, settings: UsageExportSettings, retention: float | None) -> None:
        """Use other settings from the next day on; the arguments are the constructor's."""
        self._settings, self._retention = settings, retention
        if self._running:
            self.look_soon()

    def held_from(self, connection: Connection) -> int | None:
        """Return the time in microseconds from which on retention must keep rows; None for any. In any thread."""
        settings = self._settings
        return keeps_from(connection, settings.begin) if settings.enabled and settings.hold_rows else None

    def start(self) -> None:
        """Begin to look for days."""
        self._running = True
        if self.enabled:
            self._look_in(FIRST_LOOK_SECONDS)

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], Any, None]:
        """Stop the process, if one runs, and give its day back to others. The Deferred fires with None."""
        self._running = False
        self._cancel()
        process, work = self._process, self._work
        if process is None or work is None:
            return
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        process.stop()
        # it may hang in a disk that does not answer
        yield stopped.addTimeout(STOP_SECONDS, self._reactor, onTimeoutCancel=lambda _cancelled, _seconds: None)
        try:
            yield self._database.run(lambda connection: release(connection, work), writes=True)
        except StoreUnavailable:
            # the claim lapses by itself
            return

    def look_soon(self) -> None:
        """Look for a day at once, or as soon as what runs has ended."""
        if self._running:
            self._look_in(0.0)
        elif self.look_elsewhere is not None:
            self.look_elsewhere()

    def _has_stopped(self) -> bool:
        return not self._running

    def _look_in(self, seconds: float) -> None:
        self._cancel()
        self._next = self._reactor.callLater(seconds, self._look)

    def _cancel(self) -> None:
        pending, self._next = self._next, None
        if pending is not None:
            pending.cancel()

    def _look(self) -> None:
        self._next = None
        if not self.enabled:
            return
        if self._looking:
            self._look_again = True
            return
        self._looking = True
        self._export_next().addErrback(self._broke).addCallback(self._looked)

    def _looked(self, found: bool | None) -> None:
        self._looking = False
        stopped, self._stopped = self._stopped, None
        if stopped is not None and not stopped.called:
            stopped.callback(None)
        again, self._look_again = self._look_again or bool(found), False
        if self._running and self.enabled:
            self._look_in(0.0 if again else LOOK_SECONDS)

    def _broke(self, failure: Failure) -> None:
        # the database tells of itself
        if not failure.check(StoreUnavailable):
            self._log.failure("The usage cannot be exported", failure)

    @inlineCallbacks
    def _export_next(self) -> Generator[Deferred[Any], Any, bool]:
        """Export the next day; return whether there was one."""
        schedule, now = self.schedule, int(self._now() * 1e6)

        def look(connection: Connection) -> tuple[ExportState, int | None]:
            return state_of(connection, schedule), find_work(connection, now, schedule)

        self.state, day = yield self._database.run(look, writes=False, seconds=STATE_SECONDS)
        self._warn_of_held_rows()
        if day is None or self._has_stopped():
            return False
        owner = f"{socket.gethostname()[:64]}-{os.getpid()}-{self._randbytes(8).hex()}"
        work = yield self._database.run(lambda connection: take_work(connection, now, schedule, owner), writes=True)
        if work is None or self._has_stopped():
            # where it stops in this moment, the claim lapses by itself
            return False
        report = yield self._run(work)
        if self._has_stopped() and not report.is_done:
            return False
        yield self._note(work, report)
        if self._has_stopped():
            return False
        self.state = yield self._database.run(
            lambda connection: state_of(connection, schedule), writes=False, seconds=STATE_SECONDS
        )
        return True

    @inlineCallbacks
    def _run(self, work: Work) -> Generator[Deferred[Any], Any, Report]:
        # Imported here: few gateways export.
        from twisted_vllm.usage_export import starting

        process = starting.ExportProcess(starting.job_for(work, self._settings, self._url))
        self._work, self._process = work, process
        try:
            if self._spawn is None:
                starting.spawn(self._reactor, process)
            else:
                self._spawn(process)
            report = yield process.ended
        except OSError as error:
            report = starting.not_started(error)
        finally:
            self._work = self._process = None
        return report  # type: ignore[no-any-return]  # what a generator is sent has no type

    @inlineCallbacks
    def _note(self, work: Work, report: Report) -> Generator[Deferred[Any], Any, None]:
        day = date_of(work.day).isoformat()
        if report.is_done:
            self.rows += report.rows
            self.days += 1
            self._log.info(
                "Exported the usage of {day}{again}: {rows} rows in {files} files to {target}",
                day=day,
                again="" if work.former_rows is None else " again",
                rows=report.rows,
                files=report.files,
                target=self.target,
            )
        elif report.is_kept:
            self._log.warn(
                "The files of {day} stay as they are: they have {former} rows, and the ledger {rows}. Rows that came "
                "late are not in them",
                day=day,
                former=work.former_rows,
                rows=report.rows,
            )
        elif report.is_failed:
            self.failures += 1
            self._log.error("The usage of {day} cannot be exported: {reason}", day=day, reason=report.error)
            now = int(self._now() * 1e6)
            yield self._database.run(lambda connection: fail(connection, work, now, report.error), writes=True)

    def _warn_of_held_rows(self) -> None:
        """Say from time to time that rows are kept for longer than `usage_retention` says."""
        missing, retention, now = self.state.next, self._retention, self._now()
        if missing is None or retention is None or not self._settings.hold_rows or now < self._next_warning:
            return
        late = now - retention - (missing + 1) * DAY_US / 1e6
        if late > 0:
            self._next_warning = now + WARN_SECONDS
            self._log.warn(
                "Rows are kept for longer than usage_retention says, since {day} is not exported: {reason}",
                day=date_of(missing).isoformat(),
                reason=self.state.error or "it is its turn soon",
            )
