"""Changes of keys, users, teams and models reach the other processes of a gateway before they are answered."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.registry import Registry
from twisted_vllm.workers.siblings import Siblings
from twisted_vllm.workers.topics import NoAnswer

if TYPE_CHECKING:
    from twisted_vllm.workers.link import Link

#: what the messages are about: a change, and that all others know of a new process
TOPIC, KNOWN = "changes", "changes.known"

#: seconds that the others have; who takes longer reads the changes by itself, a moment later
PATIENCE = 1.0

#: seconds after which a new process serves although it could not read the latest changes
JOIN_SECONDS = 5.0


class SharedChanges:
    """Has the other processes read the database after a change, and reads it after theirs.

    One question to a process is on its way at a time: what is changed meanwhile is in the next one. A process that
    does not answer holds up one round of changes, not each one of them.
    """

    _log = Logger()

    def __init__(self, siblings: Siblings) -> None:
        """Set up; `follow` names what reads changes."""
        self._siblings = siblings
        self._registry: Registry | None = None
        self._is_asking = False
        #: who waits for the next round, and for the one that runs; and the processes that this one waits for
        self._waiting: list[Deferred[None]] = []
        self._round: list[Deferred[None]] = []
        self._left: set[int] = set()
        #: processes with a question on its way, and those of them that nobody waits for
        self._asked: set[int] = set()
        self._late: set[int] = set()
        siblings.on_left(self._late.discard)

    def follow(self, registry: Registry) -> None:
        """Have a registry read what others changed."""

        def read(question: None, asker: int) -> Deferred[None]:
            return registry.catch_up().addErrback(_without_database)

        self._registry = registry
        self._siblings.answers(TOPIC, type(None), read)
        self._siblings.answers(KNOWN, type(None), lambda question, asker: None)

    def tell(self) -> Deferred[None]:
        """Have the others read; fires when they have, or when they take too long."""
        if not self._siblings.others:
            return succeed(None)
        told: Deferred[None] = Deferred()
        self._waiting.append(told)
        if not self._is_asking:
            self._ask()
        return told

    @inlineCallbacks
    def join(self, link: Link, clock: IReactorTime) -> Generator[Deferred[Any], Any, None]:
        """Catch up as a process that begins; call it when this one has said that it is ready.

        The keys were read before the others knew of this process, and what they changed in between was not told to it.
        The Deferred fires with None when nothing is missed any more, or after a time.
        """
        try:
            yield link.known(JOIN_SECONDS)
            # who answers has heard of this process, and tells it each change from now on
            yield self._siblings.ask_others(KNOWN, None, type(None), PATIENCE)
            assert self._registry is not None
            yield self._registry.catch_up().addTimeout(JOIN_SECONDS, clock)
        except (NoAnswer, StoreUnavailable, TimeoutError) as error:
            self._log.warn(
                "This process begins without the latest changes of keys, and reads them a moment later: {reason}",
                reason=str(error) or type(error).__name__,
            )

    def _ask(self) -> None:
        """Begin a round: ask all others, and wait for those that answered the last time."""
        self._is_asking = True
        self._round, self._waiting = self._waiting, []
        others = tuple(self._siblings.others)
        self._left = set(others) - self._late
        for process in others:
            if process not in self._asked:
                self._asked.add(process)
                asking = self._siblings.ask_one(process, TOPIC, None, type(None), PATIENCE)
                asking.addCallbacks(self._answered, self._silent, (process,), {}, (process,))
                asking.addCallback(self._look, process)
        self._look(None, -1)

    def _look(self, _: None, process: int) -> None:
        """End the round if nobody is waited for any more."""
        self._left.discard(process)
        if self._left or not self._is_asking:
            return
        self._is_asking = False
        told, self._round = self._round, []
        if self._waiting:
            self._ask()
        for each in told:
            each.callback(None)

    def _answered(self, answer: None, process: int) -> None:
        self._asked.discard(process)
        self._late.discard(process)

    def _silent(self, failure: Failure, process: int) -> None:
        failure.trap(NoAnswer)
        self._asked.discard(process)
        slot = self._siblings.others.get(process)
        if slot is not None and process not in self._late:
            # Imported here: a gateway of one process has no others.
            from twisted_vllm.workers.processes import name_of

            self._late.add(process)
            self._log.warn(
                "The {process} did not take in a change of keys, users or teams: {reason}. It reads it a moment later",
                process=name_of(slot),
                reason=str(failure.value),
            )


def _without_database(failure: Failure) -> None:
    # the database logs its own failures; the change is read when it is back
    failure.trap(StoreUnavailable)
