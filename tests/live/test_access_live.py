"""Authorization, with a real vLLM behind the gateway."""

from __future__ import annotations

import re
from http.client import HTTPConnection, HTTPResponse

import pytest

from tests.live.live_gateway import LiveGateway, ask, bearer, connect, json_request, send, wait_until
from tests.live.live_servers import ALIAS

CHAT = "/vllm/v1/chat/completions"

#: what takes vLLM seconds to write, and is more than others write meanwhile who use the same server
MANY_TOKENS, CHOICES = 1900, 8
#: a busy machine may stop this process until vLLM has written it all
ATTEMPTS = 5

PRIVILEGED = [
    ("POST", "/sleep?level=2"),
    ("POST", "/wake_up"),
    ("POST", "/collective_rpc"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/start_profile"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/inference/v1/abort_requests"),
    ("GET", "/server_info"),
    # what vLLM reads as /sleep
    ("POST", "/%73leep"),
    ("POST", "//sleep"),
    ("POST", "/v1/../sleep"),
]


def hello(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, **more}


def test_a_deleted_key_is_refused_on_the_next_request(gateway: LiveGateway, chat_model: str) -> None:
    key = gateway.make_key()
    assert gateway.ask("POST", CHAT, key, **json_request(hello(chat_model))).status == 200
    deleted = gateway.ask("POST", "/key/delete", gateway.master_key, **json_request({"keys": [key]}))
    assert deleted.status == 200
    answer = gateway.ask("POST", CHAT, key, **json_request(hello(chat_model)))
    assert answer.error_code == (401, "invalid_api_key")


def test_a_blocked_key_is_refused(gateway: LiveGateway) -> None:
    answer = gateway.ask("GET", "/vllm/v1/models", gateway.make_key(blocked=True))
    assert answer.error_code == (401, "blocked_api_key")


def test_a_key_is_refused_once_its_time_is_over(gateway: LiveGateway) -> None:
    key = gateway.make_key(duration="1s")
    wait_until(lambda: gateway.ask("GET", "/vllm/v1/models", key).status == 401, "the key expires", patience=5)
    assert gateway.ask("GET", "/vllm/v1/models", key).error_code == (401, "expired_api_key")


def test_a_key_for_one_model_reaches_no_other(gateway: LiveGateway, chat_model: str) -> None:
    key = gateway.make_key(models=[ALIAS])
    assert gateway.ask("POST", CHAT, key, **json_request(hello(ALIAS))).status == 200
    refused = gateway.ask("POST", CHAT, key, **json_request(hello(chat_model)))
    assert refused.error_code == (403, "model_not_allowed")
    # two models, or a hidden one: vLLM would take the last
    body = f'{{"model": "{ALIAS}", "messages": [], "mod\\u0065l": "{chat_model}"}}'.encode()
    headers = [("Content-Type", "application/json")]
    assert gateway.ask("POST", CHAT, key, headers, body).error_code == (400, "model_undetermined")


@pytest.mark.usefixtures("score_url")
def test_a_key_for_the_chat_model_gets_no_scores(gateway: LiveGateway, chat_model: str, score_model: str) -> None:
    key = gateway.make_key(models=[chat_model])
    body = {"model": score_model, "text_1": "a", "text_2": "b"}
    answer = gateway.ask("POST", "/vllm/score", key, **json_request(body))
    assert answer.error_code == (403, "model_not_allowed")


@pytest.mark.parametrize(("method", "path"), PRIVILEGED)
def test_a_virtual_key_reaches_no_privileged_route(
    method: str, path: str, gateway: LiveGateway, virtual_key: str
) -> None:
    answer = gateway.ask(method, f"/vllm{path}", virtual_key, **json_request({}))
    assert answer.error_code == (403, "route_not_allowed")
    request_id = answer.header("x-request-id")
    assert request_id is not None
    record = gateway.record_of(request_id)
    assert (record["server"], record["outcome"], record["error"]) == ("", "refused", "route_not_allowed")


@pytest.mark.parametrize("path", ["/a-plugin-s-route", "/v1/files", "/v1/models/"])
def test_what_vllm_does_not_have_is_a_404_for_a_virtual_key_at_no_cost_to_the_server(
    path: str, gateway: LiveGateway, vllm_url: str, virtual_key: str
) -> None:
    answer = gateway.ask("GET", f"/vllm{path}", virtual_key)
    assert answer.error_code == (404, "route_not_found")
    request_id = answer.header("x-request-id")
    assert request_id is not None
    assert gateway.record_of(request_id)["server"] == ""
    if not path.endswith("/"):
        # and vLLM's own for whoever may call what is not known
        assert gateway.ask("GET", f"/vllm{path}", gateway.master_key).body == ask(vllm_url, "GET", path).body


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_a_method_that_a_route_does_not_have_is_a_405_as_vllm_answers(
    method: str, gateway: LiveGateway, vllm_url: str, virtual_key: str
) -> None:
    directly = ask(vllm_url, method, "/v1/chat/completions")
    for mount in ("", "/vllm"):
        answer = gateway.ask(method, f"{mount}/v1/chat/completions", virtual_key)
        assert answer.error_code == (405, "method_not_allowed")
        assert (answer.status, answer.header("allow")) == (directly.status, directly.header("allow"))


def test_a_key_that_was_given_a_privileged_route_reaches_it_and_no_other(gateway: LiveGateway, vllm_url: str) -> None:
    key = gateway.make_key(allowed_routes=["/server_info"])
    answer = gateway.ask("GET", "/vllm/server_info", key)
    assert (answer.status, answer.body) == (404, ask(vllm_url, "GET", "/server_info").body)
    assert gateway.ask("POST", "/vllm/sleep", key).error_code == (403, "route_not_allowed")


def test_the_log_tells_what_a_request_was(gateway: LiveGateway, chat_model: str) -> None:
    key = gateway.make_key(key_alias="team-live")
    answer = gateway.ask("POST", CHAT, key, **json_request(hello(chat_model)))
    request_id = answer.header("x-request-id")
    assert request_id is not None
    record = gateway.record_of(request_id)
    told = {name: record[name] for name in ("key_name", "method", "route", "model", "status", "outcome", "bytes_out")}
    assert told == {
        "key_name": "team-live",
        "method": "POST",
        "route": "/v1/chat/completions",
        "model": chat_model,
        "status": 200,
        "outcome": "completed",
        "bytes_out": len(answer.body),
    }


def test_a_key_in_the_wrong_place_stays_out_of_the_log(gateway: LiveGateway, virtual_key: str) -> None:
    misplaced = [
        gateway.ask("GET", f"/vllm/v1/models/{virtual_key}", virtual_key),
        gateway.ask("GET", f"/vllm/v1/models?api_key={virtual_key}", virtual_key),
        gateway.ask("POST", CHAT, virtual_key, **json_request(hello(virtual_key))),
        gateway.ask("GET", f"/{virtual_key}"),
    ]
    for answer in misplaced:
        request_id = answer.header("x-request-id")
        assert request_id is not None
        gateway.record_of(request_id)
    assert virtual_key not in gateway.written()


# clients that go away


def metric(vllm_url: str, name: str) -> float:
    """Return the sum of a metric's samples."""
    text = ask(vllm_url, "GET", "/metrics").body.decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))


def begin(gateway: LiveGateway, key: str, request_id: str, body: dict[str, object]) -> HTTPConnection:
    """Send a request that takes vLLM seconds; do not wait for the answer."""
    arguments = json_request(body)
    connection = connect(gateway.url)
    connection.request(
        "POST", CHAT, arguments["body"], dict([*bearer(key), *arguments["headers"], ("X-Request-Id", request_id)])
    )
    return connection


def leave(gateway: LiveGateway, vllm_url: str, key: str, request_id: str, body: dict[str, object]) -> dict[str, object]:
    """Go away while vLLM generates, or after it if this process was too slow; return the request's record."""
    connection = begin(gateway, key, request_id, body)
    response: HTTPResponse | None = None
    try:
        if body["stream"]:
            response = connection.getresponse()
            assert response.readline().startswith(b"data: {")
        wait_until(
            lambda: metric(vllm_url, "vllm:num_requests_running") >= 1 or request_id in gateway.written(),
            "vLLM generates",
        )
    finally:
        connection.close()
        if response is not None:
            response.close()
    return gateway.record_of(request_id)


@pytest.mark.parametrize("stream", [True, False], ids=["in a stream", "before the answer"])
def test_a_client_that_goes_away_ends_the_generation(
    stream: bool, gateway: LiveGateway, vllm_url: str, chat_model: str, virtual_key: str
) -> None:
    body = hello(chat_model, stream=stream) | {"max_tokens": MANY_TOKENS, "ignore_eos": True, "n": CHOICES}
    for attempt in range(ATTEMPTS):
        written_before = metric(vllm_url, "vllm:generation_tokens_total")
        record = leave(gateway, vllm_url, virtual_key, f"gone-{stream}-{attempt}", body)
        if record["outcome"] != "completed":
            break
    assert record["outcome"] == "client_disconnected"
    assert record["status"] == (200 if stream else 0)
    wait_until(lambda: metric(vllm_url, "vllm:num_requests_running") == 0, "vLLM is idle")
    # (vLLM 0.32 counts no abort for it in vllm:request_success_total)
    assert metric(vllm_url, "vllm:generation_tokens_total") - written_before < CHOICES * MANY_TOKENS


def test_a_stream_goes_on_while_its_key_is_deleted(gateway: LiveGateway, chat_model: str) -> None:
    key = gateway.make_key()
    arguments = json_request(hello(chat_model, stream=True) | {"max_tokens": 100, "ignore_eos": True})
    connection = connect(gateway.url)
    try:
        response = send(connection, "POST", CHAT, bearer(key) + arguments["headers"], arguments["body"])
        first = response.readline()
        gateway.ask("POST", "/key/delete", gateway.master_key, **json_request({"keys": [key]}))
        rest = response.read()
    finally:
        connection.close()
    assert first.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")


def test_a_key_with_a_cache_of_its_own_is_answered(gateway: LiveGateway, chat_model: str) -> None:
    key = gateway.make_key(cache_isolation=True)
    for more in ({}, {"cache_salt": "mine"}, {"stream": True}):
        answer = gateway.ask("POST", CHAT, key, **json_request(hello(chat_model, **more)))
        assert answer.status == 200, answer.body


def test_a_limit_counts_what_vllm_counts(gateway: LiveGateway, chat_model: str) -> None:
    key = gateway.make_key(rpm_limit=2, tpm_limit=100_000)
    first, second, third = (gateway.ask("POST", CHAT, key, **json_request(hello(chat_model))) for _ in range(3))
    assert (first.status, second.status) == (200, 200)
    assert third.error_code == (429, "rate_limit_exceeded")
    # the first was settled to what vLLM counted, which is less than was reserved for it
    left = [int(answer.header("x-ratelimit-remaining-tokens") or 0) for answer in (second, third)]
    assert left[1] == 100_000 - first.json["usage"]["total_tokens"] - second.json["usage"]["total_tokens"]
    assert left[0] < left[1]
