"""A change of the log's level in all processes of a gateway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from twisted_vllm.observability.logging.level import LogLevels
from twisted_vllm.workers.processes import name_of
from twisted_vllm.workers.siblings import Siblings

#: the topics of a change, and of what holds, for a process that joins
CHANGE, HOLDS = "log.level", "log.level.holds"

#: seconds that another process has to take it
_SECONDS = 2.0


class Change(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A change of the level; the fields are the arguments of `LogLevels.change`."""

    level: str
    seconds: float | None
    by: str


class SharedLogLevel:
    """Tells the others of a change, and takes theirs."""

    def __init__(self, levels: LogLevels, siblings: Siblings, reactor: Any) -> None:
        """Take the changes of the others from now on.

        Args:
            levels: changes the level of this process.
            siblings: the other processes.
            reactor: the clock.
        """
        self._levels = levels
        self._siblings = siblings
        self._reactor = reactor
        self._by = ""
        siblings.answers(CHANGE, Change, lambda change, asker: self._take(change))
        siblings.on(HOLDS, Change, self._holds)
        siblings.on_joined(self._joined)

    def share(self, level: str, seconds: float | None, by: str) -> Deferred[Sequence[str]]:
        """Tell the others of a change that was made here; return the names of those that did not take it in time."""
        self._by = by
        asked = dict(self._siblings.others)

        def missing(answers: dict[int, None]) -> Sequence[str]:
            return [name_of(slot) for number, slot in asked.items() if number not in answers]

        asking = self._siblings.ask_others(CHANGE, Change(level, seconds, by), type(None), _SECONDS)
        return asking.addCallback(missing)

    def _take(self, change: Change) -> None:
        self._by = change.by
        self._levels.change(change.level, change.seconds, change.by)

    def _joined(self, number: int) -> None:
        now = self._levels.in_effect
        if now.level != now.configured:
            left = None if now.ends is None else max(now.ends - self._reactor.seconds(), 0.001)
            self._siblings.send(number, HOLDS, Change(now.level, left, self._by))

    def _holds(self, change: Change, sender: int) -> None:
        # each of the others says so
        if self._levels.in_effect.level != change.level:
            self._take(change)
