"""The deadlines of clients, and when they are suspended."""

from __future__ import annotations

import pytest

from tests.http.server_harness import A_MOMENT, LONG_ENOUGH, SiteHarness, chunked, get, post, reply
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.http.server.request import GatewayRequest

TIMEOUTS = Timeouts(client_head=15.0, client_body=60.0, keep_alive=75.0)


def do_nothing(request: GatewayRequest) -> None:
    """Answer later."""


def wait_on_the_body(request: GatewayRequest) -> None:
    request.stream_body(lambda data, last: reply(request) if last else None)


def test_a_connection_on_which_nothing_comes_is_closed() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    client = harness.connect()
    harness.pass_time(75)
    client.settle()
    assert not client.gone
    harness.pass_time(A_MOMENT)
    client.settle()
    assert client.gone
    assert not client.transport.aborted
    assert client.transport.value() == b""
    assert harness.finished == []
    harness.assert_clean()


def test_an_idle_connection_is_closed_after_its_last_answer() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    client = harness.connect()
    harness.pass_time(70)
    client.send(get())
    harness.pass_time(75)
    client.settle()
    assert not client.gone
    harness.pass_time(A_MOMENT)
    client.settle()
    assert client.gone
    assert len(client.answers()) == 1


def test_a_head_that_does_not_come_to_its_end_is_refused_though_bytes_come() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    client = harness.connect()
    client.send(b"GET /vllm/a HTTP/1.1\r\nHost: gateway\r\n")
    for _ in range(14):
        client.send(b"X-Slow: 1\r\n")
        harness.pass_time(1)
    assert client.transport.value() == b""
    for _ in range(3):
        client.send(b"X-Slow: 1\r\n")
        harness.pass_time(1)
    client.settle()
    answer = client.answer()
    assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
    assert answer.closes
    harness.pass_time(3)
    client.settle()
    assert client.gone
    assert harness.streaming.rendered == []
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_the_head_of_a_second_request_has_its_own_time() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    client = harness.connect()
    client.send(get() + b"GET /vllm/b")
    harness.pass_time(15 + A_MOMENT)
    client.settle()
    assert [answer.status for answer in client.answers()] == [200, 408]


@pytest.mark.parametrize("data", [post(b"/vllm/a", b"x" * 9)[:-9], chunked(b"/vllm/a", b"x")[:-6]])
@pytest.mark.parametrize("target", [b"/vllm/a", b"/other/a"])
def test_a_body_that_stops_is_refused(data: bytes, target: bytes) -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    harness.streaming.behaviour = wait_on_the_body
    client = harness.connect()
    client.send(data.replace(b"/vllm/a", target))
    harness.pass_time(60)
    assert client.transport.value() == b""
    harness.pass_time(A_MOMENT)
    client.settle()
    answer = client.answer()
    assert (answer.status, answer.closes) == (408, True)
    assert all(work.cancelled == 1 for work in harness.streaming.works)
    harness.pass_time(3)
    client.settle()
    assert client.gone
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_a_body_that_comes_slowly_but_surely_is_read() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    harness.streaming.behaviour = wait_on_the_body
    client = harness.connect()
    data = post(b"/vllm/a", b"x" * 270_000)
    client.send(data[:-270_000])
    for _ in range(9):
        harness.pass_time(55)
        client.send(b"x" * 30_000)
    assert client.answer().status == 200


def test_a_client_is_not_blamed_while_the_gateway_does_not_read() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    harness.streaming.behaviour = wait_on_the_body
    client = harness.connect()
    data = post(b"/vllm/a", b"x" * 9)
    client.send(data[:-9])
    (request,) = harness.streaming.rendered
    request.pause_body()
    harness.pass_time(1_000)
    client.send(b"x" * 9)
    assert client.transport.value() == b""
    assert client.unread == 9
    request.resume_body()
    client.settle()
    assert client.answer().status == 200


def test_a_client_has_its_whole_time_after_the_gateway_began_to_read_again() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    harness.streaming.behaviour = wait_on_the_body
    client = harness.connect()
    client.send(post(b"/vllm/a", b"x" * 9)[:-9])
    (request,) = harness.streaming.rendered
    request.pause_body()
    harness.pass_time(59.5)
    request.resume_body()
    harness.pass_time(30)
    client.settle()
    assert client.transport.value() == b""
    harness.pass_time(60)
    client.settle()
    assert client.answer().status == 408


@pytest.mark.parametrize("target", [b"/vllm/a", b"/other/a"])
def test_an_answer_may_take_for_ever(target: bytes) -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    harness.streaming.behaviour = do_nothing
    harness.ordinary.behaviour = lambda request: 1
    client = harness.connect()
    client.send(get(target))
    harness.pass_time(500)
    client.send(b"GET /vllm/b")
    harness.pass_time(500)
    client.settle()
    assert not client.gone
    assert client.transport.value() == b""


def test_a_half_sent_request_has_its_time_once_it_is_its_turn() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    harness.streaming.behaviour = do_nothing
    client = harness.connect()
    client.send(get() + b"GET /vllm/b")
    harness.pass_time(500)
    reply(harness.streaming.rendered[0])
    harness.pass_time(14)
    client.settle()
    assert len(client.answers()) == 1
    harness.pass_time(1 + A_MOMENT)
    client.settle()
    assert [answer.status for answer in client.answers()] == [200, 408]


def test_a_closing_connection_whose_client_takes_nothing_is_cut_in_the_end() -> None:
    harness = SiteHarness(timeouts=TIMEOUTS)
    client = harness.connect()
    client.channel.dataReceived(get(b"/vllm/a", b"Connection: close"))
    assert client.transport.disconnecting
    assert not client.transport.aborted
    harness.pass_time(LONG_ENOUGH)
    assert client.transport.aborted


def test_an_idle_connection_that_does_not_close_is_cut_in_the_end() -> None:
    # what was written last may still be in the way, and its reader gone without a word
    harness = SiteHarness(timeouts=TIMEOUTS)
    client = harness.connect()
    client.channel.dataReceived(get(b"/vllm/a"))
    harness.pass_time(75 + A_MOMENT)
    assert client.transport.disconnecting
    harness.pass_time(LONG_ENOUGH)
    assert client.transport.aborted
