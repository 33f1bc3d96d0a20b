"""A client that disconnects frees the server at once, also while the gateway does not read from it."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from statistics import median
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import HOST, PIPELINED, begin, eventually, has_disconnected, request_bytes
from tests.end_to_end.messages import STREAM

#: seconds that are promised; on a busy machine the median of some tries keeps to it
AT_ONCE = 0.1
TRIES = 5
#: real seconds that are always enough
CERTAINLY = 5.0
#: more than the kernel holds of an upload on its way through the gateway
HUGE = 64 * 1024 * 1024
Situation = Callable[[Any, Any, Any], Coroutine[Any, Any, tuple[Any, Any]]]


def readable(connection: Any) -> bool:
    return bool(select.select([connection.transport.fileno()], [], [], 0)[0])


async def upload_to_a_server_that_does_not_read(server: Any, gateway: Any, size: int, reactor: Any) -> tuple[Any, Any]:
    """Begin an upload; return the client and the server's connection once the gateway has stopped reading."""
    head = request_bytes("POST", "/vllm/v1/audio/speech", headers={"Content-Length": str(HUGE)})
    client, upstream = await begin(server, gateway, head, until=b"\r\n\r\n")
    upstream.transport.pauseProducing()
    client.send(b"x" * size)
    await eventually(reactor, lambda: len(gateway.service.site.disconnects))
    return client, upstream


async def before_the_head(server: Any, gateway: Any, reactor: Any) -> tuple[Any, Any]:
    return await begin(server, gateway)


async def in_the_middle_of_a_stream(server: Any, gateway: Any, reactor: Any) -> tuple[Any, Any]:
    client, upstream = await begin(server, gateway)
    upstream.send(STREAM)
    await client.until_received(b"abc")
    return client, upstream


async def before_the_head_with_requests_in_line(server: Any, gateway: Any, reactor: Any) -> tuple[Any, Any]:
    client, upstream = await begin(server, gateway)
    client.send(PIPELINED)
    await eventually(reactor, lambda: len(gateway.service.site.disconnects))
    return client, upstream


async def in_a_stream_with_requests_in_line(server: Any, gateway: Any, reactor: Any) -> tuple[Any, Any]:
    client, upstream = await in_the_middle_of_a_stream(server, gateway, reactor)
    client.send(PIPELINED)
    await eventually(reactor, lambda: len(gateway.service.site.disconnects))
    return client, upstream


async def in_a_stream_with_one_request_in_line(server: Any, gateway: Any, reactor: Any) -> tuple[Any, Any]:
    client, upstream = await in_the_middle_of_a_stream(server, gateway, reactor)
    client.send(request_bytes("GET", "/vllm/v1/models"))
    [connection] = gateway.service.site.connections
    await eventually(reactor, lambda: connection.held_bytes)
    return client, upstream


async def in_an_upload(server: Any, gateway: Any, reactor: Any) -> tuple[Any, Any]:
    client, upstream = await begin(
        server,
        gateway,
        request_bytes("POST", "/vllm/v1/audio/speech", headers={"Content-Length": str(HUGE)}) + b"some",
        until=b"some",
    )
    return client, upstream


async def in_an_upload_that_the_server_does_not_read(server: Any, gateway: Any, reactor: Any) -> tuple[Any, Any]:
    client, upstream = await upload_to_a_server_that_does_not_read(server, gateway, HUGE - 1, reactor)
    assert not has_disconnected(upstream)
    return client, upstream


async def while_it_does_not_read_the_answer(server: Any, gateway: Any, reactor: Any) -> tuple[Any, Any]:
    client, upstream = await begin(server, gateway)
    client.transport.pauseProducing()
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % HUGE + b"x" * (HUGE - 1))
    await eventually(reactor, lambda: readable(client))
    return client, upstream


SITUATIONS = [
    before_the_head,
    in_the_middle_of_a_stream,
    before_the_head_with_requests_in_line,
    in_a_stream_with_requests_in_line,
    in_a_stream_with_one_request_in_line,
    in_an_upload,
    while_it_does_not_read_the_answer,
]


@pytest.mark.parametrize(
    ("situation", "leave"),
    [
        *((situation, leave) for situation in SITUATIONS for leave in ("close", "cut")),
        # an end of the stream does not arrive behind more data than the gateway's kernel takes; a reset does
        (in_an_upload_that_the_server_does_not_read, "cut"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_server_s_connection_is_closed_within_a_tenth_of_a_second(
    stand_in: Any, gateway_to: Any, reactor: Any, situation: Situation, leave: str
) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)

    async def seconds_until_closed() -> float:
        client, upstream = await situation(server, gateway, reactor)
        lines = len(gateway.request_lines())
        began = time.monotonic()
        getattr(client, leave)()
        await eventually(reactor, lambda: upstream.lost is not None or has_disconnected(upstream))
        took = time.monotonic() - began
        upstream.cut()
        assert server.connections == [upstream]
        server.connections.clear()
        await eventually(reactor, lambda: len(gateway.request_lines()) > lines)
        [line] = gateway.request_lines()[lines:]
        assert line["outcome"] == "client_disconnected"
        assert len(gateway.service.site.disconnects) == 0
        return took

    took = [await seconds_until_closed() for _ in range(TRIES)]
    assert median(took) < AT_ONCE, took


@pytest_twisted.ensureDeferred
async def test_a_server_that_reads_again_gets_the_whole_upload(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port)
    client, upstream = await upload_to_a_server_that_does_not_read(server, gateway, HUGE, reactor)
    sizes: list[int] = []
    upstream.dataReceived = lambda data: sizes.append(len(data))
    upstream.transport.resumeProducing()
    await eventually(reactor, lambda: sum(sizes) == HUGE)
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await client.until_received(b"\r\n\r\nok")
    assert len(gateway.service.site.disconnects) == 0
    client.send(request_bytes("GET", "/health/liveliness"))
    await client.until_received(b"I'm alive!")


@pytest_twisted.ensureDeferred
async def test_a_stopped_gateway_watches_no_client(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(server.port, drain_timeout=0.0)
    client, _ = await begin(server, gateway)
    client.send(PIPELINED)
    await eventually(reactor, lambda: len(gateway.service.site.disconnects))
    stopped = gateway.stop()
    gateway.clock.advance(0)
    await client.until_lost()
    await stopped
    assert gateway.service.site.disconnects not in reactor.getReaders()


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
        [connection] = gateway.service.site.connections
        await eventually(reactor, lambda: connection.requests and connection.requests[0].body_received)
        for _ in range(200):
            await client.next_turn()
        assert connection.requests[0].body_received <= 2 * 65_536
        client.cut()
        await eventually(reactor, lambda: not gateway.service.site.connections, CERTAINLY)
