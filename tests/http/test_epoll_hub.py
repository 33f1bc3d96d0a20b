"""The epoll hub: a reactor for the data path's transports, behind one descriptor."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorFDSet, IReactorTCP
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.http.net.epoll_hub import HAS_EPOLL, EpollHub, data_path_reactor
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer, unsent_bytes

pytestmark = pytest.mark.skipif(not HAS_EPOLL, reason="there is no epoll here: the reactor serves alone")

PATIENCE = 30


class Line(Protocol):
    """One end of a connection; the test handles its data."""

    transport: Any

    def __init__(self, on_data: Callable[[Line, bytes], None] | None = None) -> None:
        self.received = b""
        self.lost: Deferred[type[BaseException]] = Deferred()
        self._on_data = on_data
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._on_data is not None:
            self._on_data(self, data)
        for pair in [pair for pair in self._waiting if len(self.received) >= pair[0]]:
            self._waiting.remove(pair)
            pair[1].callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert reason.type is not None
        self.lost.callback(reason.type)

    def until(self, count: int) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        if len(self.received) >= count:
            waiting.callback(None)
        else:
            self._waiting.append((count, waiting))
        return waiting


class HubHarness:
    """A hub that listens, and clients of the real reactor's."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.coalescer = WriteCoalescer()
        self.hub = EpollHub(reactor, self.coalescer, Shortages())
        self.ends: list[Line] = []
        self.on_data: Callable[[Line, bytes], None] | None = None
        self.make: Callable[[Callable[[Line, bytes], None] | None], Line] = Line
        self.port = self.hub.listenTCP(0, Factory.forProtocol(self._line), interface="127.0.0.1")

    def _line(self) -> Line:
        line = self.make(self.on_data)
        self.ends.append(line)
        return line

    def connect(self, reactor: Any = None) -> Deferred[Line]:
        endpoint = TCP4ClientEndpoint(reactor or self.reactor, "127.0.0.1", self.port.getHost().port)
        connected: Deferred[Line] = connectProtocol(endpoint, Line())
        return connected

    @property
    def is_watched(self) -> bool:
        return self.hub in self.reactor.getReaders()


@pytest.fixture
def harness(reactor: Any) -> Generator[HubHarness, None, None]:
    harness = HubHarness(reactor)
    yield harness
    pytest_twisted.blockon(maybeDeferred(harness.port.stopListening))
    assert not harness.is_watched, "nothing is left to watch"


def echo(line: Line, data: bytes) -> None:
    line.transport.write(data)


@pytest_twisted.inlineCallbacks
def test_many_connections_are_served_on_both_sides(harness: HubHarness) -> Generator[Deferred[Any], Any, None]:
    harness.on_data = echo
    connected = yield DeferredList([harness.connect(harness.hub) for _ in range(40)])
    lines = [line for _, line in connected]
    for number, line in enumerate(lines):
        line.transport.write(b"%04d" % number * 25_000)
    yield DeferredList([line.until(100_000) for line in lines]).addTimeout(PATIENCE, harness.reactor)
    assert [line.received for line in lines] == [b"%04d" % number * 25_000 for number in range(40)]
    for line in lines:
        line.transport.loseConnection()
    yield DeferredList([end.lost for end in harness.ends]).addTimeout(PATIENCE, harness.reactor)


@pytest_twisted.inlineCallbacks
def test_what_is_written_in_one_go_leaves_after_it(harness: HubHarness) -> Generator[Deferred[Any], Any, None]:
    unsent: list[int] = []

    def answer(line: Line, data: bytes) -> None:
        write, _ = harness.coalescer.writer(line.transport)
        write(b"answer")
        unsent.append(unsent_bytes(line.transport))

    harness.on_data = answer
    client = yield harness.connect()
    client.transport.write(b"ask")
    yield client.until(6).addTimeout(PATIENCE, harness.reactor)
    assert unsent == [6]
    assert client.received == b"answer"
    client.transport.loseConnection()
    yield harness.ends[0].lost


@pytest_twisted.inlineCallbacks
def test_a_protocol_that_fails_ends_its_own_connection_alone(
    harness: HubHarness, logged_failures: Any
) -> Generator[Deferred[Any], Any, None]:
    def fail_on_bad(line: Line, data: bytes) -> None:
        if data == b"bad":
            raise ZeroDivisionError
        line.transport.write(data)

    harness.on_data = fail_on_bad
    good, bad = (yield harness.connect()), (yield harness.connect())
    bad.transport.write(b"bad")
    yield bad.lost.addTimeout(PATIENCE, harness.reactor)
    good.transport.write(b"good")
    yield good.until(4).addTimeout(PATIENCE, harness.reactor)
    assert [failure.type for failure in logged_failures.flush()] == [ZeroDivisionError]
    good.transport.loseConnection()
    yield DeferredList([end.lost for end in harness.ends])


@pytest_twisted.inlineCallbacks
def test_the_end_of_a_connection_is_reported_like_the_reactor_s(
    harness: HubHarness,
) -> Generator[Deferred[Any], Any, None]:
    closing, cutting = (yield harness.connect()), (yield harness.connect())
    for line in (closing, cutting):
        line.transport.write(b"x")
    yield DeferredList([harness.ends[0].until(1), harness.ends[1].until(1)]).addTimeout(PATIENCE, harness.reactor)
    closing.transport.loseConnection()
    cutting.transport.abortConnection()
    reasons = yield DeferredList([end.lost for end in harness.ends]).addTimeout(PATIENCE, harness.reactor)
    assert [reason for _, reason in reasons] == [ConnectionDone, ConnectionLost]


@pytest_twisted.inlineCallbacks
def test_a_half_closed_connection_can_still_be_written_to(harness: HubHarness) -> Generator[Deferred[Any], Any, None]:
    @implementer(IHalfCloseableProtocol)
    class Half(Line):
        def readConnectionLost(self) -> None:
            self.transport.write(b"and now I")
            self.transport.loseConnection()

        def writeConnectionLost(self) -> None:
            """That is not what is tested."""

    harness.make = Half
    client = yield harness.connect()
    client.transport.loseWriteConnection()
    yield client.until(9).addTimeout(PATIENCE, harness.reactor)
    yield client.lost


@pytest_twisted.inlineCallbacks
def test_a_paused_connection_is_not_read(harness: HubHarness) -> Generator[Deferred[Any], Any, None]:
    client = yield harness.connect()
    client.transport.write(b"x")
    while not harness.ends:
        yield pause(harness)
    yield harness.ends[0].until(1).addTimeout(PATIENCE, harness.reactor)
    harness.ends[0].transport.pauseProducing()
    client.transport.write(b"y" * 1000)
    for _ in range(5):
        yield pause(harness)
    assert harness.ends[0].received == b"x"
    harness.ends[0].transport.resumeProducing()
    yield harness.ends[0].until(1001).addTimeout(PATIENCE, harness.reactor)
    client.transport.loseConnection()
    yield harness.ends[0].lost


def test_a_closed_descriptor_that_was_not_removed_belongs_to_the_next_owner(harness: HubHarness) -> None:
    class Owner:
        def __init__(self, descriptor: int) -> None:
            self.descriptor = descriptor
            self.reads = 0

        def fileno(self) -> int:
            return self.descriptor

        def doRead(self) -> None:
            self.reads += 1

    left, right = socket.socketpair()
    again, other = socket.socketpair()
    first = Owner(left.fileno())
    harness.hub.addReader(first)
    number = left.fileno()
    left.close()
    os.dup2(again.fileno(), number)
    second = Owner(number)
    harness.hub.addReader(second)
    other.send(b"x")
    harness.hub.doRead()
    assert first.reads == 0
    assert second.reads > 0
    harness.hub.removeReader(second)
    os.close(number)
    for end in (right, again, other):
        end.close()


def pause(harness: HubHarness) -> Deferred[None]:
    turned: Deferred[None] = Deferred()
    harness.reactor.callLater(0, turned.callback, None)
    return turned


@pytest_twisted.inlineCallbacks
def test_a_reactor_that_stops_ends_every_connection(harness: HubHarness) -> Generator[Deferred[Any], Any, None]:
    client = yield harness.connect()
    client.transport.write(b"x")
    while not harness.ends:
        yield pause(harness)
    harness.reactor.removeReader(harness.hub)
    harness.hub.connectionLost(Failure(ConnectionLost()))
    assert (yield harness.ends[0].lost) is ConnectionLost
    yield client.lost.addTimeout(PATIENCE, harness.reactor)


def test_it_stands_for_a_reactor_and_leaves_the_rest_to_the_real_one(harness: HubHarness) -> None:
    assert IReactorTCP.providedBy(harness.hub)
    assert IReactorFDSet.providedBy(harness.hub)
    assert harness.hub.seconds == harness.reactor.seconds


def test_a_reactor_that_watches_no_sockets_serves_alone() -> None:
    class Timeless:
        """A reactor with neither sockets nor time."""

    reactor = Timeless()
    assert data_path_reactor(reactor, WriteCoalescer(), Shortages()) is reactor
    memory = MemoryReactorClock()
    assert isinstance(data_path_reactor(memory, WriteCoalescer(), Shortages()), EpollHub) is IReactorFDSet.providedBy(
        memory
    )
