"""A server that fails, and a client that disconnects: what the other side notices."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import HOST, begin, request_bytes, server_at
from tests.end_to_end.messages import STREAM
from twisted_vllm.config.settings import Timeouts


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_not_there(gateway_to: Any) -> None:
    port = free_port()
    gateway = gateway_to(port)
    answer = await gateway.ask("GET", "/vllm/v1/models")
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    assert str(port) not in answer.body.decode()
    [line] = [line for line in gateway.log_lines() if "No connection" in line.get("message", "")]
    assert f"{HOST}:{port}" in line["message"]


@pytest_twisted.ensureDeferred
async def test_a_server_that_closes_before_it_answers(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway)
    upstream.close()
    await client.until_received(b"}}")
    assert b"502 Bad Gateway" in client.received
    assert b"x-vllm-passthrough-error: upstream_unreachable" in client.received


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH_9.7\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\x16\x03\x01\x00\x02\x02",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_server_that_answers_nonsense(stand_in: Any, gateway_to: Any, nonsense: bytes) -> None:
    gateway = gateway_to(stand_in(nonsense).port)
    answer = await gateway.ask("GET", "/vllm/v1/models")
    assert (answer.status, answer.error["code"]) == (502, "upstream_protocol_error")


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_answer_in_time(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server_at(server.port, timeouts=Timeouts(response_head=3)))
    client, upstream = await begin(server, gateway)
    gateway.pass_time(2)
    assert client.received == b""
    gateway.pass_time(2)
    await client.until_received(b"}}")
    assert b"HTTP/1.1 504 Gateway Time-out" in client.received or b"HTTP/1.1 504 Gateway Timeout" in client.received
    assert b"x-vllm-passthrough-error: upstream_timeout" in client.received
    await upstream.until_lost()


@pytest.mark.parametrize("timeouts", [Timeouts(idle=3), Timeouts(total=3)])
@pytest_twisted.ensureDeferred
async def test_a_stream_that_stalls_is_cut_on_both_sides(stand_in: Any, gateway_to: Any, timeouts: Timeouts) -> None:
    server = stand_in()
    gateway = gateway_to(server_at(server.port, timeouts=timeouts))
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM)
    await client.until_received(b"abc")
    gateway.pass_time(4)
    await client.until_lost()
    await upstream.until_lost()
    assert not client.received.endswith(b"0\r\n\r\n")
    [line] = gateway.request_lines()
    assert (line["outcome"], line["error"], line["status"]) == ("upstream_failed", "upstream_timeout", 200)


@pytest_twisted.ensureDeferred
async def test_a_response_that_was_cut_does_not_look_complete(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM)
    await client.until_received(b"abc")
    upstream.cut()
    await client.until_lost()
    assert client.received.endswith(b"abc\r\n")
    [line] = gateway.request_lines()
    assert (line["outcome"], line["error"]) == ("upstream_failed", "upstream_protocol_error")


@pytest_twisted.ensureDeferred
async def test_nonsense_in_the_middle_of_a_stream_cuts_it_after_what_was_sense(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM + b"not a chunk size\r\n")
    await client.until_lost()
    assert client.received.endswith(b"3\r\nabc\r\n")


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_before_the_answer_frees_the_server_at_once(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway)
    client.close()
    await upstream.until_lost()
    [line] = gateway.request_lines()
    assert (line["outcome"], line["status"], line["first_byte_ms"]) == ("client_disconnected", 0, None)


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_the_server_at_once(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM)
    await client.until_received(b"abc")
    client.cut()
    await upstream.until_lost()
    [line] = gateway.request_lines()
    assert (line["outcome"], line["status"], line["bytes_out"]) == ("client_disconnected", 200, 3)


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_in_the_middle_of_its_upload_frees_the_server_at_once(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(
        server, gateway, request_bytes("POST", "/vllm/v1/audio/speech", body=b"x" * 100)[:-50], until=b"x" * 50
    )
    client.cut()
    await upstream.until_lost()
    [line] = gateway.request_lines()
    assert (line["outcome"], line["bytes_in"]) == ("client_disconnected", 50)


@pytest_twisted.ensureDeferred
async def test_an_upload_that_turns_out_to_be_malformed_is_refused_and_frees_the_server(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    raw = request_bytes("POST", "/vllm/v1/audio/speech", headers={"Transfer-Encoding": "chunked"})
    client, upstream = await begin(server, gateway, raw + b"3\r\nabc\r\n", until=b"abc")
    client.send(b"not a size\r\n")
    await client.until_received(b"malformed_http")
    await upstream.until_lost()
    [line] = gateway.request_lines()
    assert (line["status"], line["outcome"], line["error"]) == (400, "refused", "malformed_http")


@pytest_twisted.ensureDeferred
async def test_a_kept_connection_that_died_is_replaced_without_the_client_noticing(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    gateway = gateway_to(server.port)
    assert (await gateway.ask("GET", "/vllm/v1/models")).status == 200
    first = await server.connection()
    server.answer = None
    client = await gateway.send(request_bytes("POST", "/vllm/v1/embeddings", body={"model": "m"}))
    await first.until_received(b'"m"}')
    first.close()
    second = await server.connection(1)
    await second.until_received(b'"m"}')
    second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain")
    await client.until_received(b"again")


@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_its_head_too_slowly_is_refused(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port, timeouts=Timeouts(client_head=3))
    client = await gateway.send(b"GET /vllm/health HTTP/1.1\r\nHost: h\r\n")
    await client.next_turn()
    await client.next_turn()
    for _ in range(4):
        gateway.pass_time(1)
        if client.lost is None:
            client.send(b"X-Slow: 1\r\n")
        await client.next_turn()
        await client.next_turn()
    await client.until_lost()
    assert b"HTTP/1.1 408" in client.received
    assert b"request_timeout" in client.received
