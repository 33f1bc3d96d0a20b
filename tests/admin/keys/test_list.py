from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway


def listed(gateway: Gateway, query: str) -> Any:
    answer = gateway.get(f"/key/list{query}")
    assert answer.status == 200, answer.body
    return answer.json


@pytest.fixture
def filled(gateway: Gateway) -> Gateway:
    """Keys a to e, a second apart; the first is a's."""
    for number, name in enumerate("abcde"):
        gateway.make_key(key_alias=name, user_id="ada" if number % 2 else "bob", team_id="x" if name == "c" else None)
        gateway.clock.advance(1)
    return gateway


def aliases(gateway: Gateway, query: str) -> str:
    keys = listed(gateway, f"?return_full_object=true{query}")["keys"]
    return "".join(key["key_alias"] for key in keys)


def test_no_keys_are_no_pages(gateway: Gateway) -> None:
    assert listed(gateway, "") == {"keys": [], "total_count": 0, "current_page": 1, "total_pages": 0, "next": None}


def test_a_list_is_of_hashes_the_newest_first(gateway: Gateway) -> None:
    first = gateway.make_key()
    gateway.clock.advance(1)
    second = gateway.make_key()
    assert listed(gateway, "")["keys"] == [second["token"], first["token"]]


def test_a_full_list_holds_records_and_no_key(filled: Gateway) -> None:
    [key] = listed(filled, "?return_full_object=true&key_alias=c")["keys"]
    assert (key["key_alias"], key["team_id"], key["status"], key["spend"]) == ("c", "x", "active", 0.0)
    assert "key" not in key


def test_pages_hold_their_size_and_count_the_whole(filled: Gateway) -> None:
    assert aliases(filled, "&size=2&page=1") == "ed"
    assert aliases(filled, "&size=2&page=3") == "a"
    page = listed(filled, "?size=2&page=2")
    assert (page["total_count"], page["current_page"], page["total_pages"]) == (5, 2, 3)
    assert listed(filled, "?size=2&page=9")["keys"] == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("&user_id=ada", "db"),
        ("&team_id=x", "c"),
        ("&key_alias=b", "b"),
        ("&user_id=ada&key_alias=c", ""),
        ("&user_id=", "edcba"),
        ("&sort_by=key_alias&sort_order=asc", "abcde"),
        ("&sort_by=key_alias", "edcba"),
        ("&sort_by=created_at&sort_order=ASC", "abcde"),
        ("&include_team_keys=false&organization_id=", "edcba"),
        ("&status=deleted", ""),
        ("&status=active", "edcba"),
    ],
)
def test_a_list_is_filtered_and_sorted(filled: Gateway, query: str, found: str) -> None:
    assert aliases(filled, query) == found


def test_a_list_is_filtered_by_hash(gateway: Gateway) -> None:
    made = gateway.make_key()
    gateway.make_key()
    assert listed(gateway, f"?key_hash={made['token']}")["keys"] == [made["token"]]


def test_a_list_is_filtered_by_status(gateway: Gateway) -> None:
    gateway.make_key(key_alias="v")
    gateway.make_key(key_alias="x", duration="1s")
    gateway.make_key(key_alias="b", blocked=True)
    gateway.clock.advance(1)
    found = [aliases(gateway, f"&status={status}") for status in ("active", "expired", "revoked", "blocked")]
    assert found == ["v", "x", "b", "b"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?page=0", "page"),
        ("?page=-1", "page"),
        ("?page=%C2%B2", "page"),
        ("?size=101", "size"),
        ("?size=ten", "size"),
        ("?sort_by=colour", "sort_by"),
        ("?sort_order=up", "sort_order"),
        ("?return_full_object=maybe", "return_full_object"),
        ("?status=lost", "status"),
        ("?include_team_keys=maybe", "include_team_keys"),
        ("?user=x", "user"),
    ],
)
def test_a_parameter_that_is_not_taken_is_named(gateway: Gateway, query: str, param: str) -> None:
    answer = gateway.get(f"/key/list{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


def test_the_aliases_come_in_their_order_by_page_and_by_what_they_hold(gateway: Gateway) -> None:
    for alias in ("beta", "alpha", None, "gamma"):
        gateway.make_key(key_alias=alias, team_id="x" if alias == "beta" else None)
    answer = gateway.get("/key/aliases?size=2").json
    assert answer == {
        "aliases": ["alpha", "beta"],
        "total_count": 3,
        "current_page": 1,
        "total_pages": 2,
        "size": 2,
        "next": answer["next"],
    }
    assert gateway.get("/key/aliases?size=2&page=2").json["aliases"] == ["gamma"]
    assert gateway.get("/key/aliases?search=AM").json["aliases"] == ["gamma"]
    assert gateway.get("/key/aliases?team_id=x").json["aliases"] == ["beta"]
    assert gateway.get("/key/aliases?size=101").error["param"] == "size"
    assert gateway.get("/key/aliases?colour=red").error["param"] == "colour"
