"""The end: what runs may finish, nothing new begins, and nothing holds the process for ever."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol

from tests.end_to_end.end_to_end_harness import (
    COMPLETION,
    HOST,
    Answer,
    begin,
    capped,
    eventually,
    parse_answer,
    request_bytes,
    server_at,
)
from tests.end_to_end.messages import STREAM
from twisted_vllm.config.settings import ModelEntry, RoutingSettings


@pytest_twisted.ensureDeferred
async def test_a_stream_that_runs_may_finish(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM)
    await client.until_received(b"abc")
    stopped = gateway.stop()
    await client.next_turn()
    assert not stopped.called
    upstream.send(b"3\r\ndef\r\n0\r\n\r\n")
    await client.until_lost()
    await stopped
    assert parse_answer(client.received).body == b"abcdef"
    [line] = gateway.request_lines()
    assert line["outcome"] == "completed"
    assert gateway.log_lines()[-1]["message"].startswith("Drained in ")


@pytest_twisted.ensureDeferred
async def test_a_stream_that_does_not_end_is_cut_at_the_drain_timeout(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, drain_timeout=20.0)
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM)
    await client.until_received(b"abc")
    stopped = gateway.stop()
    gateway.clock.advance(19)
    await client.next_turn()
    assert (client.lost, stopped.called) == (None, False)
    gateway.clock.advance(2)
    await client.until_lost()
    await upstream.until_lost()
    await stopped
    assert not client.received.endswith(b"0\r\n\r\n")
    assert any("Cut 1 connection" in line.get("message", "") for line in gateway.log_lines())
    [line] = gateway.request_lines()
    assert (line["outcome"], line["error"]) == ("failed", "draining")


@pytest_twisted.ensureDeferred
async def test_what_still_waits_at_the_drain_timeout_is_refused_and_reaches_no_server(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server, spare = stand_in(), stand_in()
    models = (ModelEntry("m", "m", capped(server.port)), ModelEntry("spare", "spare", server_at(spare.port)))
    routing = RoutingSettings(fallbacks={"m": ("spare",)})
    gateway = gateway_to(None, models=models, routing=routing, drain_timeout=20.0)
    client = await gateway.send(COMPLETION)
    upstream = await server.connection()
    await upstream.until_received(b"completions")
    waiting = await gateway.send(COMPLETION)
    await eventually(reactor, lambda: gateway.queued == 1)
    stopped = gateway.stop()
    gateway.clock.advance(21)
    await waiting.until_lost()
    await client.until_lost()
    await stopped
    answer = parse_answer(waiting.received)
    assert (answer.status, answer.error["code"], answer.header("retry-after")) == (503, "draining", "1")
    assert (upstream.received.count(b"POST"), server.connections[1:], spare.connections) == (1, [], [])
    line = next(line for line in gateway.request_lines() if line["status"] == 503)
    assert (line["outcome"], line["queued_ms"]) == ("refused", 21000.0)


@pytest_twisted.ensureDeferred
async def test_new_connections_are_refused(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    gateway = gateway_to(stand_in().port)
    await gateway.stop()
    with pytest.raises(ConnectError):
        await connectProtocol(TCP4ClientEndpoint(reactor, HOST, gateway.port), Protocol())


@pytest_twisted.ensureDeferred
async def test_idle_connections_do_not_hold_it_up(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    gateway = gateway_to(server.port)
    client = await gateway.send(request_bytes("GET", "/vllm/health"))
    await client.until_received(b"\r\n\r\nok")
    await gateway.stop()
    await client.until_lost()
    await server.connections[0].until_lost()


@pytest_twisted.ensureDeferred
async def test_a_request_whose_head_ends_after_the_drain_began_is_told_to_go_elsewhere(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    answer = await answer_while_draining(gateway, "/vllm/health")
    assert (answer.status, answer.error["code"]) == (503, "draining")
    assert answer.header("retry-after") == "1"
    assert answer.header("connection") == "close"
    assert server.connections == []
    assert gateway.request_lines()[-1]["outcome"] == "refused"


@pytest_twisted.ensureDeferred
async def test_readiness_says_so_on_a_connection_that_is_still_open(stand_in: Any, gateway_to: Any) -> None:
    answer = await answer_while_draining(gateway_to(stand_in().port), "/health/readiness")
    assert (answer.status, answer.json["draining"]) == (503, True)


@pytest_twisted.ensureDeferred
async def test_for_the_drain_delay_everybody_is_served_and_told_that_it_is_not_ready(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    gateway = gateway_to(server.port, drain_delay=5.0)
    kept = await gateway.send(request_bytes("GET", "/health/readiness"))
    await kept.until_received(b'"healthy"')
    stopped = gateway.stop()
    kept.send(request_bytes("GET", "/health/readiness"))
    await kept.until_received(b'"unhealthy"')
    answer = await gateway.ask("GET", "/health/readiness")
    assert (answer.status, answer.json["draining"]) == (503, True)
    assert (await gateway.ask("GET", "/vllm/v1/models")).status == 200
    assert not stopped.called
    gateway.clock.advance(5)
    await kept.until_lost()
    await stopped
    with pytest.raises(ConnectError):
        await connectProtocol(TCP4ClientEndpoint(reactor, HOST, gateway.port), Protocol())


@pytest_twisted.ensureDeferred
async def test_answers_of_the_drain_delay_say_that_their_connection_closes(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    gateway = gateway_to(server.port, drain_delay=5.0)
    kept = await gateway.send(request_bytes("GET", "/vllm/health"))
    own = await gateway.send(request_bytes("GET", "/health/liveliness"))
    await kept.until_received(b"\r\n\r\nok")
    await own.until_received(b"I'm alive!")
    assert b"connection: close" not in (kept.received + own.received).lower()
    stopped = gateway.stop()
    for client, path in ((kept, "/vllm/health"), (own, "/health/liveliness")):
        before = len(client.received)
        client.send(request_bytes("GET", path))
        await client.until_lost()
        assert parse_answer(client.received[before:]).header("connection") == "close"
    assert not stopped.called
    gateway.clock.advance(5)
    await stopped


@pytest_twisted.ensureDeferred
async def test_an_answer_that_began_before_the_drain_delay_leaves_its_connection_open(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, drain_delay=5.0)
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM)
    await client.until_received(b"abc")
    stopped = gateway.stop()
    upstream.send(b"3\r\ndef\r\n0\r\n\r\n")
    await client.until_received(b"0\r\n\r\n")
    before = len(client.received)
    client.send(request_bytes("GET", "/health/liveliness"))
    await client.until_lost()
    answer = parse_answer(client.received[before:])
    assert (answer.status, answer.header("connection")) == (503, "close")
    gateway.clock.advance(5)
    await stopped


async def answer_while_draining(gateway: Any, target: str) -> Answer:
    """Return the answer to a request that had begun when the drain began, and was complete only afterwards."""
    raw = request_bytes("GET", target)
    client = await gateway.send(request_bytes("GET", "/health/liveliness") + raw[:30])
    await client.until_received(b"I'm alive!")
    before = len(client.received)
    stopped = gateway.stop()
    client.send(raw[30:])
    await client.until_lost()
    await stopped
    return parse_answer(client.received[before:])
