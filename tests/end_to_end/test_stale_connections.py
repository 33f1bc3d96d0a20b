"""Servers that close a connection on which a request is, and servers that answer too much."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList, ensureDeferred

from tests.end_to_end.end_to_end_harness import Gateway, Wire, capped, is_whole, parse_answer, request_bytes
from tests.end_to_end.messages import whole

#: requests of a run with churn
MANY = 2_000
#: one of so many requests on a reused connection is read, and then the connection closes
CHURN = 25
CLIENTS = 16


class Churning:
    """A server that reads each request, and sometimes closes a reused connection in place of an answer.

    Attributes:
        read: how often each request was read, by the number in its body.
        ids: the request ids of all requests.
        closed: how many requests it read and did not answer.
    """

    def __init__(self) -> None:
        self.read: Counter[int] = Counter()
        self.ids: list[bytes] = []
        self.closed = 0
        self._turn = 0

    def respond(self, wire: Wire) -> None:
        head, end, body = wire.received.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if not end or length is None or len(body) < int(length[1]):
            return
        wire.received = b""
        reused, wire.reused = getattr(wire, "reused", False), True  # type: ignore[attr-defined]  # a mark on the wire
        number = json.loads(body)["number"]
        self.read[number] += 1
        self.ids += re.findall(rb"X-Request-Id: (\S+)", head)
        self._turn += 1
        if reused and self._turn % CHURN == 0:
            self.closed += 1
            wire.close()
        else:
            wire.send(whole(b'{"number": %d}' % number))


async def ask_many(gateway: Gateway, path: str) -> Counter[int]:
    """Send `MANY` requests on `CLIENTS` connections; return how often each status came."""
    numbers = list(range(MANY))
    statuses: Counter[int] = Counter()

    async def one_client() -> None:
        client = await gateway.connect()
        while numbers:
            number = numbers.pop()
            client.received = b""
            client.send(request_bytes("POST", path, body={"model": "m", "number": number}))
            await client.until(lambda: is_whole(client.received, False))
            answer = parse_answer(client.received)
            statuses[answer.status] += 1
            if answer.status == 200:
                assert answer.json["number"] == number, "the answer of another request"

    results: Any = await DeferredList([ensureDeferred(one_client()) for _ in range(CLIENTS)])
    for succeeded, result in results:
        if not succeeded:
            result.raiseException()
    return statuses


@pytest_twisted.ensureDeferred
async def test_no_post_that_generates_is_sent_twice_under_churn(stand_in: Any, gateway_to: Any) -> None:
    server, churning = stand_in(), Churning()
    server.respond = churning.respond
    gateway = gateway_to(server.port)
    statuses = await ask_many(gateway, "/vllm/v1/chat/completions")
    assert set(churning.read.values()) == {1}
    assert len(churning.read) == MANY
    assert churning.closed > MANY // CHURN // 2
    assert statuses == {200: MANY - churning.closed, 502: churning.closed}
    metrics = (await gateway.ask("GET", "/metrics", None)).body.decode()
    assert f'stale_connections_total{{request="not_repeatable"}} {float(churning.closed)}' in metrics
    assert 'stale_connections_total{request="repeated"} 0.0' in metrics


@pytest_twisted.ensureDeferred
async def test_an_embedding_is_sent_again_under_churn_with_an_id_of_its_own(stand_in: Any, gateway_to: Any) -> None:
    server, churning = stand_in(), Churning()
    server.respond = churning.respond
    gateway = gateway_to(server.port)
    assert await ask_many(gateway, "/vllm/v1/embeddings") == {200: MANY}
    assert churning.closed > MANY // CHURN // 2
    assert Counter(churning.read.values()) == {1: MANY - churning.closed, 2: churning.closed}
    assert len(set(churning.ids)) == len(churning.ids) == MANY + churning.closed
    repeated = [line["repeated_as"] for line in gateway.request_lines() if "repeated_as" in line]
    assert len(repeated) == churning.closed
    assert {each.encode() for each in repeated} < set(churning.ids)


@pytest_twisted.ensureDeferred
async def test_the_client_keeps_its_id_when_its_request_is_sent_again(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(whole(b"{}"))
    gateway = gateway_to(server.port)
    assert (await gateway.ask("GET", "/vllm/v1/models")).status == 200
    first = await server.connection()
    server.answer = None
    raw = request_bytes("POST", "/vllm/tokenize", headers={"X-Request-Id": "mine-1"}, body={"model": "m"})
    client = await gateway.send(raw)
    await first.until_received(b'"m"}')
    first.close()
    second = await server.connection(1)
    await second.until_received(b'"m"}')
    [attempt] = re.findall(rb"X-Request-Id: (\S+)", second.received)
    assert b"X-Request-Id: mine-1\r\n" in first.received
    assert attempt != b"mine-1"
    second.send(whole(b"{}", more=f"X-Request-Id: {attempt.decode()}\r\n"))
    await client.until_received(b"\r\n\r\n{}")
    assert parse_answer(client.received).header("x-request-id") == "mine-1"
    [line] = [line for line in gateway.request_lines() if line["route"] == "/tokenize"]
    assert (line["request_id"], line["repeated_as"]) == ("mine-1", attempt.decode())


@pytest_twisted.ensureDeferred
async def test_a_post_on_a_connection_that_was_closed_while_idle_is_served(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(whole(b"{}"))
    gateway = gateway_to(server.port)
    for _ in range(20):
        raw = request_bytes("POST", "/vllm/v1/chat/completions", body={"model": "m"})
        assert (await gateway.answer_to(raw)).status == 200
        # the end, and the next request, come in the same turn
        server.connections[-1].close()
        assert (await gateway.answer_to(raw)).status == 200


TRIES = 40


@pytest.mark.parametrize(("takes", "gap"), [(0.002, 0.0), (0.002, 0.001), (0.03, 0.01)])
@pytest_twisted.ensureDeferred
async def test_no_client_gets_the_second_answer_to_another_s_request(
    stand_in: Any, gateway_to: Any, reactor: Any, takes: float, gap: float
) -> None:
    """A server that answers twice, with one place: the next request waits for the first answer.

    The second answer comes before the server could answer another request: later ones cannot be told from an answer.
    """
    server = stand_in()

    def answer_twice(wire: Wire) -> None:
        _head, end, body = wire.received.partition(b"\r\n\r\n")
        if not end or not body.endswith(b"}"):
            return
        wire.received = b""
        number = json.loads(body)["number"]
        reactor.callLater(takes, wire.send, whole(b'{"number": %d}' % number))
        reactor.callLater(takes + gap, wire.send, whole(b'{"number": "too much"}'))

    server.respond = answer_twice
    gateway = gateway_to(capped(server.port, limit=1))
    clients = []
    for number in range(TRIES):
        body = {"model": "m", "number": number}
        clients.append(await gateway.send(request_bytes("POST", "/vllm/v1/chat/completions", body=body)))
    for client in clients:
        await client.until(lambda client=client: is_whole(client.received, False))
    answers = [parse_answer(client.received) for client in clients]
    assert [answer.json["number"] for answer in answers] == list(range(TRIES))
    warnings = [line["message"] for line in gateway.log_lines() if "no request asked for" in line.get("message", "")]
    assert len(warnings) == 1
