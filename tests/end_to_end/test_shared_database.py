"""Two gateways on one database: a change through one takes effect in the other a moment later."""

from __future__ import annotations

from typing import Any

import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.end_to_end_harness import request_bytes
from tests.end_to_end.messages import OK
from twisted_vllm.storage.registry import FOLLOW_INTERVAL

PATIENCE_SECONDS = 5


async def until_answered(reactor: Any, gateway: Any, key: str, status: int) -> None:
    """Let a gateway look for changes once, and ask until the answer is `status`."""
    gateway.clock.advance(FOLLOW_INTERVAL)
    began = reactor.seconds()
    while (await gateway.ask("GET", "/vllm/v1/models", key)).status != status:
        assert reactor.seconds() - began < PATIENCE_SECONDS, "the change did not arrive"
        await deferLater(reactor, 0.01, lambda: None)


@pytest_twisted.ensureDeferred
async def test_a_change_of_another_process_acts_within_a_second(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    assert FOLLOW_INTERVAL < 1
    server = stand_in(OK)
    one = gateway_to(server.port)
    other = gateway_to(server.port, database_url=one.settings.database_url)
    key = await one.make_key()
    await until_answered(reactor, other, key, 200)
    await one.ask("POST", "/key/block", body={"key": key})
    await until_answered(reactor, other, key, 401)


@pytest_twisted.ensureDeferred
async def test_a_new_key_works_at_once_in_every_process(stand_in: Any, gateway_to: Any) -> None:
    """Nobody's clock moves: no process has looked for changes by itself."""
    server = stand_in(OK)
    one = gateway_to(server.port)
    other = gateway_to(server.port, database_url=one.settings.database_url)
    key = await one.make_key()
    assert (await other.ask("GET", "/vllm/v1/models", key)).status == 200
    assert other.service.wiring.inquiry.asked == 1
    assert (await other.ask("GET", "/vllm/v1/models", key)).status == 200
    assert other.service.wiring.inquiry.asked == 1


@pytest_twisted.ensureDeferred
async def test_a_new_key_works_at_once_in_the_admin_api_of_every_process(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    one = gateway_to(server.port)
    other = gateway_to(server.port, database_url=one.settings.database_url)
    key = await one.make_key(allowed_routes=["management"])
    made = await other.ask("POST", "/key/generate", key, body={})
    assert made.status == 200
    assert (await one.ask("GET", "/key/info", made.json["key"])).status == 200


@pytest_twisted.ensureDeferred
async def test_a_key_that_was_unblocked_elsewhere_works_at_once(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    one = gateway_to(server.port)
    other = gateway_to(server.port, database_url=one.settings.database_url)
    key = await one.make_key()
    await one.ask("POST", "/key/block", body={"key": key})
    assert (await other.ask("GET", "/vllm/v1/models", key)).status == 401
    await one.ask("POST", "/key/unblock", body={"key": key})
    other.clock.advance(0.05)
    assert (await other.ask("GET", "/vllm/v1/models", key)).status == 200


@pytest_twisted.ensureDeferred
async def test_the_body_of_a_request_with_a_new_key_is_whole(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(None)
    server.respond = lambda wire: wire.send(OK) if wire.received.endswith((b'x"}', b"0\r\n\r\n")) else None
    one = gateway_to(server.port)
    other = gateway_to(server.port, database_url=one.settings.database_url)
    body = b'{"model": "m", "prompt": "%b"}' % (b"x" * 300_000)
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:], b""))
    for headers, sent in ({"Content-Length": str(len(body))}, body), ({"Transfer-Encoding": "chunked"}, chunked):
        key = await one.make_key()
        other.clock.advance(0.05)
        client = await other.connect()
        head = request_bytes(
            "POST", "/vllm/v1/completions", key, headers={"Content-Type": "application/json", **headers}
        )
        client.send(head + sent)
        await client.until(lambda client=client: b"200 OK" in client.received)
    assert sum(wire.received.count(b"xxxx") for wire in server.connections) >= 2 * 300_000 // 4 - 2
