"""The ledger has what vLLM counted itself, and clients see what vLLM sends."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.live.live_gateway import LiveGateway, ask, json_request, new_secret
from tests.live.live_ledger import (
    ATTEMPTS,
    CHAT,
    COMPLETIONS,
    NAMES,
    PRICED,
    counted_by_vllm,
    rows_of,
    varied,
)
from tests.live.live_servers import StartGateway


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, vllm_url: str) -> LiveGateway:
    return start_gateway(PRICED, HOSTED_VLLM_API_BASE=vllm_url, LITELLM_MASTER_KEY=new_secret())


def test_the_ledger_counts_what_vllm_counts(gateway: LiveGateway, vllm_url: str, chat_model: str) -> None:
    for _ in range(ATTEMPTS):
        key = gateway.make_key()
        before = counted_by_vllm(vllm_url)
        requests = list(varied(chat_model))
        for route, body in requests:
            answer = gateway.ask("POST", f"/vllm{route}", key, **json_request(body))
            assert answer.status == 200, answer.body
        after = counted_by_vllm(vllm_url)
        rows = rows_of(gateway, key, len(requests))
        found = sum(row["prompt_tokens"] for row in rows), sum(row["completion_tokens"] for row in rows)
        counted = after[0] - before[0], after[1] - before[1]
        # others may use the server meanwhile
        if found == counted:
            break
    assert len(requests) >= 50
    assert found == counted
    spend = sum(round(row["spend"] * 1e6) for row in rows)
    assert spend == found[0] + 2 * found[1]
    info = gateway.ask("GET", "/key/info", key).json["info"]
    assert round(info["spend"] * 1e6) == spend


@pytest.mark.parametrize(
    "more", [{}, {"n": 2}, {"stop": "e"}, {"stream_options": {"include_usage": True}}], ids=json.dumps
)
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_a_stream_through_the_gateway_is_a_direct_one(
    gateway: LiveGateway, vllm_url: str, chat_model: str, route: str, more: dict[str, Any]
) -> None:
    text = {"messages": [{"role": "user", "content": "Say hi"}]} if route == CHAT else {"prompt": "Say"}
    asked = json_request(
        {"model": chat_model, "temperature": 0.5, "seed": 1, "max_tokens": 9, "stream": True, **text, **more}
    )
    for _ in range(ATTEMPTS):
        answers = (
            ask(vllm_url, "POST", route, **asked),
            gateway.ask("POST", f"/vllm{route}", gateway.master_key, **asked),
        )
        assert [answer.status for answer in answers] == [200, 200]
        direct, through = (NAMES.sub(b"", re.sub(rb'"id":"[^"]*"', b"", answer.body)) for answer in answers)
        # vLLM now and then puts two tokens into one event, and answers of one request come in any order
        if sorted(direct.split(b"\n\n")) == sorted(through.split(b"\n\n")):
            break
    assert sorted(through.split(b"\n\n")) == sorted(direct.split(b"\n\n"))


def test_a_client_that_leaves_its_stream_is_counted_by_its_chunks(gateway: LiveGateway, chat_model: str) -> None:
    from tests.live.live_gateway import bearer, connect, send

    key = gateway.make_key()
    connection = connect(gateway.url)
    body = {"model": chat_model, "messages": [{"role": "user", "content": "Tell"}], "max_tokens": 1900, "stream": True}
    asked = json_request(body | {"ignore_eos": True})
    response = send(connection, "POST", f"/vllm{CHAT}", [*bearer(key), *asked["headers"]], asked["body"])
    for _ in range(20):
        response.readline()
    connection.close()
    response.close()
    [row] = rows_of(gateway, key, 1)
    assert 5 <= row["completion_tokens"] < 1900
    assert row["prompt_tokens"] > 0
