"""A disconnect is detected while a transport is not read from; other connections are not affected."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ClientEndpoint, TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions, PrivateCertificate
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from tests.descriptors import no_descriptor
from tests.http.server_harness import TcpTransport
from tests.self_signed import self_signed_pem
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher

LOOPBACK = "127.0.0.1"

Pair = Callable[..., AbstractAsyncContextManager[tuple[Any, Any]]]


class End(Protocol):
    """One end of a connection."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.arrived: Deferred[None] = Deferred()
        self.lost: Deferred[BaseException] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if not self.arrived.called:
            self.arrived.callback(None)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's default is no type
        assert reason.value is not None
        self.lost.callback(reason.value)


@pytest.fixture
def watcher(reactor: Any) -> Iterator[DisconnectWatcher]:
    found = DisconnectWatcher(reactor)
    yield found
    found.close()


@pytest.fixture
def pair(reactor: Any) -> Pair:
    """Makes two ends that are connected, the gateway's and the client's, the first of which has got a byte."""

    @asynccontextmanager
    async def make(tls: bool = False) -> AsyncIterator[tuple[End, End]]:
        ours, theirs = End(), End()
        factory = Factory()
        factory.buildProtocol = lambda addr: ours  # type: ignore[method-assign]  # one connection is enough
        factory.noisy = False
        if tls:
            port = reactor.listenSSL(
                0, factory, PrivateCertificate.loadPEM(self_signed_pem()).options(), interface=LOOPBACK
            )
        else:
            port = reactor.listenTCP(0, factory, interface=LOOPBACK)
        number = port.getHost().port
        endpoint: Any = TCP4ClientEndpoint(reactor, LOOPBACK, number)
        if tls:
            # it vouches for nobody
            endpoint = SSL4ClientEndpoint(reactor, LOOPBACK, number, CertificateOptions())
        await connectProtocol(endpoint, theirs)
        theirs.transport.write(b"x")
        await ours.arrived
        ours.transport.pauseProducing()
        yield ours, theirs
        for end in (ours, theirs):
            if not end.lost.called:
                end.transport.abortConnection()
                await end.lost
        await port.stopListening()

    return make


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")  # it is Twisted that does
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("leave", ["loseConnection", "abortConnection", "loseWriteConnection"])
@pytest_twisted.ensureDeferred
async def test_a_disconnect_ends_the_connection(watcher: DisconnectWatcher, pair: Pair, tls: bool, leave: str) -> None:
    async with pair(tls) as (ours, theirs):
        watcher.watch(ours.transport)
        theirs.transport.write(b"that nobody reads")
        # a client's process that ends closes its socket, and does not wait for the last word of TLS
        getattr(theirs.transport.transport if tls else theirs.transport, leave)()
        # ours to end, or the reactor's where it waited for the socket to become writable
        assert isinstance(await ours.lost, ConnectionAborted | ConnectionLost)
        assert ours.received == b"x"
        watcher.unwatch(ours.transport)
        assert len(watcher) == 0


@pytest_twisted.ensureDeferred
async def test_an_earlier_disconnect_is_noticed_too(watcher: DisconnectWatcher, pair: Pair) -> None:
    async with pair() as (ours, theirs):
        theirs.transport.abortConnection()
        await theirs.lost
        watcher.watch(ours.transport)
        await ours.lost


@pytest_twisted.ensureDeferred
async def test_with_resets_only_what_was_sent_before_an_orderly_end_is_read(
    watcher: DisconnectWatcher, pair: Pair, reactor: Any
) -> None:
    async with pair() as (ours, theirs):
        watcher.watch(ours.transport, resets_only=True)
        theirs.transport.write(b"y")
        theirs.transport.loseConnection()
        for _ in range(20):
            await deferLater(reactor, 0, lambda: None)
        assert not ours.lost.called
        watcher.unwatch(ours.transport)
        ours.transport.resumeProducing()
        await ours.lost
        assert ours.received == b"xy"


@pytest_twisted.ensureDeferred
async def test_with_resets_only_a_reset_ends_the_connection(watcher: DisconnectWatcher, pair: Pair) -> None:
    async with pair() as (ours, theirs):
        watcher.watch(ours.transport, resets_only=True)
        theirs.transport.abortConnection()
        assert isinstance(await ours.lost, ConnectionAborted | ConnectionLost)


@pytest_twisted.ensureDeferred
async def test_a_client_that_only_sends_is_left_alone(watcher: DisconnectWatcher, pair: Pair, reactor: Any) -> None:
    async with pair() as (ours, theirs):
        watcher.watch(ours.transport)
        watcher.watch(ours.transport)
        theirs.transport.write(b"y" * 1000)
        for _ in range(20):
            await deferLater(reactor, 0, lambda: None)
        assert (ours.lost.called, ours.received, len(watcher)) == (False, b"x", 1)
        watcher.unwatch(ours.transport)
        watcher.unwatch(ours.transport)
        ours.transport.resumeProducing()
        theirs.transport.loseConnection()
        assert isinstance(await ours.lost, ConnectionDone)
        assert ours.received == b"x" + b"y" * 1000


@pytest_twisted.ensureDeferred
async def test_a_connection_that_has_ended_can_be_unwatched(watcher: DisconnectWatcher, pair: Pair) -> None:
    async with pair() as (ours, _):
        watcher.watch(ours.transport)
        ours.transport.abortConnection()
        await ours.lost
        watcher.unwatch(ours.transport)
        assert len(watcher) == 0


@pytest_twisted.ensureDeferred
async def test_without_epoll_nothing_is_watched(
    watcher: DisconnectWatcher, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "epoll")
    async with pair() as (ours, _):
        watcher.watch(ours.transport)
        assert len(watcher) == 0


def test_a_transport_without_a_socket_is_not_watched(watcher: DisconnectWatcher) -> None:
    watcher.watch(TcpTransport())
    assert len(watcher) == 0


def test_the_reactor_can_read_it(watcher: DisconnectWatcher) -> None:
    assert verifyObject(IReadDescriptor, watcher)


@pytest_twisted.ensureDeferred
async def test_without_a_descriptor_to_watch_with_the_connection_goes_on_unwatched(
    watcher: DisconnectWatcher, pair: Pair
) -> None:
    async with pair() as (gateway, _):
        with no_descriptor():
            watcher.watch(gateway.transport)
        assert len(watcher) == 0
        watcher.watch(gateway.transport)
        assert len(watcher) == 1
        watcher.unwatch(gateway.transport)
