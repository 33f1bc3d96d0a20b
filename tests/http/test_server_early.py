"""Responses before the request's body was read, and the handling of its rest."""

from __future__ import annotations

import pytest

from tests.http.server_harness import MemoryTransport, SiteHarness, TlsTransport, chunked, get, post, reply
from twisted_vllm.errors import InvalidApiKey
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.server.connection import LINGER
from twisted_vllm.http.server.request import DISCARD_LIMIT, GatewayRequest

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def refuse(request: GatewayRequest) -> None:
    """Answer without reading the body."""
    request.answer(InvalidApiKey("This key is not known."))


def refusing_house() -> SiteHarness:
    harness = SiteHarness()
    harness.streaming.behaviour = refuse
    return harness


def test_a_small_rest_is_thrown_away_and_the_connection_used_again() -> None:
    harness = refusing_house()
    client = harness.connect()
    data = post(b"/vllm/a", b"x" * DISCARD_LIMIT)
    head_size = len(data) - DISCARD_LIMIT
    client.send(data[:head_size])
    assert client.answer().status == 401
    client.send(data[head_size:] + get(b"/vllm/b"))
    assert [answer.closes for answer in client.answers()] == [False, False]
    assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/a", b"/vllm/b"]
    client.leave()
    assert len(harness.finished) == 2
    harness.assert_clean()


def test_a_body_that_came_with_its_head_does_not_end_the_connection() -> None:
    harness = refusing_house()
    client = harness.connect()
    client.send(chunked(b"/vllm/a", b"some", b"body") + get(b"/vllm/b"))
    assert [answer.closes for answer in client.answers()] == [False, False]


@pytest.mark.parametrize(
    "data",
    [post(b"/vllm/a", bytes(DISCARD_LIMIT + 1)), chunked(b"/vllm/a", b"1234", b"5678")],
    ids=["large", "chunked"],
)
def test_a_rest_that_is_large_or_of_unknown_size_is_never_read_as_a_request(data: bytes) -> None:
    harness = refusing_house()
    client = harness.connect()
    head, end, body = data.partition(b"\r\n\r\n")
    client.send(head + end)
    assert client.answer().closes
    assert client.transport.write_closed, "the client is told at once that nothing more comes"
    assert not client.gone, "and can still send, so that it gets to see the answer"
    client.send(get(b"/vllm/smuggled"), body, get(b"/vllm/smuggled"))
    assert client.unread == 0
    assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/a"]
    harness.pass_time(LINGER + 1)
    client.settle()
    assert client.gone
    assert client.answer().status == 401
    assert len(harness.finished) == 1
    harness.assert_clean()


@pytest.mark.parametrize("transport", [MemoryTransport, TlsTransport])
def test_a_connection_that_cannot_be_closed_by_halves_is_closed_whole(transport: type[MemoryTransport]) -> None:
    harness = refusing_house()
    client = harness.connect(transport())
    client.send(post(b"/vllm/a", bytes(2 * DISCARD_LIMIT))[:200])
    assert client.answer().closes
    assert client.gone
    harness.assert_clean()


def test_a_client_that_leaves_a_lingering_connection_is_forgotten() -> None:
    harness = refusing_house()
    client = harness.connect()
    client.send(chunked(b"/vllm/a", b"1234")[:-5])
    client.leave()
    harness.assert_clean()
    assert len(harness.finished) == 1


def test_a_discarded_rest_that_turns_out_malformed_ends_the_connection() -> None:
    harness = refusing_house()
    client = harness.connect()
    client.send(post(b"/vllm/a", b"1234")[:-4])
    client.send(b"1234" + b"nonsense\r\n\r\n" + get(b"/vllm/b"))
    assert [answer.status for answer in client.answers()] == [401, 400]
    assert client.ended
    assert len(harness.streaming.rendered) == 1


def test_a_waiting_client_gets_100_continue_when_its_body_is_needed() -> None:
    harness = SiteHarness()
    client = harness.connect()
    data = post(b"/vllm/a", b"body", b"Expect: 100-continue")
    client.send(data[:-4])
    assert client.transport.value() == CONTINUE
    client.send(data[-4:])
    interim, answer = client.answers()
    assert (interim.status, answer.body, answer.closes) == (100, b"/vllm/a body", False)


@pytest.mark.parametrize("target", [b"/vllm/a", b"/other/a"])
def test_a_client_that_does_not_wait_gets_no_100_continue(target: bytes) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(post(target, b"body", b"Expect: 100-continue"))
    assert client.answer().body == target + b" body"


def test_http_1_0_never_gets_100_continue() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/a", b"Expect: 100-continue", b"Content-Length: 4", version=b"HTTP/1.0", method=b"POST"))
    assert client.transport.value() == b""


def test_an_ordinary_resource_s_client_gets_100_continue() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/other/a", b"Expect: 100-CONTINUE", b"Content-Length: 4", method=b"PUT"))
    assert client.transport.value() == CONTINUE


def test_a_refused_waiting_client_gets_no_100_continue_and_its_connection_is_closed() -> None:
    harness = refusing_house()
    client = harness.connect()
    client.send(get(b"/vllm/a", b"Expect: 100-continue", b"Content-Length: 4", method=b"POST"))
    answer = client.answer()
    assert (answer.status, answer.closes) == (401, True)
    client.send(get(b"/vllm/smuggled"))
    assert len(harness.streaming.rendered) == 1


def test_a_body_over_the_limit_is_refused_before_it_is_sent() -> None:
    harness = SiteHarness()
    client = harness.connect()
    harness.streaming.behaviour = lambda request: request.collect_body(10, lambda body: reply(request, body))
    client.send(get(b"/vllm/a", b"Expect: 100-continue", b"Content-Length: 11", method=b"POST"))
    answer = client.answer()
    assert (answer.status, answer.closes) == (413, True)


def test_a_streamed_body_is_passed_on_as_it_comes() -> None:
    harness = SiteHarness()
    pieces: list[tuple[bytes, bool]] = []
    harness.streaming.behaviour = lambda request: request.stream_body(lambda data, last: pieces.append((data, last)))
    client = harness.connect()
    data = chunked(b"/vllm/a", b"one", b"two")
    head, end, body = data.partition(b"\r\n\r\n")
    client.send(head + end)
    assert pieces == []
    client.send(body[:8], body[8:16])
    assert pieces == [(b"one", False), (b"two", False)]
    client.send(body[16:])
    assert pieces == [(b"one", False), (b"two", False), (b"", True)]
    reply(harness.streaming.rendered[0])
    assert not client.answer().closes


def test_a_streamed_body_that_breaks_is_never_said_to_be_complete() -> None:
    harness = SiteHarness()
    pieces: list[tuple[bytes, bool]] = []
    harness.streaming.behaviour = lambda request: request.stream_body(lambda data, last: pieces.append((data, last)))
    client = harness.connect()
    client.send(chunked(b"/vllm/a", b"one")[:-5], b"what?\r\n")
    assert client.answer().status == 400
    assert (b"", True) not in pieces
    assert not any(last for _, last in pieces)
    assert harness.streaming.works[0].cancelled == 1
    assert len(harness.finished) == 1


def test_a_body_that_breaks_within_an_answer_cuts_the_connection() -> None:
    def begin(request: GatewayRequest) -> None:
        request.stream_body(lambda data, last: None)
        request.relay_head(ResponseHead(200, b"OK", []))
        request.relay_body(b"half of", False)

    harness = SiteHarness()
    harness.streaming.behaviour = begin
    client = harness.connect()
    client.send(chunked(b"/vllm/a", b"one")[:-5], b"what?\r\n")
    assert client.transport.aborted
    assert client.gone
    assert harness.streaming.works[0].cancelled == 1
    assert len(harness.finished) == 1
    harness.assert_clean()


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("upgrade", "form"),
    [(b"h2c", "none"), (b"h2c", "length"), (b"h2c", "chunked"), (b"websocket", "length"), (b"websocket", "chunked")],
)
def test_an_upgrade_to_http_or_with_a_body_is_ignored(upgrade: bytes, step: int, form: str) -> None:
    lines = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + upgrade, b"HTTP2-Settings: AAMAAABk")
    if form == "none":
        data, body = get(b"/vllm/a", *lines), b""
    elif form == "length":
        data, body = post(b"/vllm/a", b"the body", *lines), b"the body"
    else:
        head = get(b"/vllm/a", *lines, b"Transfer-Encoding: chunked", method=b"POST")
        data, body = head + b"3\r\nthe\r\n5\r\n body\r\n0\r\n\r\n", b"the body"
    harness = SiteHarness()
    client = harness.connect()
    data += get(b"/vllm/b") + data
    client.send(*[data[at : at + step] for at in range(0, len(data), step)])
    answers = client.answers()
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.body for answer in answers] == [b"/vllm/a " + body, b"/vllm/b ", b"/vllm/a " + body]
