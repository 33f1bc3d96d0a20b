"""Whoever is deleted and made again with the same id has spent nothing; whoever stays has spent what it spent."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.end_to_end_harness import MASTER_KEY, server_at
from tests.end_to_end.test_model_budgets_by_any_name import ANSWER, COMPLETIONS, PRICES
from twisted_vllm.config.settings import ModelEntry

BUDGETS: dict[str, dict[str, Any]] = {"all models": {"max_budget": 5}, "one model": {"model_max_budget": {"qwen": 5}}}


class Tenant:
    """A gateway, and requests to it that cost more than a budget of 5."""

    def __init__(self, gateway: Any, reactor: Any) -> None:
        self.gateway = gateway
        self.reactor = reactor
        self.requests = 0

    async def post(self, path: str, key: str = MASTER_KEY, method: str = "POST", **body: Any) -> Any:
        answer = await self.gateway.ask(method, path, key, body=body)
        assert answer.status == 200, (path, answer.body)
        return answer.json

    async def spend(self, key: str, **fields: Any) -> int:
        body = {"model": "qwen", "prompt": "a", **fields}
        status: int = (await self.gateway.ask("POST", COMPLETIONS, key, body=body)).status
        return status

    async def is_exhausted(self, key: str, **fields: Any) -> None:
        """Spend a budget, and wait until the database knows of it."""
        assert [await self.spend(key, **fields) for _ in range(2)] == [200, 429]
        await self.is_written()

    async def is_written(self) -> None:
        """Wait until the database knows of one request more, and of all spend."""
        self.requests += 1
        writer = self.gateway.service.wiring.accounting.writer
        for _ in range(1000):
            rows = await self.gateway.ask("GET", "/spend/logs/v2?status_filter=success")
            if rows.json["total"] >= self.requests and not writer.pending().gathered:
                return
            await deferLater(self.reactor, 0.01, lambda: None)
        raise AssertionError(rows.body)


@pytest.fixture
def tenant(stand_in: Any, gateway_to: Any, reactor: Any) -> Tenant:
    server = server_at(stand_in(ANSWER).port)
    return Tenant(gateway_to(None, models=(ModelEntry("qwen", "Qwen", server, prices=PRICES),)), reactor)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest_twisted.ensureDeferred
async def test_a_user_that_is_made_again(budget: str, tenant: Tenant) -> None:
    for _ in range(2):
        key = (await tenant.post("/user/new", user_id="ada", **BUDGETS[budget]))["key"]
        await tenant.is_exhausted(key)
        await tenant.post("/user/delete", user_ids=["ada"])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest_twisted.ensureDeferred
async def test_a_team_that_is_made_again(budget: str, tenant: Tenant) -> None:
    for _ in range(2):
        await tenant.post("/team/new", team_id="lab", **BUDGETS[budget])
        await tenant.is_exhausted((await tenant.post("/key/generate", team_id="lab"))["key"])
        await tenant.post("/team/delete", team_ids=["lab"])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest_twisted.ensureDeferred
async def test_an_organization_that_is_made_again(budget: str, tenant: Tenant) -> None:
    for _ in range(2):
        await tenant.post("/organization/new", organization_id="acme", organization_alias="acme", **BUDGETS[budget])
        key = (await tenant.post("/key/generate", organization_id="acme"))["key"]
        await tenant.is_exhausted(key)
        await tenant.post("/key/delete", keys=[key])
        await tenant.post("/organization/delete", method="DELETE", organization_ids=["acme"])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest_twisted.ensureDeferred
async def test_a_customer_that_is_made_again(budget: str, tenant: Tenant) -> None:
    key = (await tenant.post("/key/generate"))["key"]
    for _ in range(2):
        await tenant.post("/customer/new", user_id="shop", **BUDGETS[budget])
        await tenant.is_exhausted(key, user="shop")
        await tenant.post("/customer/delete", user_ids=["shop"])


@pytest.mark.parametrize("again", ["removed by an administrator", "of a user that is made again"])
@pytest_twisted.ensureDeferred
async def test_a_member_that_is_made_again(again: str, tenant: Tenant) -> None:
    await tenant.post("/team/new", team_id="lab", team_member_budget=5)
    await tenant.post("/user/new", user_id="ada", auto_create_key=False)
    for _ in range(2):
        await tenant.post("/team/member_add", team_id="lab", member={"user_id": "ada", "role": "user"})
        await tenant.is_exhausted((await tenant.post("/key/generate", team_id="lab", user_id="ada"))["key"])
        if again.startswith("removed"):
            await tenant.post("/team/member_delete", team_id="lab", user_id="ada")
        else:
            await tenant.post("/user/delete", user_ids=["ada"])
            await tenant.post("/user/new", user_id="ada", auto_create_key=False)


@pytest.mark.parametrize("at_once", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_member_that_another_member_removed_and_added_has_spent_its_budget(
    at_once: bool, tenant: Tenant
) -> None:
    await tenant.post("/user/new", user_id="ada", auto_create_key=False)
    eve = (await tenant.post("/user/new", user_id="eve"))["key"]
    members = [{"user_id": "eve", "role": "admin"}, {"user_id": "ada", "role": "user"}]
    await tenant.post("/team/new", team_id="lab", members_with_roles=members, team_member_budget=5)
    adas = (await tenant.post("/key/generate", team_id="lab", user_id="ada"))["key"]
    if at_once:
        # before the database knows what was spent
        assert await tenant.spend(adas) == 200
    else:
        await tenant.is_exhausted(adas)
    await tenant.post("/team/member_delete", eve, team_id="lab", user_id="ada")
    if at_once:
        await tenant.is_written()
    await tenant.post("/team/member_add", eve, team_id="lab", member={"user_id": "ada", "role": "admin"})
    assert await tenant.spend((await tenant.post("/key/generate", team_id="lab", user_id="ada"))["key"]) == 429
    # nor does another role begin a new budget
    await tenant.post("/team/member_update", team_id="lab", user_id="ada", role="user")
    assert await tenant.spend((await tenant.post("/key/generate", team_id="lab", user_id="ada"))["key"]) == 429


@pytest.mark.parametrize("budget", BUDGETS)
@pytest_twisted.ensureDeferred
async def test_a_budget_that_is_taken_away_and_given_again_counts_what_was_spent(budget: str, tenant: Tenant) -> None:
    key = (await tenant.post("/user/new", user_id="ada", **BUDGETS[budget]))["key"]
    await tenant.is_exhausted(key)
    nothing: Any = dict.fromkeys(BUDGETS[budget])
    await tenant.post("/user/update", user_id="ada", **nothing)
    assert await tenant.spend(key) == 200
    await tenant.post("/user/update", user_id="ada", **BUDGETS[budget])
    assert await tenant.spend(key) == 429


@pytest_twisted.ensureDeferred
async def test_a_team_in_another_organization_spends_the_budget_of_that_one(tenant: Tenant) -> None:
    for name in ("acme", "zeta"):
        await tenant.post("/organization/new", organization_id=name, organization_alias=name, max_budget=5)
    await tenant.post("/team/new", team_id="lab", organization_id="acme")
    key = (await tenant.post("/key/generate", team_id="lab"))["key"]
    await tenant.is_exhausted(key)
    await tenant.post("/team/update", team_id="lab", organization_id="zeta")
    await tenant.is_exhausted(key)
    await tenant.post("/team/update", team_id="lab", organization_id="acme")
    assert await tenant.spend(key) == 429
