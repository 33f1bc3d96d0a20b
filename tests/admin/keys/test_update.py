"""A key is changed: what is absent stays, null clears, and the change acts on the next request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway

KEY = "sk-custom-0123456789"
FIELDS: dict[str, Any] = {
    "key_alias": "team",
    "duration": "1h",
    "models": ["a"],
    "allowed_routes": ["inference"],
    "blocked": True,
    "metadata": {"a": 1},
    "tags": ["t"],
    "user_id": "ada",
    "team_id": "engines",
    "aliases": {"gpt-4": "a"},
    "priority": 5,
    "granted_headers": ["x-session-id"],
}
EMPTY: dict[str, Any] = {
    "key_alias": None,
    "expires": None,
    "models": [],
    "allowed_routes": [],
    "blocked": False,
    "metadata": {},
    "tags": [],
    "user_id": None,
    "team_id": None,
    "aliases": {},
    "priority": None,
    "granted_headers": [],
}


def info(gateway: Gateway, key: str = KEY) -> Any:
    return gateway.get(f"/key/info?key={key}").json["info"]


@pytest.mark.parametrize("name", ["key", "token", "alias"])
def test_a_key_is_named_by_itself_its_hash_or_its_alias(gateway: Gateway, name: str) -> None:
    made = gateway.make_key(key=KEY, key_alias="team")
    body = {"key_alias": "team"} if name == "alias" else {"key": made[name]}
    answer = gateway.post("/key/update", {**body, "tags": ["new"]})
    assert answer.status == 200
    assert (answer.json["key"], answer.json["tags"]) == (body.get("key", made["token"]), ["new"])
    assert info(gateway)["tags"] == ["new"]
    assert info(gateway)["key_alias"] == "team"


def test_what_is_absent_stays(gateway: Gateway) -> None:
    gateway.make_key(key=KEY, **FIELDS)
    before = info(gateway)
    gateway.clock.advance(1)
    answer = gateway.post("/key/update", {"key": KEY, "priority": 6})
    changed = {"priority": 6, "updated_at": "2026-03-01T12:00:01Z"}
    assert info(gateway) == {**before, **changed}
    assert {**answer.json, "key": None} == {**before, **changed, "key": None}


@pytest.mark.parametrize("name", FIELDS)
def test_null_clears_and_nothing_else_changes(gateway: Gateway, name: str) -> None:
    gateway.make_key(key=KEY, **FIELDS)
    before = info(gateway)
    assert gateway.post("/key/update", {"key": KEY, name: None}).status == 200
    after = info(gateway)
    stored = "expires" if name == "duration" else name
    assert after[stored] == EMPTY[stored]
    same = set(before) - {stored, "status"}
    assert {each: after[each] for each in same} == {each: before[each] for each in same}


@pytest.mark.parametrize("duration", [None, -1, "-1"])
def test_a_key_that_expired_lives_again_without_an_end(gateway: Gateway, duration: object) -> None:
    gateway.make_key(key=KEY, duration="1s")
    gateway.clock.advance(1)
    assert gateway.get("/key/info", key=KEY).error["code"] == "expired_api_key"
    gateway.post("/key/update", {"key": KEY, "duration": duration})
    assert gateway.get("/key/info", key=KEY).json["info"]["expires"] is None


def test_a_duration_begins_with_the_change(gateway: Gateway) -> None:
    gateway.make_key(key=KEY)
    gateway.clock.advance(60)
    answer = gateway.post("/key/update", {"key": KEY, "duration": "1h"})
    assert answer.json["expires"] == "2026-03-01T13:01:00Z"


def test_an_alias_is_given_and_freed(gateway: Gateway) -> None:
    gateway.make_key(key=KEY, key_alias="team")
    assert gateway.post("/key/update", {"key": KEY, "key_alias": "other"}).json["key_alias"] == "other"
    gateway.make_key(key_alias="team")
    answer = gateway.post("/key/update", {"key": KEY, "key_alias": "team"})
    assert (answer.status, answer.error["param"]) == (409, "key_alias")
    assert info(gateway)["key_alias"] == "other"


@pytest.mark.parametrize("body", [{"key": "sk-unknown-0123456789"}, {"key": "0" * 64}, {"key_alias": "nobody"}])
@pytest.mark.parametrize("path", ["/key/update", "/key/block", "/key/unblock", "/key/regenerate"])
def test_a_key_that_is_not_known_is_not_found_and_not_named(gateway: Gateway, path: str, body: dict[str, str]) -> None:
    answer = gateway.post(path, body)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert body.get("key", "sk-") not in answer.body.decode()


@pytest.mark.parametrize("path", ["/key/update", "/key/block", "/key/unblock", "/key/regenerate"])
@pytest.mark.parametrize("body", [{}, {"key": None}])
def test_a_change_must_name_its_key(gateway: Gateway, path: str, body: object) -> None:
    answer = gateway.post(path, body)
    assert (answer.status, answer.error["param"]) == (400, "key")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"spend": -5}, "spend"),
        ({"temp_budget_increase": 5}, "temp_budget_increase"),
        ({"models": ["all-team-models"]}, "models"),
        ({"priority": "high"}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"priority": True}, "priority"),
        ({"granted_headers": ["authorization"]}, "granted_headers"),
        ({"aliases": {"a": 5}}, "aliases[...]"),
        ({"aliases": {"a": "b\n"}}, "aliases"),
        ({"aliases": ["a"]}, "aliases"),
        ({"aliases": {"": "a"}}, "aliases"),
        ({"duration": "0s"}, "duration"),
        ({"allowed_routes": ["managment"]}, "allowed_routes"),
        ({"new_key": KEY}, "new_key"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
    gateway: Gateway, fields: dict[str, object], param: str
) -> None:
    gateway.make_key(key=KEY)
    before = info(gateway)
    answer = gateway.post("/key/update", {"key": KEY, **fields})
    assert (answer.status, answer.error["param"]) == (400, param)
    assert info(gateway) == before


def test_a_blocked_key_is_refused_on_the_next_request_and_taken_again_when_unblocked(gateway: Gateway) -> None:
    made = gateway.make_key(key=KEY, key_alias="team")
    assert gateway.get("/key/info", key=KEY).status == 200
    answer = gateway.post("/key/block", {"key": KEY})
    assert (answer.status, answer.json["blocked"], answer.json["token"]) == (200, True, made["token"])
    assert gateway.get("/key/info", key=KEY).error["code"] == "blocked_api_key"
    assert gateway.post("/key/unblock", {"key": made["token"]}).json["blocked"] is False
    assert gateway.get("/key/info", key=KEY).status == 200
    assert gateway.post("/key/block", {"key_alias": "team"}).json["status"] == "revoked"


def test_a_bulk_update_changes_each_key_for_itself(gateway: Gateway) -> None:
    gateway.make_key(key=KEY, key_alias="one")
    gateway.make_key(key_alias="two")
    answer = gateway.post(
        "/key/bulk_update",
        {
            "keys": [
                {"key": KEY, "tags": ["a"]},
                {"key": "sk-unknown-0123456789", "tags": ["a"]},
                {"key_alias": "two", "tags": ["b"]},
                {"key": KEY, "key_alias": "two"},
                {"key": KEY, "max_budget": -3},
            ]
        },
    )
    assert answer.status == 200
    assert answer.json["total_requested"] == 5
    assert [each["key_info"]["tags"] for each in answer.json["successful_updates"]] == [["a"], ["b"]]
    failed = answer.json["failed_updates"]
    assert [each["index"] for each in failed] == [1, 3, 4]
    assert "max_budget" in failed[2]["failed_reason"]
    assert "sk-unknown" not in answer.body.decode()
    assert (info(gateway)["tags"], info(gateway)["key_alias"]) == (["a"], "one")


@pytest.mark.parametrize("body", [{}, {"keys": []}, {"keys": ["x"]}, {"keys": [{}] * 501}])
def test_a_bulk_update_of_nothing_or_too_much_is_refused(gateway: Gateway, body: dict[str, object]) -> None:
    assert gateway.post("/key/bulk_update", body).error["code"] == "invalid_request"
