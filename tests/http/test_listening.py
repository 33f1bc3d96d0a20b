"""Listening ports without a descriptor for another connection: they make room, refuse or pause, and go on."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool

from tests.descriptors import no_descriptor
from tests.self_signed import self_signed_pem
from twisted_vllm.http.net.epoll_hub import HAS_EPOLL, EpollHub
from twisted_vllm.http.net.listening import PAUSE, SHORT_PAUSE
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer

pytestmark = pytest.mark.skipif(not HAS_EPOLL, reason="without epoll Twisted's own ports listen")


class Greeting(Protocol):
    """Says hello."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.write(b"hello")


class Greeter(Factory):
    """Serves, or refuses at once."""

    noisy = False
    refuses = False
    make: type[Greeting] = Greeting

    def buildProtocol(self, addr: Any) -> Any:
        return None if self.refuses else self.make()


class Broken(Greeting):
    """Fails when its connection is made."""

    def connectionMade(self) -> None:
        raise RuntimeError("broken")


class FailingSocket:
    """A listening socket from which nothing can be accepted."""

    def __init__(self, listening: socket.socket, number: int) -> None:
        self.accepts = 0
        self.listening = listening
        self._number = number

    def accept(self) -> Any:
        self.accepts += 1
        raise OSError(self._number, os.strerror(self._number))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.listening, name)


class Listening:
    """A hub with one port, and what it is told of shortages."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.shortages = Shortages()
        self.hub = EpollHub(reactor, WriteCoalescer(), self.shortages)
        self.factory = Greeter()
        self.port: Any = self.hub.listenTCP(0, self.factory, interface="127.0.0.1")

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port.getHost().port), timeout=5)
        client.setblocking(False)
        return client

    def pass_time(self, seconds: float) -> Deferred[None]:
        return deferLater(self.reactor, seconds, lambda: None)


@pytest.fixture
def listening(reactor: Any) -> Generator[Listening, None, None]:
    found = Listening(reactor)
    yield found
    pytest_twisted.blockon(maybeDeferred(found.port.stopListening))


def received(client: socket.socket) -> bytes:
    """What came; nothing if the connection was closed without a word."""
    try:
        return client.recv(100)
    except ConnectionResetError:
        return b""


@pytest_twisted.ensureDeferred
async def test_without_room_what_waits_is_refused_by_a_spare_descriptor(listening: Listening) -> None:
    clients = [listening.connect() for _ in range(5)]
    with no_descriptor():
        listening.port.doRead()
        assert [received(client) for client in clients] == [b""] * 5
        assert listening.shortages.counts == {("accept", "EMFILE"): 1}
    again = listening.connect()
    await listening.pass_time(0.02)
    assert received(again) == b"hello"
    for client in (*clients, again):
        client.close()


@pytest_twisted.ensureDeferred
async def test_with_idle_connections_they_are_closed_and_what_waits_is_served_a_moment_later(
    listening: Listening,
) -> None:
    made: list[int] = []

    def make_room() -> int:
        made.append(1)
        return 1

    listening.shortages.add_reclaimer(make_room)
    client = listening.connect()
    with no_descriptor():
        listening.port.doRead()
    assert made == [1]
    await listening.pass_time(SHORT_PAUSE + 0.05)
    assert received(client) == b"hello"
    client.close()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("number", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
async def test_a_shortage_of_the_machine_pauses_the_port(listening: Listening, number: int) -> None:
    client = listening.connect()
    working = listening.port.socket
    failing = listening.port.socket = FailingSocket(working, number)
    await listening.pass_time(0.2)
    # without a pause the reactor would have tried thousands of times
    assert failing.accepts <= 2
    listening.port.socket = working
    await listening.pass_time(PAUSE + 0.05)
    assert received(client) == b"hello"
    client.close()
    assert listening.shortages.counts["accept", errno.errorcode[number]] == failing.accepts


@pytest_twisted.ensureDeferred
async def test_a_client_that_left_the_backlog_is_no_shortage(listening: Listening) -> None:
    working = listening.port.socket
    listening.port.socket = FailingSocket(working, errno.ECONNABORTED)
    listening.port.doRead()
    listening.port.socket = working
    client = listening.connect()
    await listening.pass_time(0.02)
    assert received(client) == b"hello"
    client.close()
    assert not listening.shortages.counts


@pytest_twisted.ensureDeferred
async def test_a_port_that_pauses_can_be_stopped(listening: Listening) -> None:
    listening.port.socket = FailingSocket(listening.port.socket, errno.ENOMEM)
    listening.port.doRead()
    # the fixture stops it, and a call that is left would fail the test


@pytest_twisted.ensureDeferred
async def test_a_connection_whose_protocol_fails_is_closed_and_the_next_is_served(
    listening: Listening, logged_failures: Any
) -> None:
    listening.factory.make = Broken
    first = listening.connect()
    await listening.pass_time(0.02)
    assert received(first) == b""
    listening.factory.make = Greeting
    second = listening.connect()
    await listening.pass_time(0.02)
    assert received(second) == b"hello"
    assert len(logged_failures.flush(RuntimeError)) == 1
    first.close()
    second.close()


@pytest_twisted.ensureDeferred
async def test_a_refused_connection_is_closed_at_once(listening: Listening) -> None:
    listening.factory.refuses = True
    client = listening.connect()
    await listening.pass_time(0.02)
    assert received(client) == b""
    client.close()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's server side does
@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["tls", "unix", "adopted tcp", "adopted unix"])
async def test_every_kind_of_endpoint_serves_refuses_and_survives_a_shortage(
    reactor: Any, tmp_path: Path, kind: str
) -> None:
    shortages, factory = Shortages(), Greeter()
    hub = EpollHub(reactor, WriteCoalescer(), shortages)
    path = tmp_path / "socket"
    context = None
    adopted: socket.socket | None = None
    if kind == "tls":
        pem = tmp_path / "both.pem"
        pem.write_bytes(self_signed_pem())
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        endpoint = serverFromString(hub, f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1")
        port: Any = await endpoint.listen(factory)
    elif kind == "unix":
        port = await serverFromString(hub, f"unix:{path}").listen(factory)
    else:
        family = socket.AF_INET if kind == "adopted tcp" else socket.AF_UNIX
        adopted = socket.socket(family)
        adopted.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(path))
        adopted.listen()
        adopted.setblocking(False)
        port = hub.adoptStreamPort(adopted.fileno(), family, factory)
    where = str(path) if kind.endswith("unix") else ("127.0.0.1", port.getHost().port)

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX if kind.endswith("unix") else socket.AF_INET) as client:
            client.settimeout(30)
            client.connect(where)
            if context is None:
                return received(client)
            try:
                with context.wrap_socket(client) as wrapped:
                    return wrapped.recv(100)
            except (ssl.SSLError, OSError):
                return b""

    def ask_in_thread() -> Deferred[bytes]:
        return deferToThreadPool(reactor, reactor.getThreadPool(), ask)

    assert await ask_in_thread() == b"hello"
    factory.refuses = True
    assert await ask_in_thread() == b""
    factory.refuses = False
    failing = port.socket = FailingSocket(port.socket, errno.ENOMEM)
    port.doRead()
    port.socket = failing.listening
    assert await ask_in_thread() == b"hello"
    assert shortages.counts == {("accept", "ENOMEM"): 1}
    await maybeDeferred(port.stopListening)
    if adopted is not None:
        adopted.close()
