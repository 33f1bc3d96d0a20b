"""However the bytes are cut into segments, over real sockets: the same request, the same relay, and nothing left."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import blockingCallFromThread, deferToThreadPool

from tests.end_to_end.end_to_end_harness import MASTER_KEY, Gateway, StandIn, Wire, is_whole
from tests.end_to_end.messages import LAST, OK

KEY = b"Authorization: Bearer " + MASTER_KEY.encode() + b"\r\n"
NEXT = b"GET /vllm/next HTTP/1.1\r\nHost: h\r\n" + KEY + b"\r\n"
NEXT_ANSWER = b"HTTP/1.1 299 Next\r\nContent-Length: 4\r\n\r\nnext"

#: one gateway serves all examples: what one of them left behind would show in the next, or at the end
over_sockets = settings(
    deadline=None,
    max_examples=150,
    # no shrinking: an example that fails by a timeout takes half a minute
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
CUTS = st.lists(st.integers(1, 400), max_size=8)


class Trial:
    """A gateway and its server, for one example after another."""

    def __init__(self, reactor: Any, gateway: Gateway, server: StandIn) -> None:
        self.gateway = gateway
        self.server = server
        self._reactor = reactor

    async def run(self, examples: Callable[[], None]) -> None:
        """Run hypothesis' loop in a thread: it waits for each example, which the reactor runs."""
        await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), examples)

    def play(self, example: Coroutine[Any, Any, None]) -> None:
        """Run one example; called from the thread."""

        def begin() -> Any:
            return ensureDeferred(example)

        blockingCallFromThread(self._reactor, begin)

    async def send(self, wire: Wire, data: bytes, cuts: list[int]) -> None:
        """Send `data`, cut at these places, each piece in a turn of its own."""
        places = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
        for begin, end in pairwise(places):
            wire.send(data[begin:end])
            await wire.next_turn()
            await wire.next_turn()

    async def end(self, client: Wire) -> None:
        """End an example: close its connections and check that the gateway keeps nothing of it."""
        if client.lost is None:
            client.cut()
        for connection in self.server.connections:
            if connection.lost is None:
                connection.cut()
        self.server.connections.clear()
        site = self.gateway.service.site
        for _ in range(1_000):
            if not site.connections and len(site.ids) == 0:
                break
            await client.next_turn()
        assert not site.connections
        assert len(site.ids) == 0


@pytest.fixture
def trial(reactor: Any, stand_in: Any, gateway_to: Any) -> Iterator[Trial]:
    server = stand_in()
    yield Trial(reactor, gateway_to(server.port), server)


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw requests as they are sent, valid but for the last at times, and how they must reach the server."""
    sent, seen = [], []
    for number in range(draw(st.integers(1, 3))):
        body = draw(st.binary(max_size=30))
        framing = draw(st.sampled_from(["none", "length", "chunked"]))
        head = b"POST /vllm/v1/x%d HTTP/1.1\r\nHost: h\r\n" % number + KEY
        if framing == "none":
            body = b""
            sent.append(head + b"\r\n")
        elif framing == "length":
            sent.append(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        else:
            chunks = [body[at : at + 7] for at in range(0, len(body), 7)]
            extension = draw(st.sampled_from([b"", b";a", b';a="b"']))
            framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
            sent.append(head + b"Transfer-Encoding: chunked\r\n\r\n" + framed + LAST)
        seen.append(b"/v1/x%d " % number + body)
    return b"".join(sent), b"|".join(seen)


def read_request(raw: bytes) -> tuple[bytes, bytes] | None:
    """Return the first request of `raw` as target and body, and what follows it; None while it is not whole."""
    head, end, rest = raw.partition(b"\r\n\r\n")
    if not end:
        return None
    lines = head.split(b"\r\n")
    target = lines[0].split(b" ")[1]
    fields = {line.partition(b": ")[0].lower(): line.partition(b": ")[2] for line in lines[1:]}
    if b"transfer-encoding" in fields:
        body = b""
        while True:
            line, found, rest = rest.partition(b"\r\n")
            if not found or len(rest) < int(line, 16) + 2:
                return None
            body, rest = body + rest[: int(line, 16)], rest[int(line, 16) + 2 :]
            if int(line, 16) == 0:
                return target + b" " + body, rest
    size = int(fields.get(b"content-length", b"0"))
    return None if len(rest) < size else (target + b" " + rest[:size], rest[size:])


class Reader:
    """The server's side of an example: answers each request once it is whole, and keeps what it was.

    Attributes:
        seen: the requests, in order.
    """

    def __init__(self, server: StandIn) -> None:
        self.seen: list[bytes] = []
        self._read: dict[Wire, int] = {}
        server.respond = self._respond

    def _respond(self, wire: Wire) -> None:
        while found := read_request(wire.received[self._read.get(wire, 0) :]):
            request, rest = found
            self._read[wire] = len(wire.received) - len(rest)
            self.seen.append(request)
            wire.send(OK)


@pytest_twisted.ensureDeferred
async def test_requests_reach_the_server_the_same_however_they_are_cut(trial: Trial) -> None:
    async def example(data: bytes, expected: bytes, cuts: list[int]) -> None:
        reader = Reader(trial.server)
        client = await trial.gateway.connect()
        await trial.send(client, data, cuts)
        count = expected.count(b"/v1/x")
        await client.until(lambda: client.received.count(b"\r\n\r\nok") == count)
        assert b"|".join(reader.seen) == expected
        assert client.lost is None
        await trial.end(client)

    @over_sockets
    @given(pipelines(), CUTS)
    def run(drawn: tuple[bytes, bytes], cuts: list[int]) -> None:
        trial.play(example(*drawn, cuts))

    await trial.run(run)


BROKEN = [
    b"Nonsense\r\n\r\n",
    b"GET /vllm/v1/models HTTP/1.1\r\nHost : h\r\n" + KEY + b"\r\n",
    b"POST /vllm/v1/x HTTP/1.1\r\nHost: h\r\n" + KEY + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n" + LAST,
    b"POST /vllm/v1/x HTTP/1.1\r\nHost: h\r\n" + KEY + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
    b"POST /vllm/v1/x HTTP/1.1\r\nHost: h\r\n" + KEY + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
]


@pytest_twisted.ensureDeferred
async def test_a_broken_request_ends_its_connection_the_same_however_it_is_cut(trial: Trial) -> None:
    async def example(before: bytes, expected: bytes, broken: bytes, cuts: list[int]) -> None:
        reader = Reader(trial.server)
        client = await trial.gateway.connect()
        await trial.send(client, before + broken + NEXT, [cut + len(before) - 100 for cut in cuts if cut > 100])
        await client.until(lambda: b"malformed_http" in client.received)
        assert client.received.count(b"HTTP/1.1 200 ") == expected.count(b"/v1/x")
        assert client.received.count(b"HTTP/1.1 400 ") == 1
        assert b"|".join(reader.seen) == expected
        await trial.end(client)

    @over_sockets
    @given(pipelines(), st.sampled_from(BROKEN), CUTS)
    def run(drawn: tuple[bytes, bytes], broken: bytes, cuts: list[int]) -> None:
        trial.play(example(*drawn, broken, cuts))

    await trial.run(run)


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """Draw a response as the server sends it, its body, and whether its end is that of the connection."""
    body = draw(st.binary(max_size=60))
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    head = draw(st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"]))
    head += b"HTTP/1.1 200 OK\r\nX-A: caf\xe9\r\nx-a:  2\r\n"
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body, False
    if framing == "close":
        return head + b"\r\n" + body, body, True
    chunks = b"".join(b"%X;x\r\n%b\r\n" % (len(body[at : at + 9]), body[at : at + 9]) for at in range(0, len(body), 9))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nX-Trailer: 1\r\n\r\n", body, False


def read_body(raw: bytes) -> tuple[bytes, bytes]:
    """Return the head and the body of a whole response, the latter without its chunks."""
    head, _, data = raw.partition(b"\r\n\r\n")
    if b"ransfer-Encoding: chunked" not in head:
        return head, data
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        if not int(size, 16):
            return head, body
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
    raise AssertionError("no last chunk")


@pytest_twisted.ensureDeferred
async def test_a_response_is_relayed_the_same_however_it_is_cut(trial: Trial) -> None:
    async def example(raw: bytes, body: bytes, closes: bool, cuts: list[int]) -> None:
        trial.server.respond = lambda wire: None
        client = await trial.gateway.connect()
        client.send(NEXT.replace(b"Host", b"X-Request-Id: mine\r\nHost") + NEXT)
        upstream = await trial.server.connection()
        await upstream.until_received(b"\r\n\r\n")
        await trial.send(upstream, raw, cuts)
        if closes:
            upstream.close()
        # the answer ends in this turn, so that its connection is not used for the second request
        second = await trial.server.connection(1)
        await second.until_received(b"\r\n\r\n")
        second.send(NEXT_ANSWER)
        await client.until_received(b"\r\n\r\nnext")
        first, _, _ = client.received.partition(b"HTTP/1.1 299 ")
        if raw.startswith(b"HTTP/1.1 103"):
            interim, _, first = first.partition(b"\r\n\r\n")
            assert interim == b"HTTP/1.1 103 Early Hints\r\nLink: </x>"
        head, came = read_body(first)
        assert came == body
        assert head.startswith(b"HTTP/1.1 200 OK\r\nX-A: caf\xe9\r\nx-a: 2\r\n")
        assert (b"X-Trailer: 1\r\n" in first) == (b"X-Trailer: 1\r\n" in raw)
        await trial.end(client)

    @over_sockets
    @given(responses(), CUTS)
    def run(drawn: tuple[bytes, bytes, bool], cuts: list[int]) -> None:
        trial.play(example(*drawn, cuts))

    await trial.run(run)


@pytest_twisted.ensureDeferred
async def test_random_bytes_from_a_server_are_answered_for_or_cut(trial: Trial) -> None:
    async def play(segments: list[bytes]) -> None:
        trial.server.respond = lambda wire: None
        client = await trial.gateway.connect()
        client.send(NEXT)
        upstream = await trial.server.connection()
        await upstream.until_received(b"\r\n\r\n")
        for segment in segments:
            await trial.send(upstream, segment, [])
        upstream.close()
        await client.until(lambda: client.lost is not None or is_whole(client.received, False))
        if client.lost is None:
            assert client.received.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 200 "))
        await trial.end(client)

    fragments = st.sampled_from(
        [b"HTTP/1.1 200 OK\r\n", b"\r\n", b"Content-Length: 2\r\n", b"ok", b"5\r\nhello\r\n", LAST]
    )

    cut_short = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"]

    @over_sockets
    @example(cut_short)
    @example(cut_short)
    @given(st.lists(st.one_of(st.binary(max_size=20), fragments), max_size=6))
    def run(segments: list[bytes]) -> None:
        trial.play(play(segments))

    await trial.run(run)
