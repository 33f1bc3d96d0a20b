"""What an administrator says of a key shows in what vLLM gets."""

from __future__ import annotations

import json
from typing import Any

import pytest_twisted

from tests.end_to_end.messages import OK


@pytest_twisted.ensureDeferred
async def test_a_key_s_aliases_priority_and_granted_headers_reach_the_server(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key(
        aliases={"gpt-4": "qwen"}, models=["qwen"], priority=-5, granted_headers=["X-Session-Id"]
    )
    answer = await gateway.ask(
        "POST",
        "/vllm/v1/completions",
        key,
        body={"model": "gpt-4", "prompt": "a"},
        headers={"x-session-id": "s1", "x-vllm-priority": "-99", "x-data-parallel-rank": "1"},
    )
    assert answer.status == 200
    head, _, body = server.received.partition(b"\r\n\r\n")
    assert json.loads(body) == {"model": "qwen", "prompt": "a"}
    lines = head.lower().split(b"\r\n")
    assert b"x-vllm-priority: -5" in lines
    assert b"x-session-id: s1" in lines
    assert b"-99" not in head
    assert b"x-data-parallel-rank" not in head.lower()

    refused = await gateway.ask("POST", "/vllm/v1/completions", key, body={"model": "gpt-5"})
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")


@pytest_twisted.ensureDeferred
async def test_a_key_is_held_to_its_user_and_its_team(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port)
    await gateway.ask("POST", "/user/new", body={"user_id": "ada", "models": ["a", "b"], "auto_create_key": False})
    await gateway.ask("POST", "/team/new", body={"team_id": "x", "models": ["b", "c"]})
    key = await gateway.make_key(user_id="ada", team_id="x")

    async def ask(model: str) -> Any:
        return await gateway.ask("POST", "/vllm/v1/completions", key, body={"model": model, "prompt": "p"})

    assert (await ask("b")).status == 200
    assert "The team of this key" in (await ask("a")).error["message"]
    assert "The user of this key" in (await ask("c")).error["message"]
    await gateway.ask("POST", "/team/block", body={"team_id": "x"})
    refused = await ask("b")
    assert (refused.status, refused.error["code"]) == (401, "blocked_api_key")
    assert "team" in refused.error["message"]
