"""A reactor that makes one turn at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Call:
    def __init__(self, calls: list[_Call], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._calls = calls
        self.run = lambda: function(*arguments)
        calls.append(self)

    def cancel(self) -> None:
        self._calls.remove(self)


class TurnClock:
    """The time of a reactor whose calls run in turns: what a call schedules runs in the next one.

    Time passes as it is looked at, so that each step takes the whole of a turn.
    """

    def __init__(self) -> None:
        self._time = 0.0
        self._calls: list[_Call] = []

    def seconds(self) -> float:
        self._time += 1.0
        return self._time

    def callLater(self, delay: float, function: Callable[..., Any], *arguments: Any) -> _Call:
        return _Call(self._calls, function, arguments)

    def getDelayedCalls(self) -> list[_Call]:
        return list(self._calls)

    def turn(self) -> None:
        """Run what is scheduled."""
        for call in self.getDelayedCalls():
            call.cancel()
            call.run()
