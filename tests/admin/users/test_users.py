from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway


def new(gateway: Gateway, **fields: object) -> Any:
    answer = gateway.post("/user/new", fields)
    assert answer.status == 200, answer.body
    return answer.json


def info(gateway: Gateway, user_id: str) -> Any:
    return gateway.get(f"/user/info?user_id={user_id}").json


def test_a_new_user_gets_a_key_of_its_own(gateway: Gateway) -> None:
    made = new(gateway, user_id="ada", user_email="Ada@Example.org", models=["a"], key_alias="first", duration="1h")
    assert (made["user_id"], made["user_email"], made["models"]) == ("ada", "ada@example.org", ["a"])
    assert (made["user_role"], made["teams"], made["spend"]) == ("internal_user", [], 0.0)
    key = gateway.get("/key/info", key=made["key"]).json["info"]
    assert (key["user_id"], key["key_alias"], key["token"]) == ("ada", "first", made["token_id"])
    # held to the user's models as they will be, and not as they were
    assert key["models"] == []


def test_a_user_without_a_key_and_without_an_id_gets_an_id(gateway: Gateway) -> None:
    one, other = new(gateway, auto_create_key=False), new(gateway, auto_create_key=False)
    assert one["key"] is None
    assert one["user_id"] != other["user_id"]
    assert len(gateway.index) == 0


def test_a_user_is_shown_with_its_keys_and_teams(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x"})
    made = new(gateway, user_id="ada", teams=["x"], metadata={"a": 1})
    gateway.make_key(key_alias="second", user_id="ada")
    found = info(gateway, "ada")
    assert found["user_id"] == "ada"
    assert (found["user_info"]["teams"], found["user_info"]["metadata"]) == (["x"], {"a": 1})
    assert {key["key_alias"] for key in found["keys"]} == {None, "second"}
    assert [team["team_id"] for team in found["teams"]] == ["x"]
    assert made["teams"] == ["x"]


def test_keys_that_had_the_id_as_a_label_are_the_user_s_from_then_on(gateway: Gateway) -> None:
    key = gateway.make_key(user_id="ada")
    assert not gateway.principal_of(key["token"]).restricts_models
    new(gateway, user_id="ada", auto_create_key=False, models=["a"])
    assert gateway.principal_of(key["token"]).user_models == ("a",)


def test_an_update_keeps_what_is_absent_clears_with_null_and_acts_at_once(gateway: Gateway) -> None:
    made = new(gateway, user_id="ada", user_email="a@b", models=["a"], metadata={"a": 1}, user_alias="Ada")
    answer = gateway.post("/user/update", {"user_email": "A@B", "models": None, "user_alias": "A."})
    assert answer.status == 200
    assert answer.json["user_id"] == "ada"
    assert answer.json["data"] == info(gateway, "ada")["user_info"]
    found = answer.json["data"]
    assert (found["models"], found["metadata"], found["user_alias"]) == ([], {"a": 1}, "A.")
    assert not gateway.principal_of(made["token_id"]).restricts_models


def test_ids_and_addresses_are_one_user_s(gateway: Gateway) -> None:
    new(gateway, user_id="ada", user_email="a@b", auto_create_key=False)
    new(gateway, user_id="bob", auto_create_key=False)
    for path, body, param in (
        ("/user/new", {"user_id": "ada"}, "user_id"),
        ("/user/new", {"user_email": "A@b"}, "user_email"),
        ("/user/update", {"user_id": "bob", "user_email": "a@B"}, "user_email"),
    ):
        answer = gateway.post(path, body)
        assert (answer.status, answer.error["param"]) == (409, param)
    gateway.make_key(key_alias="taken")
    assert gateway.post("/user/new", {"key_alias": "taken"}).error["param"] == "key_alias"
    assert gateway.get("/user/list").json["total"] == 2


def test_a_deleted_user_s_keys_go_with_it_and_the_others_stay(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x"})
    made = new(gateway, user_id="ada", teams=["x"])
    other = new(gateway, user_id="bob")
    answer = gateway.post("/user/delete", {"user_ids": ["ada", "ada"]})
    assert (answer.status, answer.json) == (200, 1)
    assert gateway.get("/key/info", key=made["key"]).error["code"] == "invalid_api_key"
    assert gateway.get("/key/info", key=other["key"]).status == 200
    assert gateway.get("/team/info?team_id=x").json["team_info"]["members_with_roles"] == []
    assert gateway.get("/user/info?user_id=ada").status == 404


def test_all_users_are_deleted_or_none(gateway: Gateway) -> None:
    new(gateway, user_id="ada")
    assert gateway.post("/user/delete", {"user_ids": ["ada", "nobody"]}).status == 404
    assert info(gateway, "ada")["keys"]


def test_users_are_listed_by_page_and_filtered(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x"})
    for name in "abc":
        new(gateway, user_id=name, user_email=f"{name}@Example.org", auto_create_key=name == "b", teams=["x"])
        gateway.clock.advance(1)
    page = gateway.get("/user/list?page_size=2").json
    assert [user["user_id"] for user in page["users"]] == ["c", "b"]
    assert [user["key_count"] for user in page["users"]] == [0, 1]
    assert page["users"][0]["teams"] == ["x"]
    assert (page["total"], page["page"], page["page_size"], page["total_pages"]) == (3, 1, 2, 2)
    found = gateway.get("/user/list?user_email=B@EX&role=internal_user").json
    assert [user["user_id"] for user in found["users"]] == ["b"]
    ordered = gateway.get("/user/list?sort_by=user_id&sort_order=asc").json
    assert [user["user_id"] for user in ordered["users"]] == ["a", "b", "c"]
    assert gateway.get("/user/list?colour=red").error["param"] == "colour"


def test_users_are_found_by_team_organization_ids_and_a_part_of_their_names(gateway: Gateway) -> None:
    def listed(query: str) -> list[str]:
        return sorted(user["user_id"] for user in gateway.get(f"/user/list?{query}").json["users"])

    gateway.post("/team/new", {"team_id": "x"})
    gateway.post("/organization/new", {"organization_id": "o", "organization_alias": "O"})
    new(gateway, user_id="ada", user_email="a@example.org", teams=["x"], auto_create_key=False)
    new(gateway, user_id="bob", user_email="ada@example.org", organizations=["o"], auto_create_key=False)
    new(gateway, user_id="eve", auto_create_key=False)
    assert listed("team=x") == ["ada"]
    assert listed("organization_ids=o,gone") == ["bob"]
    assert listed("team=x&organization_ids=o") == listed("team=gone") == listed("search=100%25") == []
    assert listed("search=ADA") == ["ada", "bob"]
    assert listed("user_ids=ada,%20eve,gone") == ["ada", "eve"]
    many = ",".join(str(number) for number in range(501))
    assert gateway.get(f"/user/list?user_ids={many}").error["param"] == "user_ids"
    found = gateway.get("/user/filter/ui?user_email=ADA").json
    names = {"user_id": "bob", "user_email": "ada@example.org", "user_alias": None, "user_role": "internal_user"}
    assert found == [names]
    key = gateway.make_key(user_id="bob")
    gateway.make_key(user_id="label", key_alias="of-a-label")
    [shown, label] = gateway.get("/key/list?expand=user&sort_by=user_id&sort_order=asc").json["keys"]
    assert (shown["token"], shown["user"], label["user"]) == (key["token"], names, None)


def test_the_roles_are_told_to_every_key(gateway: Gateway) -> None:
    found = gateway.get("/user/available_roles", gateway.make_key()["key"]).json
    assert sorted(found) == ["internal_user", "internal_user_viewer", "proxy_admin", "proxy_admin_viewer"]


def test_a_key_sees_its_own_user_and_no_other(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x", "metadata": {"secret": 1}, "members_with_roles": [{"user_id": "bob"}]})
    key = new(gateway, user_id="ada", teams=["x"])["key"]
    for path in ("/user/info", "/user/info?user_id=ada"):
        answer = gateway.get(path, key)
        assert (answer.status, answer.json["user_info"]["user_id"]) == (200, "ada")
        assert answer.json["teams"] == [{"team_id": "x", "team_alias": None, "models": []}]
    for other in ("bob", "nobody"):
        assert gateway.get(f"/user/info?user_id={other}", key).error["code"] == "route_not_allowed"
    assert gateway.get("/user/info", gateway.make_key()["key"]).error["param"] == "user_id"
    assert gateway.get("/user/info", gateway.make_key(user_id="label")["key"]).status == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"user_role": "king"}, "user_role"),
        ({"user_role": "team"}, "user_role"),
        ({"user_email": "nobody"}, "user_email"),
        ({"user_id": "sk-a-key-in-the-wrong-place"}, "user_id"),
        ({"user_id": "a\nb"}, "user_id"),
        ({"max_budget": -5}, "max_budget"),
        ({"budget_id": 3}, "budget_id"),
        ({"models": ["no-default-models"]}, "models"),
        ({"auto_create_key": False, "duration": "1h"}, "duration"),
        ({"user_alais": "x"}, "user_alais"),
    ],
)
def test_what_cannot_be_is_refused_by_name(gateway: Gateway, body: dict[str, object], param: str) -> None:
    answer = gateway.post("/user/new", body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert gateway.get("/user/list").json["total"] == 0


def test_a_team_that_is_not_there_keeps_the_user_from_being_made(gateway: Gateway) -> None:
    answer = gateway.post("/user/new", {"user_id": "ada", "teams": ["x"]})
    assert (answer.status, answer.error["param"]) == (404, "teams")
    assert gateway.get("/user/list").json["total"] == 0
    assert len(gateway.index) == 0


def test_an_update_of_a_user_whom_nobody_knows_makes_it(gateway: Gateway) -> None:
    made = gateway.post("/user/update", {"user_id": "ada", "max_budget": 3, "user_email": "A@b"}).json
    assert (made["user_id"], made["data"]["max_budget"], made["data"]["user_email"]) == ("ada", 3, "a@b")
    other = gateway.post("/user/update", {"user_email": "new@b"}).json
    assert other["user_id"] not in (None, "ada")
    assert gateway.get("/v2/user/info?user_id=ada").json == made["data"]


def test_users_are_updated_each_on_its_own_or_all(gateway: Gateway) -> None:
    for name in ("ada", "bob"):
        gateway.post("/user/new", {"user_id": name, "auto_create_key": False})
    users = [{"user_id": "ada", "rpm_limit": 1}, {"user_id": "bob", "rpm_limit": -1}, {"rpm_limit": 1}]
    answer = gateway.post("/user/bulk_update", {"users": users}).json
    assert [each["success"] for each in answer["results"]] == [True, False, False]
    assert (answer["successful_updates"], answer["failed_updates"]) == (1, 2)
    assert "rpm_limit" in answer["results"][1]["error"]
    answer = gateway.post("/user/bulk_update", {"all_users": True, "user_updates": {"rpm_limit": 5}}).json
    assert [each["updated_user"]["rpm_limit"] for each in answer["results"]] == [5, 5]


@pytest.mark.parametrize(
    "body",
    [{}, {"users": []}, {"all_users": True}, {"all_users": True, "user_updates": {"user_email": "a@b"}},
     {"users": [{"user_id": "a"}], "all_users": True, "user_updates": {}}, {"user_updates": {}}],
)  # fmt: skip
def test_a_bulk_update_says_whom_it_changes(gateway: Gateway, body: dict[str, object]) -> None:
    assert gateway.post("/user/bulk_update", body).status == 400


def test_a_new_user_s_key_has_names_of_models_and_the_team(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "x"})
    made = gateway.post("/user/new", {"user_id": "ada", "aliases": {"a": "b"}, "team_id": "x"}).json
    assert (made["aliases"], made["team_id"], made["teams"]) == ({"a": "b"}, "x", ["x"])


def test_spend_that_a_request_gives_counts_in_the_budget_s_period(gateway: Gateway) -> None:
    made = gateway.post("/user/new", {"user_id": "ada", "spend": 1.5, "max_budget": 2, "auto_create_key": False}).json
    assert made["spend"] == 1.5
    assert gateway.post("/user/update", {"user_id": "ada", "spend": 0}).json["data"]["spend"] == 0
    key = gateway.make_key(spend=2.5)
    assert key["spend"] == 2.5
    assert gateway.post("/key/update", {"key": key["key"], "spend": 1}).json["spend"] == 1
    entry = gateway.get("/audit/list?action=key/update").json["audit_logs"][0]
    assert (entry["before"], entry["after"]) == ({"spend": 2.5}, {"spend": 1.0})
    customer = gateway.post("/customer/new", {"user_id": "eve", "spend": 0.25}).json
    assert customer["spend"] == 0.25
