"""Client connections of several workers together: never more than the limit, and none refused before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.end_to_end_harness import eventually
from tests.workers.connected import connected
from twisted_vllm.workers.permits import ConnectionPermits
from twisted_vllm.workers.permitted import MAX_WAITING, PermittedConnections


class CountedConnections:
    """The connections of one worker: as `ConnectionLimit` for what `PermittedConnections` asks."""

    def __init__(self, permits: PermittedConnections) -> None:
        self.permits = permits
        self.open: list[str] = []
        self.refused: list[str] = []
        self.idle: list[str] = []
        permits.use(self)  # type: ignore[arg-type]  # it has the part that is used

    def __len__(self) -> int:
        return len(self.open)

    def connections_of(self, name: str | bytes) -> int:
        return self.open.count(str(name))

    def lacking(self, host: str) -> tuple[str | None, ...]:
        if self.connections_of(host) >= self.permits.of(host):
            return (host,)
        return (None,) if len(self) >= self.permits.total else ()

    def make_room_elsewhere(self, name: str | None, wanted: int) -> bool:
        found = [host for host in self.idle if name in (None, host)][:wanted]
        for host in found:
            self.idle.remove(host)
            self.close(host)
        return bool(found)

    def connect(self, host: str, port: Any = None) -> None:
        port = port or Port()

        def serve() -> None:
            (self.refused if self.lacking(host) else self.open).append(host)

        if not self.permits.holds(port, host, serve):
            serve()

    def close(self, host: str) -> None:
        self.open.remove(host)
        self.permits.ended(host, self.connections_of(host))


class Port:
    """A listening port."""

    connected = True
    reads = True

    def stopReading(self) -> None:
        self.reads = False

    def startReading(self) -> None:
        self.reads = True


class Workers:
    """A supervisor and workers with a limit."""

    def __init__(self, reactor: Any, most: int, share: float, count: int) -> None:
        self.processes = connected(reactor)
        self.office = ConnectionPermits(self.processes.hub)
        self.workers: list[CountedConnections] = []
        self._reactor = reactor
        self._limits = most, share, count
        for _ in range(count):
            self.start()

    def start(self) -> CountedConnections:
        most, share, count = self._limits
        number = len(self.workers) + 1
        link = self.processes.start(number, number)
        permits = PermittedConnections(link, count)
        worker = CountedConnections(permits)
        permits.reconfigure(most, share, None)
        self.workers.append(worker)
        link.ready()
        return worker

    def reconfigure(self, most: int, share: float) -> None:
        for worker in self.workers:
            worker.permits.reconfigure(most, share, None)

    async def settled(self, count: int) -> None:
        """Wait until so many connections were served or refused."""
        await eventually(self._reactor, lambda: self.served + self.refused == count)

    @property
    def served(self) -> int:
        return sum(len(worker) for worker in self.workers)

    @property
    def refused(self) -> int:
        return sum(len(worker.refused) for worker in self.workers)

    def close(self) -> None:
        self.processes.close()


@pytest.fixture
def make(reactor: Any) -> Iterator[Any]:
    made: list[Workers] = []

    def workers(most: int, share: float = 1.0, count: int = 2) -> Workers:
        made.append(Workers(reactor, most, share, count))
        return made[-1]

    yield workers
    for each in made:
        each.close()


async def test_a_burst_on_all_workers_is_served_up_to_the_limit_exactly(make: Any) -> None:
    found = make(100)
    for number in range(2_000):
        found.workers[number % 2].connect("192.0.2.1")
    await found.settled(2_000)
    assert (found.served, found.refused) == (100, 1_900)


async def test_a_worker_that_gets_all_clients_may_have_all_permits(make: Any) -> None:
    found = make(100, count=4)
    first, second = found.workers[:2]
    for _ in range(100):
        first.connect("192.0.2.1")
    await found.settled(100)
    assert len(first) == 100
    second.connect("192.0.2.1")
    await found.settled(101)
    assert second.refused == ["192.0.2.1"]


async def test_what_one_worker_does_not_use_any_more_another_gets(make: Any) -> None:
    found = make(50)
    first, second = found.workers
    for _ in range(50):
        first.connect("192.0.2.1")
    await found.settled(50)
    for _ in range(20):
        first.close("192.0.2.1")
    for _ in range(25):
        second.connect("192.0.2.2")
    await found.settled(55)
    assert (len(first), len(second), len(second.refused)) == (30, 20, 5)


async def test_the_share_of_an_address_holds_over_the_workers(make: Any) -> None:
    found = make(1_000, share=0.1)
    for number in range(400):
        found.workers[number % 2].connect("192.0.2.1")
    found.workers[0].connect("192.0.2.2")
    await found.settled(401)
    assert sum(worker.open.count("192.0.2.1") for worker in found.workers) == 100
    assert found.workers[0].open.count("192.0.2.2") == 1


async def test_the_share_of_an_address_is_exact_when_it_uses_one_worker_alone(make: Any) -> None:
    found = make(1_000, share=0.1, count=4)
    for _ in range(150):
        found.workers[2].connect("192.0.2.1")
    await found.settled(150)
    assert len(found.workers[2]) == 100


async def test_a_share_smaller_than_the_number_of_workers_holds_too(make: Any) -> None:
    found = make(100, share=0.01, count=4)
    for worker in found.workers:
        worker.connect("192.0.2.1")
    await found.settled(4)
    assert found.served == 1


async def test_the_account_of_an_address_ends_with_its_connections(make: Any, reactor: Any) -> None:
    found = make(1_000, share=0.1)
    for number in range(200):
        found.workers[number % 2].connect("192.0.2.1")
    await found.settled(200)
    assert found.office.accounts == 1
    for worker in found.workers:
        for host in list(worker.open):
            worker.close(host)
    await eventually(reactor, lambda: found.office.accounts == 0)
    for worker in found.workers:
        worker.refused.clear()
    for number in range(200):
        found.workers[number % 2].connect("192.0.2.1")
    await found.settled(200)
    assert found.served == 100


async def test_the_permits_of_a_dead_worker_come_back(make: Any, reactor: Any) -> None:
    found = make(60)
    first, second = found.workers
    for _ in range(60):
        first.connect("192.0.2.1")
    await found.settled(60)
    found.processes.links[1].close()
    found.workers.remove(first)
    await eventually(reactor, lambda: 1 not in found.processes.hub.ready)
    for _ in range(70):
        second.connect("192.0.2.1")
    await found.settled(70)
    assert len(second) == 60


async def test_idle_connections_of_one_worker_make_room_for_those_of_another(make: Any) -> None:
    found = make(10)
    first, second = found.workers
    for _ in range(10):
        first.connect("192.0.2.1")
    await found.settled(10)
    first.idle = ["192.0.2.1"] * 4
    for _ in range(6):
        second.connect("192.0.2.2")
    await found.settled(12)
    assert (len(first), len(second), len(second.refused)) == (6, 4, 2)


async def test_a_lower_limit_closes_none_and_holds_once_connections_end(make: Any, reactor: Any) -> None:
    found = make(40)
    first, second = found.workers
    for _ in range(20):
        first.connect("192.0.2.1")
        second.connect("192.0.2.1")
    await found.settled(40)
    found.reconfigure(10, 1.0)
    await eventually(reactor, lambda: first.permits.most_of_one == 10)
    first.connect("192.0.2.1")
    await found.settled(41)
    assert (found.served, found.refused) == (40, 1)
    for worker in found.workers:
        for _ in range(15):
            worker.close("192.0.2.1")
    for _ in range(5):
        first.connect("192.0.2.1")
    await found.settled(16)
    assert found.served == 10
    found.reconfigure(30, 1.0)
    for _ in range(30):
        second.connect("192.0.2.1")
    await found.settled(46)
    assert found.served == 30


async def test_a_port_pauses_while_too_many_wait(make: Any, reactor: Any) -> None:
    found = make(1_000)
    port = Port()
    for _ in range(MAX_WAITING):
        found.workers[0].connect("192.0.2.1", port)
    assert not port.reads
    await found.settled(MAX_WAITING)
    assert port.reads
    assert len(found.workers[0]) == MAX_WAITING


async def test_nothing_waits_once_the_supervisor_is_gone(make: Any, reactor: Any) -> None:
    found = make(10)
    worker = found.workers[0]
    worker.connect("192.0.2.1")
    await found.settled(1)
    found.processes.hub.close(1)
    await eventually(reactor, lambda: 1 not in found.processes.hub.ready)
    for _ in range(20):
        worker.connect("192.0.2.1")
    await found.settled(21)
    assert len(worker) <= 10
