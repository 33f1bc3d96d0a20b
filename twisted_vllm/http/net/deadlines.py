"""Deadlines without a timer each.

A reactor timer that is set and cancelled for every request costs more than the rest of a small request's book-keeping.
Here a deadline is one attribute, and one clock looks over all that have one, a few times a second.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: seconds between two looks: a deadline is noticed at most twice this much late, and never early
INTERVAL = 0.25


class Expiring(Protocol):
    """What can run out of time.

    Attributes:
        deadline: the time, in the reactor's seconds, from which `expired` is called; ``None`` waits without limit.
    """

    deadline: float | None

    def expired(self) -> None:
        """Act on the deadline that has passed; called again at the next look unless the deadline is moved."""


class DeadlineSweeper:
    """Calls ``expired`` on each member whose deadline has passed.

    Attributes:
        now: the reactor's time in seconds at the last look; at most `INTERVAL` old while the sweeper runs.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self._members: set[Expiring] = set()
        self._loop = LoopingCall(self.sweep)
        self._loop.clock = reactor
        self._reactor = reactor
        self.now = reactor.seconds()
        self.add = self._members.add
        self.discard = self._members.discard

    def __len__(self) -> int:
        return len(self._members)

    def start(self) -> None:
        """Begin to look."""
        self.now = self._reactor.seconds()
        self._loop.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Cease to look."""
        if self._loop.running:
            self._loop.stop()

    def after(self, seconds: float | None) -> float | None:
        """Return the deadline that is `seconds` from now, or None for no limit."""
        return None if seconds is None else self.now + INTERVAL + seconds

    def sweep(self) -> None:
        """Look once."""
        self.now = now = self._reactor.seconds()
        for late in [member for member in self._members if member.deadline is not None and member.deadline <= now]:
            # one that was late may have ended or moved another
            if late.deadline is not None and late.deadline <= now and late in self._members:
                try:
                    late.expired()
                except Exception:
                    # it must not end the deadlines of all the others
                    self._log.failure("A deadline could not be acted on")
