"""A request that ends between or within its attempts costs what servers did for it, and leaves no place behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import Gateway, StandIn, Wire, capped, eventually, request_bytes, server_at
from tests.end_to_end.ledger_harness import rows_in
from tests.end_to_end.messages import CHUNKED_HEAD, EVENT_STREAM, LAST, chunk, header_of, whole
from tests.end_to_end.test_fail_over import ANSWER, BUSY, CHAT, IN_ORDER, entries
from twisted_vllm.config.settings import HealthSettings, ModelEntry, RoutingSettings
from twisted_vllm.proxy.revocation import INTERVAL
from twisted_vllm.upstreams.server_state import ServerState

TARGET = "/vllm/v1/chat/completions"
NO_CHECKS = HealthSettings(interval=None)
REFUSAL_BEGINS = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\nabc"


def states(gateway: Gateway) -> list[ServerState]:
    return list(gateway.service.wiring.servers)


def two_capped(*servers: StandIn, **timeouts: Any) -> tuple[ModelEntry, ...]:
    return tuple(ModelEntry("m", "m", capped(each.port, **timeouts)) for each in servers)


async def sent_to(server: StandIn, gateway: Gateway, key: str, **fields: object) -> tuple[Wire, Wire]:
    """Send a chat; return the client, and its connection at the server."""
    client = await gateway.send(request_bytes("POST", TARGET, key, body={**CHAT, **fields}))
    upstream = await server.connection()
    await upstream.until_received(b"Hello")
    return client, upstream


async def turns(wire: Wire) -> None:
    for _ in range(20):
        await wire.next_turn()


@pytest.mark.parametrize("how", ["leaves", "is revoked"])
@pytest.mark.parametrize("stage", ["sent", "head held", "before the next attempt", "queued", "refusal is read"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_at_any_stage_leaves_nothing_behind(
    stand_in: Any, gateway_to: Any, reactor: Any, stage: str, how: str
) -> None:
    first, second, spare = stand_in(), stand_in(), stand_in(ANSWER)
    models = (*two_capped(first, second), ModelEntry("spare", "spare", server_at(spare.port)))
    pause = 5.0 if stage == "before the next attempt" else 0.0
    routing = attrs.evolve(IN_ORDER, retry_after=pause, context_window_fallbacks={"m": ("spare",)})
    gateway = gateway_to(None, models=models, routing=routing, health=NO_CHECKS, revoke_running=True)
    key, other = await gateway.make_key(max_parallel_requests=1), await gateway.make_key()
    client, upstream = await sent_to(first, gateway, key, stream=True)
    if stage == "queued":
        blocking, blocked = await sent_to(second, gateway, other)
    said = {"sent": b"", "head held": EVENT_STREAM, "refusal is read": REFUSAL_BEGINS}.get(stage, BUSY)
    upstream.send(said)
    await turns(upstream)
    gateway.clock.advance(0.5)
    if how == "leaves":
        client.cut()
    else:
        await gateway.ask("POST", "/key/block", body={"key": key})
        gateway.pass_time(INTERVAL)
        await client.until_received(b"HTTP/1.1 401")
    await turns(upstream)
    if stage == "queued":
        blocked.send(ANSWER)
        await blocking.until_received(b"total_tokens")
    gateway.pass_time(6)
    await turns(upstream)
    assert gateway.queued == 0
    assert [(each.in_flight, each.awaiting) for each in states(gateway)] == [(0, set())] * 3
    assert not any("timeout" in each.breaker.failures for each in states(gateway))
    # a client's going is no fault of a server
    assert all(set(each.breaker.failures) <= {"status_503"} for each in states(gateway))
    await gateway.ask("POST", "/key/unblock", body={"key": key})
    first.respond = second.respond = lambda wire: wire.send(ANSWER)
    assert (await gateway.ask("POST", TARGET, key, body=CHAT)).status == 200
    await gateway.stop()
    rows = [row for rows in rows_in(gateway.database_file).values() for row in rows]
    outcomes = {row["outcome"]: row for row in rows}
    assert len(rows) == (3 if stage == "queued" else 2)
    row = outcomes["client_disconnected" if how == "leaves" else "revoked"]
    # a server that has answered with an error does nothing for it any more
    assert bool(row["total_tokens"]) == (stage in ("sent", "head held"))


@pytest_twisted.ensureDeferred
async def test_time_in_the_queue_after_a_failed_attempt_is_not_charged_as_generation(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    first, second = stand_in(), stand_in()
    gateway = gateway_to(None, models=two_capped(first, second), routing=IN_ORDER, health=NO_CHECKS)
    key = await gateway.make_key()
    client, upstream = await sent_to(first, gateway, key)
    blocking, blocked = await sent_to(second, gateway, key)
    upstream.send(BUSY)
    await eventually(reactor, lambda: gateway.queued == 1)
    gateway.clock.advance(20)
    client.cut()
    await eventually(reactor, lambda: gateway.queued == 0)
    blocked.send(ANSWER)
    await blocking.until_received(b"total_tokens")
    assert 20000.0 in [line.get("queued_ms") for line in gateway.request_lines()]
    await gateway.stop()
    rows = [row for rows in rows_in(gateway.database_file).values() for row in rows]
    assert sorted((row["outcome"], row["total_tokens"]) for row in rows) == [
        ("client_disconnected", 0),
        ("completed", 5),
    ]


@pytest_twisted.ensureDeferred
async def test_the_server_of_another_model_gets_an_id_of_its_own_too(stand_in: Any, gateway_to: Any) -> None:
    first, second = stand_in(BUSY), stand_in(ANSWER)
    models = (*entries(first.port), ModelEntry("small", "small", server_at(second.port)))
    gateway = gateway_to(None, models=models, routing=RoutingSettings(fallbacks={"m": ("small",)}))
    answer = await gateway.ask("POST", TARGET, body=CHAT)
    ids = [header_of(each.received.partition(b"\r\n\r\n")[0], "x-request-id") for each in (first, second)]
    assert len(set(ids)) == 2
    assert answer.header("x-request-id") == ids[0]


@pytest_twisted.ensureDeferred
async def test_the_answer_names_the_model_that_a_key_s_alias_leads_to(stand_in: Any, gateway_to: Any) -> None:
    first, dear = stand_in(BUSY), stand_in(ANSWER)
    models = (*entries(first.port), ModelEntry("dear", "dear", server_at(dear.port)))
    gateway = gateway_to(None, models=models, routing=RoutingSettings(fallbacks={"m": ("small",)}))
    key = await gateway.make_key(models=["m", "dear"], aliases={"small": "dear"})
    answer = await gateway.ask("POST", TARGET, key, body=CHAT)
    assert (answer.status, answer.header("x-litellm-model-group")) == (200, "dear")


@pytest_twisted.ensureDeferred
async def test_a_refusal_that_is_cut_goes_to_another_server(stand_in: Any, gateway_to: Any) -> None:
    first, second, long = stand_in(), stand_in(ANSWER), stand_in()
    models = (*entries(first.port, second.port), ModelEntry("long", "long", server_at(long.port)))
    routing = attrs.evolve(IN_ORDER, context_window_fallbacks={"m": ("long",)})
    gateway = gateway_to(None, models=models, routing=routing, health=NO_CHECKS)
    client, upstream = await sent_to(first, gateway, await gateway.make_key())
    upstream.send(REFUSAL_BEGINS)
    await turns(upstream)
    upstream.cut()
    await client.until_received(b"total_tokens")
    assert client.received.startswith(b"HTTP/1.1 200")


@pytest_twisted.ensureDeferred
async def test_a_refusal_that_is_cut_at_the_only_server_is_its_failure(stand_in: Any, gateway_to: Any) -> None:
    first, long = stand_in(), stand_in()
    models = (*entries(first.port), ModelEntry("long", "long", server_at(long.port)))
    routing = RoutingSettings(context_window_fallbacks={"m": ("long",)})
    gateway = gateway_to(None, models=models, routing=routing, health=NO_CHECKS)
    client, upstream = await sent_to(first, gateway, await gateway.make_key())
    upstream.send(REFUSAL_BEGINS)
    await turns(upstream)
    upstream.cut()
    await client.until_received(b"HTTP/1.1 502")
    assert gateway.request_lines()[-1]["outcome"] == "upstream_failed"


@pytest_twisted.ensureDeferred
async def test_a_refusal_too_large_to_be_read_is_relayed(stand_in: Any, gateway_to: Any) -> None:
    """vLLM quotes the request in what it says of it."""
    body = b"x" * 1_500_000
    first, long = stand_in(whole(body, "400 Bad Request")), stand_in()
    models = (*entries(first.port), ModelEntry("long", "long", server_at(long.port)))
    gateway = gateway_to(None, models=models, routing=RoutingSettings(context_window_fallbacks={"m": ("long",)}))
    answer = await gateway.ask("POST", TARGET, body=CHAT)
    assert (answer.status, len(answer.body)) == (400, len(body))


@pytest.mark.parametrize("said", [EVENT_STREAM, CHUNKED_HEAD + chunk(b"data: 1\n\n")])
@pytest_twisted.ensureDeferred
async def test_a_server_that_begins_every_answer_and_ends_none_gets_no_more_requests(
    stand_in: Any, gateway_to: Any, said: bytes
) -> None:
    cutting, good = stand_in(), stand_in(EVENT_STREAM + chunk(b"data: [DONE]\n\n") + LAST)

    def respond(wire: Wire) -> None:
        if b"Hello" in wire.received:
            wire.send(said)
            wire.close()

    cutting.respond = respond
    gateway = gateway_to(None, models=entries(cutting.port, good.port), routing=IN_ORDER, health=NO_CHECKS)
    for _ in range(12):
        client = await gateway.send(request_bytes("POST", TARGET, body={**CHAT, "stream": True}))
        await client.until(lambda client=client: client.lost is not None or b"[DONE]" in client.received)
    assert len(cutting.connections) == 4
    assert [each.breaker.state for each in states(gateway)] == ["open", "closed"]


@pytest_twisted.ensureDeferred
async def test_a_queued_request_is_refused_once_the_servers_that_it_may_use_are_out(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    first, second = stand_in(), stand_in()
    models = two_capped(first, second, queue=None)
    gateway = gateway_to(None, models=models, routing=IN_ORDER, health=NO_CHECKS)
    key = await gateway.make_key()
    client, upstream = await sent_to(first, gateway, key)
    await sent_to(second, gateway, key)
    upstream.send(BUSY)
    await eventually(reactor, lambda: gateway.queued == 1)
    # the first one, which failed this request, is well
    states(gateway)[1].breaker.declare_dead(gateway.clock.seconds(), "timeout", gateway.clock.seconds() + 60)
    gateway.pass_time(2)
    await client.until_received(b"no_healthy_upstream")
    assert gateway.queued == 0


@pytest_twisted.ensureDeferred
async def test_a_request_that_takes_too_long_at_a_server_that_works_is_not_sent_again(
    stand_in: Any, gateway_to: Any
) -> None:
    first, second = stand_in(), stand_in(ANSWER)
    models = tuple(ModelEntry("m", "m", capped(each.port, 10, response_head=10.0)) for each in (first, second))
    gateway = gateway_to(None, models=models, routing=IN_ORDER, health=NO_CHECKS)
    client, _ = await sent_to(first, gateway, await gateway.make_key())
    gateway.clock.advance(1)
    # the second one's turn, then the first one answers another request
    assert (await gateway.ask("POST", TARGET, body=CHAT)).status == 200
    first.respond = lambda wire: wire.send(ANSWER)
    assert (await gateway.ask("POST", TARGET, body=CHAT)).status == 200
    gateway.pass_time(10)
    await client.until_received(b"upstream_timeout")
    assert second.received.count(b"POST") == 1


def poisoned(answer: bytes | None, wire: Wire) -> None:
    """Fail what says so, and answer everything else."""
    if wire.received.endswith(b"}"):
        is_poison, wire.received = b"poison" in wire.received, b""
        if is_poison and answer is None:
            wire.cut()
        else:
            wire.send(answer if is_poison and answer is not None else ANSWER)


@pytest.mark.parametrize("answer", [None, b"no HTTP\r\n\r\n", BUSY, whole(b"{}", "500 Internal Server Error")])
@pytest_twisted.ensureDeferred
async def test_requests_that_break_every_server_take_none_from_others(
    stand_in: Any, gateway_to: Any, answer: bytes | None
) -> None:
    servers = [stand_in() for _ in range(3)]
    for each in servers:
        each.respond = partial(poisoned, answer)
    gateway = gateway_to(None, models=entries(*(each.port for each in servers)), routing=IN_ORDER, health=NO_CHECKS)
    for _ in range(15):
        await gateway.ask("POST", TARGET, body={**CHAT, "user": "poison"})
    assert [each.breaker.state for each in states(gateway)] == ["open"] * 3
    assert [(await gateway.ask("POST", TARGET, body=CHAT)).status for _ in range(5)] == [200] * 5


@pytest_twisted.ensureDeferred
async def test_a_request_that_breaks_servers_breaks_two_at_most(stand_in: Any, gateway_to: Any) -> None:
    servers = [stand_in() for _ in range(4)]
    for each in servers:
        each.respond = partial(poisoned, None)
    models = (
        *entries(*(each.port for each in servers[:3])),
        ModelEntry("other", "other", server_at(servers[3].port)),
    )
    routing = attrs.evolve(IN_ORDER, num_retries=5, fallbacks={"m": ("other",)})
    gateway = gateway_to(None, models=models, routing=routing, health=NO_CHECKS)
    assert (await gateway.ask("POST", TARGET, body={**CHAT, "user": "poison"})).status == 502
    assert [len(each.connections) for each in servers] == [1, 1, 0, 0]
