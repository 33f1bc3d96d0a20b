"""What log, ledger, reports and metrics say of a request that took more than one attempt."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest_twisted

from benchmarks.free_ports import free_port
from tests.end_to_end.end_to_end_harness import HOST
from tests.end_to_end.ledger_harness import ANSWER, rows_in
from tests.end_to_end.messages import whole
from tests.end_to_end.test_fail_over import BUSY, CHAT, IN_ORDER, entries
from twisted_vllm.config.settings import HealthSettings, ModelEntry, RetrySettings, RoutingSettings

TARGET = "/vllm/v1/chat/completions"
NO_CHECKS = HealthSettings(interval=None)


async def metrics_of(gateway: Any) -> str:
    text: str = (await gateway.ask("GET", "/metrics")).body.decode()
    return text


@pytest_twisted.ensureDeferred
async def test_every_failed_attempt_is_in_the_log_the_ledger_and_the_metrics(stand_in: Any, gateway_to: Any) -> None:
    dead, busy, good = free_port(), stand_in(BUSY), stand_in(whole(ANSWER))
    gateway = gateway_to(None, models=entries(dead, busy.port, good.port), routing=IN_ORDER, health=NO_CHECKS)
    assert (await gateway.ask("POST", TARGET, body=CHAT)).status == 200
    text = f"{HOST}:{dead} upstream_unreachable, {HOST}:{busy.port} status_503"
    [line] = [line for line in gateway.request_lines() if line["route"] == "/v1/chat/completions"]
    assert (line["attempts"], line["server"]) == (text, f"{HOST}:{good.port}")
    metrics = await metrics_of(gateway)
    assert 'vllm_passthrough_retries_total{reason="upstream_unreachable"} 1.0' in metrics
    assert 'vllm_passthrough_retries_total{reason="status_503"} 1.0' in metrics
    assert "vllm_passthrough_retries_denied_total 0.0" in metrics
    assert "vllm_passthrough_fallbacks_total 0.0" in metrics
    await gateway.stop()
    [(row,)] = rows_in(gateway.database_file).values()
    assert (row["attempts"], row["server"], row["outcome"]) == (text, f"{HOST}:{good.port}", "completed")


@pytest_twisted.ensureDeferred
async def test_a_request_of_one_attempt_says_nothing_of_attempts(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(None, models=entries(stand_in(whole(ANSWER)).port))
    assert (await gateway.ask("POST", TARGET, body=CHAT)).status == 200
    assert not {"attempts", "fallback"} & set(gateway.request_lines()[0])
    await gateway.stop()
    [(row,)] = rows_in(gateway.database_file).values()
    assert row["attempts"] is None


@pytest_twisted.ensureDeferred
async def test_reports_show_the_attempts_and_only_administrators_the_servers(stand_in: Any, gateway_to: Any) -> None:
    busy, good = stand_in(BUSY), stand_in(whole(ANSWER))
    gateway = gateway_to(None, models=entries(busy.port, good.port), routing=IN_ORDER, health=NO_CHECKS)
    key = await gateway.make_key()
    assert (await gateway.ask("POST", TARGET, key, body=CHAT)).status == 200
    found: list[Any] = []

    async def attempts(caller: str | None) -> Any:
        options = {} if caller is None else {"key": caller}
        answer = await gateway.ask("GET", "/spend/logs", **options)
        return [row["metadata"]["attempts"] for row in answer.json]

    while not found:
        gateway.pass_time(1)
        found = await attempts(None)
    assert found == [[{"server": f"{HOST}:{busy.port}", "reason": "status_503"}]]
    assert await attempts(key) == [[{"server": None, "reason": "status_503"}]]


@pytest_twisted.ensureDeferred
async def test_a_fallback_is_logged_and_counted(stand_in: Any, gateway_to: Any) -> None:
    busy, small = stand_in(BUSY), stand_in(whole(ANSWER))
    [first] = entries(busy.port)
    routing = RoutingSettings(routing_strategy="round-robin", fallbacks={"m": ("small",)})
    models = (first, ModelEntry("small", "small", entries(small.port)[0].server))
    gateway = gateway_to(None, models=models, routing=routing, health=NO_CHECKS)
    answer = await gateway.ask("POST", TARGET, body=CHAT)
    assert (answer.status, answer.header("x-litellm-model-group")) == (200, "small")
    [line] = gateway.request_lines()
    assert (line["fallback"], line["attempts"]) == ("small", f"{HOST}:{busy.port} status_503")
    assert "vllm_passthrough_fallbacks_total 1.0" in await metrics_of(gateway)


@pytest_twisted.ensureDeferred
async def test_what_the_budget_denies_is_counted(stand_in: Any, gateway_to: Any) -> None:
    busy, good = stand_in(BUSY), stand_in(whole(ANSWER))
    gateway = gateway_to(
        None,
        models=entries(busy.port, good.port),
        routing=RoutingSettings(routing_strategy="round-robin", allowed_fails=1000),
        health=NO_CHECKS,
        retry=RetrySettings(budget=0.01),
    )
    # ten retries need no requests before them
    statuses = Counter([(await gateway.ask("POST", TARGET, body=CHAT)).status for _ in range(30)])
    assert statuses == {200: 25, 503: 5}
    metrics = await metrics_of(gateway)
    assert 'vllm_passthrough_retries_total{reason="status_503"} 10.0' in metrics
    assert "vllm_passthrough_retries_denied_total 5.0" in metrics


@pytest_twisted.ensureDeferred
async def test_the_queue_s_length_is_a_metric(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in().port)
    assert "vllm_passthrough_queued_requests 0.0" in await metrics_of(gateway)
