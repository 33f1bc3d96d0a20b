"""Bytes are passed on as they come, both ways: each side sends only after it got what the other sent."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import EndlessProducer, begin, parse_answer, request_bytes
from tests.end_to_end.messages import chunk

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest_twisted.ensureDeferred
async def test_each_event_reaches_the_client_before_the_server_sends_the_next(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await begin(
        server,
        gateway_to(server.port),
        request_bytes("POST", "/vllm/v1/chat/completions", body={"model": "m", "stream": True}),
        until=b"true}",
    )
    upstream.send(HEAD)
    await client.until_received(b"\r\n\r\n")
    for number in range(5):
        upstream.send(chunk(b"data: %d\n\n" % number))
        await client.until_received(b"data: %d\n\n" % number)
    upstream.send(b"0\r\n\r\n")
    await client.until(lambda: client.received.endswith(b"0\r\n\r\n"))
    answer = parse_answer(client.received)
    assert answer.body == b"".join(b"data: %d\n\n" % number for number in range(5))
    assert answer.header("content-type") == "text/event-stream"


@pytest_twisted.ensureDeferred
async def test_an_event_that_comes_in_pieces_is_not_held_back(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await begin(server, gateway_to(server.port), request_bytes("GET", "/vllm/v1/models"))
    upstream.send(HEAD + b"a\r\nda")
    await client.until_received(b"da\r\n")
    upstream.send(b"ta: 1\n\n")
    await client.until_received(b"ta: 1\n\n")


@pytest_twisted.ensureDeferred
async def test_a_stream_of_declared_length_keeps_its_length(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await begin(server, gateway_to(server.port), request_bytes("GET", "/vllm/v1/models"))
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    await client.until_received(b"\r\n\r\nab")
    upstream.send(b"cd")
    await client.until_received(b"\r\n\r\nabcd")
    assert b"Content-Length: 4" in client.received
    assert b"chunked" not in client.received


@pytest.mark.parametrize("chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_upload_reaches_the_server_as_it_comes(stand_in: Any, gateway_to: Any, chunked: bool) -> None:
    server = stand_in()
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 8"
    key = request_bytes("GET", "/").split(b"\r\n")[2]
    client, upstream = await begin(
        server,
        gateway_to(server.port),
        b"POST /vllm/v1/audio/transcriptions HTTP/1.1\r\nHost: h\r\n" + key + b"\r\n" + framing + b"\r\n\r\n",
        until=framing,
    )
    for piece in (b"abcd", b"efgh"):
        client.send(chunk(piece) if chunked else piece)
        await upstream.until_received(piece)
    if chunked:
        client.send(b"0\r\n\r\n")
        await upstream.until_received(b"\r\n0\r\n\r\n")
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await client.until_received(b"\r\n\r\nok")


@pytest_twisted.ensureDeferred
async def test_a_client_that_waits_for_100_continue_gets_the_server_s(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    raw = request_bytes("POST", "/vllm/v1/audio/speech", headers={"Expect": "100-continue"}, body=b"abcd")
    client, upstream = await begin(server, gateway_to(server.port), raw[:-4], until=b"Expect: 100-continue\r\n")
    upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.until_received(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.send(b"abcd")
    await upstream.until_received(b"abcd")
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await client.until_received(b"\r\n\r\nok")
    assert client.received.count(b"100 Continue") == 1


@pytest_twisted.ensureDeferred
async def test_an_answer_before_the_end_of_the_upload_arrives(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    raw = request_bytes("POST", "/vllm/v1/audio/speech", body=b"x" * 1_000_000)
    client, upstream = await begin(server, gateway_to(server.port), raw[:2000], until=b"xxxx")
    upstream.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
    await client.until_received(b"\r\n\r\nbig")
    await upstream.until_lost()
    assert b"Connection: close" in client.received


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_slowly_slows_the_server_down(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await begin(server, gateway_to(server.port), request_bytes("GET", "/vllm/v1/models"))
    client.transport.pauseProducing()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    producer = EndlessProducer(upstream)
    upstream.transport.registerProducer(producer, True)
    producer.resumeProducing()
    await producer.until_stuck()
    assert producer.sent < 60_000_000
    before = len(client.received)
    client.transport.resumeProducing()
    await client.until(lambda: len(client.received) > before + 2 * producer.PIECE)
    client.cut()
    await upstream.until_lost()


@pytest_twisted.ensureDeferred
async def test_trailers_are_passed_both_ways_but_not_what_would_pass_for_a_header(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    client, upstream = await begin(
        server,
        gateway_to(server.port),
        request_bytes("POST", "/vllm/tokenizer_info", headers={"Transfer-Encoding": "chunked"}),
    )
    client.send(b"2\r\nab\r\n")
    await upstream.until_received(b"2\r\nab\r\n")
    client.send(b"0\r\nX-Sum: 1\r\nAuthorization: Bearer stolen\r\nContent-Type: text/plain\r\n\r\n")
    await upstream.until(lambda: upstream.received.endswith(b"0\r\nX-Sum: 1\r\n\r\n"))
    upstream.send(HEAD + chunk(b"data: 1\n\n"))
    await client.until_received(b"data: 1\n\n")
    upstream.send(b"0\r\nX-Tokens: 7\r\nSet-Cookie: a=b\r\nConnection: close\r\n\r\n")
    await client.until(lambda: client.received.endswith(b"\r\n0\r\nX-Tokens: 7\r\n\r\n"))
