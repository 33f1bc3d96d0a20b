"""A request goes to another server while no byte of an answer reached its client, and never after."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import (
    MASTER_KEY,
    Gateway,
    StandIn,
    eventually,
    handshake,
    request_bytes,
    server_at,
)
from tests.end_to_end.messages import CHUNKED_HEAD, EVENT_STREAM, LAST, STREAM, chunk, header_of, whole
from twisted_vllm.config.settings import HealthSettings, ModelEntry, RetrySettings, RoutingSettings

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
ANSWER = whole(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}')
BUSY = whole(b'{"error":"busy"}', "503 Service Unavailable")
HEALTHY = whole(b"")
#: the first of two servers is always asked first
IN_ORDER = RoutingSettings(routing_strategy="round-robin")


def entries(*ports: int, **options: Any) -> tuple[ModelEntry, ...]:
    return tuple(ModelEntry("m", "m", server_at(port), **options) for port in ports)


def scripted(server: StandIn, *answers: bytes | None) -> None:
    """Have a server give its answers one after the other, the last one for ever; None breaks the connection."""
    left = list(answers)

    def respond(wire: Any) -> None:
        if b"GET /health" in wire.received:
            wire.send(HEALTHY)
            return
        if not wire.received.endswith(b"}") and b"}" not in wire.received:
            return
        wire.received = b""
        answer = left.pop(0) if len(left) > 1 else left[0]
        if answer is None:
            wire.cut()
        else:
            wire.send(answer)

    server.respond = respond


def line_of(gateway: Gateway) -> dict[str, Any]:
    [line] = [line for line in gateway.request_lines() if line["route"] != "/health"]
    return line


@pytest.mark.parametrize("fault", ["refused", "reset", "502", "503", "504", "no HTTP"])
@pytest_twisted.ensureDeferred
async def test_a_request_that_failed_before_its_answer_is_sent_to_another_server(
    stand_in: Any, gateway_to: Any, fault: str
) -> None:
    bad, good = stand_in(), stand_in(ANSWER)
    status = whole(b"{}", f"{fault} Failed")
    scripted(bad, {"reset": None, "no HTTP": b"what?\r\n\r\n"}.get(fault, status))
    first = free_port() if fault == "refused" else bad.port
    gateway = gateway_to(None, models=entries(first, good.port), routing=IN_ORDER)
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)
    assert answer.status == 200
    assert answer.json["usage"]["total_tokens"] == 5
    line = line_of(gateway)
    assert (line["server"], line["status"], line["outcome"]) == (f"127.0.0.1:{good.port}", 200, "completed")


@pytest_twisted.ensureDeferred
async def test_each_attempt_has_an_id_of_its_own_and_the_client_sees_the_first(stand_in: Any, gateway_to: Any) -> None:
    bad, good = stand_in(BUSY), stand_in(ANSWER)
    gateway = gateway_to(None, models=entries(bad.port, good.port), routing=IN_ORDER)
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)
    ids = [header_of(each.received.partition(b"\r\n\r\n")[0], "x-request-id") for each in (bad, good)]
    assert all(ids)
    assert len(set(ids)) == 2
    assert answer.header("x-request-id") == ids[0]
    assert json.loads(good.received.partition(b"\r\n\r\n")[2])["model"] == "m"


@pytest_twisted.ensureDeferred
async def test_what_began_to_reach_the_client_is_not_sent_again(stand_in: Any, gateway_to: Any) -> None:
    breaking, other = stand_in(), stand_in(ANSWER)
    gateway = gateway_to(None, models=entries(breaking.port, other.port), routing=IN_ORDER)
    client = await gateway.send(request_bytes("POST", "/vllm/v1/chat/completions", body={**CHAT, "stream": True}))
    upstream = await breaking.connection()
    await upstream.until_received(b"Hello")
    upstream.send(STREAM)
    await client.until_received(b"abc")
    upstream.cut()
    await client.until_lost()
    assert other.connections == []
    assert line_of(gateway)["outcome"] == "upstream_failed"


@pytest_twisted.ensureDeferred
async def test_a_stream_whose_head_came_and_no_byte_of_its_body_goes_to_another_server(
    stand_in: Any, gateway_to: Any
) -> None:
    """vLLM sends the head of a stream before it begins to compute."""
    dying, good = stand_in(), stand_in(EVENT_STREAM + chunk(b"data: [DONE]\n\n") + LAST)
    gateway = gateway_to(None, models=entries(dying.port, good.port), routing=IN_ORDER)
    client = await gateway.send(request_bytes("POST", "/vllm/v1/chat/completions", body={**CHAT, "stream": True}))
    upstream = await dying.connection()
    await upstream.until_received(b"Hello")
    upstream.send(EVENT_STREAM)
    await upstream.next_turn()
    assert client.received == b""
    upstream.cut()
    await client.until_received(b"[DONE]")
    assert client.received.count(b"HTTP/1.1 200") == 1


@pytest_twisted.ensureDeferred
async def test_with_one_server_a_stream_s_head_is_not_held(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in()
    gateway = gateway_to(None, models=entries(server.port))
    client = await gateway.send(request_bytes("POST", "/vllm/v1/chat/completions", body={**CHAT, "stream": True}))
    upstream = await server.connection()
    await upstream.until_received(b"Hello")
    upstream.send(CHUNKED_HEAD)
    await client.until_received(b"HTTP/1.1 200")


@pytest_twisted.ensureDeferred
async def test_the_last_server_s_own_error_is_relayed_as_it_is(stand_in: Any, gateway_to: Any) -> None:
    first, second = stand_in(BUSY), stand_in(whole(b'{"error":"also busy"}', "503 Service Unavailable"))
    gateway = gateway_to(None, models=entries(first.port, second.port), routing=IN_ORDER)
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)
    assert (answer.status, answer.body) == (503, b'{"error":"also busy"}')
    assert answer.header("x-vllm-passthrough-error") is None


@pytest_twisted.ensureDeferred
async def test_num_retries_bounds_the_attempts(stand_in: Any, gateway_to: Any) -> None:
    servers = [stand_in(BUSY) for _ in range(4)]
    routing = RoutingSettings(routing_strategy="round-robin", num_retries=1)
    gateway = gateway_to(None, models=entries(*(each.port for each in servers)), routing=routing)
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == 503
    assert sum(len(each.connections) for each in servers) == 2


@pytest.mark.parametrize("status", ["400", "404", "429", "500"])
@pytest_twisted.ensureDeferred
async def test_other_answers_are_relayed_at_once(stand_in: Any, gateway_to: Any, status: str) -> None:
    first, second = stand_in(whole(b"{}", f"{status} No")), stand_in(ANSWER)
    gateway = gateway_to(None, models=entries(first.port, second.port), routing=IN_ORDER)
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == int(status)
    assert second.connections == []


@pytest_twisted.ensureDeferred
async def test_the_operator_chooses_the_answers_that_are_followed_by_another_attempt(
    stand_in: Any, gateway_to: Any
) -> None:
    first, second = stand_in(whole(b"{}", "429 Busy")), stand_in(ANSWER)
    models = entries(first.port, second.port)
    gateway = gateway_to(None, models=models, routing=IN_ORDER, retry=RetrySettings(statuses=(429,)))
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == 200


@pytest_twisted.ensureDeferred
async def test_requests_that_wait_at_a_dead_server_go_elsewhere_and_its_health_says_so(
    stand_in: Any, gateway_to: Any, reactor: Any
) -> None:
    frozen, good = stand_in(), stand_in(ANSWER)
    health = HealthSettings(interval=5.0, timeout=2.0, fall=3)
    gateway = gateway_to(None, models=entries(frozen.port, good.port), routing=IN_ORDER, health=health)
    client = await gateway.send(request_bytes("POST", "/vllm/v1/chat/completions", body=CHAT))
    upstream = await frozen.connection()
    await upstream.until_received(b"Hello")
    [state] = [each for each in gateway.service.wiring.servers if each.server.port == frozen.port]
    for _ in range(80):
        if client.received:
            break
        gateway.clock.advance(0.25)
        for _ in range(6):
            await upstream.next_turn()
    await client.until_received(b"total_tokens")
    assert state.breaker.state == "dead"
    await eventually(reactor, lambda: state.in_flight == 0)
    assert line_of(gateway)["server"] == f"127.0.0.1:{good.port}"


@pytest_twisted.ensureDeferred
async def test_without_a_healthy_server_requests_are_refused_at_once_and_told_when_to_come_back(
    gateway_to: Any,
) -> None:
    routing = RoutingSettings(allowed_fails=0, cooldown_time=9.0)
    gateway = gateway_to(None, models=entries(free_port(), free_port()), routing=routing)
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)).status == 502
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)
    assert (answer.status, answer.error["code"]) == (503, "no_healthy_upstream")
    assert 1 <= int(answer.header("retry-after") or 0) <= 10


# other models


@pytest_twisted.ensureDeferred
async def test_another_model_serves_when_no_server_of_the_first_can(stand_in: Any, gateway_to: Any) -> None:
    small = stand_in(ANSWER)
    models = (*entries(free_port()), ModelEntry("small", "small-7b", server_at(small.port)))
    routing = RoutingSettings(fallbacks={"m": ("gone", "small")})
    gateway = gateway_to(None, models=models, routing=routing)
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)
    assert (answer.status, answer.header("x-litellm-model-group")) == (200, "small")
    assert json.loads(small.received.partition(b"\r\n\r\n")[2])["model"] == "small-7b"
    assert line_of(gateway)["model"] == "small"


@pytest_twisted.ensureDeferred
async def test_a_key_falls_back_only_to_models_that_it_may_use(stand_in: Any, gateway_to: Any) -> None:
    small = stand_in(ANSWER)
    models = (*entries(free_port()), ModelEntry("small", "small", server_at(small.port)))
    gateway = gateway_to(None, models=models, routing=RoutingSettings(fallbacks={"m": ("small",)}))
    key = await gateway.make_key(models=["m"])
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", key, body=CHAT)).status == 502
    assert small.connections == []
    both = await gateway.make_key(models=["m", "small"])
    assert (await gateway.ask("POST", "/vllm/v1/chat/completions", both, body=CHAT)).status == 200


@pytest.mark.parametrize("too_long", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_prompt_that_is_too_long_goes_to_a_model_with_more_room(
    stand_in: Any, gateway_to: Any, too_long: bool
) -> None:
    words = "This model's maximum context length is 2048 tokens." if too_long else "temperature must be positive"
    refusal = whole(json.dumps({"error": {"message": words}}).encode(), "400 Bad Request")
    short, long = stand_in(refusal), stand_in(ANSWER)
    models = (*entries(short.port), ModelEntry("long", "long", server_at(long.port)))
    gateway = gateway_to(None, models=models, routing=RoutingSettings(context_window_fallbacks={"m": ("long",)}))
    answer = await gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)
    if too_long:
        assert (answer.status, answer.header("x-litellm-model-group")) == (200, "long")
    else:
        assert (answer.status, answer.json) == (400, {"error": {"message": words}})
        assert answer.header("x-litellm-model-group") == "m"


@pytest_twisted.ensureDeferred
async def test_a_request_counts_once_however_often_it_is_sent(stand_in: Any, gateway_to: Any) -> None:
    bad, small = stand_in(BUSY), stand_in(ANSWER)
    models = (*entries(free_port(), bad.port), ModelEntry("small", "small", server_at(small.port)))
    gateway = gateway_to(None, models=models, routing=RoutingSettings(fallbacks={"m": ("small",)}))
    key = await gateway.make_key(rpm_limit=2, max_parallel_requests=1)
    for expected in (200, 200, 429):
        answer = await gateway.ask("POST", "/vllm/v1/chat/completions", key, body=CHAT)
        assert answer.status == expected


@pytest_twisted.ensureDeferred
async def test_an_alias_is_a_name_of_its_model(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(ANSWER)
    gateway = gateway_to(None, models=entries(server.port), routing=RoutingSettings(model_group_alias={"gpt-4o": "m"}))
    for models in (["m"], ["gpt-4o"], []):
        key = await gateway.make_key(models=models)
        answer = await gateway.ask("POST", "/vllm/v1/chat/completions", key, body={**CHAT, "model": "gpt-4o"})
        assert answer.status == 200
    other = await gateway.make_key(models=["else"])
    assert (
        await gateway.ask("POST", "/vllm/v1/chat/completions", other, body={**CHAT, "model": "gpt-4o"})
    ).status == 403
    assert json.loads(server.received.partition(b"\r\n\r\n")[2].partition(b"POST")[0])["model"] == "m"
    assert MASTER_KEY not in gateway.log_text()


@pytest_twisted.ensureDeferred
async def test_a_websocket_goes_to_a_server_of_the_first_model_that_works(stand_in: Any, gateway_to: Any) -> None:
    """Its model is named in the WebSocket, so it is of the first model's servers."""
    server = stand_in(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    routing = RoutingSettings(routing_strategy="round-robin", allowed_fails=0)
    gateway = gateway_to(None, models=entries(free_port(), server.port), routing=routing)
    answers = []
    for _ in range(3):
        client = await gateway.send(handshake())
        await client.until_received(b"\r\n\r\n")
        answers.append(client.received.split()[1])
        client.cut()
    assert answers == [b"502", b"101", b"101"]


@pytest_twisted.ensureDeferred
async def test_a_background_response_that_a_server_took_is_not_made_twice(stand_in: Any, gateway_to: Any) -> None:
    breaking, other = stand_in(), stand_in(ANSWER)
    scripted(breaking, None)
    gateway = gateway_to(None, models=entries(breaking.port, other.port), routing=IN_ORDER)
    key = await gateway.make_key()
    body = {"model": "m", "input": "Hello", "background": True, "store": True}
    assert (await gateway.ask("POST", "/vllm/v1/responses", key, body=body)).status == 502
    assert other.connections == []
