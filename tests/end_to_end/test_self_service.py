"""A person makes keys for itself, and they do what the person may do."""

from __future__ import annotations

from typing import Any

import pytest_twisted

from tests.end_to_end.end_to_end_harness import MASTER_KEY
from tests.end_to_end.messages import OK
from twisted_vllm.config.settings import SelfServiceSettings

CHAT = "/vllm/v1/chat/completions"


def hi(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest_twisted.ensureDeferred
async def test_a_key_that_a_user_made_has_the_models_of_the_user_and_works_at_once(
    stand_in: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(stand_in(OK).port)
    body = {"user_id": "grace", "models": ["qwen*"], "rpm_limit": 3}
    graces = (await gateway.ask("POST", "/user/new", body=body)).json["key"]
    made = await gateway.ask("POST", "/key/generate", graces, body={"key_alias": "notebook"})
    assert made.status == 200
    notebook = made.json["key"]
    assert (await gateway.ask("POST", CHAT, notebook, body=hi("qwen"))).status == 200
    assert (await gateway.ask("POST", CHAT, notebook, body=hi("llama"))).error["code"] == "model_not_allowed"
    # the user's limit counts both keys together
    statuses = [(await gateway.ask("POST", CHAT, key, body=hi("qwen"))).status for key in (graces, notebook, graces)]
    assert statuses == [200, 200, 429]
    assert (await gateway.ask("POST", "/key/block", graces, body={"key": notebook})).status == 200
    assert (await gateway.ask("POST", CHAT, notebook, body=hi("qwen"))).error["code"] == "blocked_api_key"


@pytest_twisted.ensureDeferred
async def test_a_role_that_is_taken_away_ends_what_its_keys_may_do(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port)
    body = {"user_id": "boss", "user_role": "proxy_admin"}
    boss = (await gateway.ask("POST", "/user/new", body=body)).json["key"]
    assert (await gateway.ask("GET", "/user/list", boss)).status == 200
    body = {"user_id": "boss", "user_role": "internal_user"}
    assert (await gateway.ask("POST", "/user/update", MASTER_KEY, body=body)).status == 200
    assert (await gateway.ask("GET", "/user/list", boss)).status == 403
    # roles say nothing about vLLM's routes
    assert (await gateway.ask("POST", "/vllm/sleep", boss)).status == 403


@pytest_twisted.ensureDeferred
async def test_the_operator_says_how_much_people_may_change(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port, self_service=SelfServiceSettings(max_changes=2))
    graces = (await gateway.ask("POST", "/user/new", body={"user_id": "grace"})).json["key"]
    statuses = [(await gateway.ask("POST", "/key/generate", graces, body={})).status for _ in range(3)]
    assert statuses == [200, 200, 429]


@pytest_twisted.ensureDeferred
async def test_the_operator_may_leave_changes_to_administrators(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port, self_service=SelfServiceSettings(enabled=False))
    graces = (await gateway.ask("POST", "/user/new", body={"user_id": "grace"})).json["key"]
    answer = await gateway.ask("POST", "/key/generate", graces, body={})
    assert (answer.status, answer.error["code"]) == (403, "route_not_allowed")
    assert "passthrough.self_service.enabled" in answer.error["message"]
    assert (await gateway.ask("GET", "/key/list", graces)).json["total_count"] == 1
