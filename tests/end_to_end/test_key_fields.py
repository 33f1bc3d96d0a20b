"""What an administrator says of a key shows in what vLLM gets."""

from __future__ import annotations

import json
from typing import Any

import pytest_twisted
from test_forwarding import OK


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
