from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway


def new(gateway: Gateway, **fields: object) -> Any:
    answer = gateway.post("/team/new", fields)
    assert answer.status == 200, answer.body
    return answer.json


def members(answer: Any) -> dict[str, str]:
    return {member["user_id"]: member["role"] for member in answer["members_with_roles"]}


def test_a_team_is_made_with_its_members_and_shown(gateway: Gateway) -> None:
    made = new(
        gateway,
        team_id="x",
        team_alias="Engines",
        models=["a*"],
        metadata={"a": 1},
        members_with_roles=[{"user_id": "ada", "role": "admin"}, {"user_id": "bob"}],
    )
    assert (made["team_id"], made["team_alias"], made["models"], made["blocked"]) == ("x", "Engines", ["a*"], False)
    assert members(made) == {"ada": "admin", "bob": "user"}
    key = gateway.make_key(team_id="x")
    found = gateway.get("/team/info?team_id=x").json
    assert found["team_info"] == made
    assert [each["token"] for each in found["keys"]] == [key["token"]]
    assert [each["user_id"] for each in found["team_memberships"]] == ["ada", "bob"]
    assert gateway.get("/user/info?user_id=bob").json["user_info"]["teams"] == ["x"]


def test_a_team_without_an_id_gets_one(gateway: Gateway) -> None:
    assert new(gateway)["team_id"] != new(gateway)["team_id"]


def test_a_key_inherits_its_team_s_models_as_they_change(gateway: Gateway) -> None:
    key = gateway.make_key(team_id="x")
    new(gateway, team_id="x", models=["a"])
    assert gateway.principal_of(key["token"]).team_models == ("a",)
    answer = gateway.post("/team/update", {"team_id": "x", "models": ["b"]})
    assert (answer.json["team_id"], answer.json["data"]["models"]) == ("x", ["b"])
    assert gateway.principal_of(key["token"]).team_models == ("b",)
    gateway.post("/team/update", {"team_id": "x", "models": None})
    assert not gateway.principal_of(key["token"]).restricts_models


def test_a_team_names_models_for_its_keys_and_a_key_s_own_names_win(gateway: Gateway) -> None:
    made = new(gateway, team_id="x", model_aliases={"chat": "qwen", "small": "phi"})
    assert made["model_aliases"] == {"chat": "qwen", "small": "phi"}
    key = gateway.make_key(team_id="x", aliases={"chat": "llama"})
    assert gateway.principal_of(key["token"]).aliases == {"chat": "llama", "small": "phi"}
    answer = gateway.post("/team/update", {"team_id": "x", "model_rpm_limit": {"small": 3}})
    assert (answer.status, answer.error["param"]) == (400, "model_rpm_limit")
    answer = gateway.post("/team/update", {"team_id": "x", "model_aliases": None, "model_rpm_limit": {"small": 3}})
    assert answer.json["data"]["model_aliases"] == {}
    assert gateway.principal_of(key["token"]).aliases == {"chat": "llama"}
    answer = gateway.post("/team/update", {"team_id": "x", "model_aliases": {"small": "phi"}})
    assert (answer.status, answer.error["param"]) == (400, "model_rpm_limit")


def test_a_user_sees_its_own_membership(gateway: Gateway) -> None:
    gateway.post("/user/new", {"user_id": "ada", "user_email": "a@b", "auto_create_key": False})
    new(gateway, team_id="x", team_alias="X", members_with_roles=[{"user_id": "ada"}, {"user_id": "bob"}])
    new(gateway, team_id="y")
    gateway.post("/team/member_update", {"team_id": "x", "user_id": "ada", "max_budget_in_team": 3})
    key = gateway.make_key(user_id="ada")["key"]
    mine = gateway.get("/team/x/members/me", key).json
    assert (mine["user_id"], mine["role"], mine["user_email"], mine["team_alias"]) == ("ada", "user", "a@b", "X")
    assert mine["litellm_budget_table"]["max_budget"] == 3
    others = [gateway.get(f"/team/{team}/members/me", key) for team in ("y", "gone")]
    assert [each.status for each in others] == [404, 404]
    assert others[0].error == others[1].error
    assert gateway.get("/team/x/members/me", gateway.make_key()["key"]).status == 400


def test_who_makes_a_team_administers_it(gateway: Gateway) -> None:
    gateway.post("/user/new", {"user_id": "boss", "user_role": "proxy_admin", "auto_create_key": False})
    boss = gateway.make_key(user_id="boss")["key"]
    made = gateway.post("/team/new", {"team_id": "x", "members_with_roles": [{"user_id": "ada"}]}, boss).json
    assert {each["user_id"]: each["role"] for each in made["members_with_roles"]} == {"ada": "user", "boss": "admin"}
    body = {"team_id": "y", "members_with_roles": [{"user_id": "boss", "role": "user"}]}
    assert [each["role"] for each in gateway.post("/team/new", body, boss).json["members_with_roles"]] == ["user"]
    # the master key is nobody, and a label is no user
    assert gateway.post("/team/new", {"team_id": "z"}).json["members_with_roles"] == []
    label = gateway.make_key(user_id="nobody", allowed_routes=["management"])["key"]
    assert gateway.post("/team/new", {"team_id": "w"}, label).json["members_with_roles"] == []


def test_models_are_added_to_a_team_and_taken_but_not_the_last(gateway: Gateway) -> None:
    new(gateway, team_id="x", models=["a"])
    assert gateway.post("/team/model/add", {"team_id": "x", "models": ["b", "a"]}).json["models"] == ["a", "b"]
    assert gateway.post("/team/model/delete", {"team_id": "x", "models": ["a"]}).json["models"] == ["b"]
    answer = gateway.post("/team/model/delete", {"team_id": "x", "models": ["b"]})
    assert (answer.status, answer.error["param"]) == (400, "models")


def test_a_team_s_key_sees_its_team_and_of_members_and_keys_only_its_own(gateway: Gateway) -> None:
    new(gateway, team_id="x", metadata={"a": 1}, members_with_roles=[{"user_id": "ada"}, {"user_id": "bob"}])
    new(gateway, team_id="y")
    gateway.make_key(team_id="x", user_id="bob")
    key = gateway.make_key(team_id="x", user_id="ada")
    for path in ("/team/info", "/team/info?team_id=x"):
        found = gateway.get(path, key["key"]).json
        assert (found["team_info"]["team_id"], found["team_info"]["metadata"]) == ("x", {})
        assert members(found["team_info"]) == {"ada": "user"}
        assert [each["user_id"] for each in found["team_memberships"]] == ["ada"]
        assert [each["token"] for each in found["keys"]] == [key["token"]]
    assert gateway.get("/team/info?team_id=y", key["key"]).status == 403
    assert gateway.get("/team/info", gateway.make_key()["key"]).status == 404
    assert gateway.get("/team/available", key["key"]).json == []


def test_teams_are_paged_and_counted(gateway: Gateway) -> None:
    for name in "xyz":
        new(gateway, team_id=name, team_alias=f"Alias {name}", members_with_roles=[{"user_id": f"user-{name}"}])
    gateway.make_key(team_id="y")
    page = gateway.get("/v2/team/list?page=2&page_size=1").json
    assert [(each["team_id"], each["members_count"], each["keys_count"]) for each in page["teams"]] == [("y", 1, 1)]
    assert (page["total"], page["page"], page["page_size"], page["total_pages"]) == (3, 2, 1, 3)
    for query in ("user_id=user-z", "team_id=z", "team_alias=ALIAS+z"):
        assert [each["team_id"] for each in gateway.get(f"/v2/team/list?{query}").json["teams"]] == ["z"]
    assert [each["team_id"] for each in gateway.get("/team/list?page=2&page_size=2").json] == ["z"]


def test_a_member_of_an_unknown_address_is_made_and_one_who_is_in_the_team_refused(gateway: Gateway) -> None:
    new(gateway, team_id="x")
    answer = gateway.post("/team/member_add", {"team_id": "x", "member": {"user_email": "New@b", "role": "user"}})
    [member] = answer.json["members_with_roles"]
    assert (member["user_email"], member["role"]) == ("new@b", "user")
    again = gateway.post("/team/member_add", {"team_id": "x", "member": {"user_email": "new@B"}})
    assert (again.status, again.error["param"]) == (400, "member")


def test_a_blocked_team_s_keys_are_refused_and_the_refusal_says_so(gateway: Gateway) -> None:
    new(gateway, team_id="x")
    key = gateway.make_key(team_id="x")["key"]
    other = gateway.make_key(team_id="y")["key"]
    answer = gateway.post("/team/block", {"team_id": "x"})
    assert (answer.status, answer.json["blocked"]) == (200, True)
    refused = gateway.get("/key/info", key)
    assert (refused.status, refused.error["code"]) == (401, "blocked_api_key")
    assert "team" in refused.error["message"]
    assert gateway.get("/key/info", other).status == 200
    gateway.post("/team/unblock", {"team_id": "x"})
    assert gateway.get("/key/info", key).status == 200


def test_members_come_and_go_and_those_that_nobody_knew_are_made(gateway: Gateway) -> None:
    new(gateway, team_id="x")
    gateway.post("/user/new", {"user_id": "ada", "user_email": "a@b", "auto_create_key": False})
    answer = gateway.post("/team/member_add", {"team_id": "x", "member": {"user_email": "A@b", "role": "admin"}})
    assert (answer.status, members(answer.json)) == (200, {"ada": "admin"})
    answer = gateway.post("/team/member_add", {"team_id": "x", "member": [{"user_id": "bob"}, {"user_id": "ada"}]})
    assert members(answer.json) == {"ada": "admin", "bob": "user"}
    assert [user["user_id"] for user in answer.json["updated_users"]] == ["bob", "ada"]
    assert len(answer.json["updated_team_memberships"]) == 2
    assert gateway.get("/user/info?user_id=bob").status == 200

    answer = gateway.post("/team/member_delete", {"team_id": "x", "user_email": "a@b"})
    assert members(answer.json) == {"bob": "user"}
    assert gateway.get("/user/info?user_id=ada").json["teams"] == []
    gone = gateway.post("/team/member_delete", {"team_id": "x", "user_id": "ada"})
    assert (gone.status, gone.error["param"]) == (400, "user_id")


def test_a_member_gets_another_role_and_keeps_it_where_none_is_given(gateway: Gateway) -> None:
    new(gateway, team_id="x", members_with_roles=[{"user_id": "ada", "user_email": "a@b"}, {"user_id": "bob"}])
    gateway.post("/user/new", {"user_id": "cyd", "auto_create_key": False})
    answer = gateway.post(
        "/team/member_update", {"team_id": "x", "user_email": "A@B", "role": "admin", "max_budget_in_team": None}
    )
    assert answer.status == 200
    assert {name: answer.json[name] for name in ("team_id", "user_id", "user_email", "role")} == {
        "team_id": "x",
        "user_id": "ada",
        "user_email": "a@b",
        "role": "admin",
    }
    assert gateway.post("/team/member_update", {"team_id": "x", "user_id": "ada"}).json["role"] == "admin"
    assert members(gateway.get("/team/info?team_id=x").json["team_info"]) == {"ada": "admin", "bob": "user"}
    [entry] = gateway.get("/audit/list?action=team/member_update").json["audit_logs"]
    assert entry["before"] == {"members": {"ada": "user", "bob": "user"}}
    assert entry["after"] == {"members": {"ada": "admin", "bob": "user"}}
    refused = gateway.post("/team/member_update", {"team_id": "x", "user_id": "cyd", "role": "admin"})
    assert (refused.status, refused.error["param"]) == (404, "user_id")


def test_a_member_that_leaves_loses_its_keys_of_that_team_alone(gateway: Gateway) -> None:
    new(gateway, team_id="x", members_with_roles=[{"user_id": "ada"}])
    lost = gateway.make_key(team_id="x", user_id="ada")["key"]
    kept = [gateway.make_key(**fields)["key"] for fields in ({"team_id": "x"}, {"user_id": "ada"})]
    gateway.post("/team/member_delete", {"team_id": "x", "user_id": "ada"})
    assert gateway.get("/key/info", lost).status == 401
    assert [gateway.get("/key/info", key).status for key in kept] == [200, 200]


def test_a_deleted_team_s_keys_go_with_it_and_its_members_stay_users(gateway: Gateway) -> None:
    new(gateway, team_id="x", members_with_roles=[{"user_id": "ada"}])
    key = gateway.make_key(team_id="x")["key"]
    assert gateway.post("/team/delete", {"team_ids": ["x", "y"]}).status == 404
    assert gateway.post("/team/delete", {"team_ids": ["x"]}).json == {"deleted_teams": ["x"]}
    assert gateway.get("/key/info", key).error["code"] == "invalid_api_key"
    assert gateway.get("/user/info?user_id=ada").json["teams"] == []
    assert gateway.get("/team/info?team_id=x").status == 404


def test_teams_are_listed_all_or_a_user_s(gateway: Gateway) -> None:
    new(gateway, team_id="x", members_with_roles=[{"user_id": "ada"}])
    new(gateway, team_id="y")
    assert [team["team_id"] for team in gateway.get("/team/list").json] == ["x", "y"]
    [team] = gateway.get("/team/list?user_id=ada").json
    assert (team["team_id"], members(team)) == ("x", {"ada": "user"})


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/team/new", {"team_id": "x"}, 409, "team_id"),
        ("/team/new", {"max_budget": -3}, 400, "max_budget"),
        ("/team/new", {"team_member_budget": -3}, 400, "team_member_budget"),
        ("/team/new", {"members": [{"user_id": "a"}]}, 400, "members"),
        ("/team/new", {"members_with_roles": [{}]}, 400, "member"),
        ("/team/new", {"members_with_roles": [{"user_id": "a", "role": "king"}]}, 400, "members_with_roles[0].role"),
        ("/team/new", {"team_alias": "sk-looks-like-a-key"}, 400, "team_alias"),
        ("/team/update", {"models": []}, 400, "team_id"),
        ("/team/member_add", {"team_id": "x"}, 400, "member"),
        ("/team/update", {"team_id": "y"}, 404, "team_id"),
        ("/team/block", {"team_id": "y"}, 404, "team_id"),
        ("/team/delete", {"team_ids": []}, 400, "team_ids"),
        ("/team/member_add", {"team_id": "y", "member": {"user_id": "a"}}, 404, "team_id"),
        ("/team/member_add", {"team_id": "x", "member": {}}, 400, "member"),
        ("/team/member_delete", {"team_id": "x"}, 400, "user_id"),
        ("/team/member_update", {"team_id": "x"}, 400, "user_id"),
        ("/team/member_update", {"team_id": "x", "user_id": "ada"}, 404, "user_id"),
        ("/team/member_update", {"team_id": "y", "user_id": "ada"}, 404, "team_id"),
        ("/team/member_update", {"team_id": "x", "user_id": "a", "role": "king"}, 400, "role"),
        ("/team/member_update", {"team_id": "x", "user_id": "a", "max_budget_in_team": -1}, 400, "max_budget_in_team"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
    gateway: Gateway, path: str, body: dict[str, object], status: int, param: str
) -> None:
    new(gateway, team_id="x")
    answer = gateway.post(path, body)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert [team["team_id"] for team in gateway.get("/team/list").json] == ["x"]
    assert gateway.get("/user/list").json["total"] == 0


def test_a_key_that_administers_does_not_decide_over_the_user_or_team_of_such_keys(gateway: Gateway) -> None:
    new(gateway, team_id="x", members_with_roles=[{"user_id": "ada"}])
    manager = gateway.make_key(allowed_routes=["management"], user_id="ada", team_id="x")["key"]
    gateway.make_key(allowed_routes=["management"], user_id="bob", team_id="y")
    for path, body in (
        ("/team/update", {"team_id": "x", "models": ["a"]}),
        ("/team/block", {"team_id": "x"}),
        ("/team/delete", {"team_ids": ["x"]}),
        ("/team/new", {"team_id": "y", "blocked": True}),
        ("/team/member_delete", {"team_id": "x", "user_id": "ada"}),
        ("/user/update", {"user_id": "ada", "models": ["a"]}),
        ("/user/delete", {"user_ids": ["ada"]}),
        ("/user/new", {"user_id": "bob"}),
    ):
        answer = gateway.post(path, body, manager)
        assert (answer.status, answer.error["code"]) == (403, "route_not_allowed"), path
    assert gateway.post("/team/new", {"team_id": "z"}, manager).status == 200
    assert gateway.post("/user/new", {"user_id": "cyd"}, manager).status == 200
