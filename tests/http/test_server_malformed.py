"""Malformed requests: each is refused with its status, and nothing after it is parsed."""

from __future__ import annotations

import pytest

from tests.http.server_harness import Client, SiteHarness, chunked, get, post
from twisted_vllm.config.settings import Limits

HOST = b"Host: gateway\r\n"
SMALL = Limits(max_head_bytes=2_000, max_header_count=10, max_body_bytes=100)


def head(*lines: bytes, first: bytes = b"POST /vllm/a HTTP/1.1") -> bytes:
    return b"\r\n".join((first, b"Host: gateway", *lines)) + b"\r\n\r\n"


MALFORMED = {
    "a length and a transfer coding": head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "a transfer coding and a length": head(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n",
    "two lengths that differ": head(b"Content-Length: 5", b"Content-Length: 6") + b"hello!",
    "two lengths that agree": head(b"Content-Length: 5", b"Content-Length: 5") + b"hello",
    "a list of lengths": head(b"Content-Length: 5, 5") + b"hello",
    "a length with a plus": head(b"Content-Length: +5") + b"hello",
    "a length below zero": head(b"Content-Length: -5") + b"hello",
    "a hexadecimal length": head(b"Content-Length: 0x5") + b"hello",
    "a length of letters": head(b"Content-Length: five") + b"hello",
    "an empty length": head(b"Content-Length: ") + b"hello",
    "a length with a space within": head(b"Content-Length: 1 0") + b"hello",
    "a length over 64 bits": head(b"Content-Length: 18446744073709551616") + b"hello",
    "a folded header": head(b"X-A: one", b" two"),
    "a header that begins with a tab": head(b"\tX-A: one"),
    "bare line feeds in the head": b"GET /vllm/a HTTP/1.1\nHost: gateway\n\n",
    "one bare line feed in the head": b"GET /vllm/a HTTP/1.1\r\nX-A: b\nHost: gateway\r\n\r\n",
    "a bare carriage return in a header": head(b"X-A: one\rtwo"),
    "a space before the colon": head(b"Content-Length : 5") + b"hello",
    "a space within a name": head(b"Content Length: 5") + b"hello",
    "a header without a colon": head(b"Nonsense"),
    "a header without a name": head(b": value"),
    "NUL in a value": head(b"X-A: o\0ne"),
    "NUL in a name": head(b"X\0A: one"),
    "NUL in the target": get(b"/vllm/a\0b"),
    "a chunk size of letters": head(b"Transfer-Encoding: chunked") + b"xyz\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a sign": head(b"Transfer-Encoding: chunked") + b"+5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with 0x": head(b"Transfer-Encoding: chunked") + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size over 64 bits": head(b"Transfer-Encoding: chunked") + b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "an empty chunk size": head(b"Transfer-Encoding: chunked") + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than its size": head(b"Transfer-Encoding: chunked") + b"3\r\nhello\r\n0\r\n\r\n",
    "a chunk ended by a bare line feed": head(b"Transfer-Encoding: chunked") + b"5\nhello\n0\n\n",
    "a length in the trailers": head(b"Transfer-Encoding: chunked") + b"0\r\nContent-Length: 7\r\n\r\n",
    "chunked twice": head(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    "chunked in two headers": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunked not last": head(b"Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n",
    "an unknown transfer coding": head(b"Transfer-Encoding: gzip") + b"hello",
    "a transfer coding that looks like chunked": head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "identity as a transfer coding": head(b"Transfer-Encoding: identity") + b"hello",
    "an empty transfer coding": head(b"Transfer-Encoding: ") + b"hello",
    "a transfer coding in HTTP/1.0": head(b"Transfer-Encoding: chunked", first=b"POST /vllm/a HTTP/1.0") + b"0\r\n\r\n",
    "another host in the target": get(b"http://other/vllm/a"),
    "another port in the target": get(b"http://gateway:81/vllm/a"),
    "another scheme in the target": get(b"ftp://gateway/vllm/a"),
    "a user in the target": get(b"http://user@gateway/vllm/a"),
    "a fragment in the target": get(b"/vllm/a#b"),
    "a Host that is none": b"GET /vllm/a HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    "a coding before chunked": head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "no Host": b"GET /vllm/a HTTP/1.1\r\n\r\n",
    "two Hosts": head(b"Host: gateway"),
    "two Hosts that differ": head(b"HOST: other"),
    "two Hosts in HTTP/1.0": head(b"Host: other", first=b"GET /vllm/a HTTP/1.0"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /vllm/a\r\n",
    "HTTP/1.2": get(b"/vllm/a", version=b"HTTP/1.2"),
    "HTTP/2.0 in a request line": get(b"/vllm/a", version=b"HTTP/2.0"),
    "RTSP/1.0": get(b"/vllm/a", version=b"RTSP/1.0"),
    "RTSP/1.1 with a body": head(b"Content-Length: 5", first=b"POST /vllm/a RTSP/1.1") + b"hello",
    "RTSP/1.1 after more than one space": get(b"/vllm/a", version=b"  RTSP/1.1"),
    "RTSP/1.1 for the star": get(b"*", version=b"RTSP/1.1", method=b"OPTIONS"),
    "RTSP/1.1 behind an empty line": b"\r\n" + get(b"/vllm/a", version=b"RTSP/1.1"),
    "RTSP/2.0": get(b"/vllm/a", version=b"RTSP/2.0"),
    "a method of RTSP's": get(b"/vllm/a", version=b"RTSP/1.0", method=b"SETUP"),
    "ICE/1.0": get(b"/vllm/a", version=b"ICE/1.0", method=b"SOURCE"),
    "ICE/1.1": get(b"/vllm/a", version=b"ICE/1.1", method=b"SOURCE"),
    "ICE/1.1 with another method": get(b"/vllm/a", version=b"ICE/1.1"),
    "a method of ICE's": get(b"/vllm/a", method=b"SOURCE"),
    "another protocol": get(b"/vllm/a", version=b"SIP/2.0"),
    "HTTPS/1.1": get(b"/vllm/a", version=b"HTTPS/1.1"),
    "http in lower case": get(b"/vllm/a", version=b"http/1.1"),
    "no target": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "two targets": b"GET /vllm/a /vllm/b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a target that is no path": get(b"vllm/a"),
    "the star for GET": get(b"*"),
    "an unknown method": get(b"/vllm/a", method=b"BREW"),
    "a method in lower case": get(b"/vllm/a", method=b"get"),
    "a target beyond ASCII": get(b"/vllm/\xc3\xa9"),
    "a control character in the target": get(b"/vllm/\x7f"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "zeros": bytes(64),
}

REFUSED = [(name, data, 400, "malformed_http") for name, data in MALFORMED.items()] + [
    ("CONNECT", get(b"gateway:443", method=b"CONNECT"), 405, "method_not_allowed"),
    ("a head of one long line", get(b"/vllm/" + b"a" * 2_000), 431, "head_too_large"),
    ("a head with a long header", head(b"X-A: " + b"a" * 2_000), 431, "head_too_large"),
    ("a head of many short headers", head(*[b"X-%d: b" % at for at in range(10)]), 431, "head_too_large"),
    ("a body over the cap", post(b"/vllm/a", bytes(101)), 413, "body_too_large"),
    ("a length over the cap", head(b"Content-Length: 101"), 413, "body_too_large"),
    ("chunks over the cap", chunked(b"/vllm/a", bytes(60), bytes(41)), 413, "body_too_large"),
]


@pytest.mark.parametrize("whole", [True, False], ids=["at once", "byte by byte"])
@pytest.mark.parametrize(("data", "status", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_not_the_http_of_rfc_9112_is_refused_and_the_connection_closed(
    data: bytes, status: int, code: str, whole: bool
) -> None:
    harness = SiteHarness(SMALL)
    client = harness.connect()
    client.send(*([data] if whole else [data[at : at + 1] for at in range(len(data))]))
    # a smuggled request behind it
    client.send(get(b"/vllm/smuggled"))
    answer = client.answer()
    assert (answer.status, answer.error()["code"]) == (status, code)
    assert answer.closes
    assert client.ended
    harness.pass_time(10)
    client.settle()
    assert client.gone
    # a resource may have begun on a body that then broke; never on a broken head, and never with a whole body
    assert all(request.uri == b"/vllm/a" and not request.body_complete for request in harness.streaming.rendered)
    assert harness.ordinary.seen == []
    assert len(harness.finished) == 1
    harness.assert_clean()


def send_without_end(client: Client, piece: bytes) -> int:
    """Send until the gateway has enough; return how many bytes that took."""
    for sent in range(0, 100 * len(piece), len(piece)):
        if client.ended:
            return sent
        client.send(piece)
    raise AssertionError("it would have gone on for ever")


@pytest.mark.parametrize(
    "begin",
    [b"GET /", b"GET /vllm/a HTTP/1.1\r\nX-A: ", b"GET /vllm/a HTTP/1.1\r\nX-", get(b"/vllm/b") + b"GET /"],
    ids=["target", "value", "name", "second request"],
)
def test_a_head_without_an_end_is_refused_while_it_is_small(begin: bytes) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(begin)
    assert send_without_end(client, b"a" * 10_000) < 200_000
    answer = client.answers()[-1]
    assert (answer.status, answer.error()["code"]) == (431, "head_too_large")


@pytest.mark.parametrize(
    "begin",
    [b"0\r\nX-Trailer: ", b"0\r\nX-", b"1;", b"1;a=", b'1;a="'],
    ids=["trailer value", "trailer name", "extension", "extension value", "quoted extension"],
)
def test_endless_trailers_and_chunk_extensions_are_refused(begin: bytes) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(chunked(b"/vllm/a", b"some")[:-5] + begin)
    assert send_without_end(client, b"a" * 10_000) < 200_000
    assert client.answer().status in (400, 431)
    assert harness.streaming.works[0].cancelled == 1


def test_a_head_just_within_the_limits_is_accepted_however_it_is_cut() -> None:
    lines = [b"X-%d: b" % at for at in range(9)]
    data = get(b"/vllm/" + b"a" * 1_800, *lines)
    for step in (1, 7, len(data)):
        harness = SiteHarness(SMALL)
        client = harness.connect()
        client.send(*[data[at : at + step] for at in range(0, len(data), step)])
        assert client.answer().status == 200


def test_a_large_segment_of_small_requests_is_not_over_the_limit_of_one_head() -> None:
    harness = SiteHarness(SMALL)
    client = harness.connect()
    data = get() * 500 + b"GET /vllm/last HTTP/1.1\r\nHost"
    client.send(data)
    client.send(b": gateway\r\n\r\n")
    assert {answer.status for answer in client.answers()} == {200}
    assert len(client.answers()) == 501


def test_a_body_at_the_limit_is_accepted() -> None:
    harness = SiteHarness(SMALL)
    client = harness.connect()
    client.send(post(b"/vllm/a", bytes(100)) + chunked(b"/vllm/a", bytes(60), bytes(40)))
    assert [answer.status for answer in client.answers()] == [200, 200]
