"""Limits the requests in flight at a server and queues the rest. It does no I/O."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)


class Decision(Enum):
    """The limiter's decision on a request."""

    GRANTED = "granted"
    QUEUED = "queued"
    REFUSED = "refused"


class ConcurrencyLimiter(Generic[Ticket]):
    """Limits concurrency, with a bounded first-in, first-out queue."""

    def __init__(self, limit: int, max_waiting: int) -> None:
        """Create the limiter.

        Args:
            limit: the maximum in flight, 1 or more.
            max_waiting: the maximum in the queue, 0 or more.
        """
        self._limit = limit
        self._max_waiting = max_waiting
        self._running: set[Ticket] = set()
        self._waiting: dict[Ticket, None] = {}

    def __repr__(self) -> str:
        running, waiting = len(self._running), len(self._waiting)
        return f"<ConcurrencyLimiter {running} of {self._limit} taken, {waiting} of {self._max_waiting} wait>"

    def acquire(self, ticket: Ticket) -> Decision:
        """Request admission, once for each ticket."""
        if len(self._running) < self._limit:
            self._running.add(ticket)
            return Decision.GRANTED
        if len(self._waiting) < self._max_waiting:
            self._waiting[ticket] = None
            return Decision.QUEUED
        return Decision.REFUSED

    def release(self, ticket: Ticket) -> Ticket | None:
        """Release a ticket, in flight or queued; return the queued ticket that is granted instead, if any.

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
