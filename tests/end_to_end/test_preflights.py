"""What a stranger can do with a CORS preflight, which needs no key: nothing that is counted for anybody."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import capped, eventually, request_bytes
from tests.end_to_end.ledger_harness import ANSWER, rows_in
from tests.end_to_end.messages import whole
from twisted_vllm.config.settings import LedgerSettings

CHAT = "/vllm/v1/chat/completions"
EVE = {"x-litellm-end-user-id": "eve"}
PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


async def preflights(gateway: Any) -> float:
    """Return what the metric says."""
    text = (await gateway.ask("GET", "/metrics", None)).body.decode()
    [line] = [line for line in text.splitlines() if line.startswith("vllm_passthrough_preflights_total")]
    name, _, value = line.partition(" ")
    assert name == "vllm_passthrough_preflights_total", "a label of a stranger's choice"
    return float(value)


@pytest.mark.parametrize("ledger", [True, False], ids=["with a ledger", "without"])
@pytest_twisted.ensureDeferred
async def test_preflights_spend_no_end_users_quota_and_write_no_row(
    stand_in: Any, gateway_to: Any, ledger: bool
) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port, ledger=LedgerSettings(enabled=ledger))
    key = await gateway.make_key()
    assert (await gateway.ask("POST", "/customer/new", body={"user_id": "eve", "rpm_limit": 1})).status == 200
    for path in (CHAT, CHAT, "/vllm/v1/models", "/vllm/invocations", "/vllm/v1/realtime"):
        answer = await gateway.ask("OPTIONS", path, None, headers={**PREFLIGHT, **EVE})
        assert (answer.status, answer.header("x-ratelimit-limit-requests")) == (200, None)
    assert await preflights(gateway) == 5
    assert (await gateway.ask("POST", CHAT, key, headers=EVE, body=HI)).status == 200
    assert (await gateway.ask("POST", CHAT, key, headers=EVE, body=HI)).status == 429
    assert await preflights(gateway) == 5
    lines = [line for line in gateway.request_lines() if line["method"] == "OPTIONS"]
    assert {(line["key_name"], line["outcome"]) for line in lines} == {("preflight", "completed")}
    assert len(lines) == 5
    await gateway.stop()
    rows = [row for found in rows_in(gateway.database_file).values() for row in found]
    assert [row["method"] for row in rows] == (["POST"] if ledger else [])


@pytest_twisted.ensureDeferred
async def test_a_preflight_does_not_tell_who_is_blocked_or_over_a_limit(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port)
    await gateway.ask("POST", "/customer/block", body={"user_ids": ["eve"]})
    await gateway.ask("POST", "/customer/new", body={"user_id": "bob", "rpm_limit": 0})
    answers = [
        await gateway.ask("OPTIONS", CHAT, None, headers={**PREFLIGHT, "x-litellm-end-user-id": name})
        for name in ("eve", "bob", "nobody")
    ]
    assert [answer.status for answer in answers] == [200, 200, 200]
    unlike = {"date", "x-request-id", "x-litellm-call-id"}
    heads = [sorted((n, v) for n, v in answer.headers if n.decode().lower() not in unlike) for answer in answers]
    assert heads[0] == heads[1] == heads[2]


@pytest.mark.parametrize("enforced", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_preflight_names_no_end_user_even_where_one_is_required(
    stand_in: Any, gateway_to: Any, enforced: bool
) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port, enforce_user_param=enforced)
    assert (await gateway.ask("OPTIONS", CHAT, None, headers=PREFLIGHT)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("OPTIONS", "/vllm/metrics/", {"Access-Control-Request-Method": "GET"}, "missing_api_key"),
        ("OPTIONS", CHAT, {"Origin": "https://app.example"}, "missing_api_key"),
        ("OPTIONS", CHAT, {**PREFLIGHT, "Authorization": "Bearer sk-wrong"}, "invalid_api_key"),
        ("HEAD", CHAT, PREFLIGHT, "missing_api_key"),
        ("GET", "/vllm/v1/models", PREFLIGHT, "missing_api_key"),
        ("POST", CHAT, PREFLIGHT, "missing_api_key"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_preflight_needs_a_key(
    stand_in: Any, gateway_to: Any, method: str, path: str, headers: dict[str, str], code: str
) -> None:
    server = stand_in(whole(ANSWER))
    gateway = gateway_to(server.port)
    answer = await gateway.ask(method, path, None, headers={**headers, **EVE})
    assert answer.status == 401
    if method != "HEAD":
        assert answer.error["code"] == code
    assert server.connections == []
    assert await preflights(gateway) == 0


@pytest_twisted.ensureDeferred
async def test_what_makes_a_preflight_reaches_the_server(stand_in: Any, gateway_to: Any) -> None:
    """vLLM's CORS middleware answers only what has both headers; its /metrics would answer any method."""
    server = stand_in(whole(ANSWER))
    gateway = gateway_to(server.port)
    headers = {**PREFLIGHT, "Connection": "origin, access-control-request-method"}
    assert (await gateway.answer_to(request_bytes("OPTIONS", "/vllm/metrics", None, headers))).status == 200
    received = (await server.connection()).received.lower()
    assert b"origin: https://app.example\r\n" in received
    assert b"access-control-request-method: post\r\n" in received


@pytest_twisted.ensureDeferred
async def test_preflights_take_no_place_at_a_busy_server(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    server = stand_in()
    gateway = gateway_to(capped(server.port, limit=1, places=1))
    running = await gateway.send(request_bytes("POST", CHAT, body=HI))
    await (await server.connection()).until_received(b'"max_tokens": 1}')
    queued = await gateway.send(request_bytes("POST", CHAT, body=HI))
    await eventually(reactor, lambda: gateway.queued == 1)
    for number in (1, 2):
        preflight = await gateway.send(request_bytes("OPTIONS", CHAT, None, PREFLIGHT))
        upstream = await server.connection(number)
        await upstream.until_received(b"OPTIONS /v1/chat/completions")
        upstream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        await preflight.until_received(b"\r\n\r\nok")
    assert gateway.queued == 1
    assert running.received == queued.received == b""


@pytest.mark.parametrize("body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
@pytest_twisted.ensureDeferred
async def test_a_stranger_sends_no_body_to_a_server(stand_in: Any, gateway_to: Any, body: bytes) -> None:
    server = stand_in(whole(ANSWER))
    gateway = gateway_to(server.port)
    head = request_bytes("OPTIONS", CHAT, None, PREFLIGHT).removesuffix(b"\r\n")
    answer = await gateway.answer_to(head + body)
    assert (answer.status, answer.error["code"]) == (401, "missing_api_key")
    assert server.connections == []


@pytest_twisted.ensureDeferred
async def test_a_preflight_with_a_key_is_a_request_of_that_key(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port)
    key = await gateway.make_key(rpm_limit=1, key_alias="app")
    assert (await gateway.ask("OPTIONS", CHAT, key, headers={**PREFLIGHT, **EVE})).status == 200
    assert (await gateway.ask("OPTIONS", CHAT, key, headers={**PREFLIGHT, **EVE})).status == 429
    assert await preflights(gateway) == 0
    await gateway.stop()
    [[row]] = rows_in(gateway.database_file).values()
    assert (row["method"], row["key_name"], row["end_user"]) == ("OPTIONS", "app", "eve")


@pytest_twisted.ensureDeferred
async def test_a_stranger_s_body_is_refused_also_after_a_preflight_with_the_same_head(
    stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(whole(ANSWER))
    gateway = gateway_to(server.port)
    for body, status in ((b"", 200), (b"", 200), (b"{}", 401)):
        answer = await gateway.ask("OPTIONS", "/vllm/invocations", None, headers=PREFLIGHT, body=body)
        assert answer.status == status
    assert b"{}" not in server.received
