"""Property tests of the request parser, for any segmentation of the bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.server_harness import Seen, SiteHarness, chunked, get, post, reply
from twisted_vllm.http.server.request import GatewayRequest

TARGETS = st.sampled_from([b"/vllm/v1/completions", b"/vllm/a?b=c&b=%2F", b"/key/info", b"/"])
LINES = st.lists(
    st.sampled_from(
        [
            b"X-A: 1",
            b"x-a:2",
            b"Cookie: a=b",
            b"X-Empty:",
            b"X-Spaced:  \t a b \t",
            b"Upgrade: h2c",
            b"Connection: upgrade",
        ]
    ),
    unique=True,
    max_size=4,
)
BODIES = st.binary(max_size=40)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Draw a valid request."""
    target, lines = draw(TARGETS), draw(LINES)
    form = draw(st.sampled_from(["none", "length", "chunked"]))
    if form == "none":
        return get(target, *lines, method=draw(st.sampled_from([b"GET", b"DELETE", b"OPTIONS"])))
    if form == "length":
        return post(target, draw(BODIES), *lines)
    data = chunked(
        target,
        *draw(st.lists(BODIES, max_size=4)),
        extension=draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"'])),
        trailers=draw(st.sampled_from([b"", b"X-Trailer: 1\r\n", b"X-One: 1\r\nX-B: 2\r\n"])),
    )
    first, _, rest = data.partition(b"\r\n")
    return b"\r\n".join([first, *lines, rest])


@st.composite
def split_requests(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Draw valid requests, and the segments in which they arrive."""
    drawn = draw(st.lists(requests(), min_size=1, max_size=5))
    data = b"".join(drawn)
    cuts = sorted(draw(st.sets(st.integers(1, len(data) - 1), max_size=12)))
    return drawn, [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def read(segments: list[bytes], late: bool) -> tuple[list[Seen], bytes]:
    """Return what the resources saw, and what was answered.

    Args:
        segments: what arrives.
        late: whether an answer is given only after the next segment came.
    """
    harness = SiteHarness()
    seen: list[Seen] = []
    due: list[tuple[GatewayRequest, bytes]] = []

    def take(request: GatewayRequest) -> None:
        pieces: list[bytes] = []

        def sink(data: bytes, last: bool) -> None:
            pieces.append(data)
            if last:
                body = b"".join(pieces)
                seen.append(Seen(request.method, request.uri, request.head.complete_headers(), body))
                if late:
                    due.append((request, body))
                else:
                    reply(request, body)

        request.stream_body(sink)

    harness.streaming.behaviour = take
    client = harness.connect()
    for segment in segments:
        ready, due[:] = due[:], []
        client.send(segment)
        for request, body in ready:
            reply(request, body)
    while due:
        reply(*due.pop(0))
        client.settle()
    assert not client.ended
    assert client.channel.is_idle()
    client.leave()
    harness.assert_clean()
    assert len(harness.finished) == len(seen) + len(harness.ordinary.seen)
    return seen + harness.ordinary.seen, client.transport.value()


@settings(deadline=None, max_examples=150)
@given(split_requests())
def test_requests_are_read_the_same_however_they_are_cut(drawn: tuple[list[bytes], list[bytes]]) -> None:
    whole, segments = drawn
    expected = read([b"".join(whole)], late=False)
    assert len(expected[0]) == len(whole)
    assert read(segments, late=False) == expected
    assert read(segments, late=True) == expected
    assert read(whole, late=True) == expected


def settle_for_good(harness: SiteHarness, segments: list[bytes]) -> None:
    """Send what may be anything, and see that the connection ends, or could go on."""
    client = harness.connect()
    client.send(*segments)
    harness.pass_time(200)
    client.settle()
    harness.pass_time(1_000)
    client.settle()
    assert client.gone
    harness.assert_clean()
    assert all(
        answer.status in (200, 400, 405, 408, 413, 431)
        for answer in client.answers(*(context.head.method for context in harness.finished))
    )


FRAGMENTS = st.sampled_from(
    [
        *(
            b"GET / HTTP/1.1\r\n",
            b"POST /vllm/a HTTP/1.1\r\n",
            b"HEAD /vllm/a HTTP/1.0\r\n",
            b"Host: h\r\n",
            b"\r\n",
            b"\n",
        ),
        *(
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"Upgrade: h2c\r\n",
        ),
        *(
            b"Connection: upgrade\r\n",
            b"Connection: close\r\n",
            b"hello",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"\0",
            b" ",
            b":",
        ),
        *(get(), post(b"/vllm/a", b"body"), chunked(b"/other/a", b"body")),
    ]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.binary(max_size=30), FRAGMENTS), max_size=12))
def test_no_bytes_whatever_break_a_connection_other_than_by_its_end(segments: list[bytes]) -> None:
    settle_for_good(SiteHarness(), segments)
    settle_for_good(SiteHarness(), [b"".join(segments)])
