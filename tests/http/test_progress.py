"""Only progress moves a deadline: no blank lines, no framing of chunks, no bytes of a head, and no trickle."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import Clock

from tests.http.server_harness import Client, SiteHarness, TcpTransport, TlsTransport, get, post, reply
from tests.http.upstream_harness import Asked, Lab, ServerEnd, make_server
from twisted_vllm.config.settings import Limits, Timeouts
from twisted_vllm.errors import UpstreamProtocolError, UpstreamTimeout
from twisted_vllm.http.client.parser import MAX_HEAD_BYTES
from twisted_vllm.http.server.connection import STALL
from twisted_vllm.http.server.request import GatewayRequest

TIMEOUTS = Timeouts(client_head=15.0, client_body=60.0, keep_alive=75.0)
#: bytes per second
RATE = 500
#: deadlines are checked a few times a second
LATE = 1.0


def wait_on_the_body(request: GatewayRequest) -> None:
    request.stream_body(lambda data, last: reply(request) if last else None)


def harness_with(rate: int | None = RATE) -> SiteHarness:
    harness = SiteHarness(Limits(min_client_rate=rate), TIMEOUTS)
    harness.streaming.behaviour = wait_on_the_body
    return harness


def seconds_until_the_end(harness: SiteHarness, client: Client, pieces: Iterator[bytes], every: float) -> float:
    """Send a piece every so many seconds; return when the gateway gives the client up."""
    began = harness.clock.seconds()
    for piece in pieces:
        client.send(piece)
        if client.ended or harness.clock.seconds() - began > 4_000:
            break
        harness.pass_time(every)
        client.settle()
    return harness.clock.seconds() - began


CHUNKED = get(b"/vllm/a", b"Transfer-Encoding: chunked", method=b"POST")


@pytest.mark.parametrize("every", [0.5, 14.0, 59.0])
@pytest.mark.parametrize("blank", [b"\r\n", b"\n"])
def test_blank_lines_before_a_request_do_not_extend_keep_alive(blank: bytes, every: float) -> None:
    harness = harness_with()
    client = harness.connect()
    assert seconds_until_the_end(harness, client, repeat(blank), every) <= 75 + every + LATE
    assert harness.finished == []


def test_blank_lines_after_a_request_do_not_extend_keep_alive() -> None:
    harness = harness_with()
    client = harness.connect()
    client.send(post(b"/vllm/a", b"x"))
    assert client.answer().status == 200
    assert seconds_until_the_end(harness, client, repeat(b"\r\n"), 10.0) <= 85 + LATE


@pytest.mark.parametrize("begin", [b"", b"1;", b"1\r\nx\r\n1;", b"1\r\nx\r\n", b"1\r\nx\r\n0\r\nX-Trailer: "], ids=str)
@pytest.mark.parametrize("byte", [b"0", b"a"])
def test_sizes_extensions_and_trailers_of_chunks_do_not_extend_the_body_s_time(begin: bytes, byte: bytes) -> None:
    harness = harness_with()
    client = harness.connect()
    client.send(CHUNKED + begin)
    assert seconds_until_the_end(harness, client, repeat(byte), 20.0) <= 80 + LATE
    assert client.answer().status in (400, 408)


@pytest.mark.parametrize("every", [1.0, 29.0, 59.0])
@pytest.mark.parametrize("piece", [b"x", b"1\r\nx\r\n"])
def test_one_byte_at_a_time_ends_after_the_time_for_a_body(piece: bytes, every: float) -> None:
    """A body of a byte every 29 s lasted as long as it liked: 1 MiB in a year."""
    harness = harness_with()
    client = harness.connect()
    client.send(CHUNKED if b"\r" in piece else post(b"/vllm/a", bytes(1_000_000))[:-1_000_000])
    assert seconds_until_the_end(harness, client, repeat(piece), every) <= 60 + every + LATE
    assert client.answer().status == 408
    assert harness.streaming.works[0].cancelled == 1


@pytest.mark.parametrize(("size", "lasts"), [(20 * RATE, True), (20 * RATE - 500, False)])
def test_a_body_must_come_at_the_lowest_rate_over_time(size: int, lasts: bool) -> None:
    harness = harness_with()
    client = harness.connect()
    client.send(post(b"/vllm/a", bytes(100_000_000))[:-100_000_000])
    ended = seconds_until_the_end(harness, client, repeat(bytes(size)), 20.0)
    assert (ended > 4_000) is lasts


def test_a_fast_beginning_buys_no_more_than_the_time_for_a_body() -> None:
    harness = harness_with()
    client = harness.connect()
    client.send(post(b"/vllm/a", bytes(100_000_000))[:-100_000_000] + bytes(50_000_000))
    assert seconds_until_the_end(harness, client, repeat(b"x"), 10.0) <= 70 + LATE


def test_without_a_rate_any_content_is_progress() -> None:
    harness = harness_with(None)
    client = harness.connect()
    client.send(post(b"/vllm/a", bytes(1_000_000))[:-1_000_000])
    assert seconds_until_the_end(harness, client, repeat(b"x"), 50.0) > 4_000
    client = harness.connect()
    client.send(CHUNKED)
    assert seconds_until_the_end(harness, client, repeat(b"0"), 50.0) <= 110 + LATE


def test_a_trickled_head_behind_other_requests_has_its_time_once() -> None:
    harness = harness_with()
    client = harness.connect()
    client.send(get() * 3 + b"GET /vllm/a HTTP/1.1\r\nX: ")
    assert len(client.answers()) == 3
    assert seconds_until_the_end(harness, client, repeat(b"x"), 5.0) <= 20 + LATE
    assert [answer.status for answer in client.answers()] == [200, 200, 200, 408]


def test_a_tls_handshake_that_does_not_end_has_the_time_of_a_head() -> None:
    harness = harness_with()
    client = harness.connect(TlsTransport())
    harness.pass_time(15 + LATE)
    assert client.transport.disconnecting
    shaken = harness.connect(TlsTransport())
    shaken.channel.handshakeCompleted()
    harness.pass_time(74)
    assert not shaken.transport.disconnecting
    harness.pass_time(1 + LATE)
    assert shaken.transport.disconnecting


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    begin=st.sampled_from([b"", b"GET /vllm/a HTTP/1.1\r\n", CHUNKED, post(b"/vllm/a", bytes(9_000))[:-9_000]]),
    pieces=st.lists(
        st.tuples(
            st.sampled_from([b"\r\n", b"0", b";", b"a", b"1\r\nx\r\n", b"x", b"X: y\r\n", b"\r"]), st.floats(0, 59)
        ),
        min_size=1,
        max_size=60,
    ),
)
def test_whatever_trickles_in_ends_in_the_sum_of_all_times(begin: bytes, pieces: list[tuple[bytes, float]]) -> None:
    """Bytes in hand give back 1/500 of a second each; a request that was completed begins anew."""
    harness = harness_with()
    client = harness.connect()
    client.send(begin)
    bound = harness.clock.seconds() + 75 + 15 + 60 + LATE
    answered = 0
    for piece, pause in pieces:
        client.settle()
        if client.ended:
            break
        if len(harness.finished) > answered:
            answered = len(harness.finished)
            bound = harness.clock.seconds() + 75 + 15 + 60 + LATE
        assert harness.clock.seconds() <= bound + 1
        client.send(piece)
        harness.pass_time(pause)
    harness.pass_time(400)
    client.settle()
    assert client.ended


# responses that are not read


class Socket(FileDescriptor):
    """A socket's queue in front of a client that takes what the test says."""

    def __init__(self, size: int) -> None:
        super().__init__(reactor=Clock())  # type: ignore[arg-type]  # it calls nothing of it
        self.dataBuffer = bytes(size)

    @property
    def unsent(self) -> int:
        return len(self.dataBuffer) - self.offset


class AboveSocket(TcpTransport):
    """A transport with a socket below it, as TLS is."""

    def __init__(self, below: Socket) -> None:
        super().__init__()
        self.transport = below


def seconds_to_read(size: int, rate: int) -> tuple[float, bool]:
    """Let a client read an answer at so many bytes a second; return how long it lasted, and whether it was cut off."""
    harness = harness_with()
    below = Socket(size)
    transport = AboveSocket(below)
    client = harness.connect(transport)
    client.send(get())
    client.channel.pauseProducing()
    began = harness.clock.seconds()
    while not transport.aborted and below.unsent:
        harness.pass_time(10.0)
        below.offset = min(size, below.offset + 10 * rate)
    return harness.clock.seconds() - began, transport.aborted


@pytest.mark.parametrize(
    ("size", "rate", "is_cut"),
    [
        (65_536, 0, True),
        (65_536, 1, True),
        (65_536, 300, False),
        (5_000_000, 300, True),
        (5_000_000, 600, False),
    ],
)
def test_an_answer_must_be_read_within_the_time_or_at_the_lowest_rate(size: int, rate: int, is_cut: bool) -> None:
    """A client that read a byte a second held its answer, and its connection to the server, for 18 hours."""
    seconds, cut = seconds_to_read(size, rate)
    assert cut is is_cut
    assert seconds <= (STALL + 10 + LATE if is_cut else size / rate + 10 + LATE)


# responses of servers


UPSTREAM = make_server(Timeouts(response_head=600.0, idle=300.0))


def seconds_until_it_is_cut(lab: Lab, end: ServerEnd, pieces: Iterator[bytes], every: float) -> float:
    began = lab.clock.seconds()
    for piece in pieces:
        if end.is_cut or lab.clock.seconds() - began > 4_000:
            break
        end.send(piece)
        lab.advance(every)
    return float(lab.clock.seconds() - began)


def asked(lab: Lab) -> tuple[Asked, ServerEnd]:
    asked = lab.ask(server=UPSTREAM)
    return asked, lab.accept()


@pytest.mark.parametrize("piece", [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_interim_responses_do_not_extend_the_wait_for_the_head(piece: bytes) -> None:
    lab = Lab()
    waiting, end = asked(lab)
    assert seconds_until_it_is_cut(lab, end, repeat(piece), 10.0) <= 610 + LATE
    assert isinstance(waiting.error, UpstreamTimeout)


def test_a_head_that_trickles_does_not_extend_the_wait_for_it() -> None:
    lab = Lab()
    waiting, end = asked(lab)
    end.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    assert seconds_until_it_is_cut(lab, end, repeat(b"x"), 10.0) <= 610 + LATE
    assert isinstance(waiting.error, UpstreamTimeout)


def test_interim_responses_are_bounded_in_bytes() -> None:
    lab = Lab()
    waiting, end = asked(lab)
    piece = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    for _ in range(MAX_HEAD_BYTES // len(piece) + 1):
        end.send(piece)
    assert isinstance(waiting.error, UpstreamProtocolError)


@pytest.mark.parametrize("begin", [b"", b"1;", b"1\r\nx\r\n", b"0\r\nX-Trailer: "], ids=str)
@pytest.mark.parametrize("byte", [b"0", b"a"])
def test_the_framing_of_a_server_s_chunks_is_no_progress(begin: bytes, byte: bytes) -> None:
    lab = Lab()
    waiting, end = asked(lab)
    end.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + begin)
    assert waiting.response.code == 200
    assert seconds_until_it_is_cut(lab, end, repeat(byte), 100.0) <= 400 + LATE
    assert end.is_cut


def test_a_model_may_think_between_two_tokens() -> None:
    lab = Lab()
    _, end = asked(lab)
    end.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert seconds_until_it_is_cut(lab, end, repeat(b"1\r\nx\r\n"), 290.0) > 4_000
