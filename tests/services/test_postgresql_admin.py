"""The key endpoints over a real PostgreSQL: what a client is told is what the next start will load."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from tests.admin.database_client import Client
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.database import Database


@pytest.fixture
def client(reactor: Any, postgresql_database: Database) -> Client:
    return Client(reactor, postgresql_database)


@pytest_twisted.ensureDeferred
async def test_a_key_lives_from_its_making_to_its_deletion(client: Client) -> None:
    fields = {
        "key_alias": "team",
        "models": ["qwen*"],
        "metadata": {"a": "\u0000 and ü", "n": 10**30},
        "duration": "1mo",
    }
    status, made = await client.ask("POST", "/key/generate", fields)
    assert status == 200
    [grant] = (await client.store.load()).keys
    assert (grant.token, grant.models) == (made["token"], ("qwen*",))
    assert (await client.ask("GET", "/key/info", key=made["key"]))[0] == 200

    assert (await client.ask("POST", "/key/generate", {"key": made["key"]}))[0] == 409
    assert (await client.ask("POST", "/key/generate", {"key_alias": "team"}))[0] == 409
    assert (await client.ask("GET", "/key/list"))[1]["keys"] == [made["token"]]

    assert await client.ask("POST", "/key/delete", {"keys": [made["key"]]}) == (200, {"deleted_keys": [made["key"]]})
    assert (await client.ask("GET", "/key/info", key=made["key"]))[0] == 401
    assert (await client.store.load()).keys == []


@pytest_twisted.ensureDeferred
async def test_without_its_database_the_gateway_makes_and_deletes_no_keys(
    client: Client, postgresql_database: Database
) -> None:
    _, made = await client.ask("POST", "/key/generate", {})
    await postgresql_database.stop()
    for path, body in (("/key/generate", {}), ("/key/delete", {"keys": [made["key"]]})):
        status, answer = await client.ask("POST", path, body)
        assert (status, answer["error"]["code"]) == (503, "database_unavailable")
    # it is still who it was; what else is known of it stands in the database
    assert (await client.ask("GET", "/key/info", key=made["key"]))[0] == 503
    assert (await client.ask("GET", "/user/list", key=made["key"]))[0] == 403


@pytest_twisted.ensureDeferred
async def test_users_teams_regeneration_and_the_audit_work_on_postgresql(client: Client) -> None:
    await client.ask("POST", "/team/new", {"team_id": "x", "models": ["a"], "members_with_roles": [{"user_id": "ada"}]})
    _, made = await client.ask("POST", "/user/new", {"user_id": "bob", "teams": ["x"], "key_alias": "first"})
    _, changed = await client.ask("POST", "/key/update", {"key_alias": "first", "team_id": "x", "aliases": {"g": "a"}})
    assert changed["aliases"] == {"g": "a"}
    _, new = await client.ask("POST", "/key/regenerate", {"key_alias": "first", "grace_period": "1h"})
    for key in (made["key"], new["key"]):
        assert (await client.ask("GET", "/user/info", key=key))[1]["user_id"] == "bob"
    await client.ask("POST", "/team/block", {"team_id": "x"})
    for key in (made["key"], new["key"]):
        assert (await client.ask("GET", "/key/info", key=key))[1]["error"]["code"] == "blocked_api_key"
    assert (await client.ask("GET", "/user/list?user_email="))[1]["total"] == 2
    assert (await client.ask("GET", "/key/aliases?search=FIR"))[1]["aliases"] == ["first"]
    assert await client.ask("POST", "/user/delete", {"user_ids": ["ada", "bob"]}) == (200, 2)
    assert (await client.ask("GET", "/key/info", key=new["key"]))[0] == 401
    assert await client.ask("POST", "/team/delete", {"team_ids": ["x"]}) == (200, {"deleted_teams": ["x"]})
    _, audit = await client.ask("GET", "/audit/list?page_size=100")
    assert [entry["id"] for entry in audit["audit_logs"]] == list(range(audit["total"], 0, -1))
    assert {entry["object_type"] for entry in audit["audit_logs"]} == {"key", "user", "team"}
    everything = await client.store.load()
    assert (everything.keys, everything.former, everything.users, everything.teams) == ([], [], {}, {})


@pytest_twisted.ensureDeferred
async def test_limits_spend_and_customers_work_on_postgresql(client: Client) -> None:
    limits = {"rpm_limit": 0, "model_tpm_limit": {"qwen": 5}, "max_budget": 0.1, "budget_duration": "1mo"}
    await client.ask("POST", "/team/new", {"team_id": "x", **limits, "members_with_roles": [{"user_id": "ada"}]})
    await client.ask("POST", "/user/update", {"user_id": "ada", **limits})
    status, made = await client.ask(
        "POST", "/key/generate", {"team_id": "x", "user_id": "ada", "cache_isolation": True, **limits}
    )
    assert status == 200
    status, customer = await client.ask("POST", "/customer/new", {"user_id": "eve", **limits})
    assert status == 200
    for shown in (
        made,
        customer,
        (await client.ask("GET", "/key/info", key=made["key"]))[1]["info"],
        (await client.ask("GET", "/user/info", key=made["key"]))[1]["user_info"],
        (await client.ask("GET", "/team/info?team_id=x"))[1]["team_info"],
        (await client.ask("GET", "/end_user/info?end_user_id=eve"))[1],
    ):
        assert {name: shown[name] for name in limits} == limits
    everything = await client.store.load()
    [grant] = everything.keys
    [user], [team], [end_user] = (
        everything.users.values(),
        everything.teams.values(),
        everything.end_users.values(),
    )
    assert grant.allowance == user.allowance == team.allowance == end_user.limited.allowance
    assert (grant.allowance.max_budget, len(grant.cache_salt or "")) == (10**11, 32)

    await client.store.change(lambda transaction: transaction.spend.set("key", grant.key_id, 2**62, 2**40))
    assert (await client.ask("GET", "/key/list?sort_by=spend&return_full_object=true"))[1]["keys"][0]["spend"] > 4e6
    status, reset = await client.ask("POST", f"/key/{made['token']}/reset_spend", {"reset_to": 0.05})
    assert (status, reset["spend"]) == (200, 0.05)
    assert (await client.ask("POST", f"/key/{made['token']}/reset_spend", {"reset_to": 1}))[0] == 409
    status, member = await client.ask(
        "POST", "/team/member_update", {"team_id": "x", "user_id": "ada", "role": "admin"}
    )
    assert (status, member["role"]) == (200, "admin")
    status, blocked = await client.ask("POST", "/customer/block", {"user_ids": ["eve", "bob"]})
    assert [each["blocked"] for each in blocked["blocked_users"]] == [True, True]
    assert len((await client.ask("GET", "/customer/list"))[1]) == 2
    assert (await client.ask("POST", "/customer/delete", {"user_ids": ["eve", "bob"]}))[0] == 200
    assert (await client.store.load()).end_users == {}


@pytest_twisted.ensureDeferred
async def test_models_are_kept_on_postgresql(client: Client) -> None:
    body = {
        "model_name": "qwen",
        "litellm_params": {"model": "hosted_vllm/Qwen", "api_base": "http://gpu", "api_key": "server-key"},
        "model_info": {"id": "one", "text": "\u0000 and ü"},
    }
    status, made = await client.ask("POST", "/model/new", body)
    assert (status, made["has_api_key"], made["model_info"]["text"]) == (200, True, "\u0000 and ü")
    assert (await client.ask("POST", "/model/new", body))[0] == 409
    change = {"litellm_params": {"weight": 3}}
    assert (await client.ask("PATCH", "/model/one/update", change))[1]["litellm_params"]["weight"] == 3
    [model] = (await client.store.load()).models.values()
    assert (model.litellm_params["weight"], client.sealer.key_of(model)) == (3, Secret("server-key"))
    assert await client.ask("POST", "/model/delete", {"id": "one"}) == (
        200,
        {"message": "Model: one deleted successfully"},
    )
    assert (await client.store.load()).models == {}
    _, audit = await client.ask("GET", "/audit/list?object_type=model")
    assert audit["total"] == 3
