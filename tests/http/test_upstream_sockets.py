"""Tests that need real sockets: refusals, resets, full buffers, TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from socket import SHUT_WR
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.client import FileBodyProducer
from twisted.web.http_headers import Headers

from tests.http.upstream_harness import OK, BodyReader, Upload, make_server, second_attempt
from tests.self_signed import self_signed_pem
from twisted_vllm.config.settings import Server
from twisted_vllm.errors import UpstreamUnreachable
from twisted_vllm.http.client.agent import UpstreamAgent
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.retries import StaleRequest
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.write_coalescing import WriteCoalescer

LOOPBACK = "127.0.0.1"
LENGTH = ((b"Content-Length", b"4"),)
#: more than the buffers of a loopback connection hold
MUCH = 16 * 1024 * 1024
#: real seconds after which a test that waits is called stuck
PATIENCE = 10.0

OnData = Callable[["End"], None]


class End(Protocol):
    """The server's end of a connection.

    Attributes:
        on_data: called when something came.
        received: every byte that came.
        lost: why the connection ended, or None.
        answered: a test's note that it has answered.
    """

    transport: Any

    def __init__(self, on_data: OnData) -> None:
        self.received = bytearray()
        self.lost: Failure | None = None
        self.answered = False
        self.on_data = on_data

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.on_data(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's default is no type
        self.lost = reason


class SocketLab:
    """An agent on the real reactor, and servers on free ports."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.deadlines = DeadlineSweeper(reactor)
        self.agent = UpstreamAgent(reactor, self.deadlines, WriteCoalescer())
        self.ends: list[End] = []
        self._ports: list[Any] = []

    def serve(self, on_data: OnData, context: Any = None, host: str = LOOPBACK) -> Server:
        """Listen; `on_data` is called with each piece that comes."""
        factory = Factory()
        factory.noisy = False

        def build(_: object) -> End:
            self.ends.append(End(on_data))
            return self.ends[-1]

        factory.buildProtocol = build  # type: ignore[assignment,method-assign]  # a factory in one line
        if context is None:
            port = self.reactor.listenTCP(0, factory, interface=LOOPBACK)
        else:
            port = self.reactor.listenSSL(0, factory, context, interface=LOOPBACK)
        self._ports.append(port)
        return make_server(host=host, port=port.getHost().port)

    def ask(
        self, server: Server, body: Any = None, headers: tuple[tuple[bytes, bytes], ...] = (), **options: Any
    ) -> Deferred[Any]:
        method = b"GET" if body is None else b"POST"
        lines = RawHeaders.from_pairs([(b"Host", b"vllm"), *headers])
        return self.agent.request(method, server.url + b"/", lines, body, **options)

    async def read(self, response: Any) -> BodyReader:
        reader = BodyReader(response)
        response.deliverBody(reader)
        await self.until(lambda: reader.end is not None)
        return reader

    async def until(self, is_so: Callable[[], object]) -> None:
        """Let the reactor turn until `is_so`."""
        stuck_at = self.reactor.seconds() + PATIENCE
        while not is_so():
            assert self.reactor.seconds() < stuck_at, "waited in vain"
            await deferLater(self.reactor, 0, lambda: None)

    async def turns(self, count: int = 20) -> None:
        for _ in range(count):
            await deferLater(self.reactor, 0, lambda: None)

    async def stop(self) -> None:
        self.agent.close()
        for port in self._ports:
            await port.stopListening()
        for end in self.ends:
            if end.lost is None and end.transport is not None:
                end.transport.abortConnection()
        await self.until(lambda: not self.agent.connections)


@pytest.fixture
def lab(reactor: Any) -> Iterator[SocketLab]:
    lab = SocketLab(reactor)
    yield lab
    pytest_twisted.blockon(ensureDeferred(lab.stop()))
    assert len(lab.deadlines) == 0
    assert len(lab.agent.pool) == 0


def answer_ok(end: End) -> None:
    if end.received.endswith(b"\r\n\r\n"):
        end.transport.write(OK)


def answer_post(end: End) -> None:
    if end.received.endswith(b"\r\n\r\nheld"):
        end.transport.write(OK)


def do_nothing(end: End) -> None:
    """Read on and say nothing."""


@pytest_twisted.ensureDeferred
async def test_one_connection_carries_many_exchanges(lab: SocketLab) -> None:
    server = lab.serve(answer_ok)
    for _ in range(5):
        reader = await lab.read(await lab.ask(server))
        assert reader.body == b"ok"
        assert reader.is_whole
    assert len(lab.ends) == 1
    assert repr(lab.agent.pool).endswith(": 1}>")


@pytest_twisted.ensureDeferred
async def test_a_host_name_is_looked_up(lab: SocketLab) -> None:
    server = lab.serve(answer_ok, host="localhost")
    reader = await lab.read(await lab.ask(server))
    assert reader.body == b"ok"


@pytest_twisted.ensureDeferred
async def test_a_port_where_nobody_listens_is_unreachable(lab: SocketLab, reactor: Any) -> None:
    port = reactor.listenTCP(0, Factory(), interface=LOOPBACK)
    number = port.getHost().port
    await port.stopListening()
    with pytest.raises(UpstreamUnreachable) as caught:
        await lab.ask(make_server(host=LOOPBACK, port=number))
    assert str(number) not in caught.value.message
    assert LOOPBACK not in caught.value.message


@pytest_twisted.ensureDeferred
async def test_an_upload_is_paused_while_the_server_does_not_read(lab: SocketLab) -> None:
    server = lab.serve(lambda end: end.transport.pauseProducing())
    upload = Upload(MUCH)
    asking = lab.ask(server, upload, ((b"Content-Length", b"%d" % MUCH),))
    await lab.until(lambda: upload.started and lab.ends and lab.ends[0].received)
    piece = b"x" * 65_536
    written = 0
    while not upload.paused and written < MUCH:
        upload.write(piece)
        written += len(piece)
        await lab.turns(1)
    assert upload.paused, "the memory of a slow server's uploads would have no bound"
    end = lab.ends[0]
    end.on_data = do_nothing
    end.transport.resumeProducing()
    while written < MUCH:
        await lab.until(lambda: not upload.paused)
        upload.write(piece)
        written += len(piece)
    upload.finish()
    head = end.received.index(b"\r\n\r\n") + 4
    await lab.until(lambda: len(end.received) == head + MUCH)
    end.transport.write(OK)
    assert (await lab.read(await asking)).body == b"ok"


@pytest_twisted.ensureDeferred
async def test_a_reader_that_pauses_holds_the_server_back(lab: SocketLab) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MUCH
    server = lab.serve(lambda end: end.transport.write(head + b"x" * MUCH))
    response = await lab.ask(server)
    await lab.turns(200)
    reader = BodyReader(response)
    response.deliverBody(reader)
    assert len(reader.body) < 1_000_000, "it was read before somebody asked"
    reader.transport.pauseProducing()
    await lab.turns(200)
    assert len(reader.body) < MUCH // 2
    assert reader.end is None
    reader.transport.resumeProducing()
    await lab.until(lambda: reader.end is not None)
    assert len(reader.body) == MUCH
    assert reader.is_whole


@pytest.mark.parametrize("when", ["before the head", "after the head", "during the upload"])
@pytest_twisted.ensureDeferred
async def test_giving_up_closes_the_server_s_connection_at_once(lab: SocketLab, when: str) -> None:
    chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    server = lab.serve(lambda end: end.transport.write(chunk) if when == "after the head" else None)
    upload = Upload() if when == "during the upload" else None
    asking = lab.ask(server, upload)
    outcome: list[object] = []
    asking.addBoth(outcome.append)
    await lab.until(lambda: lab.ends and lab.ends[0].received)
    if when == "after the head":
        await lab.until(lambda: outcome)
        outcome[0].cut()  # type: ignore[attr-defined]  # the response
    else:
        asking.cancel()
    await lab.until(lambda: lab.ends[0].lost is not None)
    await lab.until(lambda: not lab.agent.connections)
    assert upload is None or upload.stopped


def answer_once(end: End) -> None:
    """Answer the first request of a connection, and close it when the second has come."""
    if end.received.count(b"\r\n\r\n") == 1:
        end.transport.write(OK)
    else:
        end.transport.loseConnection()


@pytest_twisted.ensureDeferred
async def test_a_repeatable_request_that_a_server_read_before_it_closed_is_sent_again(lab: SocketLab) -> None:
    server = lab.serve(answer_once)
    for _ in range(3):
        reader = await lab.read(await lab.ask(server, again=second_attempt))
        assert reader.body == b"ok"
    assert len(lab.ends) == 3


@pytest_twisted.ensureDeferred
async def test_a_post_that_a_server_read_before_it_closed_is_sent_once(lab: SocketLab) -> None:
    server = lab.serve(answer_once)
    await lab.read(await lab.ask(server, b"held"))
    with pytest.raises(UpstreamUnreachable):
        await lab.ask(server, b"held")
    assert len(lab.ends) == 1


@pytest.mark.parametrize("body", [b"held", "streamed"])
@pytest_twisted.ensureDeferred
async def test_a_post_is_served_though_the_kept_connection_has_just_closed(lab: SocketLab, body: Any) -> None:
    """The end is in the socket, and the reactor has not seen it yet."""
    server = lab.serve(answer_post)
    for count in range(1, 6):
        await lab.read(await lab.ask(server, b"held"))
        lab.ends[-1].transport.socket.shutdown(SHUT_WR)
        upload = FileBodyProducer(BytesIO(b"held")) if body == "streamed" else body
        assert (await lab.read(await lab.ask(server, upload, LENGTH if body == "streamed" else ()))).body == b"ok"
        assert lab.agent.stale_requests == {StaleRequest.MOVED: count}
        assert len(lab.ends) == count + 1


@pytest_twisted.ensureDeferred
async def test_surplus_bytes_that_the_reactor_has_not_seen_reach_no_client(lab: SocketLab) -> None:
    server = lab.serve(answer_post)
    await lab.read(await lab.ask(server, b"held"))
    lab.ends[0].received.clear()
    lab.ends[0].transport.socket.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nextra")
    assert (await lab.read(await lab.ask(server, b"held"))).body == b"ok"
    assert len(lab.ends) == 2
    assert not lab.ends[0].received


@pytest_twisted.ensureDeferred
async def test_a_connection_on_which_a_part_of_the_request_still_waits_is_not_reused(lab: SocketLab) -> None:
    def answer_early(end: End) -> None:
        if not end.answered:
            end.answered = True
            end.transport.pauseProducing()
            end.transport.write(OK)

    server = lab.serve(answer_early)
    assert (await lab.read(await lab.ask(server, b"x" * MUCH))).body == b"ok"
    assert (await lab.read(await lab.ask(server))).body == b"ok"
    assert len(lab.ends) == 2
    assert lab.ends[1].received.startswith(b"GET ")


@pytest_twisted.ensureDeferred
async def test_a_file_is_sent_as_twisted_sends_it(lab: SocketLab) -> None:
    content = bytes(range(256)) * 4096

    def answer(end: End) -> None:
        body = bytes(end.received).partition(b"\r\n\r\n")[2]
        if len(body) == len(content):
            end.transport.write(OK)

    server = lab.serve(answer)
    response: Any = await lab.agent.request(
        b"POST", b"http://127.0.0.1:%d/upload" % server.port, Headers(), FileBodyProducer(BytesIO(content))
    )
    assert (await lab.read(response)).body == b"ok"
    assert lab.ends[0].received.endswith(b"\r\n\r\n" + content)


@pytest_twisted.ensureDeferred
async def test_a_file_whose_reader_goes_away_is_no_more_read(lab: SocketLab) -> None:
    server = lab.serve(lambda end: end.transport.abortConnection())
    file = BytesIO(b"x" * MUCH)
    with pytest.raises(UpstreamUnreachable):
        await lab.agent.request(b"POST", b"http://127.0.0.1:%d/" % server.port, None, FileBodyProducer(file))
    assert file.closed


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's server side does
@pytest.mark.parametrize("host", ["localhost", LOOPBACK])
@pytest_twisted.ensureDeferred
async def test_a_server_whose_certificate_is_untrusted_is_unreachable(lab: SocketLab, host: str) -> None:
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    server = lab.serve(answer_ok, PrivateCertificate.loadPEM(self_signed_pem()).options())
    url = f"https://{host}:{server.port}/".encode()
    try:
        with pytest.raises(UpstreamUnreachable) as caught:
            await lab.agent.request(b"GET", url)
    finally:
        globalLogPublisher.removeObserver(observer)
    assert host not in caught.value.message
    assert all(not end.received for end in lab.ends), "the request must not be sent to a stranger"
    [lost] = [event for event in events if event["log_format"].startswith("Lost ")]
    assert "its certificate is self-signed and not trusted" in formatEvent(lost), "the operator is told why"
