"""What a member may spend in a team: limits of its own, and those that the team gives each member."""

from __future__ import annotations

from typing import Any

from tests.admin.admin_harness import Gateway
from twisted_vllm.ratelimit.allowance import Allowance, Limited


def membership(gateway: Gateway, user_id: str = "ada") -> Any:
    found = gateway.get("/team/info?team_id=x").json["team_memberships"]
    return next(each for each in found if each["user_id"] == user_id)


def limit_of(gateway: Gateway, token: str) -> Allowance | None:
    limits = {each.kind: each.allowance for each in gateway.principal_of(token).limited}
    return limits.get("member")


def test_a_member_gets_a_budget_in_the_team_that_holds_for_its_keys_there(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x"})
    key = gateway.make_key(team_id="x", user_id="ada")["token"]
    other = gateway.make_key(user_id="ada")["token"]
    added = gateway.post(
        "/team/member_add",
        {"team_id": "x", "member": {"user_id": "ada"}, "max_budget_in_team": 2, "budget_duration": "1d"},
    )
    [shown] = added.json["updated_team_memberships"]
    assert (shown["litellm_budget_table"]["max_budget"], shown["spend"]) == (2, 0)
    principal = gateway.principal_of(key)
    limit = Limited("member", "x\x1fada", Allowance(max_budget=2 * 10**12, budget_duration="1d"))
    assert limit in principal.limited
    assert limit_of(gateway, other) is None

    changed = gateway.post(
        "/team/member_update", {"team_id": "x", "user_id": "ada", "max_budget_in_team": 3, "rpm_limit": 5}
    ).json
    assert (changed["max_budget_in_team"], changed["budget_duration"], changed["rpm_limit"]) == (3, "1d", 5)
    assert limit_of(gateway, key) == Allowance(rpm=5, max_budget=3 * 10**12, budget_duration="1d")
    [entry] = gateway.get("/audit/list?action=team/member_update").json["audit_logs"]
    assert entry["before"]["member_limits"]["ada"]["max_budget"] == 2
    assert entry["after"]["member_limits"]["ada"] == {"max_budget": 3.0, "budget_duration": "1d", "rpm_limit": 5}
    gateway.post(
        "/team/member_update",
        {"team_id": "x", "user_id": "ada", "max_budget_in_team": None, "rpm_limit": None, "budget_duration": None},
    )
    assert limit_of(gateway, key) is None
    assert membership(gateway)["litellm_budget_table"] is None


def test_a_team_gives_each_member_limits_and_a_member_s_own_win(gateway: Gateway) -> None:
    made = gateway.post(
        "/team/new",
        {
            "team_id": "x",
            "team_member_budget": 5,
            "team_member_rpm_limit": 9,
            "members_with_roles": [{"user_id": "ada"}],
        },
    ).json
    assert (made["team_member_budget_table"]["max_budget"], made["team_member_budget_table"]["rpm_limit"]) == (5, 9)
    gateway.post("/team/member_add", {"team_id": "x", "member": {"user_id": "bob"}, "max_budget_in_team": 1})
    keys = {name: gateway.make_key(team_id="x", user_id=name)["token"] for name in ("ada", "bob")}
    assert limit_of(gateway, keys["ada"]) == Allowance(rpm=9, max_budget=5 * 10**12)
    assert limit_of(gateway, keys["bob"]) == Allowance(rpm=9, max_budget=10**12)
    gateway.post("/team/update", {"team_id": "x", "team_member_budget": 7, "team_member_budget_duration": "1d"})
    assert limit_of(gateway, keys["ada"]) == Allowance(rpm=9, max_budget=7 * 10**12, budget_duration="1d")
    assert limit_of(gateway, keys["bob"]) == Allowance(rpm=9, max_budget=10**12)
    gateway.post("/team/delete", {"team_ids": ["x"]})
    assert gateway.get("/budget/list").json == []


def test_a_team_that_gives_limits_later_gives_them_to_all_its_members(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x", "members_with_roles": [{"user_id": "ada"}]})
    key = gateway.make_key(team_id="x", user_id="ada")["token"]
    assert limit_of(gateway, key) is None
    gateway.post("/team/update", {"team_id": "x", "team_member_tpm_limit": 100})
    assert limit_of(gateway, key) == Allowance(tpm=100)
    assert membership(gateway)["litellm_budget_table"]["tpm_limit"] == 100


def test_a_new_user_s_teams_say_what_it_may_spend_there(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x"})
    made = gateway.post(
        "/user/new",
        {"user_id": "ada", "teams": [{"team_id": "x", "user_role": "admin", "max_budget_in_team": 2}], "team_id": "x"},
    ).json
    assert (made["teams"], made["team_id"]) == (["x"], "x")
    assert membership(gateway)["litellm_budget_table"]["max_budget"] == 2
    assert gateway.get("/team/info?team_id=x").json["team_info"]["members_with_roles"][0]["role"] == "admin"
    assert limit_of(gateway, made["token_id"]) == Allowance(max_budget=2 * 10**12)


def test_members_are_added_each_on_its_own(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x", "members_with_roles": [{"user_id": "ada"}]})
    answer = gateway.post(
        "/team/bulk_member_add",
        {"team_id": "x", "members": [{"user_id": "ada"}, {"user_email": "b@c"}], "max_budget_in_team": 4},
    ).json
    assert (answer["total_requested"], answer["successful_additions"], answer["failed_additions"]) == (2, 1, 1)
    first, second = answer["results"]
    assert (first["success"], first["user_id"]) == (False, "ada")
    assert "already" in first["error"]
    assert second["updated_team_membership"]["litellm_budget_table"]["max_budget"] == 4
    assert membership(gateway)["litellm_budget_table"] is None
    gateway.post("/user/new", {"user_id": "cyd", "auto_create_key": False})
    answer = gateway.post("/team/bulk_member_add", {"team_id": "x", "all_users": True}).json
    assert [each["user_id"] for each in answer["results"] if each["success"]] == ["cyd"]
