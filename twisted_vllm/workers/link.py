"""A process's end of the connection to its supervisor, through which it also talks to its siblings."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred

from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.workers.channel import Channel
from twisted_vllm.workers.messages import OTHERS, SUPERVISOR, Envelope, Kind, encode, write_frame
from twisted_vllm.workers.siblings import HOUSEKEEPER
from twisted_vllm.workers.topics import ANSWER_SECONDS, Party, answers_of, call_each, no_answer

T = TypeVar("T")

#: what the supervisor tells by itself
JOINED, LEFT, READY = "joined", "left", "ready"
#: what a process tells instead of being ready
FAILED = "failed"

#: seconds that the supervisor may take to hear of a failure
_TELL_SECONDS = 5.0


class Joined(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A process is ready.

    Attributes:
        number: its number.
        slot: its slot.
        pid: its process id.
    """

    number: int
    slot: int
    pid: int


class Left(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A process has ended; `number` is its number."""

    number: int


class Ready(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The sender is ready; `pid` is its process id."""

    pid: int


class Failed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The sender cannot start; `reason` says why."""

    reason: str


def tell_failure(control: int, reason: str) -> None:
    """Tell the supervisor that this process cannot start, and wait until it knows; without a reactor.

    Args:
        control: the descriptor of the socket to it, which is closed.
        reason: why.
    """
    with socket.socket(fileno=control) as supervisor, suppress(OSError):
        supervisor.settimeout(_TELL_SECONDS)
        message = Envelope(Kind.MESSAGE, FAILED, SUPERVISOR, 0, msgspec.Raw(encode(Failed(reason))))
        supervisor.sendall(write_frame([message]))
        # it closes its side; what it sent before does not matter
        while supervisor.recv(4096):
            pass


class Link(Party):
    """The other processes, as `Siblings` says. Before `connect`, what is sent waits.

    Attributes:
        alone: False.
        serves: whether this process serves clients.
        housekeeps: whether it does what must be done once on a machine.
        number: as in `Siblings`.
        slot: as in `Siblings`.
        pids: the process ids of the others; those that ran when the supervisor ended stay.
        on_supervisor_gone: called with the reason when the supervisor has ended.
    """

    alone = False

    def __init__(self, reactor: Any, coalescer: WriteCoalescer, number: int, slot: int) -> None:
        """Set up.

        Args:
            reactor: the clock.
            coalescer: knows the turns of the reactor, and is the one of the data path.
            number: of this process.
            slot: of this process.
        """
        super().__init__(reactor)
        self.number = number
        self.slot = slot
        self.housekeeps = slot == HOUSEKEEPER
        self.serves = not self.housekeeps
        self.on_supervisor_gone: Callable[[str], None] = _ignore
        self.pids: dict[int, int] = {}
        self._others: dict[int, int] = {}
        self._channel = Channel(coalescer, self._received, self._supervisor_gone)
        self._gone = False
        self.on(JOINED, Joined, self._joined)
        self.on(LEFT, Left, self._left)

    def connect(self, reactor: Any, connected: socket.socket) -> None:
        """Talk to the supervisor over a connected socket; `reactor` is that of the data path."""
        self._channel.connect(reactor, connected)

    def ready(self) -> None:
        """Tell that this process does its work: the others may talk to it."""
        self.tell(READY, Ready(os.getpid()))

    def known(self, timeout: float = ANSWER_SECONDS) -> Deferred[None]:
        """Fire when this process is ready, and knows all others that are; `ready` comes before.

        Raises:
            NoAnswer: the supervisor does not answer in time.
        """
        return self.ask(READY, None, type(None), timeout)

    def close(self) -> None:
        """Send what waits, and talk no more."""
        self.on_supervisor_gone = _ignore
        self._channel.close()

    @property
    def others(self) -> Mapping[int, int]:
        """As in `Siblings`."""
        return self._others

    def tell(self, topic: str, message: Any) -> None:
        """As in `Siblings`."""
        self._channel.send(Envelope(Kind.MESSAGE, topic, SUPERVISOR, 0, msgspec.Raw(encode(message))))

    def share(self, topic: str, message: Any) -> None:
        """As in `Siblings`."""
        if self._others:
            self._channel.send(Envelope(Kind.MESSAGE, topic, OTHERS, 0, msgspec.Raw(encode(message))))

    def send(self, process: int, topic: str, message: Any) -> None:
        """As in `Siblings`."""
        self._channel.send(Envelope(Kind.MESSAGE, topic, process, 0, msgspec.Raw(encode(message))))

    def ask(self, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS) -> Deferred[T]:
        """As in `Siblings`."""
        return self.ask_one(SUPERVISOR, topic, message, answer, timeout)

    def ask_one(
        self, process: int, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS
    ) -> Deferred[T]:
        """As in `Siblings`."""
        if self._gone:
            return no_answer("the supervisor has ended")
        return self._topics.ask(self._channel.send, process, topic, message, answer, timeout)

    def ask_others(
        self, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS
    ) -> Deferred[dict[int, T]]:
        """As in `Siblings`."""
        asked = list(self._others)
        asking = [self.ask_one(process, topic, message, answer, timeout) for process in asked]
        return answers_of(asked, asking)

    def _received(self, envelope: Envelope) -> None:
        self._topics.received(envelope, self._channel.send)

    def _joined(self, message: Joined, sender: int) -> None:
        self._others[message.number] = message.slot
        self.pids[message.number] = message.pid
        call_each(self._when_joined, message.number)

    def _left(self, message: Left, sender: int) -> None:
        self.pids.pop(message.number, None)
        if self._others.pop(message.number, None) is not None:
            call_each(self._when_left, message.number)
        self._topics.gone(message.number, "the process has ended")

    def _supervisor_gone(self, reason: str) -> None:
        self._gone = True
        left, self._others = list(self._others), {}
        for process in left:
            call_each(self._when_left, process)
        self.on_supervisor_gone(reason)
        for process in (SUPERVISOR, *left):
            self._topics.gone(process, "the supervisor has ended")


def _ignore(reason: str) -> None:
    """Do nothing."""
