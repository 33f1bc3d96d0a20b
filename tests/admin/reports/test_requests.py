"""``/usage/requests/ID``: one request whole, with its prompt and answer where they were kept, for who may see it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.admin.admin_harness import Gateway, value_of
from tests.admin.reports.usage_rows import at, id_of, keep, row_at
from twisted_vllm.storage.request_contents import KeptContents, write_contents

KEPT = {
    "mode": "full",
    "input": [{"role": "user", "content": "What is <b>up</b>?"}],
    "parameters": {"temperature": 0.5},
    "tools": [{"type": "function", "function": {"name": "weather"}}],
    "output": {"text": "Much.", "reasoning": "Hm.", "finish_reasons": ["stop"]},
    "truncated": False,
}


def row_id(number: int, time: str) -> str:
    """Return a row's id as the gateway makes them: the second of its time comes first."""
    return f"{at(time) // 1_000_000:08x}{number:024x}"


FIRST, SECOND = row_id(1, "2026-02-26T10:00:00"), row_id(2, "2026-02-27T10:00:00")


@pytest.fixture
def ada(gateway: Gateway) -> dict[str, Any]:
    made = gateway.make_key(key_alias="ada", user_id="ada", team_id="red")
    mine = {"key_id": id_of(gateway, made), "user_id": "ada", "team_id": "red", "key_name": "ada"}
    keep(
        gateway,
        [
            row_at(
                1,
                "2026-02-26T10:00:00",
                id=FIRST,
                **mine,
                attempts="gpu-2:8000 status_503",
                details='{"queued_us":1500,"fallback":"llama","trace_id":"ab"}',
                spend_metadata='{"ticket":"T-1"}',
                tags=("a",),
                request_tags=("b", "a"),
                response_id="resp_9",
                end_user="eve",
            ),
            row_at(1, "2026-02-27T10:00:00", id=SECOND, **mine, request_id="request-1", status=500),
            row_at(3, "2026-02-28T10:00:00", id=row_id(3, "2026-02-28T10:00:00"), request_id=""),
        ],
    )

    def write(transaction: Any) -> None:
        body = msgspec.json.encode(KEPT)
        contents = [KeptContents(each, at("2026-02-26"), body) for each in (FIRST, row_id(3, "2026-02-28T10:00:00"))]
        write_contents(transaction.connection, contents)

    value_of(gateway.store.change(write))
    return made


def test_all_that_is_known_of_a_request_is_told(gateway: Gateway, ada: dict[str, Any]) -> None:
    found = gateway.get(f"/usage/requests/{FIRST}").json
    assert found["timings"] == {"queued_us": 1500, "first_byte_us": 20_000, "total_us": 1_500_000}
    assert found["attempts"] == [{"server": "gpu-2:8000", "reason": "status_503"}]
    assert (found["id"], found["request_id"], found["others"]) == (FIRST, "request-1", [])
    assert (found["api_key"], found["user_id"], found["end_user"]) == (ada["token"], "ada", "eve")
    assert (found["fallback"], found["server"], found["trace_id"]) == ("llama", "gpu-1", "ab")
    assert (found["tags"], found["metadata"]) == (["a", "b"], {"ticket": "T-1"})
    assert (found["spend"], found["total_tokens"]) == (0.000123456789, 15)
    assert found["contents"] == KEPT


@pytest.mark.usefixtures("ada")
def test_a_request_is_found_by_each_of_its_ids(gateway: Gateway) -> None:
    newest = gateway.get("/usage/requests/request-1").json
    assert (newest["id"], newest["others"]) == (SECOND, [FIRST])
    assert newest["contents"] is None
    assert newest["timings"]["queued_us"] is None
    assert gateway.get("/usage/requests/resp_9").json["id"] == FIRST
    own = row_id(3, "2026-02-28T10:00:00")
    assert gateway.get(f"/usage/requests/chatcmpl-{own}").json["request_id"] == own


def test_a_key_sees_its_own_and_no_server(gateway: Gateway, ada: dict[str, Any]) -> None:
    found = gateway.get(f"/usage/requests/{FIRST}", ada["key"]).json
    assert found["contents"] == KEPT
    assert found["server"] is None
    assert found["attempts"] == [{"server": None, "reason": "status_503"}]
    assert gateway.get(f"/spend/logs/ui/{FIRST}", ada["key"]).json["messages"] == KEPT["input"]


@pytest.mark.usefixtures("ada")
def test_somebody_else_s_request_is_like_one_that_does_not_exist(gateway: Gateway) -> None:
    bob = gateway.make_key(key_alias="bob", user_id="bob")["key"]
    absent = gateway.get(f"/usage/requests/{row_id(9, '2026-02-28')}", bob)
    for id in (FIRST, SECOND, "request-1", "resp_9", row_id(3, "2026-02-28T10:00:00")):
        answer = gateway.get(f"/usage/requests/{id}", bob)
        assert (answer.status, answer.body) == (404, absent.body)
        assert gateway.get(f"/spend/logs/ui/{id}", bob).json is None


@pytest.mark.usefixtures("ada")
def test_litellm_s_page_gets_its_shape(gateway: Gateway) -> None:
    found = gateway.get(f"/spend/logs/ui/{FIRST}").json
    assert found["messages"] == KEPT["input"]
    assert found["response"]["choices"] == [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Much.", "reasoning_content": "Hm."},
        }
    ]
    assert found["response"]["usage"]["total_tokens"] == 15
    assert found["proxy_server_request"] == {
        "temperature": 0.5,
        "model": "qwen",
        "messages": KEPT["input"],
        "tools": KEPT["tools"],
    }
    assert gateway.get(f"/spend/logs/ui/{SECOND}").json == {"messages": {}, "response": {}, "proxy_server_request": {}}


@pytest.mark.usefixtures("ada")
def test_logs_are_filtered_by_route_and_server(gateway: Gateway) -> None:
    assert gateway.get("/spend/logs/v2?server=gpu-1&route=/v1/chat/completions").json["total"] == 3
    assert gateway.get("/spend/logs/v2?server=gpu-2").json["total"] == 0
    assert gateway.get("/spend/logs/v2?route=/v1/embeddings").json["total"] == 0
    key = gateway.make_key()["key"]
    assert gateway.get("/spend/logs/v2?server=gpu-1", key).status == 403
