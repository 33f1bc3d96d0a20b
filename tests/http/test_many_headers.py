"""Many small headers, trailers and interim responses: as objects they take many times the memory of their bytes."""

from __future__ import annotations

import pytest

from tests.http.server_harness import SiteHarness, get
from tests.http.upstream_harness import Lab
from twisted_vllm.config.settings import Limits
from twisted_vllm.errors import UpstreamProtocolError
from twisted_vllm.http.client.parser import MAX_HEADERS, MAX_INTERIM, ResponseParser
from twisted_vllm.http.header_cache import MOST_HEADERS, ResponseHeaderCache
from twisted_vllm.http.headers import MAX_CONTENT_TYPE, NO_HEAD
from twisted_vllm.http.server.request import MAX_HEADER_NAME

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"


# from a server


def test_a_response_may_have_a_thousand_headers() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(HEAD + b"a: 1\r\n" * (MAX_HEADERS - 1) + b"\r\nok")
    assert len(asked.response.raw_headers) == MAX_HEADERS
    assert asked.body == b"ok"


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_response_with_more_headers_is_refused(size: int) -> None:
    lab = Lab()
    asked, end = lab.asked()
    whole = HEAD + b"a:\r\n" * MAX_HEADERS + b"\r\nok"
    for at in range(0, len(whole), size):
        if end.is_open:
            end.send(whole[at : at + size])
    assert isinstance(asked.error, UpstreamProtocolError)
    assert end.is_cut


def test_a_head_with_too_many_headers_is_refused_before_it_ends() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(HEAD + b"a:\r\n" * (MAX_HEADERS + 1))
    assert isinstance(asked.error, UpstreamProtocolError)


@pytest.mark.parametrize("ended", [False, True])
def test_a_response_with_too_many_trailers_is_cut(ended: bool) -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(CHUNKED + b"a: 1\r\n" * (MAX_HEADERS + 2) + (b"\r\n" if ended else b""))
    assert isinstance(asked.cause, UpstreamProtocolError)
    assert len(asked.response.trailers) == MAX_HEADERS
    assert end.is_cut


def test_the_interim_responses_before_a_response_are_bounded() -> None:
    lab = Lab()
    asked, end = lab.asked()
    end.send(INTERIM * MAX_INTERIM)
    assert asked.is_pending
    assert len(asked.interim) == MAX_INTERIM
    end.send(INTERIM)
    assert isinstance(asked.error, UpstreamProtocolError)
    assert len(asked.interim) == MAX_INTERIM


def test_an_idle_connection_holds_neither_head_nor_trailers() -> None:
    parser = ResponseParser(ResponseHeaderCache())
    parser.expect(b"GET", None)
    assert parser.feed(CHUNKED + b"X-Sum: 1\r\n\r\n") and parser.complete
    head, trailers = parser.head, parser.trailers
    parser.forget()
    assert (parser.head, parser.trailers) == (NO_HEAD, [])
    # the response has them still
    assert head.status == 200 and trailers == [(b"X-Sum", b"1")]


def test_a_long_content_type_is_relayed_and_its_beginning_is_read() -> None:
    lab = Lab()
    asked, end = lab.asked()
    kind = b"application/json; n=" + b"x" * 5_000
    end.send(HEAD + b"Content-Type: " + kind + b"\r\n\r\nok")
    assert (b"Content-Type", kind) in asked.response.raw_headers
    assert asked.response.head.content_type == kind[:MAX_CONTENT_TYPE]


# from a client

SMALL = Limits(max_header_count=10)
POST = b"POST /vllm/a HTTP/1.1\r\nHost: gateway\r\n"


def test_a_request_with_too_many_headers_is_refused_before_its_head_ends() -> None:
    client = SiteHarness(limits=SMALL).connect()
    client.send(POST + b"a:\r\n" * 11)
    assert client.answers()[0].error()["code"] == "head_too_large"


@pytest.mark.parametrize("ended", [False, True])
def test_a_request_with_too_many_trailers_is_refused(ended: bool) -> None:
    client = SiteHarness(limits=SMALL).connect()
    client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: 1\r\n" * 12 + (b"\r\n" if ended else b""))
    assert client.answers()[0].error()["code"] == "head_too_large"


@pytest.mark.parametrize(("count", "kept"), [(MOST_HEADERS, 1), (MOST_HEADERS + 1, 0)])
def test_a_head_of_many_headers_is_not_kept(count: int, kept: int) -> None:
    harness = SiteHarness()
    harness.connect().send(b"GET /vllm/a HTTP/1.1\r\nHost: g\r\n" + b"a: b\r\n" * (count - 1) + b"\r\n")
    assert len(harness.site.header_cache) == kept


def test_long_names_of_headers_do_not_reach_the_gateway_s_own_endpoints() -> None:
    """Twisted remembers the names that it was given, 10,000 of any length."""
    harness = SiteHarness()
    longest, longer = b"x" * MAX_HEADER_NAME, b"y" * (MAX_HEADER_NAME + 1)
    harness.connect().send(get(b"/health", longest + b": 1", longer + b": 1"))
    names = {name for name, _ in harness.ordinary.seen[0].headers}
    assert longest in names
    assert longer not in names
