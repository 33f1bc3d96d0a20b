"""What all who watch a page see alike, computed once for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")


class Shared(Generic[T]):
    """A value that is computed at most once in so many seconds, however many ask for it at the same time."""

    def __init__(self, clock: IReactorTime, seconds: float, compute: Callable[[], Awaitable[T]]) -> None:
        """Make it; nothing is computed before somebody asks.

        Args:
            clock: the reactor.
            seconds: how long a value is used.
            compute: computes it.
        """
        self._clock = clock
        self._seconds = seconds
        self._compute = compute
        self._value: T | None = None
        self._until = float("-inf")
        self._waiting: list[Deferred[T]] | None = None

    async def get(self) -> T:
        """Return the value, or fail as computing it did."""
        if self._value is not None and self._clock.seconds() < self._until:
            return self._value
        mine: Deferred[T] = Deferred()
        if self._waiting is None:
            self._waiting = [mine]

            async def compute() -> T:
                return await self._compute()

            Deferred.fromCoroutine(compute()).addBoth(self._computed)
        else:
            self._waiting.append(mine)
        return await mine

    def _computed(self, found: T | Failure) -> None:
        waiting, self._waiting = self._waiting or [], None
        if not isinstance(found, Failure):
            self._value, self._until = found, self._clock.seconds() + self._seconds
        for each in waiting:
            if isinstance(found, Failure):
                each.errback(found)
            else:
                each.callback(found)
