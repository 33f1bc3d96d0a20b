"""The supervisor's side: it relays messages between its processes, and answers those that are for itself."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import Any, TypeVar

import attrs
import msgspec
from twisted.internet.defer import Deferred

from twisted_vllm.histogram import Histogram
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.workers.channel import Channel
from twisted_vllm.workers.link import JOINED, LEFT, READY, Joined, Left, Ready
from twisted_vllm.workers.messages import OTHERS, SUPERVISOR, Envelope, Kind, encode
from twisted_vllm.workers.topics import ANSWER_SECONDS, Party, answers_of, call_each, no_answer

T = TypeVar("T")

#: upper bounds of the seconds that a message to the supervisor takes
_BOUNDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)


@attrs.define
class _Process:
    number: int
    slot: int
    channel: Channel
    pid: int = 0

    @property
    def is_ready(self) -> bool:
        return self.pid > 0


class Hub(Party):
    """Connects the processes. Messages from one process to another keep their order.

    Attributes:
        on_ready: called with the number of a process that is ready.
        relayed: how many messages from one process to another there were.
        seconds: how long each message to the supervisor itself took.
    """

    def __init__(self, reactor: Any, coalescer: WriteCoalescer) -> None:
        """Start without processes.

        Args:
            reactor: the clock.
            coalescer: knows the turns of the reactor.
        """
        super().__init__(reactor)
        self.on_ready: Callable[[int], None] = _ignore
        self.relayed = 0
        self.seconds = Histogram(_BOUNDS)
        self._coalescer = coalescer
        self._processes: dict[int, _Process] = {}
        self.on(READY, Ready, self._is_ready)
        # the answer comes after what the process was told of the others
        self.answers(READY, type(None), lambda question, asker: None)

    def connect(self, reactor: Any, connected: socket.socket, number: int, slot: int) -> None:
        """Talk to a process that was started; it joins the others when it says that it is ready.

        Args:
            reactor: of the socket.
            connected: the socket.
            number: the number of the process, which no other had.
            slot: its slot.
        """

        def received(envelope: Envelope) -> None:
            self._received(number, envelope)

        def lost(reason: str) -> None:
            self._lost(number)

        channel = Channel(self._coalescer, received, lost)
        self._processes[number] = _Process(number, slot, channel)
        channel.connect(reactor, connected)

    def close(self, number: int) -> None:
        """Talk to a process no more."""
        process = self._processes.get(number)
        if process is not None:
            process.channel.close()

    @property
    def ready(self) -> Mapping[int, int]:
        """The slots of the processes that are ready, by their numbers."""
        return {number: process.slot for number, process in self._processes.items() if process.is_ready}

    @property
    def connected(self) -> Collection[int]:
        """The numbers of the processes that have not ended."""
        return self._processes.keys()

    def unsent(self, number: int) -> int:
        """Return the bytes that a process does not take."""
        process = self._processes.get(number)
        return 0 if process is None else process.channel.unsent

    def send(self, process: int, topic: str, message: Any) -> None:
        """Send a message to a process; nothing happens if it has ended."""
        self._send(process, Envelope(Kind.MESSAGE, topic, SUPERVISOR, 0, msgspec.Raw(encode(message))))

    def share(self, topic: str, message: Any) -> None:
        """Send a message to every process that is ready."""
        envelope = Envelope(Kind.MESSAGE, topic, SUPERVISOR, 0, msgspec.Raw(encode(message)))
        for process in self._processes.values():
            if process.is_ready:
                process.channel.send(envelope)

    def ask(
        self, process: int, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS
    ) -> Deferred[T]:
        """Ask a process.

        Raises:
            NoAnswer: it does not answer in time, or cannot.
        """

        def send(envelope: Envelope) -> None:
            envelope.peer = SUPERVISOR
            self._send(process, envelope)

        if process not in self._processes:
            return no_answer("the process has ended")
        return self._topics.ask(send, process, topic, message, answer, timeout)

    def ask_all(
        self, topic: str, message: Any, answer: type[T], timeout: float = ANSWER_SECONDS
    ) -> Deferred[dict[int, T]]:
        """Ask every process that is ready; the answers that came in time by process. It never fails."""
        asked = list(self.ready)
        asking = [self.ask(process, topic, message, answer, timeout) for process in asked]
        return answers_of(asked, asking)

    def _received(self, sender: int, envelope: Envelope) -> None:
        if sender not in self._processes:
            # it has ended, as all others know
            return
        target = envelope.peer
        envelope.peer = sender
        if target == SUPERVISOR:
            began = monotonic()
            self._topics.received(envelope, lambda answer: self._answer(sender, answer))
            self.seconds.observe(monotonic() - began)
            return
        self.relayed += 1
        if target == OTHERS:
            for number, process in self._processes.items():
                if process.is_ready and number != sender:
                    process.channel.send(envelope)
        elif not self._send(target, envelope) and envelope.kind == Kind.QUESTION:
            reason = msgspec.Raw(encode("the process has ended"))
            self._send(sender, Envelope(Kind.FAILURE, envelope.topic, target, envelope.number, reason))

    def _answer(self, asker: int, answer: Envelope) -> None:
        answer.peer = SUPERVISOR
        self._send(asker, answer)

    def _send(self, number: int, envelope: Envelope) -> bool:
        process = self._processes.get(number)
        if process is None:
            return False
        process.channel.send(envelope)
        return True

    def _is_ready(self, message: Ready, sender: int) -> None:
        process = self._processes.get(sender)
        if process is None or process.is_ready:
            return
        for number, other in self._processes.items():
            if other.is_ready:
                self.send(sender, JOINED, Joined(number, other.slot, other.pid))
                self.send(number, JOINED, Joined(sender, process.slot, message.pid))
        process.pid = message.pid
        call_each(self._when_joined, sender)
        self.on_ready(sender)

    def _lost(self, number: int) -> None:
        process = self._processes.pop(number, None)
        if process is None:
            return
        self._topics.gone(number, "the process has ended")
        if process.is_ready:
            self.share(LEFT, Left(number))
        call_each(self._when_left, number)


def _ignore(number: int) -> None:
    """Do nothing."""
