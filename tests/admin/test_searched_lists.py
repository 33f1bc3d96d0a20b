"""Search, filters and pages of every list, and what a member finds by them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from tests.admin.admin_harness import Gateway


@pytest.fixture
def filled(gateway: Gateway) -> dict[str, dict[str, Any]]:
    gateway.post("/budget/new", {"budget_id": "gold", "max_budget": 10})
    gateway.post("/budget/new", {"budget_id": "silver", "max_budget": 1})
    for number in range(3):
        budget = {"budget_id": "gold"} if number == 1 else {}
        organization = {"organization_id": f"o{number}", "organization_alias": f"Works {number} 50%", **budget}
        gateway.post("/organization/new", organization)
        gateway.post("/user/new", {"user_id": f"u{number}", "user_alias": f"Person_{number}", "auto_create_key": False})
        gateway.post("/team/new", {"team_id": f"t{number}", "team_alias": f"Team <{number}>", **budget})
        gateway.post("/customer/new", {"user_id": f"c{number}", "alias": f"Shop {number}", **budget})
    gateway.post("/team/block", {"team_id": "t2"})
    gateway.post("/customer/block", {"user_ids": ["c2"]})
    gateway.post("/user/update", {"user_id": "u1", "budget_id": "gold"})
    return {
        "one": gateway.make_key(key_alias="Batch-One", user_id="u1", budget_id="gold"),
        "two": gateway.make_key(key_alias="batch_two", user_id="u2", team_id="t2"),
        "none": gateway.make_key(),
    }


def _found(gateway: Gateway, path: str, field: str, by: str, key: str | None = None, **query: Any) -> list[Any]:
    answer = gateway.get(f"{path}?{urlencode(query)}", **({} if key is None else {"key": key}))
    assert answer.status == 200, answer.body
    total = answer.json.get("total", answer.json.get("total_count"))
    found = [each[by] for each in answer.json[field]]
    assert total == len(found)
    return found


def _keys(gateway: Gateway, key: str | None = None, **query: Any) -> list[Any]:
    return _found(gateway, "/key/list", "keys", "key_alias", key, return_full_object="true", sort_order="asc", **query)


def test_keys_are_found_by_alias_user_end_and_hash(gateway: Gateway, filled: dict[str, Any]) -> None:
    assert _keys(gateway, search="BATCH") == ["Batch-One", "batch_two"]
    assert _keys(gateway, search="u2") == ["batch_two"]
    # a wildcard of SQL is text
    assert _keys(gateway, search="batch_") == ["batch_two"]
    assert _keys(gateway, search="%") == []
    token = filled["none"]["token"]
    assert _keys(gateway, search=token[:8]) == [None]
    assert _keys(gateway, search=token[:8].upper()) == [None]
    # fewer digits are no hash
    assert None not in _keys(gateway, search=token[:5])
    assert None in _keys(gateway, search=filled["none"]["key"][-4:])
    assert _keys(gateway, search="batch", status="active", team_id="t2") == ["batch_two"]


@pytest.mark.usefixtures("filled")
def test_keys_are_filtered_by_their_budget(gateway: Gateway) -> None:
    assert _keys(gateway, budget_id="gold") == ["Batch-One"]
    assert _keys(gateway, budget_id="silver") == []


def test_a_member_finds_no_other_keys_and_no_counts_of_them(gateway: Gateway, filled: dict[str, Any]) -> None:
    own = filled["one"]["key"]
    assert _keys(gateway, own, search="batch") == ["Batch-One"]
    assert _keys(gateway, own, search=filled["two"]["token"][:12]) == []
    assert _keys(gateway, own, search="u2") == []
    assert _keys(gateway, own, budget_id="gold") == ["Batch-One"]
    assert _found(gateway, "/v2/team/list", "teams", "team_id", own, search="t") == []
    assert _found(gateway, "/v2/organizations/list", "organizations", "organization_id", own, search="works") == []


@pytest.mark.usefixtures("filled")
def test_users_are_found_by_their_names_too(gateway: Gateway) -> None:
    assert _found(gateway, "/user/list", "users", "user_id", search="person_1") == ["u1"]
    assert _found(gateway, "/user/list", "users", "user_id", budget_id="gold") == ["u1"]


@pytest.mark.usefixtures("filled")
def test_teams_are_found_by_id_and_name(gateway: Gateway) -> None:
    def teams(**query: Any) -> list[Any]:
        return _found(gateway, "/v2/team/list", "teams", "team_id", **query)

    assert teams(search="<1>") == ["t1"]
    assert teams(search="T2") == ["t2"]
    assert teams(blocked="true") == ["t2"]
    assert teams(blocked="false", sort_by="team_alias", sort_order="desc") == ["t1", "t0"]
    assert teams(budget_id="gold") == ["t1"]
    assert gateway.get("/v2/team/list?blocked=maybe").error["param"] == "blocked"


@pytest.mark.usefixtures("filled")
def test_customers_organizations_and_budgets_have_pages_with_a_total(gateway: Gateway) -> None:
    def customers(**query: Any) -> list[Any]:
        return _found(gateway, "/v2/customer/list", "customers", "user_id", **query)

    assert customers(search="shop") == ["c0", "c1", "c2"]
    assert customers(search="shop 1", sort_order="desc") == ["c1"]
    assert customers(blocked="true") == ["c2"]
    assert customers(budget_id="gold") == ["c1"]

    def organizations(**query: Any) -> list[Any]:
        return _found(gateway, "/v2/organizations/list", "organizations", "organization_id", **query)

    assert organizations(search="50%") == ["o0", "o1", "o2"]
    assert organizations(search="works 2") == ["o2"]
    assert organizations(budget_id="gold") == ["o1"]
    assert organizations(sort_by="organization_alias", sort_order="desc") == ["o2", "o1", "o0"]
    assert _found(gateway, "/v2/budget/list", "budgets", "budget_id", search="GOL") == ["gold"]
    page = gateway.get("/v2/budget/list?page_size=1").json
    assert (page["total"], page["total_pages"], page["page"]) == (2, 2, 1)
    assert page["budgets"][0]["holders"] == {"keys": 1, "users": 1, "teams": 1, "organizations": 1, "customers": 1}
    second = gateway.get(f"/v2/budget/list?page_size=1&after={page['next']}").json
    assert [each["budget_id"] for each in second["budgets"]] == ["silver"]
    assert second["budgets"][0]["holders"] == {}


def test_a_search_with_many_results_has_all_pages(gateway: Gateway) -> None:
    for number in range(7):
        gateway.make_key(key_alias=f"batch-{number}")
    seen: list[str] = []
    for page in (1, 2, 3):
        query = urlencode({"search": "batch", "size": 3, "page": page, "sort_by": "key_alias", "sort_order": "asc"})
        found = gateway.get(f"/key/list?{query}&return_full_object=true").json
        assert (found["total_count"], found["total_pages"]) == (7, 3)
        seen += [each["key_alias"] for each in found["keys"]]
    assert seen == [f"batch-{number}" for number in range(7)]
