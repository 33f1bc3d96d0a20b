"""Changes of keys, users, teams and models reach the other processes of a gateway before they are answered."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.registry import Registry
from twisted_vllm.workers.siblings import Siblings

#: what the messages are about
TOPIC = "changes"

#: seconds that the others have; who takes longer reads the changes by itself, a moment later
PATIENCE = 1.0


class SharedChanges:
    """Has the other processes read the database after a change, and reads it after theirs.

    One question is on its way at a time: what is changed meanwhile is in the next one.
    """

    _log = Logger()

    def __init__(self, siblings: Siblings) -> None:
        """Set up; `follow` names what reads changes."""
        self._siblings = siblings
        self._asking = False
        self._waiting: list[Deferred[None]] = []

    def follow(self, registry: Registry) -> None:
        """Have a registry read what others changed."""

        def read(question: None, asker: int) -> Deferred[None]:
            return registry.catch_up().addErrback(_without_database)

        self._siblings.answers(TOPIC, type(None), read)

    def tell(self) -> Deferred[None]:
        """Have the others read; fires when they have, or when they take too long."""
        if not self._siblings.others:
            return succeed(None)
        told: Deferred[None] = Deferred()
        self._waiting.append(told)
        if not self._asking:
            self._ask()
        return told

    def _ask(self) -> None:
        waiting, self._waiting = self._waiting, []
        asked = set(self._siblings.others)
        self._asking = True

        def answered(answers: dict[int, None]) -> None:
            self._asking = False
            late = asked & self._siblings.others.keys() - answers.keys()
            if late:
                self._log.warn(
                    "{count} processes of this gateway did not take a change of keys, users or teams in within "
                    "{seconds:g} s: they read it a moment later",
                    count=len(late),
                    seconds=PATIENCE,
                )
            if self._waiting:
                self._ask()
            for each in waiting:
                each.callback(None)

        self._siblings.ask_others(TOPIC, None, type(None), PATIENCE).addCallback(answered)


def _without_database(failure: Failure) -> None:
    # the database logs its own failures; the change is read when it is back
    failure.trap(StoreUnavailable)
