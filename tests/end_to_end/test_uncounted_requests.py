"""What no ``rpm_limit`` counts has a limit of its own, few rows and few log lines."""

from __future__ import annotations

import time
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.end_to_end_harness import request_bytes
from tests.end_to_end.ledger_harness import ANSWER, rows_in
from tests.end_to_end.messages import OK, whole
from twisted_vllm.app.each_minute import MINUTE
from twisted_vllm.config.settings import Limits

MODELS = "/vllm/v1/models"
CHAT = "/vllm/v1/chat/completions"
HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
FLOOD = 5_000


async def flood(gateway: Any, raw: bytes, count: int = FLOOD) -> dict[int, int]:
    """Send a request so many times on one connection; return how often each status came."""
    client = await gateway.connect()
    # more at once would wait unread, as they should
    for start in range(0, count, 100):
        client.send(raw * 100)
        await client.until(lambda wanted=start + 100: client.received.count(b"HTTP/1.1 ") >= wanted)
    found: dict[int, int] = {}
    for piece in client.received.split(b"HTTP/1.1 ")[1:]:
        found[int(piece[:3])] = found.get(int(piece[:3]), 0) + 1
    client.close()
    return found


@pytest_twisted.ensureDeferred
async def test_a_key_with_one_request_a_minute_reads_six_hundred_times_and_leaves_eleven_rows_of_200_bytes(
    stand_in: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(stand_in(OK).port)
    key = await gateway.make_key(rpm_limit=1)
    assert await flood(gateway, request_bytes("GET", MODELS, key)) == {200: 600, 429: FLOOD - 600}
    refused = await gateway.ask("GET", MODELS, key)
    assert refused.error["code"] == "rate_limit_exceeded"
    assert "limits.max_uncounted_requests" in refused.error["message"]
    assert refused.header("x-ratelimit-limit-requests") == "600"
    assert 1 <= int(refused.header("retry-after")) <= 60
    # the rpm_limit is untouched
    assert (await gateway.ask("POST", CHAT, key, body=HI)).status == 200
    await gateway.stop()
    rows = [row for found in rows_in(gateway.database_file).values() for row in found if row["method"] == "GET"]
    assert len(rows) == 11
    assert sum(row["requests"] or 1 for row in rows) == 600
    # 600 answered, and as many of the refused ones as have a line
    assert len(gateway.request_lines()) <= 600 + 600 + 10
    [summary] = [text for line in gateway.log_lines() if "no line of their own" in (text := line.get("message", ""))]
    assert summary.startswith(f"{FLOOD + 1 - 1200} more requests from the key ")


@pytest_twisted.ensureDeferred
async def test_once_a_minute_the_report_has_every_request(stand_in: Any, gateway_to: Any, reactor: Any) -> None:
    gateway = gateway_to(stand_in(OK).port, limits=Limits(max_uncounted_requests=30))
    key = await gateway.make_key()
    assert await flood(gateway, request_bytes("GET", MODELS, key), 100) == {200: 30, 429: 70}
    gateway.clock.advance(MINUTE)
    counted = 0

    async def ask() -> int:
        answer = await gateway.ask("GET", "/usage/report?group_by=route&interval=day&start=1970-01-01&end=1970-01-02")
        return sum(group["requests"] for group in answer.json["results"])

    end = time.monotonic() + 30
    while counted != 30 and time.monotonic() < end:
        await deferLater(reactor, 0.05, lambda: None)
        counted = await ask()
    assert counted == 30


@pytest.mark.parametrize(
    "path",
    ["/vllm/metrics", "/vllm/health", "/vllm/version", "/key/info", "/spend/logs", "/key/list", "/key/spend/report"],
)
@pytest_twisted.ensureDeferred
async def test_every_reading_route_is_limited_for_keys_and_for_no_administrator(
    stand_in: Any, gateway_to: Any, path: str
) -> None:
    gateway = gateway_to(stand_in(OK).port, limits=Limits(max_uncounted_requests=2))
    key = await gateway.make_key()
    statuses = [(await gateway.ask("GET", path, key)).status for _ in range(4)]
    assert 429 not in statuses[:2]
    assert statuses[2:] == [429, 429]
    manager = await gateway.make_key(allowed_routes=["management"])
    for each in (manager, None):
        asked = (gateway.ask("GET", path, *([each] if each else [])) for _ in range(4))
        assert 429 not in [(await answer).status for answer in asked]


@pytest_twisted.ensureDeferred
async def test_an_address_sends_so_many_preflights_to_a_server(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port, limits=Limits(max_uncounted_requests=3))
    statuses = [(await gateway.ask("OPTIONS", CHAT, None, headers=PREFLIGHT)).status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    text = (await gateway.ask("GET", "/metrics", None)).body.decode()
    assert "vllm_passthrough_preflights_total 3.0" in text
    assert "vllm_passthrough_uncounted_requests_refused_total 2.0" in text


@pytest.mark.parametrize(
    "raw",
    [
        lambda key: request_bytes("POST", "/vllm/nowhere", key, body={}),
        lambda key: request_bytes("POST", CHAT, key, body={"model": "m", "priority": 1}),
        lambda key: request_bytes("GET", "/nowhere", key),
        lambda key: request_bytes("POST", "/key/generate", key, body={}),
        lambda key: request_bytes("GET", MODELS, None),
    ],
    ids=["403", "400", "404", "403 of the admin API", "401"],
)
@pytest_twisted.ensureDeferred
async def test_a_flood_of_refused_requests_has_a_bounded_number_of_lines_and_no_row(
    stand_in: Any, gateway_to: Any, raw: Any
) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port)
    key = await gateway.make_key()
    statuses = await flood(gateway, raw(key), 1_000)
    assert sum(statuses.values()) == 1_000
    assert set(statuses) <= {400, 401, 403, 404, 429}
    text = (await gateway.ask("GET", "/metrics", None)).body.decode()
    assert "vllm_passthrough_log_lines_left_out_total 400.0" in text
    await gateway.stop()
    assert rows_in(gateway.database_file) == {}
    assert sum(line["outcome"] == "refused" for line in gateway.request_lines()) == 600
