"""Budgets: made once, named by many, and in use until nobody names them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.ratelimit.allowance import Allowance, Limited, ModelBudget

KEY = "sk-custom-0123456789"

#: how each names a budget: the path that makes it, its name, and where it is read
HOLDERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "key": ("/key/generate", {"key": KEY}, f"/key/info?key={KEY}"),
    "user": ("/user/new", {"user_id": "ada", "auto_create_key": False}, "/user/info?user_id=ada"),
    "team": ("/team/new", {"team_id": "x"}, "/team/info?team_id=x"),
    "customer": ("/customer/new", {"user_id": "eve"}, "/customer/info?end_user_id=eve"),
    "organization": (
        "/organization/new",
        {"organization_id": "o", "organization_alias": "Org"},
        "/organization/info?organization_id=o",
    ),
}
PLACES = {"key": "info", "user": "user_info", "team": "team_info"}


def new(gateway: Gateway, **fields: object) -> Any:
    answer = gateway.post("/budget/new", {"budget_id": "free", **fields})
    assert answer.status == 200, answer.body
    return answer.json


def shown(gateway: Gateway, kind: str) -> Any:
    answer = gateway.get(HOLDERS[kind][2]).json
    return answer[PLACES[kind]] if kind in PLACES else answer


@pytest.fixture(params=HOLDERS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def test_a_budget_lives_from_its_making_to_its_deletion(gateway: Gateway) -> None:
    made = new(gateway, max_budget=5, budget_duration="30d", model_max_budget={"qwen": {"budget_limit": 0.5}})
    assert (made["budget_id"], made["max_budget"], made["budget_duration"]) == ("free", 5, "30d")
    assert made["model_max_budget"]["qwen"]["max_budget"] == 0.5
    assert gateway.post("/budget/info", {"budgets": ["free"]}).json[0]["budget_reset_at"] == "2026-04-01T00:00:00Z"
    assert gateway.post("/budget/info", {"budgets": ["free", "gone"]}).json == [made]
    assert gateway.get("/budget/list").json == [made]
    changed = gateway.post("/budget/update", {"budget_id": "free", "rpm_limit": 3, "max_budget": None}).json
    assert (changed["rpm_limit"], changed["max_budget"], changed["budget_duration"]) == (3, None, "30d")
    settings = {each["field_name"]: each for each in gateway.get("/budget/settings?budget_id=free").json}
    assert (settings["rpm_limit"]["field_value"], settings["rpm_limit"]["field_type"]) == (3, "Integer")
    assert gateway.post("/budget/delete", {"id": "free"}).json == changed
    assert gateway.get("/budget/list").json == []
    actions = [entry["action"] for entry in gateway.get("/audit/list?object_type=budget").json["audit_logs"]]
    assert actions == ["budget/delete", "budget/update", "budget/new"]


def test_a_budget_without_an_id_gets_one(gateway: Gateway) -> None:
    made = [gateway.post("/budget/new", {"max_budget": 1}).json["budget_id"] for _ in range(2)]
    assert len(set(made)) == 2


def test_who_names_a_budget_shows_it_and_its_own_limits_win(gateway: Gateway, kind: str) -> None:
    new(gateway, rpm_limit=3, max_budget=5, budget_duration="1mo")
    path, name, _ = HOLDERS[kind]
    assert gateway.post(path, {**name, "budget_id": "free", "rpm_limit": 7}).status == 200
    found = shown(gateway, kind)
    assert (found["budget_id"], found["max_budget"], found["rpm_limit"]) == ("free", None, 7)
    table = found["litellm_budget_table"]
    assert (table["budget_id"], table["max_budget"], table["rpm_limit"]) == ("free", 5, 7)
    assert found["budget_reset_at"] == "2026-04-01T00:00:00Z"


def test_a_budget_in_use_is_not_deleted_because_its_holders_would_be_without_limits(
    gateway: Gateway, kind: str
) -> None:
    new(gateway, max_budget=5)
    path, name, _ = HOLDERS[kind]
    gateway.post(path, {**name, "budget_id": "free"})
    refused = gateway.post("/budget/delete", {"id": "free"})
    assert (refused.status, refused.error["param"]) == (409, "id")
    assert f"{kind}s: 1" in refused.error["message"]
    assert shown(gateway, kind)["budget_id"] == "free"


def test_nobody_names_a_budget_that_does_not_exist(gateway: Gateway, kind: str) -> None:
    path, name, _ = HOLDERS[kind]
    refused = gateway.post(path, {**name, "budget_id": "fre"})
    assert (refused.status, refused.error["param"]) == (404, "budget_id")
    assert gateway.get(HOLDERS[kind][2]).status in (404, 403)


def test_an_empty_budget_id_is_the_same_as_none(gateway: Gateway, kind: str) -> None:
    path, name, _ = HOLDERS[kind]
    assert gateway.post(path, {**name, "budget_id": ""}).status == 200
    assert shown(gateway, kind)["budget_id"] is None


def test_a_changed_budget_holds_for_its_keys_from_the_next_request_on(gateway: Gateway) -> None:
    new(gateway, max_budget=5)
    made = gateway.make_key(key=KEY, budget_id="free", model_max_budget={"m": 2})
    key_id = gateway.records()[0].key_id
    budgets = {"m": ModelBudget(2 * 10**12)}
    allowance = Allowance(max_budget=5 * 10**12, model_budgets=budgets)
    assert Limited("key", key_id, allowance) in gateway.principal_of(made["token"]).limited
    gateway.post("/budget/update", {"budget_id": "free", "max_budget": 1})
    changed = Allowance(max_budget=10**12, model_budgets=budgets)
    assert Limited("key", key_id, changed) in gateway.principal_of(hash_key(KEY)).limited
    gateway.post("/key/update", {"key": KEY, "budget_id": None})
    assert gateway.post("/budget/delete", {"id": "free"}).status == 200


def test_budgets_are_listed_by_page(gateway: Gateway) -> None:
    for number in range(3):
        new(gateway, budget_id=f"b{number}")
    pages = [gateway.get(f"/budget/list?page={page}&page_size=2").json for page in (1, 2, 3)]
    assert [[each["budget_id"] for each in page] for page in pages] == [["b0", "b1"], ["b2"], []]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/budget/new", {"budget_id": "free"}, 409, "budget_id"),
        ("/budget/new", {"budget_id": "sk-like-a-key"}, 400, "budget_id"),
        ("/budget/new", {"max_budget": -1}, 400, "max_budget"),
        ("/budget/new", {"tpd_limit": 1}, 400, "tpd_limit"),
        ("/budget/new", {"budget_duration": "monthly"}, 400, "budget_duration"),
        ("/budget/update", {"budget_id": "gone"}, 404, "budget_id"),
        ("/budget/update", {"max_budget": 1}, 400, "budget_id"),
        ("/budget/info", {"budgets": []}, 400, "budgets"),
        ("/budget/delete", {"id": "gone"}, 404, "id"),
    ],
)
def test_what_cannot_be_is_refused_by_name(gateway: Gateway, path: str, body: Any, status: int, param: str) -> None:
    made = new(gateway)
    answer = gateway.post(path, body)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert gateway.get("/budget/list").json == [made]


@pytest.mark.parametrize("holder", ["key", "user", "team", "organization", "member"])
def test_a_limit_of_a_model_must_count_for_the_keys_below_a_budget(gateway: Gateway, holder: str) -> None:
    new(gateway)
    named = {name: {"budget_id": "free"} if name == holder else {} for name in ("key", "user", "team", "organization")}
    gateway.post("/organization/new", {"organization_id": "o", "organization_alias": "O", **named["organization"]})
    gateway.post("/user/new", {"user_id": "ada", "auto_create_key": False, **named["user"]})
    gateway.post("/team/new", {"team_id": "x", "organization_id": "o", **named["team"]})
    if holder == "member":
        body = {"team_id": "x", "member": {"user_id": "ada"}}
        assert gateway.post("/team/member_add", body).status == 200
        gateway.post("/team/update", {"team_id": "x", "team_member_budget": 5})
    budget = "members-of-x" if holder == "member" else "free"
    gateway.make_key(user_id="ada", team_id="x", aliases={"mine": "qwen"}, **named["key"])
    refused = gateway.post("/budget/update", {"budget_id": budget, "model_max_budget": {"mine": 1}})
    assert (refused.status, refused.error["param"]) == (400, "model_max_budget")
    shown_budget = gateway.post("/budget/info", {"budgets": [budget]}).json[0]
    assert shown_budget["model_max_budget"] == {}
    assert gateway.post("/budget/update", {"budget_id": budget, "model_max_budget": {"qwen": 1}}).status == 200
