"""A client that goes frees the server at once, also while the gateway does not read from the client."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_twisted
from end_to_end_harness import HOST, request_bytes
from test_failures import STREAM, begin
from twisted.internet.task import deferLater

#: the promise is 0.1 s; a busy machine is given more
AT_ONCE = 1.0
#: more than the kernel holds of an upload on its way through the gateway
HUGE = 64 * 1024 * 1024
#: more than is held of requests that wait for their turn
MANY = request_bytes("GET", "/vllm/v1/models") * 300


async def soon(reactor: Any, is_so: Callable[[], object], seconds: float = 30.0) -> None:
    """Look until it is so: what the kernel tells of a socket that is not read comes as no event."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        await deferLater(reactor, 0.005, lambda: None)


def hung_up(connection: Any) -> bool:
    """Tell whether the other side has left, without reading."""
    poll = select.poll()
    poll.register(connection.transport.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def readable(connection: Any) -> bool:
    return bool(select.select([connection.transport.fileno()], [], [], 0)[0])


async def upload_to_a_server_that_does_not_read(server: Any, gateway: Any, size: int, reactor: Any) -> tuple[Any, Any]:
    """Begin an upload; return the client and the server's connection once the gateway has stopped reading."""
    head = request_bytes("POST", "/vllm/v1/audio/speech", headers={"Content-Length": str(HUGE)})
    client = await gateway.send(head)
    upstream = await server.connection()
    await upstream.until_received(b"\r\n\r\n")
    upstream.transport.pauseProducing()
    client.send(b"x" * size)
    await soon(reactor, lambda: len(gateway.service.site.hangups))
    return client, upstream


@pytest.mark.parametrize("leave", ["close", "cut"])
@pytest.mark.parametrize("stage", ["before the head", "in the middle of a stream"])
@pytest_twisted.ensureDeferred
async def test_while_it_is_read_from(stand_in: Any, gateway_to: Any, stage: str, leave: str) -> None:
    server = stand_in()
    client, upstream = await begin(server, gateway_to(server.port))
    if stage != "before the head":
        upstream.send(STREAM)
        await client.until_received(b"abc")
    began = time.monotonic()
    getattr(client, leave)()
    await upstream.until_lost()
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.parametrize("leave", ["close", "cut"])
@pytest.mark.parametrize("stage", ["before the head", "in the middle of a stream"])
@pytest_twisted.ensureDeferred
async def test_with_more_requests_in_line_than_are_held(
    stand_in: Any, gateway_to: Any, reactor: Any, stage: str, leave: str
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await begin(server, gateway)
    if stage != "before the head":
        upstream.send(STREAM)
        await client.until_received(b"abc")
    client.send(MANY)
    await soon(reactor, lambda: len(gateway.service.site.hangups))
    began = time.monotonic()
    getattr(client, leave)()
    await upstream.until_lost()
    assert time.monotonic() - began < AT_ONCE
    assert len(server.connections) == 1
    assert gateway.request_lines()[0]["outcome"] == "client_disconnected"
    assert len(gateway.service.site.hangups) == 0


@pytest_twisted.ensureDeferred
async def test_in_the_middle_of_an_upload_that_the_server_does_not_read(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await upload_to_a_server_that_does_not_read(server, gateway, HUGE - 1, reactor)
    assert not hung_up(upstream)
    client.cut()
    await soon(reactor, lambda: hung_up(upstream), AT_ONCE)
    upstream.cut()
    [line] = gateway.request_lines()
    assert line["outcome"] == "client_disconnected"
    assert len(gateway.service.site.hangups) == 0


@pytest_twisted.ensureDeferred
async def test_a_server_that_reads_again_gets_the_whole_upload(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await upload_to_a_server_that_does_not_read(server, gateway, HUGE, reactor)
    sizes: list[int] = []
    upstream.dataReceived = lambda data: sizes.append(len(data))
    upstream.transport.resumeProducing()
    await soon(reactor, lambda: sum(sizes) == HUGE)
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await client.until_received(b"\r\n\r\nok")
    assert len(gateway.service.site.hangups) == 0
    client.send(request_bytes("GET", "/health/liveliness"))
    await client.until_received(b"I'm alive!")


@pytest_twisted.ensureDeferred
async def test_while_it_does_not_read_the_answer(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    client, upstream = await begin(server, gateway_to(server.port))
    client.transport.pauseProducing()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % HUGE + b"x" * (HUGE - 1))
    await soon(reactor, lambda: readable(client))
    began = time.monotonic()
    client.cut()
    await upstream.until_lost()
    assert time.monotonic() - began < AT_ONCE


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_ends_watches_nobody(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, drain_timeout=0.0)
    client, _ = await begin(server, gateway)
    client.send(MANY)
    await soon(reactor, lambda: len(gateway.service.site.hangups))
    stopped = gateway.stop()
    gateway.clock.advance(0)
    await client.until_lost()
    await stopped
    assert gateway.service.site.hangups not in reactor.getReaders()


@pytest_twisted.ensureDeferred
async def test_an_upload_waits_with_its_client_until_there_is_a_connection(gateway_to: Any, reactor: Any) -> None:
    with ExitStack() as stack:
        # a server whose queue of connections is full answers to no more
        full = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        port = full.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((HOST, port))
        gateway = gateway_to(port)
        client = await gateway.send(
            request_bytes("POST", "/vllm/v1/audio/speech", headers={"Content-Length": str(HUGE)}) + b"x" * (HUGE - 1)
        )
        [channel] = gateway.service.site._channels
        await soon(reactor, lambda: channel.requests and channel.requests[0].body_received)
        for _ in range(200):
            await client.next_turn()
        assert channel.requests[0].body_received <= 2 * 65_536
        client.cut()
        await soon(reactor, lambda: not gateway.service.site._channels, AT_ONCE)
