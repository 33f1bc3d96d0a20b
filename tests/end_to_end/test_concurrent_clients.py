"""Many clients at once, some of whom disconnect: each gets its own answer, and nothing is left behind."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.end_to_end.end_to_end_harness import HOST, PATIENCE, parse_answer, request_bytes
from twisted_vllm.config.settings import Limits

CLIENTS = 60


@pytest_twisted.ensureDeferred
async def test_each_client_gets_its_own_answer_and_each_request_its_log_line(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port)
    clients = []
    for number in range(CLIENTS):
        body = {
            "model": "simulated-model",
            "messages": [{"role": "user", "content": f"number {number}"}],
            "stream": number % 2 == 0,
            "max_tokens": 20,
        }
        headers = {"X-Request-Id": f"client-{number}"}
        client = await gateway.send(request_bytes("POST", "/vllm/v1/chat/completions", body=body, headers=headers))
        clients.append(client)
        if number % 5 == 0:
            client.cut()
    for number, client in enumerate(clients):
        if number % 5 == 0:
            continue
        end = b"data: [DONE]\n\n\r\n0\r\n\r\n" if number % 2 == 0 else b"}"
        await client.until(lambda client=client, end=end: client.received.endswith(end))
        answer = parse_answer(client.received)
        assert (answer.status, answer.header("x-request-id")) == (200, f"client-{number}")
    lines = gateway.request_lines()
    ids = [line["request_id"] for line in lines]
    assert len(ids) == len(set(ids))
    assert {line["request_id"] for line in lines if line["outcome"] == "completed"} >= {
        f"client-{number}" for number in range(CLIENTS) if number % 5
    }
    assert {line["outcome"] for line in lines} <= {"completed", "client_disconnected"}


@pytest_twisted.ensureDeferred
async def test_one_connection_serves_one_request_after_the_other(simulator: Any, gateway_to: Any) -> None:
    gateway = gateway_to(simulator.port)
    client = await gateway.connect()
    for number in range(50):
        before = len(client.received)
        client.send(request_bytes("POST", "/vllm/tokenize", body={"prompt": "x" * number}))
        await client.until(lambda before=before: client.received[before:].endswith(b"}"))
        assert parse_answer(client.received[before:]).status == 200
    assert len(gateway.request_lines()) == 50


@pytest_twisted.ensureDeferred
async def test_three_hundred_clients_connect_at_once_while_the_reactor_is_busy(gateway_to: Any, reactor: Any) -> None:
    gateway = gateway_to(None)
    with ExitStack() as stack:
        # the reactor does not run meanwhile: the kernel has to queue all of them
        clients = [
            stack.enter_context(socket.create_connection((HOST, gateway.port), timeout=PATIENCE)) for _ in range(300)
        ]
        for client in clients:
            client.sendall(request_bytes("GET", "/health/liveliness"))
        firsts = await deferToThread(lambda: {client.recv(4096)[:15] for client in clients})
        assert firsts == {b"HTTP/1.1 200 OK"}


@pytest_twisted.ensureDeferred
async def test_a_client_over_the_cap_is_told_to_come_back(gateway_to: Any) -> None:
    gateway = gateway_to(None, limits=Limits(max_connections=2))
    first, second = await gateway.connect(), await gateway.connect()
    for client in (first, second):
        client.send(request_bytes("GET", "/health/liveliness"))
        await client.until_received(b"I'm alive!")
    answer = await gateway.ask("GET", "/health/liveliness")
    assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
    assert (answer.header("retry-after"), answer.header("connection")) == ("1", "close")
    assert any("Over 2 client connections" in line.get("message", "") for line in gateway.log_lines())
