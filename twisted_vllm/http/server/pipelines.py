"""Shares the reactor's turns among clients that send many requests without waiting for the answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

#: pipelined requests that are answered in one turn of the reactor, of all connections together
PER_TURN = 32
#: seconds after which a turn begins none: a large answer takes milliseconds
SLICE = 0.005


class Pipelines:
    """Connections whose next pipelined request waits for a turn.

    The first request that arrives in a turn is answered at once. 64 KiB of small requests, as one read may bring them,
    would take 0.1 s, in which nobody else is served.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        """Use the reactor's turns."""
        self._reactor = reactor
        self._seconds = reactor.seconds
        self._left = PER_TURN
        self._ends = self._seconds() + SLICE
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False

    def take(self) -> bool:
        """Return whether one more pipelined request may be answered in this turn."""
        if not self._left or self._seconds() >= self._ends:
            return False
        self._left -= 1
        return True

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call a function in a later turn, in the order of the calls."""
        self._waiting.append(go_on)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        self._left = PER_TURN
        self._ends = self._seconds() + SLICE
        for _ in range(len(self._waiting)):
            if not self._left or self._seconds() >= self._ends:
                break
            self._waiting.popleft()()
        if self._waiting:
            self._schedule()
