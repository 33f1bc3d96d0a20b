"""The framing of responses, and whether the connection stays open after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.web.http import Request
from twisted.web.server import NOT_DONE_YET

from tests.http.server_harness import JSON_TYPE, Answer, LoggedFailures, SiteHarness, chunked, get, post, reply
from twisted_vllm.config.settings import Limits
from twisted_vllm.errors import NotFound
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.server.request import GatewayRequest


def in_two_pieces(request: GatewayRequest) -> None:
    """Answer with a body of unknown length."""
    request.relay_head(ResponseHead(200, b"OK", []))
    request.relay_body(b"one ", False)
    request.relay_body(b"two", False)
    request.relay_body(b"", True)


def ask(data: bytes, behaviour: Callable[[GatewayRequest], None], method: bytes = b"GET") -> tuple[Answer, bool]:
    """Return the answer to one request, and whether the connection ended with it."""
    harness = SiteHarness()
    harness.streaming.behaviour = behaviour
    client = harness.connect()
    client.send(data)
    answer = client.answer(method)
    ended = client.gone
    assert answer.closes == ended
    client.leave()
    assert len(harness.finished) == 1
    harness.assert_clean()
    return answer, ended


def test_a_body_of_unknown_length_is_chunked_for_http_1_1() -> None:
    answer, ended = ask(get(), in_two_pieces)
    assert answer.header(b"transfer-encoding") == b"chunked"
    assert (answer.body, ended) == (b"one two", False)


def test_a_body_of_unknown_length_ends_with_the_connection_for_http_1_0() -> None:
    answer, ended = ask(get(version=b"HTTP/1.0"), in_two_pieces)
    assert answer.header(b"transfer-encoding") is None
    assert (answer.body, answer.delimited, ended) == (b"one two", False, True)


def test_a_known_length_is_kept_for_http_1_0() -> None:
    answer, ended = ask(get(version=b"HTTP/1.0"), lambda request: reply(request, b"body"))
    assert (answer.header(b"content-length"), answer.body, ended) == (b"4", b"body", True)


def test_http_1_0_needs_no_host() -> None:
    answer, _ = ask(b"GET /vllm/a HTTP/1.0\r\n\r\n", reply)
    assert answer.status == 200


def test_http_1_0_is_closed_though_it_asks_for_more() -> None:
    _, ended = ask(get(b"/vllm/a", b"Connection: keep-alive", version=b"HTTP/1.0"), reply)
    assert ended


@pytest.mark.parametrize(
    "line", [b"Connection: close", b"connection: Close", b"Connection: x, close", b"Connection: close , y"]
)
def test_a_client_that_asks_for_the_end_gets_it(line: bytes) -> None:
    _, ended = ask(get(b"/vllm/a", line), reply)
    assert ended


def test_a_client_that_asks_for_the_end_in_a_second_connection_header_gets_it() -> None:
    _, ended = ask(get(b"/vllm/a", b"Connection: x-a", b"Connection: close"), reply)
    assert ended


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_no_framing(status: int) -> None:
    def answer_without_a_body(request: GatewayRequest) -> None:
        request.relay_head(ResponseHead(status, b"Nothing", []))
        request.relay_body(b"", True)

    answer, ended = ask(get(), answer_without_a_body)
    assert (answer.status, answer.header(b"transfer-encoding"), answer.header(b"content-length")) == (
        status,
        None,
        None,
    )
    assert not ended


@pytest.mark.parametrize("behaviour", [in_two_pieces, reply], ids=["unknown length", "known length"])
def test_head_gets_no_body(behaviour: Callable[[GatewayRequest], None]) -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = behaviour
    client = harness.connect()
    client.send(get(method=b"HEAD") + get(b"/vllm/b"))
    head, after = client.answers(b"HEAD", b"GET")
    assert (head.status, head.body) == (200, b"")
    assert after.body in (b"one two", b"ok")


def test_head_keeps_the_length_of_the_body_that_is_not_sent() -> None:
    answer, _ = ask(get(method=b"HEAD"), lambda request: reply(request, b"four"), b"HEAD")
    assert answer.header(b"content-length") == b"4"


def test_an_error_answered_to_head_has_no_body() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: request.answer(NotFound("There is none."))
    client = harness.connect()
    client.send(get(method=b"HEAD") + get(b"/vllm/b"))
    assert [answer.status for answer in client.answers(b"HEAD", b"GET")] == [404, 404]


def test_an_error_is_answered_in_openais_shape_and_the_connection_goes_on() -> None:
    answer, ended = ask(get(), lambda request: request.answer(NotFound("There is no such route.")))
    assert answer.status == 404
    assert answer.reason == b"Not Found"
    assert answer.error()["message"] == "There is no such route."
    assert answer.header(b"date") == b"Tue, 14 Nov 2023 22:13:20 GMT"
    assert not ended


def test_headers_and_reason_go_on_as_they_came() -> None:
    headers = [(b"X-One", b"1"), (b"x-TWO", b"2"), (b"X-One", b"3")]
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: reply(request, b"", 418, b"Short and stout", headers)
    client = harness.connect()
    client.send(get())
    assert client.transport.value().startswith(
        b"HTTP/1.1 418 Short and stout\r\nX-One: 1\r\nx-TWO: 2\r\nX-One: 3\r\ncontent-length: 0\r\n"
    )


def test_the_head_waits_for_the_first_piece_unless_it_is_flushed() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: request.relay_head(ResponseHead(200, b"OK", []))
    client = harness.connect()
    client.send(get())
    (request,) = harness.streaming.rendered
    assert client.transport.value() == b""
    request.flush()
    assert client.transport.value().endswith(b"\r\n\r\n")
    request.flush()
    request.relay_body(b"late", True)
    assert client.answer().body == b"late"


def test_an_empty_piece_does_not_end_a_chunked_body() -> None:
    def empty_pieces(request: GatewayRequest) -> None:
        request.relay_head(ResponseHead(200, b"OK", []))
        for piece in (b"", b"a", b"", b"b"):
            request.relay_body(piece, False)
        request.relay_body(b"c", True)

    assert ask(get(), empty_pieces)[0].body == b"abc"


def test_an_empty_body_of_unknown_length_is_an_empty_chunked_body() -> None:
    def nothing(request: GatewayRequest) -> None:
        request.relay_head(ResponseHead(200, b"OK", []))
        request.relay_body(b"", True)

    assert ask(get(), nothing)[0].body == b""


def test_interim_responses_go_to_http_1_1_alone() -> None:
    def hint(request: GatewayRequest) -> None:
        request.informational(103, b"Early Hints", [(b"link", b"</a>")])
        reply(request)

    for version, statuses in ((b"HTTP/1.1", [103, 200]), (b"HTTP/1.0", [200])):
        harness = SiteHarness()
        harness.streaming.behaviour = hint
        client = harness.connect()
        client.send(get(version=version))
        assert [answer.status for answer in client.answers()] == statuses


def test_an_ordinary_resource_gets_an_ordinary_request() -> None:
    harness = SiteHarness()
    seen: list[Any] = []

    def look(request: Request) -> bytes:
        seen.append(request)
        request.setHeader(b"x-set", b"here")
        return b"found"

    harness.ordinary.behaviour = look
    client = harness.connect()
    client.send(post(b"/key/in%20fo?a=1&a=2&b=", b"body", b"Cookie: k=v", b"X-A: 1", b"X-A: 2"))
    (request,) = seen
    assert request.path == b"/key/in%20fo"
    assert request.args == {b"a": [b"1", b"2"], b"b": [b""]}
    assert request.getCookie(b"k") == b"v"
    assert request.requestHeaders.getRawHeaders(b"x-a") == [b"1", b"2"]
    assert [*request.prepath, *request.postpath] == [b"key", b"in fo"]
    answer = client.answer()
    assert (answer.status, answer.body, answer.header(b"x-set")) == (200, b"found", b"here")
    assert answer.header(b"server") == b"twisted-vllm"
    assert answer.header(b"date") is not None
    assert harness.finished[0].status == 200


@pytest.mark.parametrize("data", [post(b"/other/a", b"a body"), chunked(b"/other/a", b"a ", b"body")])
def test_an_ordinary_resource_gets_the_whole_body(data: bytes) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(*[data[at : at + 1] for at in range(len(data))])
    assert client.answer().body == b"/other/a a body"


def test_an_ordinary_resource_that_answers_later_and_in_pieces_is_chunked() -> None:
    harness = SiteHarness()
    waiting: list[Request] = []

    def later(request: Request) -> int:
        waiting.append(request)
        return NOT_DONE_YET

    harness.ordinary.behaviour = later
    client = harness.connect()
    client.send(get(b"/other/a"))
    waiting[0].write(b"one ")
    waiting[0].write(b"two")
    waiting[0].finish()
    assert client.answer().body == b"one two"
    assert not client.ended
    client.leave()
    harness.assert_clean()


def test_an_ordinary_resource_gives_head_no_body() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/other/a", method=b"HEAD") + get(b"/other/b"))
    assert [answer.body for answer in client.answers(b"HEAD", b"GET")] == [b"", b"/other/b "]


def test_an_ordinary_resource_that_answers_head_later_gives_no_body() -> None:
    harness = SiteHarness()
    waiting: list[Request] = []

    def later(request: Request) -> int:
        waiting.append(request)
        return NOT_DONE_YET

    harness.ordinary.behaviour = later
    client = harness.connect()
    client.send(get(b"/other/a", method=b"HEAD") + get(b"/vllm/b"))
    waiting[0].write(b"one ")
    waiting[0].write(b"two")
    waiting[0].finish()
    assert [answer.body for answer in client.answers(b"HEAD", b"GET")] == [b"", b"/vllm/b "]


@pytest.mark.parametrize("later", [True, False])
def test_an_ordinary_resources_status_without_a_body_has_none(later: bool) -> None:
    def nothing(request: Request) -> bytes | int:
        request.setResponseCode(204)
        if not later:
            return b""
        request.finish()
        return NOT_DONE_YET

    harness = SiteHarness()
    harness.ordinary.behaviour = nothing
    client = harness.connect()
    client.send(get(b"/other/a") + get(b"/vllm/b"))
    assert [(answer.status, answer.body) for answer in client.answers()] == [(204, b""), (200, b"/vllm/b ")]


def test_no_content_has_no_length_either() -> None:
    answer, ended = ask(get(), lambda request: reply(request, b"", 204, b"No Content"))
    assert (answer.status, answer.header(b"content-length"), ended) == (204, None, False)


def test_an_ordinary_resource_that_answers_http_1_0_ends_the_connection() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/other/a", version=b"HTTP/1.0"))
    head, _, body = client.transport.value().partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
    assert b"chunked" not in head.lower()
    assert body == b"/other/a "
    assert client.gone


def test_a_body_over_the_admin_limit_is_refused_for_an_ordinary_resource() -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/other/a", b"Content-Length: 1048577", method=b"POST"))
    answer = client.answer()
    assert (answer.status, answer.error()["code"]) == (413, "body_too_large")
    assert harness.ordinary.seen == []


def test_a_chunked_body_over_a_resource_s_limit_is_refused_at_once() -> None:
    harness = SiteHarness()
    harness.streaming.behaviour = lambda request: request.collect_body(10, lambda body: reply(request, body))
    client = harness.connect()
    client.send(chunked(b"/vllm/a", b"12345678", b"90abc")[:-7])
    answer = client.answer()
    assert (answer.status, answer.closes) == (413, True)
    assert client.ended


@pytest.mark.parametrize("target", [b"/vllm/a", b"/other/a"])
def test_a_resource_s_exception_is_logged_and_answered_without_details(
    target: bytes, logged_failures: LoggedFailures
) -> None:
    def fail(request: object) -> bytes:
        raise ZeroDivisionError("a secret")

    harness = SiteHarness()
    harness.streaming.behaviour = fail  # type: ignore[assignment]  # it returns nothing at all
    harness.ordinary.behaviour = fail
    client = harness.connect()
    client.send(get(target) + get(b"/vllm/b"))
    answer = client.answers()[0]
    assert (answer.status, answer.error()["code"]) == (500, "internal_error")
    assert b"secret" not in client.transport.value()
    assert logged_failures.flush(ZeroDivisionError)
    client.leave()
    assert len(harness.finished) >= 1
    harness.assert_clean()


def test_a_resource_that_raises_within_its_answer_cuts_the_connection(logged_failures: LoggedFailures) -> None:
    def fail(request: GatewayRequest) -> None:
        request.relay_head(ResponseHead(200, b"OK", [JSON_TYPE]))
        request.relay_body(b"half of", False)
        raise ZeroDivisionError

    harness = SiteHarness()
    harness.streaming.behaviour = fail
    client = harness.connect()
    client.send(get())
    assert client.transport.aborted
    assert client.gone
    assert logged_failures.flush(ZeroDivisionError)
    assert len(harness.finished) == 1
    harness.assert_clean()


def test_an_error_of_the_gateway_s_own_has_the_reason_phrase_of_its_status() -> None:
    harness = SiteHarness(limits=Limits(max_header_count=1))
    client = harness.connect()
    client.send(b"GET /vllm/a HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2\r\n\r\n")
    assert client.transport.value().startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
