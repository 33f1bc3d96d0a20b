"""A server with a limit of concurrent requests: which requests wait, which are refused, and that none is forgotten."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import (
    HOST,
    PIPELINED,
    capped,
    eventually,
    parse_answer,
    request_bytes,
)
from tests.end_to_end.messages import OK, STREAM
from twisted_vllm.config.settings import HealthSettings, Timeouts

#: time passes, and nothing but the requests of the test comes to the server
NO_CHECKS = HealthSettings(interval=None)


def completion(number: int) -> bytes:
    return request_bytes("POST", f"/vllm/v1/completions?{number}", body={"model": "m"})


async def at_work(server: Any, gateway: Any, number: int = 0) -> tuple[Any, Any]:
    """Have a request arrive at the server; return the client and the server's connection."""
    client = await gateway.send(completion(number))
    upstream = await server.connection(number)
    await upstream.until_received(b'"m"}')
    return client, upstream


async def waiting(gateway: Any, number: int, reactor: Any) -> Any:
    """Have a request wait; return its client."""
    before = gateway.queued
    client = await gateway.send(completion(number))
    await eventually(reactor, lambda: gateway.queued > before)
    return client


def in_flight(gateway: Any) -> int:
    """How many places of servers are taken."""
    return sum(state.in_flight for state in gateway.service.wiring.servers)


@pytest.mark.parametrize("ending", ["completed", "cut by the server", "client gone", "malformed answer", "timed out"])
@pytest_twisted.ensureDeferred
async def test_the_next_queued_request_is_sent_however_the_one_before_it_ended(
    stand_in: Any, gateway_to: Any, reactor: Any, ending: str
) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port, idle=3, queue=None))
    first, upstream = await at_work(server, gateway)
    second = await waiting(gateway, 1, reactor)
    upstream.send(STREAM)
    await first.until_received(b"abc")
    assert len(server.connections) == 1
    if ending == "completed":
        upstream.send(b"0\r\n\r\n")
    elif ending == "cut by the server":
        upstream.cut()
    elif ending == "client gone":
        first.cut()
    elif ending == "malformed answer":
        upstream.send(b"not a size\r\n")
    else:
        gateway.pass_time(4)
    following = await server.connection(1)
    await following.until_received(b"completions?1")
    following.send(OK)
    await second.until_received(b"\r\n\r\nok")
    await eventually(reactor, lambda: in_flight(gateway) == gateway.queued == 0)


@pytest_twisted.ensureDeferred
async def test_a_request_over_the_queue_limit_is_refused(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port, places=1))
    await at_work(server, gateway)
    await waiting(gateway, 1, reactor)
    answer = await gateway.answer_to(completion(2))
    assert (answer.status, answer.error["code"], answer.header("retry-after")) == (503, "server_busy", "1")
    [line] = gateway.request_lines()
    # no server was chosen for it
    assert (line["outcome"], line["error"], line["server"]) == ("refused", "server_busy", f"{HOST}:{server.port}")


@pytest_twisted.ensureDeferred
async def test_a_request_that_waited_too_long_is_refused(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port, queue=3.0), timeouts=Timeouts(), health=NO_CHECKS)
    await at_work(server, gateway)
    client = await waiting(gateway, 1, reactor)
    gateway.pass_time(2)
    assert client.received == b""
    gateway.pass_time(2)
    await client.until_received(b"}}")
    answer = parse_answer(client.received)
    assert (answer.status, answer.error["code"]) == (503, "server_busy")
    assert len(server.connections) == 1
    [line] = gateway.request_lines()
    assert 3_000 <= line["queued_ms"] <= line["total_ms"]


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_the_queue_never_reaches_the_server(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port))
    first, upstream = await at_work(server, gateway)
    leaver = await waiting(gateway, 1, reactor)
    held = await waiting(gateway, 2, reactor)
    # not read from any more, and noticed all the same
    held.send(PIPELINED)
    await eventually(reactor, lambda: len(gateway.service.site.disconnects))
    last = await waiting(gateway, 3, reactor)
    leaver.close()
    held.cut()
    await eventually(reactor, lambda: gateway.queued == 1)
    upstream.send(OK)
    await first.until_received(b"\r\n\r\nok")
    following = await server.connection(1)
    await following.until_received(b"completions?3")
    assert b"completions?1" not in upstream.received + following.received
    assert b"completions?2" not in upstream.received + following.received
    following.send(OK)
    await last.until_received(b"\r\n\r\nok")
    assert Counter(line["outcome"] for line in gateway.request_lines()) == {"completed": 2, "client_disconnected": 2}


@pytest_twisted.ensureDeferred
async def test_an_upload_waits_with_its_client(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port))
    _, upstream = await at_work(server, gateway)
    size = 32 * 1024 * 1024
    client = await gateway.send(
        request_bytes("POST", "/vllm/v1/audio/transcriptions", headers={"Content-Length": str(size)}) + b"x" * 1000
    )
    await eventually(reactor, lambda: gateway.queued)
    [upload] = [request for request in gateway.service.site.running() if b"transcriptions" in request.path]
    client.send(b"x" * (size - 1000))
    await client.next_turn()
    await client.next_turn()
    assert upload.body_received <= 65_536
    sizes: list[int] = []
    upstream.send(OK)
    following = await server.connection(1)
    following.dataReceived = lambda data: sizes.append(len(data))
    await eventually(reactor, lambda: sum(sizes) > size)
    following.send(OK)
    await client.until_received(b"\r\n\r\nok")


@pytest_twisted.ensureDeferred
async def test_all_requests_queued_for_an_unreachable_server_are_answered(gateway_to: Any) -> None:
    port = free_port()
    gateway = gateway_to(capped(port), health=NO_CHECKS)
    clients = [await gateway.send(completion(number)) for number in range(50)]
    codes: Counter[str] = Counter()
    for client in clients:
        while not client.received.endswith(b"}}"):
            await client.next_turn()
            gateway.pass_time(0.25)
        codes[parse_answer(client.received).error["code"]] += 1
    # the first ones meet the fault; then it is known that nothing answers
    assert codes["upstream_unreachable"] >= 1
    assert codes["upstream_unreachable"] + codes["no_healthy_upstream"] == 50


@pytest_twisted.ensureDeferred
async def test_a_drain_serves_queued_requests(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port))
    first, upstream = await at_work(server, gateway)
    second = await waiting(gateway, 1, reactor)
    stopped = gateway.stop()
    upstream.send(OK)
    following = await server.connection(1)
    await following.until_received(b"completions?1")
    following.send(OK)
    await second.until_lost()
    await first.until_lost()
    await stopped
    assert parse_answer(second.received).status == 200


@pytest_twisted.ensureDeferred
async def test_many_clients_never_exceed_the_limit_though_some_leave(
    simulator: Any, gateway_to: Any, reactor: Any
) -> None:
    gateway = gateway_to(capped(simulator.port, limit=5, places=100))
    clients = []
    for number in range(60):
        body = {"model": "simulated-model", "prompt": "x", "max_tokens": 20, "stream": number % 2 == 0}
        client = await gateway.send(request_bytes("POST", "/vllm/v1/completions", body=body))
        clients.append(client)
        if number % 4 == 0:
            client.cut()
        assert in_flight(gateway) <= 5
    for number, client in enumerate(clients):
        if number % 4:
            await client.until(lambda client=client: client.received.endswith((b"}", b"0\r\n\r\n")))
    await eventually(reactor, lambda: in_flight(gateway) == gateway.queued == 0)
    assert Counter(line["outcome"] for line in gateway.request_lines())["completed"] >= 45
