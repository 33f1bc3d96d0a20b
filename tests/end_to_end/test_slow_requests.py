"""A server that hangs is named while its requests wait: one line for all that wait for the same."""

from __future__ import annotations

from typing import Any

import attrs
import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.end_to_end_harness import SWITCHING_PROTOCOLS, begin, capped, eventually, handshake, request_bytes
from tests.end_to_end.messages import STREAM

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
COMPLETION = request_bytes("POST", "/vllm/v1/completions", body={"model": "m"})


def made(gateway_to: Any, server: Any, seconds: float | None = 10.0) -> Any:
    """Return a gateway that warns after some seconds; its log is as that of others."""
    gateway = gateway_to(server)
    settings = attrs.evolve(gateway.settings.log, slow_request_warning=seconds)
    gateway.service.wiring.telemetry.prepare(attrs.evolve(gateway.settings, log=settings))()
    return gateway


async def after(gateway: Any, seconds: float, reactor: Any) -> list[str]:
    """Let time pass; return all lines about requests that wait."""
    for _ in range(int(seconds)):
        gateway.clock.advance(1.0)
        # the look takes some turns
        for _ in range(3):
            await deferLater(reactor, 0)
    return [line["message"] for line in gateway.log_lines() if "SlowRequestLog" in line.get("namespace", "")]


@pytest_twisted.ensureDeferred
async def test_a_server_that_answers_nothing_is_named_with_the_oldest_request(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = made(gateway_to, server.port)
    oldest = request_bytes("POST", "/vllm/v1/completions", headers={"X-Request-Id": "oldest"}, body={"model": "m"})
    await begin(server, gateway, oldest)
    assert await after(gateway, 5, reactor) == []
    await gateway.send(COMPLETION)
    await server.connection(1)
    [line] = await after(gateway, 7, reactor)
    assert line.startswith(
        f"1 request waits for 127.0.0.1:{server.port} to begin its answer (/v1/completions), the oldest for 10 s: "
        "oldest, model m, key master. The server has not answered any request yet"
    )
    lines = await after(gateway, 10, reactor)
    # again after ten seconds, for both
    assert len(lines) == 2
    assert lines[1].startswith("2 requests wait for")


@pytest_twisted.ensureDeferred
async def test_a_stream_that_stalls_is_named_and_one_whose_client_reads_slowly_is_not(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = made(gateway_to, server.port)
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM)
    await client.until_received(b"abc")
    assert await after(gateway, 9, reactor) == []
    [line] = await after(gateway, 3, reactor)
    assert line.startswith(f"1 request waits for 127.0.0.1:{server.port} to go on with its answer")
    [request] = gateway.service.site.running()
    request.work.pauseProducing()
    assert len(await after(gateway, 30, reactor)) == 1


@pytest_twisted.ensureDeferred
async def test_requests_in_the_queue_are_named_with_their_model(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = made(gateway_to, capped(server.port, queue=None, idle=1000, response_head=1000, total=None))
    await begin(server, gateway)
    await gateway.send(COMPLETION)
    await eventually(reactor, lambda: gateway.queued == 1)
    lines = await after(gateway, 12, reactor)
    assert {line.partition(" (")[0] for line in lines} == {
        f"1 request waits for 127.0.0.1:{server.port} to begin its answer",
        "1 request waits for a server with room for the default server",
    }


@pytest_twisted.ensureDeferred
async def test_neither_silent_websockets_nor_idle_connections_are_named(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in(SWITCHING_PROTOCOLS)
    gateway = made(gateway_to, server.port)
    client = await gateway.send(handshake())
    await client.until_received(b"101")
    await gateway.connect()
    assert await after(gateway, 30, reactor) == []


@pytest_twisted.ensureDeferred
async def test_switched_off_nothing_is_looked_at(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = made(gateway_to, server.port, None)
    await begin(server, gateway)
    assert await after(gateway, 100, reactor) == []
