"""Who of those that ask a server may be in work at once, and who waits: decisions without I/O."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)


class Verdict(Enum):
    """What becomes of one who asks."""

    GRANTED = "granted"
    QUEUED = "queued"
    REFUSED = "refused"


class ConcurrencyLimiter(Generic[Ticket]):
    """A number of slots, and a queue of bounded length before them, first come, first served.

    Whoever is done leaves, wherever it is by then: in a slot, in the queue, or long gone. So nothing is freed twice.
    """

    def __init__(self, limit: int, most_waiting: int) -> None:
        """Make it.

        Args:
            limit: how many may be in work at once, 1 or more.
            most_waiting: how many may wait, 0 or more.
        """
        self._limit = limit
        self._most_waiting = most_waiting
        self._running: set[Ticket] = set()
        self._waiting: dict[Ticket, None] = {}

    def __repr__(self) -> str:
        running, waiting = len(self._running), len(self._waiting)
        return f"<ConcurrencyLimiter {running} of {self._limit} taken, {waiting} of {self._most_waiting} wait>"

    def ask(self, ticket: Ticket) -> Verdict:
        """Ask for a slot, once for each ticket."""
        if len(self._running) < self._limit:
            self._running.add(ticket)
            return Verdict.GRANTED
        if len(self._waiting) < self._most_waiting:
            self._waiting[ticket] = None
            return Verdict.QUEUED
        return Verdict.REFUSED

    def leave(self, ticket: Ticket) -> Ticket | None:
        """Give up a slot, or a place in the queue; return who has got the slot, if somebody has."""
        if ticket in self._running:
            self._running.remove(ticket)
            if self._waiting:
                following = next(iter(self._waiting))
                del self._waiting[following]
                self._running.add(following)
                return following
        else:
            self._waiting.pop(ticket, None)
        return None
