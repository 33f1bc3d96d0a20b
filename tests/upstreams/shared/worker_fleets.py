"""Workers in memory with one supervisor, in front of the same servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.task import Clock

from tests.upstreams.shared.memory_processes import Processes
from tests.upstreams.test_dispatcher import Asked
from twisted_vllm.config.settings import ModelEntry, RoutingSettings, Server
from twisted_vllm.http.net.deadlines import INTERVAL, DeadlineSweeper
from twisted_vllm.upstreams.dispatcher import Ask
from twisted_vllm.upstreams.router import Router
from twisted_vllm.upstreams.server_state import Servers, ServerState
from twisted_vllm.upstreams.shared.breaker import SharedBreaker
from twisted_vllm.upstreams.shared.keeper import LimitKeeper
from twisted_vllm.upstreams.shared.sharing import ServerSharing

#: the breakers of tests
BREAKER: dict[str, Any] = {
    "allowed_fails": 3,
    "cooldown": 5.0,
    "max_cooldown": 60.0,
    "slow_start": 0.0,
    "random": lambda: 0.0,
}


class _Health:
    """What the housekeeper's checks are to the others."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.on_checked: Any = None

    def check_now(self, state: ServerState) -> None:
        self.checked.append(state.name)


class Worker:
    """One process: a worker, or the housekeeper in slot 0."""

    def __init__(
        self, processes: Processes, clock: Clock, number: int, slot: int, entries: Sequence[ModelEntry], strategy: str
    ) -> None:
        self.clock = clock
        self.number = number
        self.deadlines = DeadlineSweeper(clock)
        self.health = _Health()
        self.sharing = ServerSharing(processes.process(number, slot), self.deadlines, clock)
        self.dispatcher = self.sharing.dispatcher
        self.servers = Servers(lambda: self.sharing.make_breaker(**BREAKER, now=clock.seconds()))
        self.router = Router(
            entries,
            None,
            servers=self.servers,
            routing=RoutingSettings(routing_strategy=strategy),
            random=lambda: 0.0,
            make_limits=self.sharing.make_limits,
        )
        health: Any = self.health
        self.sharing.use(self.router, health)
        self.sharing.start()

    def ask(self, key: str = "a", priority: int = 0, model: str = "m", **options: Any) -> Asked:
        fleet: Any = self
        return Asked(fleet, Ask(key, priority, **options), model)

    def state(self, name: str) -> ServerState:
        found = self.servers.named(name)
        assert found is not None
        return found

    def breaker(self, name: str) -> SharedBreaker:
        found = self.state(name).breaker
        assert isinstance(found, SharedBreaker)
        return found

    def configure(self, *entries: ModelEntry) -> None:
        self.router.update(entries, None, RoutingSettings())
        self.dispatcher.regroup()


class Workers:
    """A supervisor, and processes with the numbers from 1."""

    def __init__(
        self, count: int, *servers: Server | ModelEntry, strategy: str = "round-robin", housekeeper: bool = False
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.processes = Processes()
        self.keeper = LimitKeeper(self.processes.hub, self.clock)
        self.entries = [each if isinstance(each, ModelEntry) else ModelEntry("m", "m", each) for each in servers]
        self.strategy = strategy
        self.workers: dict[int, Worker] = {}
        for slot in range(0 if housekeeper else 1, count + 1):
            self.start(slot)

    def __getitem__(self, number: int) -> Worker:
        return self.workers[number]

    def start(self, slot: int) -> Worker:
        number = max(self.workers, default=0) + 1
        worker = Worker(self.processes, self.clock, number, slot, self.entries, self.strategy)
        self.workers[number] = worker
        self.processes.join(number)
        self.settle()
        return worker

    def kill(self, number: int) -> None:
        """End a process without a word."""
        worker = self.workers.pop(number)
        self.processes.end(number)
        worker.sharing.stop()
        self.settle()

    def settle(self) -> None:
        """Let all say what they have to say."""
        self.processes.settle(self.clock.advance)

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.settle()

    def sweep(self, seconds: float) -> None:
        """Let time pass, with the deadlines of requests."""
        for _ in range(round(seconds / INTERVAL)):
            self.pass_time(INTERVAL)
            for worker in self.workers.values():
                worker.deadlines.sweep()
            self.settle()

    def in_flight(self, name: str) -> int:
        return sum(worker.state(name).in_flight_here for worker in self.workers.values())
