"""A request is found in the ledger by the id that vLLM gave its answer, and by what its client said of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.live.live_gateway import Headers, LiveGateway, json_request, wait_until
from tests.live.live_servers import GUIDE_SCORE_MODEL

#: routes, what they are asked beside the model, and the form of the ids that vLLM 0.32 gives the answers
ROUTES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}, "chatcmpl-"),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 2}, "cmpl-"),
    ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}, "chatcmpl-"),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2}, "resp_"),
]
SCORES: list[tuple[str, dict[str, Any], str]] = [
    ("/score", {"text_1": "hi", "text_2": "ho"}, "score-"),
    ("/v1/rerank", {"query": "hi", "documents": ["ho"]}, "score-"),
    ("/pooling", {"input": "hi"}, "pooling-"),
    ("/classify", {"input": "hi"}, "classify-"),
]
_ID = re.compile(rb'"id":"([^"]+)"')


def id_of(gateway: LiveGateway, key: str, route: str, body: dict[str, Any], headers: Headers) -> str:
    """Ask vLLM, and return the first id in its answer."""
    asked = json_request(body)
    answer = gateway.ask("POST", f"/vllm{route}", key, body=asked["body"], headers=[*asked["headers"], *headers])
    assert answer.status == 200, answer.body
    found = _ID.search(answer.body)
    assert found is not None
    return found[1].decode()


def row_of(gateway: LiveGateway, key: str, id: str) -> dict[str, Any]:
    """Return the only row that an id finds, once it is written."""
    rows: list[dict[str, Any]] = []

    def there() -> bool:
        rows[:] = gateway.ask("GET", f"/spend/logs?request_id={id}", key).json
        return bool(rows)

    wait_until(there, f"the row of {id}")
    [row] = rows
    return row


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("of_client", [False, True])
@pytest.mark.parametrize(("route", "body", "form"), ROUTES)
def test_an_answer_s_id_finds_its_request(
    gateway: LiveGateway, chat_model: str, route: str, body: dict[str, Any], form: str, stream: bool, of_client: bool
) -> None:
    for key in (gateway.make_key(), gateway.master_key):
        headers: Headers = [("x-request-id", f"mine{gateway.make_key()[-8:]}")] if of_client else []
        id = id_of(gateway, key, route, {"model": chat_model, **body, "stream": stream}, headers)
        assert id.startswith(form)
        row = row_of(gateway, key, id)
        assert row["metadata"]["route"] == route
        assert not of_client or row["request_id"] == headers[0][1]


@pytest.mark.parametrize(("route", "body", "form"), SCORES)
def test_a_score_s_id_finds_its_request(
    open_score_gateway: LiveGateway, route: str, body: dict[str, Any], form: str
) -> None:
    gateway = open_score_gateway
    id = id_of(gateway, "anything", route, {"model": GUIDE_SCORE_MODEL, **body}, [])
    assert id.startswith(form)
    assert row_of(gateway, "anything", id)["metadata"]["route"] == route


def test_what_a_client_says_of_its_request_is_found(gateway: LiveGateway, chat_model: str) -> None:
    key = gateway.make_key()
    said: Headers = [
        ("x-litellm-tags", "job-1, job-2"),
        ("x-litellm-spend-logs-metadata", json.dumps({"ticket": "T-1"})),
    ]
    route, body, _ = ROUTES[0]
    id = id_of(gateway, key, route, {"model": chat_model, **body, "metadata": {"tags": ["job-3"]}}, said)
    row = row_of(gateway, key, id)
    assert row["request_tags"] == ["job-1", "job-2", "job-3"]
    assert row["metadata"]["spend_logs_metadata"] == {"ticket": "T-1"}
    [same] = gateway.ask("GET", "/spend/logs?tag=job-2", key).json
    assert same["request_id"] == row["request_id"]
    names = [each["individual_request_tag"] for each in gateway.ask("GET", "/spend/tags", gateway.master_key).json]
    assert {"job-1", "job-2", "job-3"} <= set(names)
