"""What a component knows of the other processes of its gateway, and how it talks to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed

from twisted_vllm.workers.topics import ANSWER_SECONDS, no_answer

M = TypeVar("M")
T = TypeVar("T")

#: the slot of the housekeeper; workers have those from 1
HOUSEKEEPER = 0


class Siblings(Protocol):
    """The other processes. Handlers are called in the reactor's thread, and everything here belongs to it.

    Attributes:
        alone: whether there are no other processes, nor a supervisor; then nothing is sent anywhere.
        serves: whether this process serves clients.
        housekeeps: whether it does what must be done once on a machine: write the ledger, check servers and so on.
        number: the number of this process. No process that the supervisor starts later has it again.
        slot: what it replaced: `HOUSEKEEPER`, or 1 and up for a worker; metrics and logs name processes by it.
    """

    alone: bool
    serves: bool
    housekeeps: bool
    number: int
    slot: int

    @property
    def others(self) -> Mapping[int, int]:
        """The slots of the other processes that are ready, by their numbers."""

    def tell(self, topic: str, message: Any) -> None:
        """Send a message to the supervisor."""

    def share(self, topic: str, message: Any) -> None:
        """Send a message to every other process that is ready, but not to the supervisor."""

    def send(self, process: int, topic: str, message: Any) -> None:
        """Send a message to one process."""

    def ask(self, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS) -> Deferred[T]:
        """Ask the supervisor.

        Raises:
            NoAnswer: it does not answer in time, or cannot.
        """

    def ask_one(
        self, process: int, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS
    ) -> Deferred[T]:
        """Ask one process, as `ask`."""

    def ask_others(
        self, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS
    ) -> Deferred[dict[int, T]]:
        """Ask every other process; the answers that came in time by process. It never fails."""

    def on(self, topic: str, kind: type[M], handler: Callable[[M, int], None]) -> None:
        """Have a handler called with each message of a topic and the number of its sender."""

    def answers(self, topic: str, kind: type[M], handler: Callable[[M, int], Any]) -> None:
        """Have a handler answer the questions of a topic; its second argument is the number of who asks."""

    def on_joined(self, handler: Callable[[int], None]) -> None:
        """Have a handler called with the number of each process that is ready: it knows nothing yet."""

    def on_left(self, handler: Callable[[int], None]) -> None:
        """Have a handler called with the number of each process that has ended: what it told is over."""


class NoSiblings:
    """A process that is the whole gateway. Nothing is sent, and no handler is ever called."""

    alone = serves = housekeeps = True
    number = slot = 1
    others: Mapping[int, int] = {}

    def tell(self, topic: str, message: Any) -> None:
        """Do nothing."""

    def share(self, topic: str, message: Any) -> None:
        """Do nothing."""

    def send(self, process: int, topic: str, message: Any) -> None:
        """Do nothing."""

    def ask(self, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS) -> Deferred[T]:
        """Fail: there is no supervisor."""
        return no_answer("this process is the whole gateway")

    def ask_one(
        self, process: int, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS
    ) -> Deferred[T]:
        """Fail: there is no other process."""
        return no_answer("this process is the whole gateway")

    def ask_others(
        self, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS
    ) -> Deferred[dict[int, T]]:
        """Return no answer: there is no other process."""
        return succeed({})

    def on(self, topic: str, kind: type[M], handler: Callable[[M, int], None]) -> None:
        """Do nothing: no message comes."""

    def answers(self, topic: str, kind: type[M], handler: Callable[[M, int], Any]) -> None:
        """Do nothing: no question comes."""

    def on_joined(self, handler: Callable[[int], None]) -> None:
        """Do nothing."""

    def on_left(self, handler: Callable[[int], None]) -> None:
        """Do nothing."""


#: the siblings of a process that is the whole gateway
ALONE = NoSiblings()
