"""An upstream agent in memory: the test is the server, the network and the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_vllm.config.settings import Server, Timeouts
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.interfaces import Again
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.net.deadlines import INTERVAL, DeadlineSweeper
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer

HOST = "192.0.2.7"
PORT = 8000

HeaderPairs = list[tuple[bytes, bytes]]


def make_server(timeouts: Timeouts | None = None, host: str = HOST, port: int = PORT) -> Server:
    return Server(
        name=f"{host}:{port}",
        host=host,
        port=port,
        tls=False,
        base_path=b"",
        host_header=f"{host}:{port}".encode("ascii"),
        api_key=None,
        timeouts=timeouts or Timeouts(),
    )


class MemoryTransport(StringTransport):
    """The agent's end of a connection. Closing takes effect in the clock's next turn, as a socket's does.

    Attributes:
        writes: each write of its own.
        aborted: whether the connection was cut.
        full_at: bytes that are waiting from which the upload is paused, as a socket's buffer of this size would.
    """

    def __init__(self, clock: Any, protocol: Any) -> None:
        super().__init__(lenient=True)
        self.writes: list[bytes] = []
        self.aborted = False
        self.full_at: int | None = None
        self._clock = clock
        self._protocol = protocol
        self._waiting = 0
        self._producer_paused = False

    def write(self, data: bytes) -> None:
        if not self.connected:
            return
        super().write(data)
        self.writes.append(data)
        self._waiting += len(data)
        if self.full_at is not None and self._waiting > self.full_at and self.producer is not None:
            self._producer_paused = True
            self.producer.pauseProducing()

    def drain(self) -> None:
        """Let what was written leave."""
        self._waiting = 0
        if self._producer_paused and self.producer is not None:
            self._producer_paused = False
            self.producer.resumeProducing()

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self._clock.callLater(0, self.lose, ConnectionDone())

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = self.disconnecting = True
            self._clock.callLater(0, self.lose, ConnectionAborted())

    def lose(self, reason: Exception) -> None:
        """End the connection, as Twisted's sockets do: the producer is stopped first."""
        if not self.connected:
            return
        self.connected = False
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        self._protocol.connectionLost(Failure(reason))


class ServerEnd:
    """The server's end of a connection.

    Attributes:
        transport: the agent's end.
    """

    def __init__(self, transport: MemoryTransport, protocol: Any) -> None:
        self.transport = transport
        self._protocol = protocol

    @property
    def received(self) -> bytes:
        return bytes(self.transport.value())

    @property
    def writes(self) -> list[bytes]:
        return self.transport.writes

    @property
    def is_open(self) -> bool:
        """Whether the agent has neither closed nor cut the connection."""
        return self.transport.connected and not self.transport.disconnecting

    @property
    def is_cut(self) -> bool:
        return self.transport.aborted

    @property
    def is_paused(self) -> bool:
        """Whether the agent does not read."""
        return bool(self.transport.producerState == "paused")

    def clear_writes(self) -> None:
        """Clear the received bytes."""
        self.transport.clear()
        self.transport.writes.clear()

    def send(self, data: bytes) -> None:
        """Send one segment; a connection that was cut reads no more."""
        if self.is_open:
            self._protocol.dataReceived(data)

    def close(self) -> None:
        """Close the connection cleanly (FIN)."""
        self.transport.lose(ConnectionDone())

    def reset(self) -> None:
        """Reset the connection (RST)."""
        self.transport.lose(ConnectionLost())


class BodyReader(Protocol):
    """Receives a response's body.

    Attributes:
        pieces: what came.
        complete: for each piece, whether the response said that it was the last.
        end: why the body ended, or None.
    """

    transport: Any

    def __init__(self, response: Any, on_piece: Callable[[BodyReader], None] | None = None) -> None:
        self.pieces: list[bytes] = []
        self.complete: list[bool] = []
        self.end: Failure | None = None
        self._response = response
        self._on_piece = on_piece

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def is_whole(self) -> bool:
        return self.end is not None and self.end.check(ResponseDone) is not None

    def dataReceived(self, data: bytes) -> None:
        assert self.end is None, "a piece came after the end"
        self.pieces.append(data)
        self.complete.append(self._response.complete)
        if self._on_piece is not None:
            self._on_piece(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.end is None, "the body ended twice"
        self.end = reason


class Asked:
    """One request and what became of it.

    Attributes:
        result: the agent's Deferred.
        response: the response, once its head came.
        error: what the request failed with, or None.
        reader: what receives the body, or None while nobody reads.
        interim: the interim responses.
    """

    def __init__(self, read: bool) -> None:
        self.result: Deferred[Any]
        self._response: UpstreamResponse | None = None
        self.error: BaseException | None = None
        self.reader: BodyReader | None = None
        self.interim: list[tuple[int, bytes, HeaderPairs]] = []
        self._read = read

    def attend(self, result: Deferred[Any]) -> Asked:
        self.result = result
        result.addCallbacks(self._answered, self._failed)
        return self

    def on_interim(self, status: int, reason: bytes, headers: HeaderPairs) -> None:
        self.interim.append((status, reason, list(headers)))

    @property
    def is_pending(self) -> bool:
        return self._response is None and self.error is None

    @property
    def response(self) -> UpstreamResponse:
        assert self._response is not None, f"no response came; the error is {self.error!r}"
        return self._response

    @property
    def body(self) -> bytes:
        """The whole body."""
        assert self.reader is not None and self.reader.is_whole, f"ended with {self.end!r}"
        return self.reader.body

    @property
    def end(self) -> Failure | None:
        return None if self.reader is None else self.reader.end

    @property
    def cause(self) -> BaseException:
        """Why the body was cut short."""
        assert self.end is not None
        reasons = self.end.value.reasons  # type: ignore[union-attr]  # a ResponseFailed
        assert len(reasons) == 1
        return reasons[0].value  # type: ignore[no-any-return]

    def read(self, on_piece: Callable[[BodyReader], None] | None = None) -> BodyReader:
        self.reader = BodyReader(self.response, on_piece)
        self.response.deliverBody(self.reader)
        return self.reader

    def _answered(self, response: UpstreamResponse) -> None:
        assert self.is_pending
        self._response = response
        if self._read:
            self.read()

    def _failed(self, failure: Failure) -> None:
        assert self.is_pending
        self.error = failure.value


class Lab:
    """An agent, and the network around it.

    Attributes:
        clock: the reactor.
        deadlines: the deadlines, checked by `advance`.
        coalescer: sends at the end of a turn, for tests that begin one with `hold` and end it with `release`.
        shortages: counts what failed for want of a descriptor or a port.
        agent: what is tested.
        ends: the connections that were accepted, in order.
    """

    def __init__(self, max_connections: int | None = None) -> None:
        self.clock: Any = MemoryReactorClock()
        self.deadlines = DeadlineSweeper(self.clock)
        self.coalescer = WriteCoalescer()
        self.shortages = Shortages()
        self.agent = UpstreamAgent(self.clock, self.deadlines, self.coalescer, self.shortages, max_connections)
        self.ends: list[ServerEnd] = []

    # the client

    def ask(
        self,
        method: bytes = b"GET",
        target: bytes = b"/v1/models",
        headers: Iterable[tuple[bytes, bytes]] = ((b"Host", b"vllm"),),
        body: Any = None,
        server: Server | None = None,
        read: bool = True,
        **options: Any,
    ) -> Asked:
        """Send a request with exactly these headers; the target ``*`` is that of a URL without a path."""
        asked = Asked(read)
        server = server or make_server()
        result = self.agent.request(
            method,
            server.url + (b"" if target == b"*" else target),
            RawHeaders.from_pairs(headers),
            body,
            server=server,
            informational=asked.on_interim,
            **options,
        )
        return asked.attend(result)

    def asked(self, method: bytes = b"GET", body: Any = None, read: bool = True) -> tuple[Asked, ServerEnd]:
        """Ask on a fresh connection; return the server's end with it."""
        asked = self.ask(method, body=body, read=read)
        return asked, self.accept()

    # the network

    @property
    def attempts(self) -> int:
        """How often the agent began to connect."""
        return len(self.clock.tcpClients)

    def accept(self) -> ServerEnd:
        """Let the last attempt to connect succeed."""
        protocol = self.clock.tcpClients[-1][2].buildProtocol(IPv4Address("TCP", HOST, PORT))
        transport = MemoryTransport(self.clock, protocol)
        end = ServerEnd(transport, protocol)
        self.ends.append(end)
        protocol.makeConnection(transport)
        return end

    def refuse(self, reason: Exception) -> None:
        """Let the last attempt to connect fail."""
        self.clock.tcpClients[-1][2].clientConnectionFailed(self.clock.connectors[-1], Failure(reason))

    def reused(
        self, *, body: Any = None, method: bytes = b"POST", read: bool = True, again: Again | None = None
    ) -> tuple[Asked, ServerEnd]:
        """Ask on a connection that has carried an exchange before. A request with `again` may be repeated."""
        first, end = self.asked()
        end.send(OK)
        assert first.body == b"ok"
        end.clear_writes()
        asked = self.ask(method, body=body, read=read, again=again)
        assert self.attempts == 1
        return asked, end

    # time

    def turn(self) -> None:
        """Let the reactor make a turn."""
        self.clock.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass and check the deadlines as often as in service."""
        while seconds > 0:
            step = min(seconds, INTERVAL)
            self.clock.advance(step)
            self.deadlines.sweep()
            seconds -= step
        self.turn()

    # what remains

    def assert_nothing_left(self) -> None:
        """No connection, no deadline and no timer remains once closing connections have closed."""
        self.turn()
        assert not self.agent.connections
        assert len(self.deadlines) == 0
        assert len(self.agent.pool) == 0
        assert not self.clock.getDelayedCalls()
        assert not any(end.transport.connected for end in self.ends)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def second_attempt() -> RawHeaders:
    """Return the headers of a request's second attempt."""
    return RawHeaders.from_pairs([(b"Host", b"vllm"), (b"X-Request-Id", b"second")])


@implementer(IBodyProducer)
class Upload:
    """A body that the test writes.

    Attributes:
        length: its size in bytes, or ``UNKNOWN_LENGTH``.
        paused: whether the agent asked for a pause.
        stopped: whether the agent wants no more.
    """

    def __init__(self, length: Any = UNKNOWN_LENGTH) -> None:
        self.length = length
        self.paused = False
        self.stopped = False
        self.started = 0
        self._consumer: Any = None
        self._done: Deferred[None] = Deferred()

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.started += 1
        self._consumer = consumer
        return self._done

    def write(self, data: bytes) -> None:
        self._consumer.write(data)

    def finish(self) -> None:
        self._done.callback(None)

    def fail(self, error: Exception) -> None:
        self._done.errback(error)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def stopProducing(self) -> None:
        self.stopped = True
