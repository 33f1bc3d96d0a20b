"""A key with a budget or a limit, whose owner sends what once cheated it, to a real vLLM."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.live.live_gateway import Answer, LiveGateway, new_secret
from tests.live.live_ledger import CHAT, COMPLETIONS, RESPONSES, counted_by_vllm, rows_of
from tests.live.live_servers import StartGateway

#: dollars of a token
PROMPT, COMPLETION = 0.001, 0.002
MESSAGES = [{"role": "user", "content": "Hi"}]
LONG = {"min_tokens": 400, "ignore_eos": True}
CONFIG = {
    "model_list": [
        {
            "model_name": "good",
            "litellm_params": {"input_cost_per_token": PROMPT, "output_cost_per_token": COMPLETION},
        }
    ],
    "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
}


def _config(url: str, model: str, *, default: bool) -> str:
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    config["model_list"][0]["litellm_params"].update(model=f"hosted_vllm/{model}", api_base=url)
    if default:
        config["passthrough"] = {"api_base": url}
    return json.dumps(config)


@pytest.fixture(scope="module")
def gateway(start_gateway: StartGateway, vllm_url: str, chat_model: str) -> LiveGateway:
    """With one priced entry."""
    return start_gateway(_config(vllm_url, chat_model, default=False), LITELLM_MASTER_KEY=new_secret())


@pytest.fixture(scope="module")
def gateway_with_default(start_gateway: StartGateway, vllm_url: str, chat_model: str) -> LiveGateway:
    """With one priced entry, whose server is the default server too."""
    return start_gateway(_config(vllm_url, chat_model, default=True), LITELLM_MASTER_KEY=new_secret())


def post(gateway: LiveGateway, key: str, route: str, body: bytes) -> Answer:
    return gateway.ask("POST", f"/vllm{route}", key, [("Content-Type", "application/json")], body)


def burst(gateway: LiveGateway, key: str, route: str, body: bytes, count: int) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: post(gateway, key, route, body), range(count)))


def spend_of(rows: Sequence[dict[str, Any]]) -> float:
    return sum(float(row["spend"]) for row in rows)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (COMPLETIONS, {"prompt": "a", "max_tokens": 400, "max_completion_tokens": 1, **LONG}),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 400, "max_output_tokens": 1, **LONG}),
        (RESPONSES, {"input": "a", "max_output_tokens": 400, "max_tokens": 1, "ignore_eos": True}),
        (CHAT, {"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": "400", **LONG}),
        (CHAT, {"messages": MESSAGES, "max_tokens": 20, "n": "20", "min_tokens": 20, "ignore_eos": True}),
        (CHAT, {"messages": MESSAGES, "max_tokens": 20, "n": 20.0, "min_tokens": 20, "ignore_eos": True}),
        (COMPLETIONS, {"prompt": ["a"] * 20, "messages": None, "max_tokens": 20, "min_tokens": 20, "ignore_eos": True}),
        (CHAT + "/batch", {"messages": [MESSAGES] * 20, "max_tokens": 20, "min_tokens": 20, "ignore_eos": True}),
        (CHAT, {"messages": MESSAGES, "min_tokens": 1900, "ignore_eos": True}),
        (COMPLETIONS, {"prompt": [[7] * 200] * 2, "max_tokens": 1}),
    ],
    ids=lambda value: json.dumps(value)[:80],
)
def test_no_burst_spends_more_than_the_budget(gateway: LiveGateway, route: str, fields: dict[str, Any]) -> None:
    key = gateway.make_key(max_budget=1)
    answers = burst(gateway, key, route, json.dumps({"model": "good", **fields}).encode(), 12)
    served = [answer for answer in answers if answer.status == 200]
    assert {answer.error_code for answer in answers if answer.status != 200} <= {(429, "budget_exceeded")}
    spent = spend_of(rows_of(gateway, key, len(served)))
    print(f"{route} {json.dumps(fields)[:80]}: {len(served)} of 12 served, {spent:.3f} of 1 dollar spent")
    assert spent <= 1


@pytest.mark.parametrize("fields", [{"n": 5, "max_tokens": 1900, "max_completion_tokens": 1}])
def test_no_request_uses_more_tokens_than_the_limit(gateway: LiveGateway, fields: dict[str, Any]) -> None:
    key = gateway.make_key(tpm_limit=3000)
    answer = post(gateway, key, COMPLETIONS, json.dumps({"model": "good", "prompt": "a", **fields}).encode())
    assert answer.error_code == (429, "rate_limit_exceeded")
    [reserved] = re.findall(r"may use (\d+) tokens, and", answer.json["error"]["message"])
    assert int(reserved) >= 5 * 1900


@pytest.mark.parametrize(
    "body",
    [{"messages": MESSAGES, "max_tokens": 6}, {"model": None, "messages": MESSAGES, "max_tokens": 6}],
    ids=["absent", "null"],
)
def test_a_request_without_a_model_costs_what_the_first_entry_costs(gateway: LiveGateway, body: dict[str, Any]) -> None:
    key = gateway.make_key(max_budget=1)
    answer = post(gateway, key, CHAT, json.dumps(body).encode())
    assert answer.status == 200
    [row] = rows_of(gateway, key, 1)
    usage = answer.json["usage"]
    assert row["model"] == "good"
    assert row["spend"] == pytest.approx(usage["prompt_tokens"] * PROMPT + usage["completion_tokens"] * COMPLETION)


def test_a_model_named_twice_is_refused(gateway: LiveGateway) -> None:
    key = gateway.make_key(max_budget=1)
    body = b'{"model":"good","messages":[{"role":"user","content":"Hi"}],"max_tokens":6,"model":"good"}'
    assert post(gateway, key, CHAT, body).error_code == (400, "model_undetermined")


def test_behind_a_default_server_every_name_of_the_model_costs_the_same(
    gateway_with_default: LiveGateway, chat_model: str
) -> None:
    gateway = gateway_with_default
    key = gateway.make_key(max_budget=1)
    for name in ("good", chat_model):
        body = json.dumps({"model": name, "messages": MESSAGES, "max_tokens": 6}).encode()
        assert post(gateway, key, CHAT, body).status == 200
    unnamed = json.dumps({"messages": MESSAGES, "max_tokens": 6}).encode()
    assert post(gateway, key, CHAT, unnamed).error_code == (400, "model_undetermined")
    rows = rows_of(gateway, key, 2)
    assert {row["model"] for row in rows} == {"good"}
    assert all(row["spend"] > 0.006 for row in rows)


def test_on_invocations_the_base_model_decides(gateway_with_default: LiveGateway, chat_model: str) -> None:
    gateway = gateway_with_default
    key = gateway.make_key(max_budget=1)
    for name in ("good", "anything", chat_model):
        body = json.dumps({"model": name, "messages": MESSAGES, "max_tokens": 6}).encode()
        assert post(gateway, key, "/invocations", body).status == 200
    rows = rows_of(gateway, key, 3)
    assert {row["model"] for row in rows} == {"good"}
    assert all(row["spend"] > 0.006 for row in rows)
    other = gateway.make_key(models=["other*"])
    refused = post(gateway, other, "/invocations", json.dumps({"model": "other", "messages": MESSAGES}).encode())
    assert refused.error_code == (403, "model_not_allowed")
    # the base model is `good`, which this key may use
    wildcard = gateway.make_key(models=["goo*"])
    for route in (CHAT, "/invocations"):
        body = json.dumps({"model": "goofy", "messages": MESSAGES, "max_tokens": 6}).encode()
        assert post(gateway, wildcard, route, body).status == 404


@pytest.mark.parametrize(
    "spelt", ['"stream":"yes"', '"stream":1', '"stream":false,"stream":true', '"str\\u0065am":"t"']
)
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_a_stream_by_any_spelling_is_counted_exactly(
    gateway: LiveGateway, vllm_url: str, route: str, spelt: str
) -> None:
    text = f'"messages":{json.dumps(MESSAGES)}' if route == CHAT else '"prompt":"a"'
    body = f'{{"model":"good",{text},"max_tokens":40,"min_tokens":40,"ignore_eos":true,{spelt}}}'.encode()
    for _ in range(3):
        key = gateway.make_key()
        before = counted_by_vllm(vllm_url)
        answer = post(gateway, key, route, body)
        assert answer.status == 200
        assert b'"usage":{' not in answer.body
        [row] = rows_of(gateway, key, 1)
        after = counted_by_vllm(vllm_url)
        if after[1] - before[1] == 40:
            break
    assert (row["completion_tokens"], row["prompt_tokens"]) == (40, after[0] - before[0])
    assert not row["metadata"]["estimated"]


def test_a_batch_that_streams_is_refused(gateway: LiveGateway) -> None:
    key = gateway.make_key(max_budget=1)
    body = json.dumps({"model": "good", "messages": [MESSAGES], "max_tokens": 6, "stream": "y"}).encode()
    assert post(gateway, key, CHAT + "/batch", body).error_code == (400, "invalid_request")
