"""Which requests to a server may be in flight at once, and which wait. It does no I/O."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)


class Verdict(Enum):
    """The limiter's decision on a request."""

    GRANTED = "granted"
    QUEUED = "queued"
    REFUSED = "refused"


class ConcurrencyLimiter(Generic[Ticket]):
    """A number of slots and a bounded queue: first come, first served."""

    def __init__(self, limit: int, max_waiting: int) -> None:
        """Make the limiter.

        Args:
            limit: how many may be in flight at once, 1 or more.
            max_waiting: how many may wait, 0 or more.
        """
        self._limit = limit
        self._max_waiting = max_waiting
        self._running: set[Ticket] = set()
        self._waiting: dict[Ticket, None] = {}

    def __repr__(self) -> str:
        running, waiting = len(self._running), len(self._waiting)
        return f"<ConcurrencyLimiter {running} of {self._limit} taken, {waiting} of {self._max_waiting} wait>"

    def ask(self, ticket: Ticket) -> Verdict:
        """Ask for a slot; once for each ticket."""
        if len(self._running) < self._limit:
            self._running.add(ticket)
            return Verdict.GRANTED
        if len(self._waiting) < self._max_waiting:
            self._waiting[ticket] = None
            return Verdict.QUEUED
        return Verdict.REFUSED

    def leave(self, ticket: Ticket) -> Ticket | None:
        """Free a ticket's slot or its place in the queue; return the ticket that gets the slot, if any.

        Idempotent.
        """
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
