"""``general_settings.enforce_user_param``: a request to an inference route names its end user, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import MASTER_KEY, request_bytes
from tests.end_to_end.ledger_harness import ANSWER
from tests.end_to_end.messages import whole
from twisted_vllm.config.settings import EndUserSettings, LedgerSettings

CHAT = "/vllm/v1/chat/completions"
HI: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
#: larger than what is read of a body that no decision needs
LONG: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi" * 50_000}]}


@pytest.mark.parametrize("ledger", [True, False], ids=["with a ledger", "without"])
@pytest.mark.parametrize("body", [HI, LONG], ids=["short", "long"])
@pytest_twisted.ensureDeferred
async def test_a_request_without_an_end_user_is_refused(
    stand_in: Any, gateway_to: Any, body: dict[str, Any], ledger: bool
) -> None:
    server = stand_in(whole(ANSWER))
    gateway = gateway_to(server.port, enforce_user_param=True, ledger=LedgerSettings(enabled=ledger))
    for key in (await gateway.make_key(), MASTER_KEY):
        for empty in ({}, {"user": ""}, {"user": None}):
            answer = await gateway.ask("POST", CHAT, key, body={**body, **empty})
            assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_request", "user")
            assert "x-litellm-end-user-id" in answer.error["message"]
    assert server.connections == []
    assert (await gateway.ask("POST", CHAT, body={**body, "user": "eve"})).status == 200
    assert (await gateway.ask("POST", CHAT, headers={"x-litellm-end-user-id": "eve"}, body=body)).status == 200


@pytest_twisted.ensureDeferred
async def test_routes_that_use_no_model_need_none(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port, enforce_user_param=True)
    for path in ("/vllm/v1/models", "/vllm/metrics", "/vllm/health"):
        assert (await gateway.ask("GET", path)).status == 200


@pytest_twisted.ensureDeferred
async def test_a_form_and_a_websocket_name_the_end_user_in_a_header(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port, enforce_user_param=True)
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
    named = {"x-litellm-end-user-id": "eve"}
    for method, path, body, headers in (
        ("POST", "/vllm/v1/audio/transcriptions", form, {"Content-Type": "multipart/form-data; boundary=x"}),
        ("GET", "/vllm/v1/realtime", b"", {}),
    ):
        for more, status in (({}, 400), (named, 200)):
            length = {"Content-Length": str(len(body))} if body else {}
            raw = request_bytes(method, path, headers={**headers, **more, **length}) + body
            assert (await gateway.answer_to(raw)).status == status, (path, more)


@pytest_twisted.ensureDeferred
async def test_litellms_header_names_the_end_user_too_and_the_gateways_own_wins(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port, enforce_user_param=True, user_header_name="x-openwebui-user-id")
    await gateway.ask("POST", "/customer/block", body={"user_ids": ["eve"]})
    for headers, status in (
        ({"X-OpenWebUI-User-Id": "bob"}, 200),
        ({"X-OpenWebUI-User-Id": "eve"}, 403),
        ({"X-OpenWebUI-User-Id": "eve", "x-litellm-end-user-id": "bob"}, 200),
    ):
        assert (await gateway.ask("POST", CHAT, headers=headers, body=HI)).status == status


@pytest_twisted.ensureDeferred
async def test_without_a_header_the_message_names_the_body_alone(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(whole(ANSWER)).port, enforce_user_param=True, end_users=EndUserSettings(headers=()))
    answer = await gateway.ask("POST", CHAT, body=HI)
    assert answer.error["message"].endswith('send it in the body as "user".')
