"""The readiness of a gateway with several processes: each tells the others when its own changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import msgspec
from twisted.internet.task import LoopingCall

from twisted_vllm.admin.context import Readiness
from twisted_vllm.workers.siblings import Siblings

#: the topic of the messages
READINESS = "readiness"

#: seconds between two looks at what this process finds; the database is asked as often
LOOK_SECONDS = 0.5


class Found(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a process finds; the fields are those of `Readiness`."""

    database: bool
    file_is_lost: bool


class SharedReadiness:
    """Knows what all processes find. The gateway is as ready as the one that has least."""

    def __init__(self, own: Callable[[], Readiness], siblings: Siblings, reactor: Any) -> None:
        """Set up; `start` begins to tell the others.

        Args:
            own: returns what this process finds.
            siblings: the other processes.
            reactor: the clock.
        """
        self._own = own
        self._siblings = siblings
        self._others: dict[int, Found] = {}
        self._told: Found | None = None
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor
        siblings.on(READINESS, Found, self._heard)
        siblings.on_joined(self._joined)
        siblings.on_left(self._left)

    def start(self) -> None:
        """Tell the others from now on."""
        self._loop.start(LOOK_SECONDS)

    def stop(self) -> None:
        """Tell no more. Idempotent."""
        if self._loop.running:
            self._loop.stop()

    def whole(self) -> Readiness:
        """Return the readiness of the gateway. Whether this process drains is its own: another is only replaced."""
        own = self._own()
        others = self._others.values()
        return attrs.evolve(
            own,
            database=own.database and all(each.database for each in others),
            file_is_lost=own.file_is_lost or any(each.file_is_lost for each in others),
        )

    def _found(self) -> Found:
        own = self._own()
        return Found(own.database, own.file_is_lost)

    def _look(self) -> None:
        found = self._found()
        if found != self._told:
            self._told = found
            self._siblings.share(READINESS, found)

    def _joined(self, number: int) -> None:
        self._siblings.send(number, READINESS, self._found())

    def _left(self, number: int) -> None:
        self._others.pop(number, None)

    def _heard(self, found: Found, sender: int) -> None:
        if sender in self._siblings.others:
            self._others[sender] = found
