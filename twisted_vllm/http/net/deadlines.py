"""Deadlines that share one reactor timer.

A timer per request costs more to set and cancel than all other bookkeeping of a small request. Here a deadline is one
attribute, and one timer checks all deadlines a few times a second.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: seconds between checks; a deadline fires at most twice this expired, and never early
INTERVAL = 0.25


class Expiring(Protocol):
    """Has a deadline.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds; ``None`` means never.
    """

    deadline: float | None

    def expired(self) -> None:
        """Act on the deadline; called again at the next check unless the deadline was changed."""


class DeadlineSweeper:
    """Calls ``expired`` on each member whose deadline has passed.

    Attributes:
        now: the reactor's time in seconds at the last check; at most `INTERVAL` old while it runs.
        seconds: returns the reactor's time.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self._members: set[Expiring] = set()
        self._loop = LoopingCall(self.sweep)
        self._loop.clock = reactor
        self.seconds = reactor.seconds
        self.now = self.seconds()
        self.add = self._members.add
        self.discard = self._members.discard

    def __len__(self) -> int:
        return len(self._members)

    def start(self) -> None:
        """Start checking."""
        self.now = self.seconds()
        self._loop.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Stop checking."""
        if self._loop.running:
            self._loop.stop()

    def after(self, seconds: float | None) -> float | None:
        """Return the deadline `seconds` from now; None for no limit."""
        return None if seconds is None else self.now + INTERVAL + seconds

    def sweep(self) -> None:
        """Check every deadline once."""
        self.now = now = self.seconds()
        for expired in [member for member in self._members if member.deadline is not None and member.deadline <= now]:
            # an earlier member's `expired` may have changed this one
            if expired.deadline is not None and expired.deadline <= now and expired in self._members:
                try:
                    expired.expired()
                except Exception:
                    # the other deadlines must still be checked
                    self._log.failure("A deadline could not be acted on")
