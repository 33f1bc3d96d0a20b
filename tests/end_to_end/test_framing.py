"""Every framing of HTTP/1.1 through the gateway: where a message ends is seen by both sides in the same way."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import begin, lower, parse_head, request_bytes
from tests.end_to_end.messages import CHUNKED_HEAD, OK, chunk


def get(target: str) -> bytes:
    return request_bytes("GET", target)


@pytest_twisted.ensureDeferred
async def test_chunk_extensions_and_sizes_of_the_client_s_own_are_not_passed_on(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    raw = request_bytes("POST", "/vllm/v1/audio/speech", headers={"Transfer-Encoding": "chunked"})
    client, upstream = await begin(
        server, gateway_to(server.port), raw + b'0003;a="b;c"\r\nabc\r\n2;x\r\nde\r\n', until=b"de\r\n"
    )
    client.send(b"00;last\r\n\r\n")
    await upstream.until_received(b"\r\n0\r\n\r\n")
    assert upstream.received.partition(b"\r\n\r\n")[2] in (
        chunk(b"abcde") + b"0\r\n\r\n",
        chunk(b"abc") + chunk(b"de") + b"0\r\n\r\n",
    )
    upstream.send(CHUNKED_HEAD + b'2;a="b"\r\nok\r\n0;last\r\n\r\n')
    await client.until_received(b"2\r\nok\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "answer", [CHUNKED_HEAD + chunk(b"all of it") + b"0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nall of it"]
)
@pytest_twisted.ensureDeferred
async def test_a_client_of_http_1_0_gets_a_body_that_ends_with_its_connection(
    stand_in: Any, gateway_to: Any, answer: bytes
) -> None:
    server = stand_in()
    client, upstream = await begin(
        server, gateway_to(server.port), get("/vllm/v1/models").replace(b"HTTP/1.1", b"HTTP/1.0")
    )
    upstream.send(answer)
    if answer.startswith(b"HTTP/1.0"):
        upstream.close()
    await client.until_lost()
    head, _, body = client.received.partition(b"\r\n\r\n")
    assert body == b"all of it"
    found = lower(parse_head(head)[1])
    assert found[b"connection"] == b"close"
    assert not found.keys() & {b"transfer-encoding", b"content-length"}


@pytest_twisted.ensureDeferred
async def test_a_client_of_http_1_0_never_takes_half_a_body_for_the_whole(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await begin(
        server, gateway_to(server.port), get("/vllm/v1/models").replace(b"HTTP/1.1", b"HTTP/1.0")
    )
    upstream.send(CHUNKED_HEAD + chunk(b"half"))
    await client.until_received(b"half")
    upstream.cut()
    await client.until_lost()
    assert client.lost is not None
    assert "non-clean" in str(client.lost.value), "a close instead of a reset would say that the body is whole"


@pytest_twisted.ensureDeferred
async def test_the_answer_to_head_keeps_its_length_and_the_connection(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n")
    gateway = gateway_to(server.port)
    client = await gateway.connect()
    for count in (1, 2):
        client.send(request_bytes("HEAD", "/vllm/v1/models"))
        await client.until(lambda count=count: client.received.count(b"\r\n\r\n") == count)
    assert client.received.count(b"Content-Length: 2000\r\n") == 2
    assert client.lost is None
    assert len(server.connections) == 1


@pytest_twisted.ensureDeferred
async def test_pipelined_requests_are_answered_in_their_order_though_the_second_is_quicker(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    client, slow = await begin(
        server, gateway_to(server.port), get("/vllm/slow") + get("/vllm/quick") + get("/key/list"), until=b"GET /slow "
    )
    for _ in range(20):
        await client.next_turn()
    assert client.received == b""
    server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nquick"
    slow.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")
    await client.until_received(b'"keys"')
    places = [client.received.index(each) for each in (b"\r\n\r\nslow", b"\r\n\r\nquick", b'"keys"')]
    assert places == sorted(places)


@pytest_twisted.ensureDeferred
async def test_both_connections_are_kept_from_one_request_to_the_next(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client = await gateway.connect()
    answers = [
        OK,
        CHUNKED_HEAD + chunk(b"ok") + b"0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
        b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    ]
    for number, answer in enumerate(answers):
        client.send(get(f"/vllm/x{number}"))
        upstream = await server.connection()
        await upstream.until_received(b"GET /x%d " % number)
        before = client.received.count(b"x-request-id")
        upstream.send(answer)
        await client.until(lambda before=before: client.received.count(b"x-request-id") == before + 1)
        await client.next_turn()
    assert len(server.connections) == 1
    assert client.lost is None


@pytest_twisted.ensureDeferred
async def test_an_interim_answer_brings_nothing_that_speaks_of_the_server_s_connection(
    stand_in: Any, gateway_to: Any
) -> None:
    # a client that believed the length would take the answer that follows for a body (RFC 9110 §7.6.1 and §8.6)
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nConnection: x-one\r\nX-One: 1\r\nContent-Length: 5\r\n\r\n"
    server = stand_in(interim + OK)
    client = await gateway_to(server.port).send(request_bytes("GET", "/vllm/v1/models"))
    await client.until_received(b"ok")
    assert client.received.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest_twisted.ensureDeferred
async def test_100_continue_103_and_the_answer_come_in_their_order(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    raw = request_bytes("POST", "/vllm/v1/audio/speech", headers={"Expect": "100-continue"}, body=b"abcd")
    client, upstream = await begin(server, gateway_to(server.port), raw[:-4], until=b"Expect: 100-continue\r\n")
    for _ in range(20):
        await client.next_turn()
    assert client.received == b"", "the server decides whether the client goes on"
    upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.until_received(b"100 Continue\r\n\r\n")
    client.send(b"abcd")
    await upstream.until_received(b"abcd")
    upstream.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
    await client.until_received(b"\r\n\r\nok")
    interim, hints, final, body = client.received.split(b"\r\n\r\n")
    assert (interim, hints) == (b"HTTP/1.1 100 Continue", b"HTTP/1.1 103 Early Hints\r\nLink: </x>")
    assert final.startswith(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n")
    assert body == b"ok"


@pytest_twisted.ensureDeferred
async def test_a_server_that_refuses_instead_of_100_gets_no_body(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    raw = request_bytes("POST", "/vllm/v1/audio/speech", headers={"Expect": "100-continue"}, body=b"abcd")
    client, upstream = await begin(server, gateway_to(server.port), raw[:-4], until=b"Expect: 100-continue\r\n")
    upstream.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
    await client.until_received(b"\r\n\r\nbig")
    await upstream.until_lost()
    assert b"Connection: close\r\n" in client.received
    assert b"100 Continue" not in client.received


TRUNCATED = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
    "a chunk": CHUNKED_HEAD + b"a\r\n12345",
    "chunks without the last": CHUNKED_HEAD + chunk(b"12345"),
    "a last chunk without its end": CHUNKED_HEAD + chunk(b"12345") + b"0\r\n",
    "a size without its chunk": CHUNKED_HEAD + chunk(b"12345") + b"5\r\n",
}


@pytest.mark.parametrize("leave", ["close", "cut"])
@pytest.mark.parametrize("raw", TRUNCATED.values(), ids=TRUNCATED.keys())
@pytest_twisted.ensureDeferred
async def test_a_truncated_response_is_an_error_for_the_client(
    stand_in: Any, gateway_to: Any, raw: bytes, leave: str
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway, get("/vllm/v1/models") + get("/vllm/v1/next"), until=b"\r\n\r\n")
    upstream.send(raw)
    await client.until_received(b"12345")
    getattr(upstream, leave)()
    await client.until_lost()
    head, _, body = client.received.partition(b"\r\n\r\n")
    assert not body.endswith(b"0\r\n\r\n")
    if b"Content-Length: 10" in head:
        assert len(body) < 10
    [line] = gateway.request_lines()
    assert (line["outcome"], line["error"]) == ("upstream_failed", "upstream_protocol_error")
    assert len(server.connections) == 1, "the pipelined request went down with its connection"
