"""What is written once a minute, and at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall

#: seconds between two rounds
MINUTE = 60.0


class EachMinute:
    """Calls functions once a minute, and when it is stopped."""

    def __init__(self, reactor: Any) -> None:
        """Use the reactor's clock."""
        self._functions: list[Callable[[], None]] = []
        self._loop = LoopingCall(self._call)
        self._loop.clock = reactor

    def add(self, function: Callable[[], None]) -> None:
        """Add a function, which must not raise."""
        self._functions.append(function)

    def start(self) -> None:
        """Start the first minute."""
        self._loop.start(MINUTE, now=False)

    def stop(self) -> None:
        """Call the functions once more, and no longer. Idempotent."""
        if self._loop.running:
            self._loop.stop()
            self._call()

    def _call(self) -> None:
        for function in self._functions:
            function()
