"""Keeps the audit log as long as its setting says, and makes its months before they begin."""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.audit_months import after_month, delete_some, drop_months, make_month, month_of, release_some
from twisted_vllm.storage.interfaces import IDatabase

#: seconds between two looks
INTERVAL = 3_600.0


class AuditRetention:
    """Makes the months of the audit log, and drops what is too old, from `start` to `stop`."""

    _log = Logger()

    def __init__(
        self, database: IDatabase, clock: IReactorTime, now: Callable[[], datetime], retention: float | None
    ) -> None:
        """Set up.

        Args:
            database: an open one, once it is started.
            clock: calls it each hour.
            now: returns the time, with a time zone.
            retention: how long an entry is kept, in seconds; None for ever.
        """
        self._database = database
        self._now = now
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock
        self.reconfigure(retention)

    def reconfigure(self, retention: float | None) -> None:
        """Keep entries for another time, from the next look on."""
        self._retention = retention

    def start(self) -> None:
        """Look at once, and then each hour."""
        self._looping.start(INTERVAL)

    def stop(self) -> None:
        """Stop. Idempotent."""
        if self._looping.running:
            self._looping.stop()

    def _look(self) -> Deferred[None]:
        return self._keep().addErrback(self._failed)

    @inlineCallbacks
    def _keep(self) -> Generator[Deferred[Any], Any, None]:
        now = self._now()

        def make(connection: Connection) -> None:
            for moment in (now, after_month(month_of(now))):
                make_month(connection, moment)

        yield self._database.run(make, writes=True)
        if self._retention is None:
            return
        retention = timedelta(seconds=self._retention)
        before = now - retention
        # A month waits for those who read it: it must not keep changes waiting.
        dropped = yield self._database.run(lambda connection: drop_months(connection, retention, now), writes=False)
        if dropped:
            self._log.info("{dropped} months of the audit log were dropped", dropped=dropped)
        # Each is a transaction of its own, between which others change what they want.
        for some in (lambda connection: delete_some(connection, before), release_some):
            while self._looping.running and (yield self._database.run(some, writes=True)):
                pass

    def _failed(self, failure: Failure) -> None:
        # The database logs its own failures. The next look tries again.
        if not failure.check(StoreUnavailable):
            self._log.failure("Old entries of the audit log could not be dropped", failure)
