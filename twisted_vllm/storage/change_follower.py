"""Looks again and again at what other processes changed in the same database."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.registry import Registry

#: seconds between two looks
FOLLOW_INTERVAL = 0.5


class ChangeFollower:
    """Keeps the index up to date with the database, from `start` to `stop`."""

    _log = Logger()

    def __init__(self, registry: Registry, clock: IReactorTime) -> None:
        self._registry = registry
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock

    def start(self) -> None:
        """Begin to look; the first time is after the interval."""
        self._looping.start(FOLLOW_INTERVAL, now=False)

    def stop(self) -> None:
        """Look no more; a look that is under way ends by itself."""
        if self._looping.running:
            self._looping.stop()

    def _look(self) -> Deferred[None]:
        return self._registry.follow().addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        # A database that fails is reported by the database itself. Whatever it was: it is asked again at the next turn.
        if not failure.check(StoreUnavailable):
            self._log.failure("The changes of other processes could not be read", failure)
