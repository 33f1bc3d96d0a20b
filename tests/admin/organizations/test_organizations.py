"""Organizations: a level above teams, with models, limits, members and a spend of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Answer, Gateway
from twisted_vllm.ratelimit.allowance import Allowance, Limited


def new(gateway: Gateway, **fields: object) -> Any:
    answer = gateway.post("/organization/new", {"organization_id": "o", "organization_alias": "Org", **fields})
    assert answer.status == 200, answer.body
    return answer.json


def info(gateway: Gateway) -> Any:
    return gateway.get("/organization/info?organization_id=o").json


def update(gateway: Gateway, **fields: object) -> Answer:
    return gateway.call("PATCH", "/organization/update", body={"organization_id": "o", **fields})


def members(report: Any) -> dict[str, str]:
    return {member["user_id"]: member["user_role"] for member in report["members"]}


def test_an_organization_is_made_changed_and_shown(gateway: Gateway) -> None:
    made = new(gateway, models=["a"], max_budget=5, metadata={"a": 1, "b": 1})
    assert (made["organization_alias"], made["models"], made["max_budget"], made["spend"]) == ("Org", ["a"], 5, 0)
    assert made["litellm_budget_table"]["max_budget"] == 5
    assert info(gateway) == made
    assert gateway.post("/organization/info", {"organizations": ["o", "gone"]}).json == [made]
    changed = update(gateway, models=None, metadata={"b": 2}, rpm_limit=3).json
    assert (changed["models"], changed["metadata"], changed["rpm_limit"]) == ([], {"a": 1, "b": 2}, 3)
    assert (changed["max_budget"], changed["organization_alias"]) == (5, "Org")
    [entry] = gateway.get("/audit/list?action=organization/update").json["audit_logs"]
    assert (entry["before"]["models"], entry["after"]["models"]) == (["a"], [])


def test_its_models_and_limits_hold_for_the_keys_of_its_teams_and_for_its_own(gateway: Gateway) -> None:
    new(gateway, models=["a"], max_budget=5)
    gateway.post("/team/new", {"team_id": "x", "organization_id": "o"})
    limited = Limited("organization", "o", Allowance(max_budget=5 * 10**12))
    for fields in ({"team_id": "x"}, {"organization_id": "o"}, {"team_id": "x", "organization_id": "o"}):
        principal = gateway.principal_of(gateway.make_key(**fields)["token"])
        assert (principal.organization_id, principal.organization_models) == ("o", ("a",))
        assert limited in principal.limited
    assert [team["team_id"] for team in info(gateway)["teams"]] == ["x"]
    assert [team["team_id"] for team in gateway.get("/team/list?organization_id=o").json] == ["x"]
    assert len(gateway.get("/key/list?organization_id=o").json["keys"]) == 2


def test_its_limits_come_and_go_in_the_table_of_litellm_s_dashboard(gateway: Gateway) -> None:
    assert new(gateway)["litellm_budget_table"]["max_budget"] is None
    changed = update(gateway, max_budget=1, litellm_budget_table={"max_budget": 7, "tpm_limit": 5}).json
    assert (changed["max_budget"], changed["tpm_limit"]) == (7, 5)
    assert changed["litellm_budget_table"]["tpm_limit"] == 5
    assert update(gateway, litellm_budget_table={"max_budget": None}).json["max_budget"] is None
    assert update(gateway, litellm_budget_table=None).status == 200
    refused = update(gateway, litellm_budget_table={"max_buget": 1})
    assert (refused.status, refused.error["param"]) == (400, "litellm_budget_table.max_buget")
    patched = gateway.call("PATCH", "/v2/organization/o", body={"organization_alias": "New", "tpm_limit": None}).json
    assert (patched["organization_alias"], patched["tpm_limit"]) == ("New", None)
    assert gateway.call("PATCH", "/v2/organization/gone", body={}).status == 404


def test_a_member_sees_itself_in_its_organization_and_its_administrator_sees_all(gateway: Gateway) -> None:
    for name in ("o", "p"):
        new(gateway, organization_id=name)
    gateway.post("/team/new", {"team_id": "x", "organization_id": "o"})
    for user, role in (("ada", "org_admin"), ("bob", "internal_user")):
        gateway.post("/user/new", {"user_id": user, "auto_create_key": False})
        body = {"organization_id": "o", "member": {"user_id": user, "role": role}}
        assert gateway.post("/organization/member_add", body).status == 200
    keys = {name: gateway.make_key(user_id=name)["key"] for name in ("ada", "bob", "eve")}
    keys["team"] = gateway.make_key(team_id="x")["key"]
    seen = {name: gateway.get("/organization/list", key).json for name, key in keys.items()}
    assert {name: [each["organization_id"] for each in found] for name, found in seen.items()} == {
        "ada": ["o"],
        "bob": ["o"],
        "eve": [],
        "team": ["o"],
    }
    who = {name: sorted(members(found[0])) for name, found in seen.items() if found}
    assert who == {"ada": ["ada", "bob"], "bob": ["bob"], "team": []}
    assert [len(seen[name][0]["teams"]) for name in ("ada", "bob", "team")] == [1, 0, 1]
    assert gateway.get("/organization/info?organization_id=o", keys["bob"]).json == seen["bob"][0]
    refusals = [gateway.get(f"/organization/info?organization_id={name}", keys["bob"]) for name in ("p", "gone")]
    assert [each.status for each in refusals] == [403, 403]
    assert refusals[0].error == refusals[1].error
    assert gateway.get("/organization/list?org_id=p", keys["bob"]).json == []


def test_no_key_leaves_the_organization_of_its_team(gateway: Gateway) -> None:
    new(gateway)
    new(gateway, organization_id="p")
    gateway.post("/team/new", {"team_id": "x", "organization_id": "o"})
    gateway.post("/team/new", {"team_id": "y"})
    refused = gateway.post("/key/generate", {"team_id": "x", "organization_id": "p"})
    assert (refused.status, refused.error["param"]) == (400, "organization_id")
    gateway.make_key(team_id="y", organization_id="p")
    refused = gateway.post("/team/update", {"team_id": "y", "organization_id": "o"})
    assert (refused.status, refused.error["param"]) == (400, "organization_id")
    assert gateway.get("/team/info?team_id=y").json["team_info"]["organization_id"] is None


@pytest.mark.parametrize(("path", "body"), [("/key/generate", {}), ("/team/new", {"team_id": "x"})])
def test_nobody_belongs_to_an_organization_that_does_not_exist(gateway: Gateway, path: str, body: Any) -> None:
    refused = gateway.post(path, {**body, "organization_id": "gone"})
    assert (refused.status, refused.error["param"]) == (404, "organization_id")
    assert gateway.post(path, {**body, "organization_id": ""}).status == 200


def test_members_come_change_and_go_and_those_that_nobody_knew_are_made(gateway: Gateway) -> None:
    new(gateway)
    added = gateway.post(
        "/organization/member_add",
        {"organization_id": "o", "member": [{"user_id": "ada", "role": "org_admin"}, {"user_email": "B@c"}]},
    ).json
    assert [user["user_email"] for user in added["updated_users"]] == [None, "b@c"]
    assert [each["user_role"] for each in added["updated_organization_memberships"]] == ["org_admin", "internal_user"]
    bob = added["updated_users"][1]["user_id"]
    assert members(info(gateway)) == {"ada": "org_admin", bob: "internal_user"}
    assert gateway.get("/user/info?user_id=ada").json["user_info"]["organizations"] == ["o"]
    again = gateway.post("/organization/member_add", {"organization_id": "o", "member": {"user_id": "ada"}})
    assert (again.status, again.error["param"]) == (400, "member")

    body = {"organization_id": "o", "user_email": "b@c"}
    changed = gateway.call("PATCH", "/organization/member_update", body={**body, "role": "org_admin"})
    assert (changed.status, changed.json["user_role"]) == (200, "org_admin")
    gone = gateway.call("DELETE", "/organization/member_delete", body=body)
    assert (gone.status, gone.json["user_id"]) == (200, bob)
    assert members(info(gateway)) == {"ada": "org_admin"}
    assert gateway.call("DELETE", "/organization/member_delete", body=body).status == 404
    gateway.post("/user/delete", {"user_ids": ["ada"]})
    assert members(info(gateway)) == {}


def test_a_new_user_joins_organizations(gateway: Gateway) -> None:
    new(gateway)
    gateway.post("/user/new", {"user_id": "ada", "organizations": ["o"], "auto_create_key": False})
    assert members(info(gateway)) == {"ada": "internal_user"}
    refused = gateway.post("/user/new", {"user_id": "bob", "organizations": ["gone"]})
    assert (refused.status, refused.error["param"]) == (404, "organizations")
    assert gateway.get("/user/info?user_id=bob").status == 404


def test_a_deleted_organization_s_teams_and_keys_go_with_it(gateway: Gateway) -> None:
    new(gateway)
    gateway.post("/team/new", {"team_id": "x", "organization_id": "o", "members_with_roles": [{"user_id": "ada"}]})
    keys = [gateway.make_key(**fields)["key"] for fields in ({"team_id": "x"}, {"organization_id": "o"}, {})]
    refused = gateway.call("DELETE", "/organization/delete", body={"organization_ids": ["o", "gone"]})
    assert (refused.status, refused.error["param"]) == (404, "organization_ids")
    deleted = gateway.call("DELETE", "/organization/delete", body={"organization_ids": ["o"]})
    assert [each["organization_id"] for each in deleted.json] == ["o"]
    assert [gateway.get("/key/info", key).status for key in keys] == [401, 401, 200]
    assert gateway.get("/team/info?team_id=x").status == 404
    assert gateway.get("/organization/list").json == []
    assert gateway.get("/user/info?user_id=ada").status == 200


def test_organizations_are_listed_by_page_and_by_name(gateway: Gateway) -> None:
    for name in "abc":
        new(gateway, organization_id=name, organization_alias=f"Alias {name}")
    assert [each["organization_id"] for each in gateway.get("/organization/list").json] == ["a", "b", "c"]
    page = gateway.get("/organization/list?page=2&page_size=2").json
    assert [each["organization_id"] for each in page] == ["c"]
    assert [each["organization_id"] for each in gateway.get("/organization/list?org_alias=ALIAS+B").json] == ["b"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/organization/new", {"organization_id": "o", "organization_alias": "x"}, 409, "organization_id"),
        ("POST", "/organization/new", {}, 400, "organization_alias"),
        ("POST", "/organization/new", {"organization_alias": "sk-like-a-key"}, 400, "organization_alias"),
        ("POST", "/organization/new", {"organization_alias": "x", "allowed_models": ["a"]}, 400, "allowed_models"),
        ("PATCH", "/organization/update", {"organization_id": "gone"}, 404, "organization_id"),
        ("PATCH", "/organization/update", {"organization_id": "o", "spend": 1}, 400, "spend"),
        ("POST", "/organization/member_add", {"organization_id": "o", "member": {}}, 400, "member"),
        (
            "POST",
            "/organization/member_add",
            {"organization_id": "o", "member": {"user_id": "a"}, "max_budget_in_organization": 1},
            400,
            "max_budget_in_organization",
        ),
        ("PATCH", "/organization/member_update", {"organization_id": "o"}, 400, "user_id"),
        ("PATCH", "/organization/member_update", {"organization_id": "o", "user_id": "a"}, 404, "user_id"),
        ("DELETE", "/organization/delete", {"organization_ids": []}, 400, "organization_ids"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    gateway: Gateway, method: str, path: str, body: Any, status: int, param: str
) -> None:
    made = new(gateway)
    answer = gateway.call(method, path, body=body)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert gateway.get("/organization/list").json == [made]
