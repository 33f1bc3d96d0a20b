"""Tunnels: the relayed bytes, the backpressure, and the end."""

from __future__ import annotations

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.http.server_harness import Client, SiteHarness, TlsTransport, chunked, get, post, reply
from tests.http.upstream_harness import MemoryTransport
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.tunnel import CLOSING, LONGEST_CLOSING, Tunnel

UPGRADE = (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket")
HEAD = ResponseHead(101, b"Switching Protocols", [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")])
IDLE = 40.0


class Setting:
    """A harness with a client, and a server whose answer the test decides.

    Attributes:
        server: the gateway's side of the connection to the server, in memory.
        outcomes: what was said of the tunnel's end.
        closed: how often the tunnel said that it is over.
    """

    def __init__(self) -> None:
        self.harness = SiteHarness(timeouts=Timeouts(client_head=5, client_body=5, keep_alive=5))
        self.harness.streaming.behaviour = lambda request: request.collect_body(9, lambda body: None)
        self.client = self.harness.connect()
        self.server = MemoryTransport(self.harness.clock, self)
        self.outcomes: list[str] = []
        self.closed = 0
        self.tunnel = Tunnel(self.server, self.server.write, b"", self.harness.deadlines, IDLE, self.on_closed)

    def ask(self, *segments: bytes) -> Setting:
        self.client.send(*segments or (get(b"/vllm/a", *UPGRADE),))
        return self

    def agree(self) -> Setting:
        """Let the server answer the request that was asked last with its 101."""
        self.tunnel.join(self.harness.streaming.rendered[-1], HEAD, self.outcomes.append)
        return self.settle()

    def settle(self) -> Setting:
        self.harness.clock.advance(0)
        self.client.settle()
        return self

    def on_closed(self) -> None:
        self.closed += 1

    def connectionLost(self, reason: Failure) -> None:
        """What the server's connection says at its end."""
        self.tunnel.server_lost(reason)

    @property
    def received(self) -> bytes:
        """What the client got after the head of the 101."""
        head, end, rest = bytes(self.client.transport.value()).partition(b"\r\n\r\n")
        assert end
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        return rest

    @property
    def sent(self) -> bytes:
        return bytes(self.server.value())

    def assert_over(self, outcome: str, error: str = "") -> None:
        assert self.outcomes == [outcome]
        assert self.closed == 1
        [context] = self.harness.finished
        assert context.error_code == error
        assert context.status == 101
        self.harness.assert_clean()


def opened() -> Setting:
    return Setting().ask().agree()


def test_a_request_says_which_protocols_it_asks_for() -> None:
    setting = Setting().ask(get(b"/vllm/a", b"Connection: Upgrade", b"Upgrade: WebSocket", b"Upgrade: Other/1"))
    assert setting.harness.streaming.rendered[0].head.protocols == {b"websocket"}


@pytest.mark.parametrize(
    "data",
    [
        get(b"/vllm/a", b"Connection: Upgrade", b"Upgrade: websocket", version=b"HTTP/1.0"),
        get(b"/vllm/a", b"Upgrade: websocket"),
        get(b"/vllm/a", b"Connection: Upgrade"),
        get(b"/vllm/a", b"Connection: Upgrade", b"Upgrade: h2c-14"),
        get(b"/vllm/a", *UPGRADE, method=b"OPTIONS"),
        post(b"/vllm/a", b"body", *UPGRADE),
        chunked(b"/vllm/a", b"body").replace(b"\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 1),
    ],
)
def test_an_upgrade_that_cannot_be_is_ignored(data: bytes) -> None:
    setting = Setting()
    setting.harness.streaming.behaviour = lambda request: request.collect_body(9, lambda body: reply(request))
    setting.ask(data)
    assert setting.harness.streaming.rendered[0].head.protocols == frozenset()
    assert setting.client.answer().status == 200


def test_a_body_of_no_bytes_is_none() -> None:
    setting = Setting().ask(post(b"/vllm/a", b"", *UPGRADE))
    assert setting.harness.streaming.rendered[0].head.protocols == {b"websocket"}


@pytest.mark.parametrize("step", [1, 5, 40, 10_000])
def test_what_the_client_sends_before_the_101_waits_for_it(step: int) -> None:
    setting = Setting()
    early = b"GET /vllm/smuggled HTTP/1.1\r\nHost: h\r\n\r\n\x00\xff"
    data = get(b"/vllm/a", *UPGRADE) + early
    setting.ask(*[data[at : at + step] for at in range(0, len(data), step)])
    assert len(setting.harness.streaming.rendered) == 1
    assert (setting.client.transport.value(), setting.sent) == (b"", b"")
    setting.agree()
    setting.client.send(b"late")
    assert setting.sent == early + b"late"
    assert len(setting.harness.streaming.rendered) == 1


def test_a_client_that_sends_much_before_the_101_is_not_read() -> None:
    setting = Setting().ask(get(b"/vllm/a", *UPGRADE), *[b"x" * 10_000] * 100)
    assert setting.client.unread > 900_000
    setting.agree()
    assert setting.sent == b"x" * 1_000_000


def test_a_request_before_it_on_the_connection_is_answered_first() -> None:
    setting = Setting()
    setting.harness.streaming.behaviour = lambda request: reply(request) if request.uri == b"/vllm/first" else None
    setting.ask(get(b"/vllm/first") + get(b"/vllm/a", *UPGRADE) + b"early")
    assert setting.client.answer().status == 200
    before = len(setting.client.transport.value())
    setting.agree()
    assert setting.client.transport.value()[before:].startswith(b"HTTP/1.1 101 ")
    assert setting.sent == b"early"


@pytest.mark.parametrize("split", [True, False])
def test_after_a_refusal_nothing_that_was_sent_is_read_as_a_request(split: bool) -> None:
    setting = Setting()
    asked, smuggled = get(b"/vllm/a", *UPGRADE), get(b"/vllm/smuggled")
    setting.ask(*([asked, smuggled] if split else [asked + smuggled]))
    [request] = setting.harness.streaming.rendered
    reply(request, b"no", 403, b"Forbidden")
    setting.settle()
    assert setting.client.answer().closes
    assert len(setting.harness.streaming.rendered) == 1
    setting.harness.pass_time(5)
    setting.client.settle()
    assert setting.client.gone
    setting.harness.assert_clean()


def test_bytes_pass_both_ways_and_are_counted() -> None:
    setting = opened()
    for number in range(1000):
        setting.client.send(b"%d," % number)
        setting.tunnel.server_sent(b"%d;" % number)
    setting.settle()
    assert setting.sent == b"".join(b"%d," % number for number in range(1000))
    assert setting.received == b"".join(b"%d;" % number for number in range(1000))
    [request] = setting.harness.streaming.rendered
    assert (request.body_received, request.sentLength) == (len(setting.sent), len(setting.received))


def test_a_client_that_does_not_read_stops_the_server() -> None:
    setting = opened()
    setting.client.channel.pauseProducing()
    assert setting.server.producerState == "paused"
    setting.client.channel.resumeProducing()
    assert setting.server.producerState == "producing"


def test_a_client_that_did_not_read_what_came_before_stops_the_server_from_the_beginning() -> None:
    setting = Setting().ask()
    setting.client.channel.pauseProducing()
    setting.agree()
    assert setting.server.producerState == "paused"


def test_a_server_that_does_not_read_stops_the_client() -> None:
    setting = opened()
    setting.server.full_at = 1000
    setting.client.send(*[b"x" * 600] * 10)
    assert setting.client.unread == 4800
    assert len(setting.sent) == 1200
    setting.server.drain()
    setting.client.settle()
    assert len(setting.sent) == 2400


def test_a_server_that_closes_closes_the_client_after_what_is_on_its_way() -> None:
    setting = opened()
    setting.tunnel.server_sent(b"last words")
    setting.server.lose(ConnectionDone())
    setting.settle()
    assert setting.received == b"last words"
    assert setting.client.ended
    assert not setting.client.transport.aborted
    setting.client.send(b"dropped")
    setting.client.leave()
    setting.assert_over("completed")


def test_a_client_that_neither_reads_nor_closes_after_that_is_cut() -> None:
    setting = opened()
    setting.server.lose(ConnectionDone())
    setting.harness.pass_time(5)
    assert setting.client.transport.aborted
    setting.client.settle()
    setting.assert_over("completed")


def test_a_server_that_is_lost_closes_the_client_as_well() -> None:
    setting = opened()
    setting.tunnel.server_sent(b"last words")
    setting.server.lose(ConnectionLost())
    setting.settle()
    assert setting.received == b"last words"
    setting.client.leave()
    setting.assert_over("upstream_failed", "upstream_protocol_error")


def close(client: Client, reason: Exception) -> None:
    client.channel.connectionLost(Failure(reason))
    client.gone = True


@pytest.mark.parametrize(
    ("reason", "outcome"), [(ConnectionDone(), "completed"), (ConnectionLost(), "client_disconnected")]
)
def test_a_client_that_ends_ends_the_server_after_what_is_on_its_way(reason: Exception, outcome: str) -> None:
    setting = opened()
    setting.client.send(b"last words")
    close(setting.client, reason)
    assert setting.sent == b"last words"
    assert setting.server.disconnecting
    assert not setting.server.aborted
    setting.tunnel.server_sent(b"dropped")
    setting.settle()
    setting.assert_over(outcome)


def test_a_server_that_is_not_read_is_read_again_to_see_its_end() -> None:
    setting = opened()
    setting.client.channel.pauseProducing()
    close(setting.client, ConnectionLost())
    assert setting.server.producerState == "producing"


class DeafTransport(MemoryTransport):
    """A connection whose closing never comes about."""

    def loseConnection(self) -> None:
        self.disconnecting = True


class Socket(FileDescriptor):
    """A socket's queue, of which the server reads a byte at a time."""

    def __init__(self) -> None:
        super().__init__(reactor=Clock())  # type: ignore[arg-type]  # it calls nothing of it
        self.dataBuffer = bytes(1_000)


def test_a_server_that_reads_a_byte_at_a_time_is_cut_in_the_end() -> None:
    setting = Setting()
    setting.server = DeafTransport(setting.harness.clock, setting)
    below = setting.server.transport = Socket()  # type: ignore[attr-defined]  # where the layers of a transport are
    setting.tunnel = Tunnel(
        setting.server, setting.server.write, b"", setting.harness.deadlines, None, setting.on_closed
    )
    setting.ask().agree()
    close(setting.client, ConnectionDone())
    seconds = 0
    while not setting.server.aborted and below.offset < 1_000:
        setting.harness.pass_time(1)
        below.offset += 1
        seconds += 1
    assert LONGEST_CLOSING - CLOSING <= seconds <= LONGEST_CLOSING + CLOSING + 2
    setting.settle()


def test_a_server_that_does_not_close_is_cut() -> None:
    setting = Setting()
    setting.server = DeafTransport(setting.harness.clock, setting)
    setting.tunnel = Tunnel(
        setting.server, setting.server.write, b"", setting.harness.deadlines, None, setting.on_closed
    )
    setting.ask().agree()
    close(setting.client, ConnectionDone())
    aborted = []
    for seconds in (CLOSING - 1, 2):
        setting.harness.pass_time(seconds)
        aborted.append(setting.server.aborted)
    assert aborted == [False, True]
    setting.settle()
    setting.assert_over("completed")


@pytest.mark.parametrize("active", ["client", "server"])
def test_a_tunnel_in_which_nothing_moves_is_closed(active: str) -> None:
    setting = opened()
    for _ in range(5):
        setting.harness.pass_time(IDLE - 1)
        if active == "client":
            setting.client.send(b"x")
        else:
            setting.tunnel.server_sent(b"x")
    assert setting.outcomes == []
    setting.harness.pass_time(IDLE + 1)
    setting.settle()
    assert setting.client.ended
    setting.client.leave()
    setting.assert_over("upstream_failed", "upstream_timeout")


def test_a_client_that_takes_nothing_in_that_time_is_cut_off() -> None:
    setting = opened()
    setting.client.channel.pauseProducing()
    setting.harness.pass_time(IDLE + 1)
    assert setting.client.transport.aborted
    setting.client.settle()
    setting.settle()
    setting.assert_over("client_disconnected")


def test_other_deadlines_do_not_concern_a_tunnel() -> None:
    setting = opened()
    setting.harness.pass_time(IDLE - 1)
    assert not setting.client.transport.closing


def test_a_drain_closes_both_sides_at_once() -> None:
    setting = opened()
    setting.tunnel.server_sent(b"last words")
    drained = setting.harness.site.drain()
    setting.settle()
    assert setting.received == b"last words"
    assert setting.client.ended
    assert setting.server.disconnecting
    setting.client.leave()
    assert drained.called
    setting.assert_over("failed", "draining")


def test_a_tunnel_that_is_given_up_cuts_the_server() -> None:
    setting = opened()
    setting.tunnel.cut()
    assert setting.server.aborted
    assert setting.closed == 1
    setting.tunnel.server_sent(b"dropped")
    setting.tunnel.pauseProducing()
    setting.settle()
    assert setting.received == b""


def test_of_a_plain_connection_only_the_sending_half_is_closed_until_the_client_has_read() -> None:
    setting = opened()
    setting.server.lose(ConnectionDone())
    assert setting.client.transport.write_closed
    assert not setting.client.transport.closing


def test_tls_is_closed_whole() -> None:
    setting = Setting()
    setting.client = setting.harness.connect(TlsTransport())
    setting.ask().agree()
    setting.server.lose(ConnectionDone())
    assert setting.client.transport.disconnecting
    assert not setting.client.transport.write_closed
