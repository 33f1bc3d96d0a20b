"""A budget for one model holds by whatever name, path and route the model is asked for."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
import pytest_twisted

from tests.end_to_end.end_to_end_harness import server_at
from tests.end_to_end.messages import whole
from twisted_vllm.config.settings import ModelEntry, PriceList, RoutingSettings

ANSWER = whole(json.dumps({"usage": {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}}).encode())
PRICES = PriceList(input_cost_per_token=Decimal("0.1"))
COMPLETIONS = "/v1/completions"
#: what a caller sends to use the model `qwen`
WAYS = (
    (COMPLETIONS, "qwen"),
    (COMPLETIONS, "mine"),
    (COMPLETIONS, "teams"),
    (COMPLETIONS, "group"),
    ("/engines/qwen/completions", "qwen"),
    ("/engines/mine/completions", "mine"),
    ("/engines/group/completions", None),
    ("/openai/deployments/teams/completions?api-version=1", None),
    ("/openai/deployments/%71wen/completions", None),
    ("/vllm/v1/completions", "qwen"),
    ("/vllm/completions", "group"),
    ("/openai/v1/completions", "group"),
)


async def ask(gateway: Any, key: str, path: str, model: str | None) -> int:
    body: dict[str, Any] = {"prompt": "a"} if model is None else {"model": model, "prompt": "a"}
    status: int = (await gateway.ask("POST", path, key, body=body)).status
    return status


async def holders(gateway: Any, holder: str, budget: dict[str, Any]) -> str:
    """Return a key whose own budget, or whose user's, team's and so on, is for `qwen` alone."""

    def fields(name: str) -> dict[str, Any]:
        return {"model_max_budget": budget} if name == holder else {}

    organization = {"organization_id": "acme", "organization_alias": "acme", **fields("organization")}
    team = {
        "team_id": "lab",
        "organization_id": "acme",
        "model_aliases": {"teams": "qwen"},
        "members_with_roles": [{"user_id": "ada", "role": "user"}],
        **fields("team"),
    }
    for path, body in (
        ("/organization/new", organization),
        ("/user/new", {"user_id": "ada", "auto_create_key": False, **fields("user")}),
        ("/team/new", team),
    ):
        answer = await gateway.ask("POST", path, body=body)
        assert answer.status == 200, answer.body
    if holder == "member":
        body = {"team_id": "lab", "user_id": "ada", "model_max_budget": budget}
        assert (await gateway.ask("POST", "/team/member_update", body=body)).status == 200
    made: str = await gateway.make_key(user_id="ada", team_id="lab", aliases={"mine": "qwen"}, **fields("key"))
    return made


@pytest.mark.parametrize("pattern", ["qwen", "q*", "*"])
@pytest.mark.parametrize("holder", ["key", "user", "team", "organization", "member"])
@pytest_twisted.ensureDeferred
async def test_the_budget_of_a_model_holds_by_each_of_its_names(
    holder: str, pattern: str, stand_in: Any, gateway_to: Any
) -> None:
    server = server_at(stand_in(ANSWER).port)
    gateway = gateway_to(
        server,
        models=(
            ModelEntry(pattern, "Qwen" if pattern == "qwen" else pattern, server, prices=PRICES),
            ModelEntry("other", "Other", server, prices=PRICES),
        ),
        routing=RoutingSettings(model_group_alias={"group": "qwen"}),
    )
    key = await holders(gateway, holder, {"qwen": 5})
    for number, (path, model) in enumerate(WAYS):
        status = await ask(gateway, key, path, model)
        assert status == (429 if number else 200), (path, model, status)
    assert await ask(gateway, key, COMPLETIONS, "other") == 200


@pytest.mark.parametrize(("path", "model"), WAYS)
@pytest_twisted.ensureDeferred
async def test_each_name_is_counted_for_the_budget_of_the_model(
    path: str, model: str | None, stand_in: Any, gateway_to: Any
) -> None:
    server = server_at(stand_in(ANSWER).port)
    gateway = gateway_to(
        server,
        models=(ModelEntry("qwen", "Qwen", server, prices=PRICES),),
        routing=RoutingSettings(model_group_alias={"group": "qwen"}),
    )
    key = await holders(gateway, "team", {"qwen": 5})
    assert await ask(gateway, key, path, model) == 200
    assert await ask(gateway, key, COMPLETIONS, "qwen") == 429


@pytest_twisted.ensureDeferred
async def test_a_fallback_is_paid_by_the_budget_of_the_model_that_answers(stand_in: Any, gateway_to: Any) -> None:
    broken, server = server_at(stand_in(whole(b"oh", status="503 Oh")).port), server_at(stand_in(ANSWER).port)
    gateway = gateway_to(
        None,
        models=(
            ModelEntry("first", "First", broken, prices=PRICES),
            ModelEntry("qwen", "Qwen", server, prices=PRICES),
        ),
        routing=RoutingSettings(num_retries=0, fallbacks={"first": ("qwen",)}),
    )
    key = await gateway.make_key(model_max_budget={"qwen": 5})
    assert await ask(gateway, key, COMPLETIONS, "first") == 200
    assert await ask(gateway, key, COMPLETIONS, "qwen") == 429
    assert await ask(gateway, key, COMPLETIONS, "first") != 200
