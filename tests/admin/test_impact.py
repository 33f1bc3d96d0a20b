"""What a deletion would break is said before it is done."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from tests.admin.reports.usage_rows import id_of, keep, row_at

#: in picodollars
DOLLAR = 10**12


@pytest.fixture
def made(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """A team in an organization, with two keys that were used lately; and what has a budget."""
    gateway.post("/budget/new", {"budget_id": "b1", "max_budget": 10})
    gateway.post("/organization/new", {"organization_id": "o1", "organization_alias": "Works", "budget_id": "b1"})
    gateway.post("/user/new", {"user_id": "ada", "user_email": "ada@example.com", "auto_create_key": False})
    members = [{"user_id": "ada", "role": "admin"}]
    gateway.post(
        "/team/new", {"team_id": "t1", "team_alias": "red", "organization_id": "o1", "members_with_roles": members}
    )
    gateway.post("/customer/new", {"user_id": "c1", "blocked": True, "budget_id": "b1"})
    keys = {
        "ada": gateway.make_key(key_alias="ada", user_id="ada", team_id="t1"),
        "bob": gateway.make_key(key_alias="bob", team_id="t1", organization_id="o1", budget_id="b1"),
        "idle": gateway.make_key(),
    }
    ada = {"key_id": id_of(gateway, keys["ada"]), "user_id": "ada", "team_id": "t1", "organization_id": "o1"}
    bob = {"key_id": id_of(gateway, keys["bob"]), "team_id": "t1", "organization_id": "o1"}
    keep(
        gateway,
        [
            row_at(1, "2026-02-28T10:00:00", **ada, cost=DOLLAR, end_user="c1"),
            row_at(2, "2026-02-28T10:00:01", **ada, model="llama"),
            row_at(3, "2026-02-27T11:00:00", **bob, cost=2 * DOLLAR),
            # more than seven days ago
            row_at(4, "2026-02-20T11:00:00", **bob, cost=5 * DOLLAR),
        ],
    )
    return keys


def _impact(gateway: Gateway, path: str, **options: Any) -> Any:
    answer = gateway.get(path, **options)
    assert answer.status == 200, answer.body
    return answer.json


def test_a_key_says_when_it_was_used_last_and_how_much(gateway: Gateway, made: dict[str, Any]) -> None:
    found = _impact(gateway, f"/key/impact?key={made['ada']['token']}")
    assert found["name"] == "ada"
    assert found["breaks"] == ["1 key stops working at once. 2 requests came with it in the last 7 days."]
    assert (found["requests"], found["tokens"], found["cost"]) == (2, 30, 1.000123456789)
    assert (found["last_used_on"], found["last_used_at"]) == ("2026-02-28", "2026-02-28T10:00:01Z")
    bob = _impact(gateway, f"/key/impact?key={made['bob']['token']}")
    assert (bob["requests"], bob["cost"], bob["last_used_on"]) == (1, 2.0, "2026-02-27")
    idle = _impact(gateway, f"/key/impact?key={made['idle']['key']}")
    assert (idle["requests"], idle["last_used_on"], idle["last_used_at"]) == (0, None, None)
    assert idle["name"] == made["idle"]["key_name"]
    assert idle["breaks"] == ["1 key stops working at once."]


@pytest.mark.usefixtures("made")
def test_a_team_says_which_keys_and_members_it_has(gateway: Gateway) -> None:
    found = _impact(gateway, "/team/impact?team_id=t1")
    assert (found["keys"], found["members"], found["requests"]) == (2, 1, 3)
    assert sorted(each["key_alias"] for each in found["shown_keys"]) == ["ada", "bob"]
    assert found["breaks"] == [
        "2 keys stop working at once. 3 requests came with them in the last 7 days.",
        "1 member is in it no longer.",
    ]


@pytest.mark.usefixtures("made")
def test_an_organization_counts_keys_of_its_teams_once(gateway: Gateway) -> None:
    gateway.make_key(key_alias="own", organization_id="o1")
    found = _impact(gateway, "/organization/impact?organization_id=o1")
    assert (found["name"], found["keys"], found["teams"], found["requests"]) == ("Works", 3, 1, 3)
    assert sorted(each["key_alias"] for each in found["shown_keys"]) == ["ada", "bob", "own"]
    assert found["breaks"][0] == "1 team in it is deleted as well."
    deleted = gateway.call("DELETE", "/organization/delete", body={"organization_ids": ["o1"]})
    assert deleted.status == 200
    assert len(gateway.records()) == 1


@pytest.mark.usefixtures("made")
def test_a_user_says_which_teams_it_leaves(gateway: Gateway) -> None:
    found = _impact(gateway, "/user/impact?user_id=ada")
    assert (found["name"], found["keys"], found["teams"], found["requests"]) == ("ada@example.com", 1, 1, 2)
    assert found["breaks"][1] == "The user leaves 1 team and 0 organizations."


@pytest.mark.usefixtures("made")
def test_a_blocked_customer_would_be_served_again(gateway: Gateway) -> None:
    found = _impact(gateway, "/customer/impact?end_user_id=c1")
    assert any("would be served again" in each for each in found["breaks"])
    assert found["requests"] == 1
    assert found["last_used_at"] == "2026-02-28T10:00:00Z"


@pytest.mark.usefixtures("made")
def test_a_budget_says_who_names_it_as_its_deletion_would(gateway: Gateway) -> None:
    found = _impact(gateway, "/budget/impact?budget_id=b1")
    assert found["holders"] == {"keys": 1, "organizations": 1, "customers": 1}
    assert found["refused"].startswith("The budget is in use (keys: 1, organizations: 1, customers: 1).")
    assert [each["key_alias"] for each in found["shown_keys"]] == ["bob"]
    assert gateway.post("/budget/delete", {"id": "b1"}).status == 409
    gateway.post("/budget/new", {"budget_id": "b2"})
    assert _impact(gateway, "/budget/impact?budget_id=b2")["refused"] is None


@pytest.mark.parametrize(
    "path",
    [
        "/key/impact?key=x",
        "/user/impact?user_id=x",
        "/team/impact?team_id=x",
        "/organization/impact?organization_id=x",
        "/customer/impact?end_user_id=x",
        "/budget/impact?budget_id=x",
    ],
)
def test_what_does_not_exist_breaks_nothing(gateway: Gateway, path: str) -> None:
    assert gateway.get(path).status == 404


def test_a_member_learns_of_its_own_keys_only(gateway: Gateway, made: dict[str, Any]) -> None:
    gateway.post("/user/new", {"user_id": "eve", "auto_create_key": False})
    own = gateway.make_key(user_id="eve", key_alias="eve")
    assert _impact(gateway, f"/key/impact?key={own['token']}", key=own["key"])["name"] == "eve"
    known = gateway.get(f"/key/impact?key={made['bob']['token']}", key=own["key"])
    unknown = gateway.get(f"/key/impact?key={'0' * 64}", key=own["key"])
    assert (known.status, known.error) == (unknown.status, unknown.error)
    assert known.status == 403
