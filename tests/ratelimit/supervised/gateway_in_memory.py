"""A supervisor and its workers in one process: messages are encoded, and delivered when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.ratelimit.limiter_contract import NOON
from twisted_vllm.app.processes.limit_server import limit_server
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.memory.reconciliation import BudgetReconciliation
from twisted_vllm.ratelimit.supervised.messages import LOADED
from twisted_vllm.ratelimit.supervised.worker import SupervisedCounting

HOUSEKEEPER = 100


class Handlers:
    """What is called with messages, by topic."""

    def __init__(self) -> None:
        self.handlers: dict[str, tuple[Any, Callable[[Any, int], Any]]] = {}

    def on(self, topic: str, kind: Any, handler: Callable[[Any, int], Any]) -> None:
        assert topic not in self.handlers
        self.handlers[topic] = msgspec.msgpack.Decoder(kind), handler

    answers = on

    def call(self, topic: str, data: bytes, sender: int) -> Any:
        decoder, handler = self.handlers[topic]
        return handler(decoder.decode(data), sender)


class Supervisor(Handlers):
    """The supervisor's side of the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: dict[int, Worker] = {}
        self.left: list[Callable[[int], None]] = []
        self.joined: list[Callable[[int], None]] = []
        self.ready: dict[int, int] = {}

    def send(self, process: int, topic: str, message: Any) -> None:
        if process in self.workers:
            self.workers[process].inbox.append((topic, msgspec.msgpack.encode(message)))

    def on_joined(self, handler: Callable[[int], None]) -> None:
        self.joined.append(handler)

    def on_left(self, handler: Callable[[int], None]) -> None:
        self.left.append(handler)


class Worker(Handlers):
    """A worker, and what it and the supervisor have sent each other and not received."""

    def __init__(self, supervisor: Supervisor, number: int, clock: Clock) -> None:
        super().__init__()
        self.supervisor = supervisor
        self.number = number
        self.inbox: deque[tuple[str, bytes]] = deque()
        self.outbox: deque[tuple[str, bytes]] = deque()
        #: what waits for the end of the turn
        self.at_end: list[Callable[[], None]] = []
        self.counting = SupervisedCounting(self, clock, self.at_end.append)

    def tell(self, topic: str, message: Any) -> None:
        self.outbox.append((topic, msgspec.msgpack.encode(message)))

    def ask(self, topic: str, message: Any, answer: Any) -> Deferred[Any]:
        """Ask at once: what the worker sent before is delivered first."""
        self.deliver()
        found = self.supervisor.call(topic, msgspec.msgpack.encode(message), self.number)
        result: Deferred[Any] = Deferred()
        result.callback(msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=answer))
        return result

    def end_turn(self) -> None:
        """Send what this turn collected."""
        at_end, self.at_end[:] = list(self.at_end), []
        for each in at_end:
            each()

    def deliver(self) -> None:
        """Have the supervisor receive what was sent."""
        self.end_turn()
        while self.outbox:
            self.supervisor.call(*self.outbox.popleft(), self.number)

    def receive(self) -> None:
        """Receive what the supervisor has sent."""
        while self.inbox:
            self.call(*self.inbox.popleft(), -1)
        self.end_turn()

    def exchange(self) -> None:
        """Deliver all, in both directions."""
        while self.at_end or self.outbox or self.inbox:
            self.deliver()
            self.receive()


class GatewayInMemory:
    """A supervisor whose budgets are loaded, and workers that tests start and kill."""

    def __init__(self, loaded: bool = True) -> None:
        self.clock = Clock()
        self.now = NOON
        self.supervisor = Supervisor()
        self.limiter = LocalLimiter(lambda *crossed: self.server.soft_budget_crossed(*crossed))
        self.reconciliation = BudgetReconciliation(self.limiter)
        self.server = limit_server(self.supervisor, self.limiter, self.reconciliation, lambda: self.now)
        self.housekeeper = self.start(HOUSEKEEPER, 0)
        if loaded:
            self.housekeeper.tell(LOADED, None)
            self.housekeeper.exchange()

    @property
    def workers(self) -> dict[int, Worker]:
        return self.supervisor.workers

    def start(self, number: int, slot: int = 1) -> Worker:
        worker = self.supervisor.workers[number] = Worker(self.supervisor, number, self.clock)
        self.supervisor.ready[number] = slot
        for handler in self.supervisor.joined:
            handler(number)
        return worker

    def kill(self, number: int) -> None:
        """End a process: what it has not sent is lost."""
        del self.supervisor.workers[number]
        del self.supervisor.ready[number]
        for handler in self.supervisor.left:
            handler(number)

    def exchange(self) -> None:
        """Deliver all that waits."""
        for worker in list(self.workers.values()):
            worker.exchange()
