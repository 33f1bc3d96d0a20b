from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from twisted_vllm.http.net.epoll_hub import data_path_reactor
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.processes import (
    END_SECONDS,
    MOST_FAILURES,
    READY_SECONDS,
    SILENT_SECONDS,
    WELL_SECONDS,
    Command,
    NotReady,
    Processes,
)

Logged = Callable[[], list[str]]


class SpawnedProcess:
    """What a process protocol gets as its transport; a signal that ends a process ends it at once."""

    pid = 4711

    def __init__(self, protocol: Any, slot: int) -> None:
        self.slot = slot
        self.signals: list[int] = []
        self._protocol = protocol

    def signalProcess(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.end(signal.SIGKILL)

    def end(self, by: int | None = None, status: int = 0) -> None:
        self._protocol.processEnded(Failure(ProcessTerminated(None if by else status, by)))


class Spawner(Clock):
    """A clock that starts processes which do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[SpawnedProcess] = []
        self.refuses: OSError | None = None

    def spawnProcess(self, protocol: Any, executable: str, arguments: Any, environ: Any, childFDs: Any) -> Any:
        if self.refuses is not None:
            raise self.refuses
        found = SpawnedProcess(protocol, int(arguments[1]))
        self.spawned.append(found)
        protocol.makeConnection(found)
        return found


class AnsweredHub(Hub):
    """A hub whose processes answer that they are alive."""

    are_alive = True

    def ask(self, process: int, topic: str, message: Any, answer: type[Any], timeout: float = 5.0) -> Deferred[Any]:
        return succeed(None) if self.are_alive else super().ask(process, topic, message, answer, timeout)


class Gateway:
    """The processes of a gateway with two workers, none of which runs."""

    def __init__(self, sockets: Any) -> None:
        self.clock = Spawner()
        self.hub = AnsweredHub(self.clock, WriteCoalescer())
        self.processes = Processes(self.clock, sockets, self.hub, 2, self._command)
        self.gave_up: list[str] = []
        self.served: list[bool] = []
        self.processes.on_give_up = self.gave_up.append
        self.processes.on_serving = self._serving

    def _serving(self) -> None:
        self.served.append(True)

    def _command(self, number: int, slot: int, control: int) -> Command:
        return Command(["gateway", str(slot)], {}, {})

    def ready(self, *numbers: int) -> None:
        for number in numbers:
            self.hub.on_ready(number)

    def started(self) -> list[int]:
        """The slots of the processes that were started, in their order."""
        return [each.slot for each in self.clock.spawned]


@pytest.fixture
def logged() -> Iterator[Callable[[], list[str]]]:
    """Return what was logged, an event a line."""
    with capturedLogs() as events:
        yield lambda: [str(formatEvent(event)) for event in events]


@pytest.fixture
def gateway(reactor: Any) -> Iterator[Gateway]:
    sockets = data_path_reactor(reactor, WriteCoalescer(), Shortages())
    found = Gateway(sockets)
    found.processes.start()
    yield found
    for number in range(1, len(found.clock.spawned) + 2):
        found.hub.close(number)


def test_it_serves_once_all_slots_are_ready(gateway: Gateway) -> None:
    assert gateway.started() == [0, 1, 2]
    gateway.ready(1, 2)
    assert not gateway.served
    gateway.ready(3)
    assert gateway.served == [True]


def test_a_process_that_ends_is_replaced_later_each_time(gateway: Gateway, logged: Logged) -> None:
    gateway.ready(1, 2, 3)
    for wait in (0.1, 0.2, 0.4, 0.8):
        gateway.clock.spawned[-1].end(by=signal.SIGSEGV)
        count = len(gateway.clock.spawned)
        gateway.clock.advance(wait - 0.01)
        assert len(gateway.clock.spawned) == count
        gateway.clock.advance(0.02)
        assert gateway.started()[count:] == [2]
    assert "by SIGSEGV" in logged()[0]


def test_a_process_that_lived_long_is_replaced_at_once_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    # all are alive
    monkeypatch.setattr(gateway.hub, "ask", lambda *question: succeed(None))
    gateway.ready(1, 2, 3)
    for _ in range(2 * MOST_FAILURES):
        gateway.clock.advance(WELL_SECONDS)
        gateway.clock.spawned[-1].end(status=1)
        gateway.clock.advance(0.11)
    assert gateway.started()[3:] == [2] * 2 * MOST_FAILURES
    assert gateway.gave_up == []


def test_one_that_served_is_replaced_within_a_second(gateway: Gateway) -> None:
    gateway.ready(1, 2, 3)
    for number in range(3, 3 + 2 * MOST_FAILURES):
        gateway.clock.spawned[-1].end(by=signal.SIGKILL)
        gateway.clock.advance(1.0)
        gateway.ready(number + 1)
    assert gateway.started()[3:] == [2] * 2 * MOST_FAILURES
    assert gateway.gave_up == []


def test_it_gives_up_a_slot_that_cannot_be_filled(gateway: Gateway) -> None:
    gateway.ready(1, 2, 3)
    # one that was ready once is replaced for ever: it served, if only for a moment
    for _ in range(MOST_FAILURES + 1):
        assert gateway.gave_up == []
        gateway.clock.spawned[-1].end(status=3)
        gateway.clock.advance(20)
    assert gateway.gave_up == [
        f"the worker-2 ended {MOST_FAILURES} times in a row before it was ready, the last with status 3"
    ]


def test_it_gives_up_when_the_first_start_fails(gateway: Gateway) -> None:
    gateway.clock.spawned[0].end(status=1)
    assert gateway.gave_up == ["the housekeeper ended with status 1 before it was ready; the log says why"]


def test_a_process_that_cannot_be_started_is_tried_again(gateway: Gateway, logged: Logged) -> None:
    gateway.ready(1, 2, 3)
    gateway.clock.refuses = BlockingIOError(11, "Resource temporarily unavailable")
    gateway.clock.spawned[1].end(status=1)
    gateway.clock.advance(0.1)
    gateway.clock.refuses = None
    gateway.clock.advance(0.2)
    assert gateway.started() == [0, 1, 2, 1]
    assert "temporarily unavailable" in logged()[1]


def test_a_process_that_answers_nothing_is_killed(gateway: Gateway, logged: Logged) -> None:
    gateway.hub.are_alive = False
    gateway.ready(1, 2, 3)
    gateway.clock.advance(1)
    gateway.clock.advance(SILENT_SECONDS)
    assert [each.signals for each in gateway.clock.spawned[:3]] == [[signal.SIGKILL]] * 3
    assert "does not answer" in logged()[0]


def test_a_process_that_does_not_end_is_killed(gateway: Gateway, logged: Logged) -> None:
    gateway.processes.drain_seconds = 40
    gateway.ready(1, 2, 3)
    stopped: list[Any] = []
    gateway.processes.stop_all().addCallback(stopped.append)
    gateway.clock.spawned[0].end()
    gateway.clock.advance(40 + END_SECONDS - 1)
    assert not stopped
    gateway.clock.advance(1)
    assert len(stopped) == 1
    assert [each.signals for each in gateway.clock.spawned] == [[], [signal.SIGKILL], [signal.SIGKILL]]
    assert all("does not end in time" in line for line in logged())


def test_replacement_goes_from_slot_to_slot_and_ends_with_the_housekeeper(gateway: Gateway) -> None:
    gateway.ready(1, 2, 3)
    done: list[Any] = []
    gateway.processes.replace_all().addCallback(done.append)
    assert gateway.started() == [0, 1, 2, 1]
    assert not gateway.processes.running[2].is_ending
    gateway.ready(4)
    assert gateway.processes.running[2].is_ending
    assert gateway.started() == [0, 1, 2, 1, 2]
    gateway.ready(5)
    # the housekeeper's old process ends before the new one begins
    assert gateway.started() == [0, 1, 2, 1, 2]
    gateway.clock.spawned[0].end()
    assert gateway.started() == [0, 1, 2, 1, 2, 0]
    gateway.ready(6)
    assert len(done) == 1


def test_a_housekeeper_that_is_about_to_be_started_is_not_started_twice(gateway: Gateway) -> None:
    gateway.ready(1, 2, 3)
    done: list[Any] = []
    gateway.processes.replace_all().addCallback(done.append)
    gateway.ready(4)
    # it waits for its next process while the last worker is replaced
    gateway.clock.spawned[0].end(by=signal.SIGKILL)
    gateway.ready(5)
    assert len(done) == 1
    gateway.clock.advance(60)
    assert gateway.started() == [0, 1, 2, 1, 2, 0]


def test_the_old_process_stays_if_the_new_one_ends(gateway: Gateway) -> None:
    gateway.ready(1, 2, 3)
    failed: list[Failure] = []
    gateway.processes.replace_all().addErrback(failed.append)
    gateway.clock.spawned[3].end(status=1)
    assert isinstance(failed[0].value, NotReady)
    gateway.clock.advance(60)
    assert gateway.started() == [0, 1, 2, 1]
    assert not gateway.processes.running[2].is_ending


def test_the_old_process_stays_if_the_new_one_takes_too_long(gateway: Gateway) -> None:
    gateway.hub.on_ready(1)
    failed: list[Failure] = []
    gateway.processes.replace_all().addErrback(failed.append)
    gateway.clock.advance(READY_SECONDS)
    assert "was not ready" in str(failed[0].value)
    assert gateway.clock.spawned[3].signals == [signal.SIGKILL]
    assert not gateway.processes.running[2].is_ending


def test_an_old_process_that_dies_while_it_is_replaced_is_not_replaced_twice(gateway: Gateway) -> None:
    gateway.ready(1, 2, 3)
    gateway.processes.replace_all().addErrback(lambda failure: None)
    gateway.clock.spawned[1].end(by=signal.SIGKILL)
    gateway.clock.advance(1)
    assert gateway.started() == [0, 1, 2, 1]
    # but its slot is filled if that one ends as well
    gateway.clock.spawned[3].end(by=signal.SIGKILL)
    gateway.clock.advance(1)
    assert gateway.started() == [0, 1, 2, 1, 1]
