"""Processes in memory: messages wait in order until a test delivers them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred

from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.siblings import HOUSEKEEPER, Siblings
from twisted_vllm.workers.topics import no_answer

SUPERVISOR = -1


class _End:
    """What one process handles, the supervisor included."""

    def __init__(self, processes: Processes, number: int, slot: int) -> None:
        self.processes = processes
        self.number = number
        self.slot = slot
        self.handlers: dict[str, tuple[Any, Callable[[Any, int], None]]] = {}
        self.when_joined: list[Callable[[int], None]] = []
        self.when_left: list[Callable[[int], None]] = []
        self.others: dict[int, int] = {}

    def on(self, topic: str, kind: Any, handler: Callable[[Any, int], None]) -> None:
        assert topic not in self.handlers
        self.handlers[topic] = kind, handler

    def answers(self, topic: str, kind: Any, handler: Callable[[Any, int], Any]) -> None:
        raise NotImplementedError

    def on_joined(self, handler: Callable[[int], None]) -> None:
        self.when_joined.append(handler)

    def on_left(self, handler: Callable[[int], None]) -> None:
        self.when_left.append(handler)

    def send(self, process: int, topic: str, message: Any) -> None:
        self.processes.send(self.number, process, topic, message)


class _Process(_End):
    alone = False

    @property
    def serves(self) -> bool:
        return self.slot != HOUSEKEEPER

    @property
    def housekeeps(self) -> bool:
        return self.slot == HOUSEKEEPER

    def tell(self, topic: str, message: Any) -> None:
        self.send(SUPERVISOR, topic, message)

    def share(self, topic: str, message: Any) -> None:
        for number in self.others:
            self.send(number, topic, message)

    def ask(self, topic: str, message: Any, answer: Any, timeout: float = 5.0) -> Deferred[Any]:
        return no_answer("not in this test")

    def ask_one(self, process: int, topic: str, message: Any, answer: Any, timeout: float = 5.0) -> Deferred[Any]:
        return no_answer("not in this test")

    def ask_others(self, topic: str, message: Any, answer: Any, timeout: float = 5.0) -> Deferred[Any]:
        return no_answer("not in this test")


class Processes:
    """A supervisor and processes.

    Attributes:
        hub: the supervisor's side.
        sent: how many messages were sent, by topic.
    """

    def __init__(self) -> None:
        self._supervisor = _End(self, SUPERVISOR, SUPERVISOR)
        self._ends: dict[int, _End] = {SUPERVISOR: self._supervisor}
        self._waiting: dict[tuple[int, int], deque[tuple[str, bytes]]] = {}
        self.sent: dict[str, int] = {}

    @property
    def hub(self) -> Hub:
        return cast(Hub, self._supervisor)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The senders and receivers between which messages wait."""
        return [pair for pair, messages in self._waiting.items() if messages]

    def process(self, number: int, slot: int) -> Siblings:
        """Return a process, which the others do not know yet; `join` must follow."""
        found = self._ends[number] = _Process(self, number, slot)
        return cast(Siblings, found)

    def join(self, number: int) -> None:
        """Have all know of a process, and it of them."""
        new = self._ends[number]
        others = {each: end.slot for each, end in self._ends.items() if each not in (number, SUPERVISOR)}
        for other in others:
            end = self._ends[other]
            end.others[number] = new.slot
            new.others[other] = end.slot
        for other in others:
            for joined in self._ends[other].when_joined:
                joined(number)
            for joined in new.when_joined:
                joined(other)

    def end(self, number: int) -> None:
        """End a process at once; what it sent before still arrives."""
        del self._ends[number]
        for pair in [pair for pair in self._waiting if pair[1] == number]:
            del self._waiting[pair]
        while any(pair[0] == number for pair in self.pairs):
            self.deliver(next(pair for pair in self.pairs if pair[0] == number))
        for end in self._ends.values():
            end.others.pop(number, None)
            for left in end.when_left:
                left(number)

    def send(self, sender: int, receiver: int, topic: str, message: Any) -> None:
        if sender in self._ends and receiver in self._ends:
            self.sent[topic] = self.sent.get(topic, 0) + 1
            encoded = msgspec.msgpack.encode(message)
            self._waiting.setdefault((sender, receiver), deque()).append((topic, encoded))

    def deliver(self, pair: tuple[int, int]) -> None:
        """Deliver the oldest message between two processes."""
        topic, encoded = self._waiting[pair].popleft()
        sender, receiver = pair
        found = self._ends[receiver].handlers.get(topic)
        if found is not None:
            kind, handler = found
            handler(msgspec.msgpack.decode(encoded, type=kind), sender)

    def deliver_all(self) -> None:
        """Deliver what waits, and what is sent for it, until nothing waits."""
        for _ in range(100_000):
            pairs = self.pairs
            if not pairs:
                return
            for pair in pairs:
                if self._waiting.get(pair):
                    self.deliver(pair)
        raise AssertionError("the processes never stop to talk")

    def settle(self, advance: Callable[[float], None]) -> None:
        """Let all turns of the reactor end that are due, and deliver everything."""
        for _ in range(1_000):
            advance(0.0)
            if not self.pairs:
                return
            self.deliver_all()
        raise AssertionError("the processes never stop to talk")
