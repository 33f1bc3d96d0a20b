"""A vLLM that stores responses: whose they are, and what background ones are charged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.live.live_gateway import (
    Answer,
    LiveGateway,
    ask,
    bearer,
    connect,
    json_request,
    new_secret,
    send,
    wait_until,
)
from tests.live.live_servers import StartGateway, served_model, server_from

RESPONSES = "/vllm/v1/responses"
NEVER = "resp_" + "0" * 32


@pytest.fixture(scope="module")
def store_url() -> str:
    """The server."""
    return server_from("VLLM_STORE_URL", "this test needs a vLLM with VLLM_ENABLE_RESPONSES_API_STORE=1")


@pytest.fixture(scope="module")
def model(store_url: str) -> str:
    """What the server calls its model."""
    return served_model(store_url)


@pytest.fixture(scope="module")
def store_gateway(start_gateway: StartGateway, store_url: str, model: str) -> LiveGateway:
    """A gateway where one token costs a dollar."""
    params = {"model": f"hosted_vllm/{model}", "api_base": store_url}
    prices = {"input_cost_per_token": 1, "output_cost_per_token": 1}
    config = {
        "model_list": [{"model_name": model, "litellm_params": {**params, **prices}}],
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }
    return start_gateway(json.dumps(config), LITELLM_MASTER_KEY=new_secret())


def create(gateway: LiveGateway, key: str, model: str, **fields: Any) -> Answer:
    body = {"model": model, "input": "Hello", "max_output_tokens": 8, "ignore_eos": True, **fields}
    return gateway.ask("POST", RESPONSES, key, **json_request(body))


def spend_of(gateway: LiveGateway, key: str) -> float:
    found = gateway.ask("GET", f"/key/info?key={key}", gateway.master_key).json
    return float(found["info"]["spend"])


def logs_of(gateway: LiveGateway, key: str) -> list[dict[str, Any]]:
    """Return the rows of the key's requests that made a response."""
    rows = gateway.ask("GET", "/spend/logs", key).json
    return [row for row in rows if row["total_tokens"]]


def test_a_response_is_its_key_s_alone(store_gateway: LiveGateway, store_url: str, model: str) -> None:
    mine, other = store_gateway.make_key(), store_gateway.make_key()
    made = create(store_gateway, mine, model).json["id"]
    assert store_gateway.ask("GET", f"{RESPONSES}/{made}", mine).json["id"] == made
    assert create(store_gateway, mine, model, previous_response_id=made).status == 200
    for response_id in (made, NEVER):
        told = f"Response with id '{response_id}' not found."
        for answer in (
            store_gateway.ask("GET", f"{RESPONSES}/{response_id}", other),
            store_gateway.ask("POST", f"{RESPONSES}/{response_id}/cancel", other),
            create(store_gateway, other, model, previous_response_id=response_id),
        ):
            assert (answer.status, answer.json["error"]["message"]) == (404, told)
    # the server's own words for an id that it does not know
    unknown = ask(store_url, "GET", f"/v1/responses/{NEVER}").json["error"]
    assert unknown["message"] == f"Response with id '{NEVER}' not found."


def test_a_key_cannot_choose_the_id(store_gateway: LiveGateway, model: str) -> None:
    mine, other = store_gateway.make_key(), store_gateway.make_key()
    made = create(store_gateway, mine, model).json["id"]
    taken = create(store_gateway, other, model, request_id=made)
    assert taken.status == 200
    assert taken.json["id"] != made


@pytest.mark.parametrize("polled", [True, False])
def test_a_background_response_is_charged_once(store_gateway: LiveGateway, model: str, polled: bool) -> None:
    key = store_gateway.make_key(max_budget=100_000, max_parallel_requests=1)
    answer = create(store_gateway, key, model, background=True)
    assert answer.json["status"] == "queued"
    made = answer.json["id"]
    if polled:
        wait_until(
            lambda: store_gateway.ask("GET", f"{RESPONSES}/{made}", key).json["status"] == "incomplete", "it ended"
        )
    wait_until(lambda: logs_of(store_gateway, key), "it is charged")
    used = store_gateway.ask("GET", f"{RESPONSES}/{made}", key).json["usage"]
    assert used["output_tokens"] == 8
    [row] = logs_of(store_gateway, key)
    assert row["total_tokens"] == used["total_tokens"]
    assert spend_of(store_gateway, key) == used["total_tokens"]


def test_a_background_stream_that_is_cut_is_charged(store_gateway: LiveGateway, model: str) -> None:
    key = store_gateway.make_key(max_budget=100_000)
    body = {"model": model, "input": "Hello", "max_output_tokens": 60, "ignore_eos": True}
    arguments = json_request({**body, "background": True, "stream": True})
    connection = connect(store_gateway.url)
    response = send(connection, "POST", RESPONSES, [*bearer(key), *arguments["headers"]], arguments["body"])
    assert response.read(200)
    response.close()
    connection.close()
    wait_until(lambda: logs_of(store_gateway, key), "it is charged")
    [row] = logs_of(store_gateway, key)
    assert row["completion_tokens"] == 60


def test_a_cancelled_response_is_charged(store_gateway: LiveGateway, model: str) -> None:
    key = store_gateway.make_key(max_budget=100_000)
    made = create(store_gateway, key, model, background=True, max_output_tokens=2000).json["id"]
    assert store_gateway.ask("POST", f"{RESPONSES}/{made}/cancel", key).json["status"] == "cancelled"
    wait_until(lambda: logs_of(store_gateway, key), "it is charged")
    [row] = logs_of(store_gateway, key)
    assert 0 < row["completion_tokens"] <= 2000


def test_a_background_response_must_be_stored(store_gateway: LiveGateway, model: str) -> None:
    key = store_gateway.make_key()
    answer = create(store_gateway, key, model, background=True, store="off")
    assert answer.error_code == (400, "invalid_request")
