"""Cached tokens, and the routes that vLLM opens on request, are counted as vLLM counts them."""

from __future__ import annotations

import json
import re
import secrets
from functools import partial
from typing import Any

import pytest

from tests.live.live_gateway import Answer, LiveGateway, ask, json_request, new_secret
from tests.live.live_ledger import ATTEMPTS, PRICED, Request, sums, used
from tests.live.live_servers import StartGateway

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
COHERE, GENERATE, INVOCATIONS = "/cohere/v2/chat", "/inference/v1/generate", "/invocations"
#: what a server needs for a route
NEEDS = {COHERE: "VLLM_ENABLE_COHERE_API=1 and the package cohere", GENERATE: "--enable-scale-out"}


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, vllm_url: str) -> LiveGateway:
    return start_gateway(
        PRICED + f'  tenant_routes: {{allow: ["{GENERATE}"]}}\n',
        HOSTED_VLLM_API_BASE=vllm_url,
        LITELLM_MASTER_KEY=new_secret(),
    )


def post(gateway: LiveGateway, route: str, body: dict[str, Any], key: str) -> Answer:
    return gateway.ask("POST", f"/vllm{route}", key, **json_request(body))


def body_of(route: str, model: str, text: str, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    body: dict[str, Any] = {"model": model, "stream": stream}
    if route == RESPONSES:
        return body | {"input": text, "max_output_tokens": 5}
    if route == COMPLETIONS:
        return body | {"prompt": text, "max_tokens": 5}
    if route == GENERATE:
        return body | {"token_ids": [3 + ord(letter) for letter in text], "sampling_params": {"max_tokens": 5}}
    return body | {"messages": messages, "max_tokens": 5}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, RESPONSES, MESSAGES, COHERE, GENERATE, INVOCATIONS])
def test_what_the_prefix_cache_gave_is_in_the_ledger(
    gateway: LiveGateway, vllm_url: str, chat_model: str, route: str, stream: bool
) -> None:
    probe = ask(vllm_url, "POST", route, **json_request(body_of(route, chat_model, "a", False)))
    if route in NEEDS and probe.status in (403, 404):
        pytest.skip(f"this test needs a vLLM with {NEEDS[route]}")
    details = ask(vllm_url, "POST", CHAT, **json_request(body_of(CHAT, chat_model, "a", False)))
    if details.json["usage"]["prompt_tokens_details"] is None and route != RESPONSES:
        pytest.skip("this test needs a vLLM with --enable-prompt-tokens-details")
    # new to the cache, and long enough for it
    text = secrets.token_hex(200)
    asked: list[Request] = [partial(post, gateway, route, body_of(route, chat_model, text, stream))] * 3
    rows, counted = used(gateway, vllm_url, asked)
    assert sums(rows) == counted
    # but for the attempts after a first
    assert rows[-1]["metadata"]["cached_tokens"] > 0
    assert not any(row["metadata"]["estimated"] for row in rows)
    assert round(sum(row["spend"] for row in rows) * 1e6) == counted[0] + 2 * counted[1]


@pytest.mark.parametrize("more", [{}, {"n": 2}], ids=json.dumps)
@pytest.mark.parametrize("route", [GENERATE, INVOCATIONS])
def test_a_stream_through_the_gateway_is_a_direct_one(
    gateway: LiveGateway, vllm_url: str, chat_model: str, route: str, more: dict[str, int]
) -> None:
    body = body_of(route, chat_model, "Say", True)
    fixed = {"temperature": 0.5, "seed": 1, "max_tokens": 9, **more}
    asked = json_request(body | ({"sampling_params": fixed} if route == GENERATE else fixed))
    if ask(vllm_url, "POST", route, **asked).status == 403:
        pytest.skip(f"this test needs a vLLM with {NEEDS[route]}")
    for _ in range(ATTEMPTS):
        answers = (
            ask(vllm_url, "POST", route, **asked),
            gateway.ask("POST", f"/vllm{route}", gateway.master_key, **asked),
        )
        assert [answer.status for answer in answers] == [200, 200]
        direct, through = (re.sub(rb'"(id|request_id)":"[^"]*"|"created":\d+', b"", each.body) for each in answers)
        # answers of one request come in any order, and others change what is computed together
        if sorted(direct.split(b"\n\n")) == sorted(through.split(b"\n\n")):
            break
    assert sorted(through.split(b"\n\n")) == sorted(direct.split(b"\n\n"))
    assert b'"choices":[]' not in through
