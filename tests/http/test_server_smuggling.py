"""Request smuggling, family by family: no request is ambiguous, and nothing follows one that is refused."""

from __future__ import annotations

import pytest

from tests.http.server_harness import SiteHarness, get, post
from twisted_vllm.config.settings import Limits

SMUGGLED = get(b"/vllm/smuggled")
CHUNKED = b"Transfer-Encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"
DELIMITERS = b'"(),/;<=>?@[\\]{}'
#: control characters other than tab, line feed, carriage return and NUL
CONTROLS = bytes([*range(1, 9), 11, 12, *range(14, 32), 127])


def head(*lines: bytes, first: bytes = b"POST /vllm/a HTTP/1.1") -> bytes:
    return b"\r\n".join((first, b"Host: gateway", *lines)) + b"\r\n\r\n"


def in_chunks(chunks: bytes) -> bytes:
    return head(CHUNKED) + chunks


#: RFC 9110 §5.6.2: what is no token is no header's name; a name that is read past it would be another's framing
NAMES = {
    f"{name.decode()} with {bytes([odd])!r}": head(name + bytes([odd]) + b": " + value) + body
    for odd in DELIMITERS + CONTROLS + b"\x80\xa0\xff \t"
    for name, value, body in (
        (b"Content-Length", b"5", b"hello"),
        (b"Transfer-Encoding", b"chunked", LAST_CHUNK),
    )
}

#: RFC 9110 §5.5
VALUES = {f"{bytes([odd])!r} in a value": head(b"X-A: o" + bytes([odd]) + b"e") for odd in CONTROLS}

#: RFC 9112 §6.1: "chunked" alone, once; TE.TE is one that two servers disagree about
CODINGS = {
    f"Transfer-Encoding: {coding!r}{beside.decode()}": head(*lines, b"Transfer-Encoding: " + coding) + LAST_CHUNK
    for coding in (
        *(b"chunked\x0b", b"\x0bchunked", b"\x0cchunked", b"\xa0chunked", b"chunked\0", b"\0chunked", b"chun\tked"),
        *(b'"chunked"', b"'chunked'", b"chunked;q=1", b"chunked;", b"chunked,", b",chunked", b"chunked chunked"),
        *(b"chunk", b"chunkedx", b"identity, chunked", b"chunked, identity", b"c\xc5\xbfhunked"),
    )
    for beside, lines in ((b"", ()), (b" beside a length", (b"Content-Length: 5",)))
} | {
    "chunked, then identity": head(CHUNKED, b"Transfer-Encoding: identity") + LAST_CHUNK,
    "identity, then chunked": head(b"Transfer-Encoding: identity", CHUNKED) + LAST_CHUNK,
    "a length and chunked in HTTP/1.0": head(b"Content-Length: 5", CHUNKED, first=b"POST /vllm/a HTTP/1.0")
    + LAST_CHUNK,
    "CL.TE": head(b"Content-Length: %d" % (5 + len(SMUGGLED)), CHUNKED) + LAST_CHUNK + SMUGGLED,
    "TE.CL": head(CHUNKED, b"Content-Length: 4") + b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + LAST_CHUNK,
}

#: RFC 9110 §8.6: 1*DIGIT; CL.0 and 0.CL begin with a length that one of two servers does not see
LENGTHS = {
    f"Content-Length: {length!r}": head(b"Content-Length: " + length) + b"hello"
    for length in (
        *(b"5,", b",5", b"0, 5", b"5, 0", b"5 5", b"5;", b"5.0", b"5e0", b"-0", b"1_0", b"0b1", b"0o5", b'"5"', b"'5'"),
        *(b"5\x0b", b"\x0b5", b"5\0", b"\xa05", b"\xb2", b"\xef\xbc\x95"),
    )
} | {
    "no length and a length": head(b"Content-Length:", b"Content-Length: 5") + b"hello",
    "0 and a length": head(b"Content-Length: 0", b"content-length: 5") + b"hello",
}

#: RFC 9112 §5.2 and §2.2: folded, cut by less than CRLF, or begun with white space, wherever it stands
LINES = {
    f"the line {line!r}": head(line, *more) + LAST_CHUNK
    for line in (
        *(b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding\r\n : chunked", b"Transfer-Encoding\n: chunked"),
        *(b"X: x\nTransfer-Encoding: chunked", b"X: x\rTransfer-Encoding: chunked", b"\nTransfer-Encoding: chunked"),
        *(b"Transfer-Encoding: chunked\n", b"Transfer-Encoding: chunked\r", b" Transfer-Encoding: chunked"),
        *(b"Content-Length:\r\n 5", b"X:\r\n\tfolded", b"X: a\r\n \r\n b", b"X: a\r\n ", b"X: a\r\n\t", b"\r\rX: a"),
    )
    for more in ((), (b"X-Last: 1",))
} | {
    "a fold before the first header": b"GET /vllm/a HTTP/1.1\r\n Host: gateway\r\n\r\n",
    "a tab before the first header": b"GET /vllm/a HTTP/1.1\r\n\tX: y\r\nHost: gateway\r\n\r\n",
    "a head ended by a bare line feed": b"GET /vllm/a HTTP/1.1\r\nHost: gateway\r\n\n",
    "a head ended by a bare carriage return": b"GET /vllm/a HTTP/1.1\r\nHost: gateway\r\n\r\r\n",
}

#: RFC 9112 §7.1: 1*HEXDIG, extensions by its grammar, CRLF and nothing else at each end
CHUNKS = {
    f"the chunk size {size!r}": in_chunks(size + b"\r\nhello\r\n0\r\n\r\n")
    for size in (
        *(b" 5", b"5 ", b"5\t", b"-5", b"5_0", b"5\x0b", b"5\0", b"5,", b"5.", b"5h", b"\xb5", b"5\r", b"5\r\r"),
        *(b"fffffffffffffffff", b"00000000000000000000000000000000000000000000000000000000000000000g"),
        *(b"5;\n", b"5;a=\nb", b"5;a=\rb", b"5;a\0", b"5;a\x0b", b"5;\x7f", b'5;a="\r\n"', b'5;a="b', b"5 ;a"),
    )
} | {
    f"the chunk {chunk!r}": in_chunks(b"5\r\n" + chunk)
    for chunk in (
        *(b"hello0\r\n\r\n", b"helloXX0\r\n\r\n", b"hello\r0\r\n\r\n", b"hello\n0\r\n\r\n", b"hello\n\r0\r\n\r\n"),
        *(b"hell\r\n0\r\n\r\n", b"hello!\r\n0\r\n\r\n", b"hello\r\n\r\n0\r\n\r\n"),
        *(b"hello\r\n0\r\n\n", b"hello\r\n0\n\r\n", b"hello\r\n0\r\r\n", b"hello\r\n0\r\nX"),
    )
}

#: RFC 9112 §7.1.2: what frames a message cannot stand in its trailers, and they are lines like any other
TRAILERS = {
    f"the trailer {line!r}": in_chunks(b"0\r\n" + line + b"\r\n\r\n")
    for line in (
        *(CHUNKED, b"Content-Length: 5", b"X : y", b"X\x0b: y", b"X\xe9: a", b"no colon", b": value", b" X: a"),
        *(b"X: a\r\n b", b"X: a\nY: b", b"X: a\rb", b"X: a\0", SMUGGLED[:-4], b"GET /vllm/smuggled HTTP/1.1"),
    )
}

#: RFC 9112 §3
FIRST_LINES = {
    f"the line {line!r}": line + b"\r\nHost: gateway\r\n\r\n"
    for line in (
        *(b" GET /vllm/a HTTP/1.1", b"GET\t/vllm/a HTTP/1.1", b"GET /vllm/a\tHTTP/1.1", b"GET /vllm/a HTTP/1.1 "),
        *(b"GET /vllm/a HTTP/1.1\t", b"GET /vllm/a HTTP/1.1x", b"GET /vllm/a HTTP/1.10", b"GET /vllm/a HTTP/01.1"),
        *(b"GET /vllm/a HTTP/1,1", b"GET /vllm/a HTTP /1.1", b"GET /vllm/a HTTP/1.1\r", b"GET /vllm/a HTTP/0.9"),
        *(b"GET\x0b/vllm/a HTTP/1.1", b"GET /vllm/a\x0bHTTP/1.1", b"GET /vllm/a\x0cb HTTP/1.1", b"GET /vllm/a"),
        *(b"GET /vllm/a\rb HTTP/1.1", b"GET\0 /vllm/a HTTP/1.1", b"\0GET /vllm/a HTTP/1.1", b"GE T /vllm/a HTTP/1.1"),
        *(b"G\xc9T /vllm/a HTTP/1.1", b"GET /vllm/a\x80 HTTP/1.1", b"GET \\vllm\\a HTTP/1.1", b"GET ?x HTTP/1.1"),
        *(b"GET http:///vllm/a HTTP/1.1", b"/vllm/a HTTP/1.1", b"HTTP/1.1 200 OK", b"GET /vllm/a HTTPS/1.1"),
    )
}

#: RFC 9112 §3.2 and RFC 3986 §3.2
HOSTS = {
    f"Host: {host!r}": b"GET /vllm/a HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    for host in (
        *(b"gate way", b"gateway other", b"http://gateway", b"gateway/x", b"gateway?x", b"gateway#x", b"u@gateway"),
        *(
            b"\x0bgateway",
            b"gateway\xff",
            b"gateway\\x",
            b"<gateway>",
            b"gateway:80:80",
            b"gateway:x",
            b"[::1",
            b"::1]",
        ),
        *(b"[::1]x", b"gateway:-1"),
    )
}

ALL = NAMES | VALUES | CODINGS | LENGTHS | LINES | CHUNKS | TRAILERS | FIRST_LINES | HOSTS


@pytest.mark.parametrize("data", ALL.values(), ids=ALL.keys())
def test_what_two_servers_could_read_differently_is_refused_and_ends_the_connection(data: bytes) -> None:
    for segments in ([data], [data[at : at + 1] for at in range(len(data))]):
        harness = SiteHarness(Limits(max_head_bytes=2_000))
        client = harness.connect()
        client.send(*segments)
        client.send(SMUGGLED)
        answer = client.answer()
        assert (answer.status, answer.error()["code"], answer.closes) == (400, "malformed_http", True)
        assert client.ended
        harness.pass_time(10)
        client.settle()
        assert client.gone
        # its body may have begun to stream; that it is whole, nobody was told, and what hides in it is no request
        assert all(request.uri == b"/vllm/a" and not request.body_complete for request in harness.streaming.rendered)
        harness.assert_clean()


@pytest.mark.parametrize(
    "data",
    [
        post(b"/vllm/a", SMUGGLED),
        get(b"/vllm/a", b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
        get(b"/vllm/a", b"Content-Length: %d" % len(SMUGGLED), method=b"HEAD") + SMUGGLED,
        get(b"/vllm/a", b"Content-Length: %d" % len(SMUGGLED), method=b"DELETE") + SMUGGLED,
        get(b"/vllm/a", b"Content-Length: 000000%d" % len(SMUGGLED), method=b"POST") + SMUGGLED,
        get(b"/vllm/a", b"Content-Length:\t %d \t" % len(SMUGGLED), method=b"POST") + SMUGGLED,
        get(b"/vllm/a", b"Connection: content-length", b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
        get(b"/vllm/a", b"Upgrade: h2c", b"Connection: upgrade", b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
        get(b"/vllm/a", b"Expect: nonsense", b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
        get(b"/vllm/a", CHUNKED) + b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + LAST_CHUNK,
        get(b"/vllm/a", b"transfer-encoding:\tChunked") + b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + LAST_CHUNK,
        get(b"/vllm/a", CHUNKED) + b"000%X;a=b\r\n%b\r\n000\r\nHost: other\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    ],
)
def test_a_request_within_a_body_is_a_body(data: bytes) -> None:
    for segments in ([data], [data[at : at + 1] for at in range(len(data))]):
        harness = SiteHarness()
        client = harness.connect()
        client.send(*segments)
        client.send(get(b"/vllm/next"))
        assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/a", b"/vllm/next"]
        assert harness.streaming.rendered[0].body_received == len(SMUGGLED)
        assert harness.streaming.rendered[0].body_complete


@pytest.mark.parametrize("name", [b"Content_Length", b"Transfer_Encoding", b"X-Content-Length", b"Content-Length-X"])
def test_a_name_that_is_merely_like_a_framing_one_frames_nothing(name: bytes) -> None:
    harness = SiteHarness()
    client = harness.connect()
    client.send(get(b"/vllm/a", name + b": 5") + get(b"/vllm/b"))
    assert [request.uri for request in harness.streaming.rendered] == [b"/vllm/a", b"/vllm/b"]


def test_a_header_name_without_measure_is_refused() -> None:
    harness = SiteHarness(Limits(max_head_bytes=2_000))
    client = harness.connect()
    client.send(head(b"X" * 2_000 + b": b"), SMUGGLED)
    assert (client.answer().status, client.ended, harness.streaming.rendered) == (431, True, [])
