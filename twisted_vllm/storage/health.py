"""Checks at intervals whether the database is reachable."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from twisted_vllm.storage.database import Database

#: seconds between pings
PING_INTERVAL = 5.0


class DatabaseHealth:
    """Pings the database at intervals.

    Attributes:
        reachable: whether the last ping succeeded.
    """

    def __init__(self, database: Database, reactor: Any) -> None:
        self.reachable = True
        self._database = database
        self._loop = LoopingCall(self._ping)
        self._loop.clock = reactor

    def start(self) -> None:
        """Start pinging."""
        self._loop.start(PING_INTERVAL, now=False)

    def stop(self) -> None:
        """Stop pinging."""
        if self._loop.running:
            self._loop.stop()

    def _ping(self) -> Deferred[None]:
        return self._database.ping().addCallback(self._pinged)

    def _pinged(self, reachable: bool) -> None:
        self.reachable = reachable
