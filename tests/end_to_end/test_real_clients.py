"""What SDKs, browsers and tools send, and what a gateway in front of a server answers them."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import MASTER_KEY
from tests.end_to_end.messages import OK, whole

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
PAGE = {"Origin": "https://page.example"}
WHERE = ["", "/vllm"]

#: what OpenAI's and Anthropic's SDKs ask for, and vLLM does not have
FOREIGN = [
    ("GET", "/v1/files"),
    ("POST", "/v1/moderations"),
    ("POST", "/v1/images/generations"),
    ("GET", "/v1/batches"),
    ("POST", "/v1/audio/speech"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("GET", "/v1/assistants"),
    ("POST", "/v1/vector_stores"),
    ("DELETE", "/v1/files/file-1"),
    ("GET", "/v1/messages/batches"),
    ("GET", "/v1/responses/resp_0a1b/input_items"),
    ("GET", "/v1/chat/completions/chatcmpl-1"),
]


@pytest.mark.parametrize("mount", WHERE)
@pytest.mark.parametrize(("method", "path"), FOREIGN)
@pytest_twisted.ensureDeferred
async def test_what_vllm_does_not_have_is_a_404_at_no_cost_to_the_server(
    mount: str, method: str, path: str, stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    answer = await gateway.ask(method, mount + path, await gateway.make_key())
    assert answer.status == 404
    assert answer.error["type"] == "invalid_request_error"
    assert answer.header("x-should-retry") == "false"
    assert server.connections == []


@pytest_twisted.ensureDeferred
async def test_a_plugin_s_route_can_be_opened(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(whole(b'{"detail":"Not Found"}', "404 Not Found"))
    gateway = gateway_to(server.port)
    for key in (MASTER_KEY, await gateway.make_key(allowed_routes=["/v1/files"])):
        answer = await gateway.ask("GET", "/vllm/v1/files", key)
        # vLLM's own answer
        assert answer.json == {"detail": "Not Found"}


@pytest.mark.parametrize("mount", WHERE)
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest_twisted.ensureDeferred
async def test_a_wrong_method_on_a_known_route_is_a_405_as_vllm_answers(
    mount: str, method: str, stand_in: Any, gateway_to: Any
) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    answer = await gateway.ask(method, f"{mount}/v1/chat/completions", await gateway.make_key(), body=CHAT)
    assert (answer.status, answer.error["code"], answer.header("allow")) == (405, "method_not_allowed", "POST")
    assert server.connections == []
    # the operator's goes to the server, which knows best
    assert (await gateway.ask(method, f"{mount}/v1/chat/completions", body=CHAT)).body == b"ok"


@pytest_twisted.ensureDeferred
async def test_what_only_the_operator_may_see_of_a_server_is_refused_as_such(stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    answer = await gateway.ask("GET", "/vllm/server_info", await gateway.make_key())
    assert (answer.status, answer.error["code"]) == (403, "route_not_allowed")
    assert "privileged" in answer.error["message"]
    assert server.connections == []
    assert (await gateway.ask("GET", "/vllm/server_info")).status == 200


@pytest.mark.parametrize("mount", WHERE)
@pytest_twisted.ensureDeferred
async def test_clients_are_told_not_to_retry_what_waiting_does_not_cure(
    mount: str, stand_in: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(stand_in(whole(b'{"usage":{"prompt_tokens":1,"total_tokens":1}}')).port)
    path = f"{mount}/v1/chat/completions"
    blocked = await gateway.make_key()
    await gateway.ask("POST", "/key/block", body={"key": blocked})
    refused = [
        await gateway.ask("POST", path, key, body=CHAT)
        for key in (
            None,
            "sk-unknown-0123456789",
            blocked,
            await gateway.make_key(models=["other"]),
            await gateway.make_key(max_budget=0),
            await gateway.make_key(rpm_limit=0),
        )
    ]
    assert [answer.status for answer in refused] == [401, 401, 401, 403, 429, 429]
    assert {answer.header("x-should-retry") for answer in refused} == {"false"}
    key = await gateway.make_key(rpm_limit=1)
    passed, waits = [await gateway.ask("POST", path, key, body=CHAT) for _ in range(2)]
    assert (passed.status, waits.status) == (200, 429)
    assert 0 < int(waits.header("retry-after") or 0) <= 60
    assert waits.header("x-should-retry") is passed.header("x-should-retry") is None


@pytest_twisted.ensureDeferred
async def test_what_may_pass_later_is_not_called_hopeless(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(b"this is not HTTP\r\n\r\n").port)
    answer = await gateway.ask("POST", "/v1/chat/completions", body=CHAT)
    assert (answer.status, answer.header("x-should-retry")) == (502, None)


@pytest.mark.parametrize("mount", WHERE)
@pytest_twisted.ensureDeferred
async def test_a_web_page_reads_why_it_was_refused(mount: str, stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(b"{}", more="access-control-allow-origin: *\r\n")).port)
    key = await gateway.make_key(rpm_limit=0)
    for caller, status in (("sk-unknown-0123456789", 401), (key, 429)):
        answer = await gateway.ask("POST", f"{mount}/v1/chat/completions", caller, headers=PAGE, body=CHAT)
        assert (answer.status, answer.header("access-control-allow-origin")) == (status, "*")
        exposed = set((answer.header("access-control-expose-headers") or "").split(", "))
        assert {"x-request-id", "retry-after", "x-should-retry", "x-ratelimit-remaining-requests"} <= exposed
    # the server's own answers are the server's
    answer = await gateway.ask("POST", f"{mount}/v1/chat/completions", headers=PAGE, body=CHAT)
    assert [value for name, value in answer.headers if name.lower() == b"access-control-allow-origin"] == [b"*"]
    # the admin API opens to no page by itself
    assert (await gateway.ask("GET", "/key/list", headers=PAGE)).header("access-control-allow-origin") is None


@pytest.mark.parametrize("mount", WHERE)
@pytest_twisted.ensureDeferred
async def test_a_key_may_come_without_a_scheme(mount: str, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    key = await gateway.make_key()
    answer = await gateway.ask("POST", f"{mount}/v1/completions", None, headers={"Authorization": key}, body=CHAT)
    assert answer.status == 200
    assert key.encode() not in server.received
    assert (await gateway.ask("GET", "/key/info", None, headers={"Authorization": key})).json["info"]["key_name"]
    wrong = await gateway.ask("POST", f"{mount}/v1/completions", None, headers={"Authorization": "sk-no"}, body=CHAT)
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")
    assert key not in gateway.log_text()


@pytest.mark.parametrize(
    "spelling", ["/v1/responses/{}", "/responses/{}", "/openai/v1/responses/{}", "/openai/responses/{}"]
)
@pytest_twisted.ensureDeferred
async def test_a_response_is_its_key_s_alone_at_the_root_too(spelling: str, stand_in: Any, gateway_to: Any) -> None:
    server = stand_in(OK)
    gateway = gateway_to(server.port)
    mine, other = await gateway.make_key(), await gateway.make_key()
    body = {"model": "m", "input": "hi"}
    assert (await gateway.ask("POST", spelling.removesuffix("/{}"), mine, body=body)).status == 200
    response_id = server.received.partition(b'"request_id":"')[2].partition(b'"')[0].decode()
    assert response_id.startswith("resp_")
    assert (await gateway.ask("GET", spelling.format(response_id), mine)).status == 200
    for path, method in ((spelling, "GET"), (spelling + "/cancel", "POST")):
        answer = await gateway.ask(method, path.format(response_id), other)
        assert (answer.status, answer.error["code"]) == (404, "response_not_found")
