"""WebSockets and other upgrades: a tunnel once the server has agreed, an ordinary answer where it has not."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.error import ConnectionDone

from tests.end_to_end.end_to_end_harness import (
    HANDSHAKE,
    MASTER_KEY,
    REALTIME,
    SWITCHING_PROTOCOLS,
    EndlessProducer,
    begin,
    handshake,
    lower,
    parse_answer,
    parse_head,
    request_bytes,
    server_at,
)
from twisted_vllm.config.settings import Timeouts
from twisted_vllm.http.net.write_coalescing import unsent_bytes


def offering(key: str) -> str:
    """Return the subprotocols as OpenAI's clients in browsers offer them."""
    return f"realtime, openai-insecure-api-key.{key}, openai-beta.realtime-v1"


async def opened(server: Any, gateway: Any) -> tuple[Any, Any]:
    """Open a tunnel; return both ends, with nothing received."""
    client, upstream = await begin(server, gateway, handshake())
    upstream.send(SWITCHING_PROTOCOLS)
    await client.until_received(b"\r\n\r\n")
    client.received = upstream.received = b""
    return client, upstream


@pytest_twisted.ensureDeferred
async def test_a_tunnel_begins_when_the_server_has_agreed_and_not_before(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server_at(server.port, api_key="servers-own", base_path=b"/base"))
    client, upstream = await begin(server, gateway, handshake(X_Request_Id="mine-1", Sec_WebSocket_Extensions="a;b=1"))
    client.send(b"early frames")
    for _ in range(20):
        await client.next_turn()
    line, headers = parse_head(upstream.received)
    assert (client.received, upstream.received.partition(b"\r\n\r\n")[2]) == (b"", b"")
    assert line == b"GET /base/v1/realtime HTTP/1.1"
    assert [value for name, value in headers if name == b"Connection"] == [b"Upgrade"]
    assert [value for name, value in headers if name == b"Upgrade"] == [b"websocket"]
    found = lower(headers)
    assert found[b"authorization"] == b"Bearer servers-own"
    assert found[b"sec-websocket-key"] == HANDSHAKE["Sec-WebSocket-Key"].encode()
    assert (found[b"sec-websocket-version"], found[b"sec-websocket-extensions"]) == (b"13", b"a;b=1")
    assert not {b"content-length", b"transfer-encoding", b"sec-websocket-protocol"} & found.keys()
    upstream.send(SWITCHING_PROTOCOLS + b"\x81\x02hi")
    await client.until_received(b"hi")
    await upstream.until_received(b"early frames")
    assert client.received == SWITCHING_PROTOCOLS[:-2] + b"x-request-id: mine-1\r\n\r\n\x81\x02hi"


@pytest.mark.parametrize("protocol", ["websocket", "some-other/2, websocket"])
@pytest_twisted.ensureDeferred
async def test_a_refusal_of_the_server_s_is_relayed_as_any_answer(
    stand_in: Any, gateway_to: Any, protocol: str
) -> None:
    server = stand_in(
        b"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\nConnection: close\r\n"
        b"Content-Length: 2\r\n\r\nno"
    )
    gateway = gateway_to(server.port)
    answer = await gateway.answer_to(handshake(Upgrade=protocol))
    assert (answer.status, answer.reason, answer.body) == (426, b"Upgrade Required", b"no")
    assert answer.header("Sec-WebSocket-Version") == "13"
    assert answer.header("Connection") == "close"
    [line] = gateway.request_lines()
    assert (line["status"], line["outcome"], line["error"]) == (426, "completed", "")


@pytest_twisted.ensureDeferred
async def test_a_tunnel_passes_any_bytes(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await begin(server, gateway_to(server.port), handshake())
    upstream.send(SWITCHING_PROTOCOLS)
    client.send(b"GET / HTTP/1.1\r\n\r\n\x00\xff")
    await upstream.until_received(b"GET / HTTP/1.1\r\n\r\n\x00\xff")


@pytest.mark.parametrize(
    "answer",
    [SWITCHING_PROTOCOLS.replace(b"WebSocket", b"h2c"), SWITCHING_PROTOCOLS.replace(b"Upgrade: WebSocket\r\n", b"")],
)
@pytest_twisted.ensureDeferred
async def test_a_switch_to_what_was_not_asked_for_is_no_answer(stand_in: Any, gateway_to: Any, answer: bytes) -> None:
    refused = await gateway_to(stand_in(answer).port).answer_to(handshake())
    assert (refused.status, refused.error["code"]) == (502, "upstream_protocol_error")


@pytest.mark.parametrize("protocol", ["h2c", "h2c-14", "H2C-16", "HTTP/2.0", "TLS/1.2", "echo/1"])
@pytest_twisted.ensureDeferred
async def test_no_protocol_but_websocket_is_asked_of_a_server(stand_in: Any, gateway_to: Any, protocol: str) -> None:
    server = stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    raw = handshake(Connection="Upgrade, HTTP2-Settings", Upgrade=protocol, HTTP2_Settings="AAMAAABk")
    answer = await gateway_to(server.port).answer_to(raw)
    assert (answer.status, answer.header("connection")) == (200, None)
    assert not {b"upgrade", b"connection", b"http2-settings"} & lower(parse_head(server.received)[1]).keys()


# authorization


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (handshake(None), "missing_api_key"),
        (handshake("sk-wrong"), "invalid_api_key"),
        (handshake(None, Sec_WebSocket_Protocol="realtime"), "missing_api_key"),
        (handshake(None, Sec_WebSocket_Protocol=offering("sk-wrong")), "invalid_api_key"),
        (handshake("sk-wrong", Sec_WebSocket_Protocol=offering(MASTER_KEY)), "invalid_api_key"),
        (request_bytes("GET", REALTIME, None, {"Sec-WebSocket-Protocol": offering(MASTER_KEY)}), "missing_api_key"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_without_a_valid_key_there_is_no_tunnel(stand_in: Any, gateway_to: Any, raw: bytes, code: str) -> None:
    server = stand_in(SWITCHING_PROTOCOLS)
    answer = await gateway_to(server.port).answer_to(raw)
    assert (answer.status, answer.error["code"]) == (401, code)
    assert server.connections == []


@pytest_twisted.ensureDeferred
async def test_a_preflight_which_needs_no_key_opens_no_tunnel(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    headers = {**HANDSHAKE, "Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    answer = await gateway_to(server.port).answer_to(request_bytes("OPTIONS", REALTIME, None, headers))
    assert answer.status == 200
    assert not {b"upgrade", b"connection"} & lower(parse_head(server.received)[1]).keys()


@pytest_twisted.ensureDeferred
async def test_a_key_opens_the_routes_that_it_may_call(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(SWITCHING_PROTOCOLS)
    gateway = gateway_to(server.port)
    limited = await gateway.answer_to(handshake(await gateway.make_key(models=["m"])))
    assert (limited.status, limited.error["code"]) == (400, "model_undetermined")
    key = await gateway.make_key()
    privileged = await gateway.answer_to(handshake(key, "/vllm/sleep"))
    assert (privileged.status, privileged.error["code"]) == (403, "route_not_allowed")
    assert server.connections == []
    client = await gateway.send(handshake(key, X_Vllm_Priority="0"))
    await client.until_received(b"101 Switching")
    assert b"riority" not in server.received


@pytest.mark.parametrize("other", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_key_among_the_subprotocols_works_and_goes_no_further(
    stand_in: Any, gateway_to: Any, other: bool
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    key = await gateway.make_key(key_alias="browser")
    raw = handshake(MASTER_KEY if other else None, Sec_WebSocket_Protocol=offering(key))
    client, upstream = await begin(server, gateway, raw)
    assert lower(parse_head(upstream.received)[1])[b"sec-websocket-protocol"] == b"realtime, openai-beta.realtime-v1"
    upstream.send(SWITCHING_PROTOCOLS)
    await client.until_received(b"\r\n\r\n")
    client.close()
    await upstream.until_lost()
    assert key.encode() not in upstream.received + client.received
    assert b"insecure" not in upstream.received
    log = gateway.log_text()
    assert key not in log
    assert "insecure" not in log
    assert gateway.request_lines()[-1]["key_name"] == ("master" if other else "browser")


@pytest_twisted.ensureDeferred
async def test_of_subprotocols_that_were_a_key_alone_nothing_is_left(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    raw = handshake(None, Sec_WebSocket_Protocol=f"openai-insecure-api-key.{MASTER_KEY}")
    _, upstream = await begin(server, gateway_to(server.port), raw)
    assert b"sec-websocket-protocol" not in lower(parse_head(upstream.received)[1])


@pytest_twisted.ensureDeferred
async def test_a_key_in_a_header_of_its_own_is_taken_out_as_well(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    key = f"openai-insecure-api-key.{MASTER_KEY}"
    raw = handshake(None, Sec_WebSocket_Protocol=f"realtime\r\nSec-WebSocket-Protocol: {key}")
    _, upstream = await begin(server, gateway_to(server.port), raw)
    assert lower(parse_head(upstream.received)[1])[b"sec-websocket-protocol"] == b"realtime"
    assert MASTER_KEY.encode() not in upstream.received


@pytest.mark.parametrize(
    ("offered", "answered", "chosen"),
    [
        (offering(MASTER_KEY), b"", [b"realtime"]),
        (offering(MASTER_KEY), b"Sec-WebSocket-Protocol: openai-beta.realtime-v1\r\n", [b"openai-beta.realtime-v1"]),
        (f"openai-insecure-api-key.{MASTER_KEY}", b"", []),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_browser_is_told_a_subprotocol_where_the_server_names_none(
    stand_in: Any, gateway_to: Any, offered: str, answered: bytes, chosen: list[bytes]
) -> None:
    server = stand_in(SWITCHING_PROTOCOLS[:-2] + answered + b"\r\n")
    client = await gateway_to(server.port).send(handshake(None, Sec_WebSocket_Protocol=offered))
    await client.until_received(b"\r\n\r\n")
    headers = parse_head(client.received)[1]
    assert [value for name, value in headers if name.lower() == b"sec-websocket-protocol"] == chosen


@pytest_twisted.ensureDeferred
async def test_without_a_key_among_the_subprotocols_the_101_stays_as_it_is(stand_in: Any, gateway_to: Any) -> None:
    client = await gateway_to(stand_in(SWITCHING_PROTOCOLS).port).send(handshake(Sec_WebSocket_Protocol="realtime"))
    await client.until_received(b"\r\n\r\n")
    assert b"Protocol:" not in client.received


# relaying


@pytest_twisted.ensureDeferred
async def test_a_thousand_tiny_messages_each_way_arrive_in_order(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await opened(server, gateway_to(server.port))
    wanted = b"".join(b"%d," % number for number in range(1000))
    for number in range(1000):
        client.send(b"%d," % number)
        upstream.send(b"%d," % number)
        if number % 10 == 0:
            await client.next_turn()
    await client.until(lambda: len(client.received) >= len(wanted))
    await upstream.until(lambda: len(upstream.received) >= len(wanted))
    assert (client.received, upstream.received) == (wanted, wanted)


@pytest.mark.parametrize("stalled", ["client", "server"])
@pytest_twisted.ensureDeferred
async def test_a_side_that_does_not_read_stops_the_other(stand_in: Any, gateway_to: Any, stalled: str) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await opened(server, gateway)
    reader, writer = (client, upstream) if stalled == "client" else (upstream, client)
    reader.transport.pauseProducing()
    producer = EndlessProducer(writer)
    writer.transport.registerProducer(producer, True)
    producer.resumeProducing()
    await producer.until_stuck()
    assert producer.sent < 60_000_000
    [downstream] = gateway.service.site.connections
    [upstream_connection] = gateway.service.wiring.agent.connections
    assert unsent_bytes(downstream.transport) + unsent_bytes(upstream_connection.transport) < 1_000_000
    # the other direction goes on
    reader.send(b"still here")
    await writer.until_received(b"still here")
    before = len(reader.received)
    reader.transport.resumeProducing()
    await reader.until(lambda: len(reader.received) > before + 2 * producer.PIECE)
    producer.stopProducing()
    writer.transport.unregisterProducer()
    reader.cut()
    await writer.until_lost()


@pytest.mark.parametrize("leaves", ["client", "server"])
@pytest_twisted.ensureDeferred
async def test_the_end_of_one_side_is_the_other_s_after_all_that_was_on_its_way(
    stand_in: Any, gateway_to: Any, leaves: str
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await opened(server, gateway)
    leaving, staying = (client, upstream) if leaves == "client" else (upstream, client)
    # not read at first, so that some of it waits in the gateway
    staying.transport.pauseProducing()
    leaving.send(b"x" * 20_000_000)
    for _ in range(20):
        await leaving.next_turn()
    leaving.close()
    staying.transport.resumeProducing()
    await staying.until_lost()
    assert len(staying.received) == 20_000_000
    assert staying.lost.check(ConnectionDone)
    await leaving.until_lost()
    [line] = gateway.request_lines()
    counted = "bytes_in" if leaves == "client" else "bytes_out"
    assert (line["status"], line["outcome"], line["error"], line[counted]) == (101, "completed", "", 20_000_000)


@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_on_gets_the_server_s_last_words(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    client, upstream = await opened(server, gateway_to(server.port))
    client.send(b"x" * 1_000_000)
    upstream.transport.pauseProducing()
    upstream.send(b"last words")
    upstream.transport.loseWriteConnection()
    await client.until_received(b"last words")
    await client.until_lost()
    upstream.cut()


# endings


@pytest_twisted.ensureDeferred
async def test_one_line_tells_of_a_tunnel_when_it_has_ended(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await opened(server, gateway)
    client.send(b"12345")
    upstream.send(b"123")
    await upstream.until_received(b"12345")
    await client.until_received(b"123")
    gateway.clock.advance(0.5)
    assert gateway.request_lines() == []
    upstream.close()
    await client.until_lost()
    [line] = gateway.request_lines()
    assert (line["status"], line["outcome"], line["error"]) == (101, "completed", "")
    assert (line["method"], line["route"], line["key_name"]) == ("GET", "/v1/realtime", "master")
    assert (line["bytes_in"], line["bytes_out"], line["first_byte_ms"], line["total_ms"]) == (5, 3, 0.0, 500.0)


@pytest.mark.parametrize(
    ("loses", "outcome", "error"),
    [("client", "client_disconnected", ""), ("server", "upstream_failed", "upstream_protocol_error")],
)
@pytest_twisted.ensureDeferred
async def test_a_side_that_is_lost_ends_the_other_and_is_named_in_the_log(
    stand_in: Any, gateway_to: Any, loses: str, outcome: str, error: str
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await opened(server, gateway)
    client.send(b"12345")
    await upstream.until_received(b"12345")
    lost, other = (client, upstream) if loses == "client" else (upstream, client)
    lost.cut()
    await other.until_lost()
    [line] = gateway.request_lines()
    assert (line["status"], line["outcome"], line["error"]) == (101, outcome, error)
    assert (line["bytes_in"], line["bytes_out"], line["route"]) == (5, 0, "/v1/realtime")


@pytest_twisted.ensureDeferred
async def test_a_tunnel_in_which_nothing_moves_is_closed(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server_at(server.port, timeouts=Timeouts(response_head=5, idle=5, total=5, tunnel_idle=100)))
    client, upstream = await opened(server, gateway)
    gateway.pass_time(90)
    client.send(b"ping")
    await upstream.until_received(b"ping")
    gateway.pass_time(90)
    upstream.send(b"pong")
    await client.until_received(b"pong")
    gateway.pass_time(100)
    await client.until_lost()
    await upstream.until_lost()
    assert client.lost.check(ConnectionDone)
    [line] = gateway.request_lines()
    assert (line["outcome"], line["error"]) == ("upstream_failed", "upstream_timeout")


@pytest_twisted.ensureDeferred
async def test_a_drain_closes_it_at_once(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await opened(server, gateway)
    upstream.send(b"last words")
    await client.until_received(b"last words")
    await gateway.stop()
    await client.until_lost()
    await upstream.until_lost()
    assert client.lost.check(ConnectionDone)
    [line] = gateway.request_lines()
    assert (line["outcome"], line["error"]) == ("failed", "draining")


@pytest_twisted.ensureDeferred
async def test_a_101_that_comes_during_the_drain_comes_too_late(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway, handshake())
    stopped = gateway.stop()
    upstream.send(SWITCHING_PROTOCOLS + b"frames")
    await client.until_lost()
    await upstream.until_lost()
    await stopped
    answer = parse_answer(client.received)
    assert (answer.status, answer.error["code"]) == (503, "draining")
    [line] = gateway.request_lines()
    assert (line["status"], line["outcome"], line["error"]) == (503, "refused", "draining")


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_before_the_101_ends_the_attempt(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway, handshake())
    client.close()
    await upstream.until_lost()
    [line] = gateway.request_lines()
    assert (line["status"], line["outcome"]) == (0, "client_disconnected")
