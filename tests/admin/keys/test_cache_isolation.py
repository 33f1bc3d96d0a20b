"""`cache_isolation` and `key_type` of keys."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway

KEY = "sk-custom-0123456789"


def salt(gateway: Gateway, token: str) -> str:
    found = gateway.index.find(token)
    assert found is not None
    return found.principal.cache_salt


def test_each_isolated_key_has_a_salt_of_its_own_that_nobody_sees(gateway: Gateway) -> None:
    one, two = gateway.make_key(key=KEY, cache_isolation=True), gateway.make_key(cache_isolation=True)
    none = gateway.make_key()
    salts = [salt(gateway, made["token"]) for made in (one, two, none)]
    assert len(set(salts)) == 3
    assert (len(salts[0]), salts[2]) == (32, "")
    assert (one["cache_isolation"], none["cache_isolation"]) == (True, False)
    seen = [
        gateway.get(f"/key/info?key={KEY}").body,
        gateway.get("/key/list?return_full_object=true").body,
        gateway.get("/audit/list").body,
    ]
    assert not any(each.encode() in body for each in salts[:2] for body in seen)
    [entry] = gateway.get(f"/audit/list?object_id={one['token']}").json["audit_logs"]
    assert entry["after"]["cache_isolation"] is True


def test_a_salt_stays_until_isolation_ends_and_is_another_after_it_begins_anew(gateway: Gateway) -> None:
    made = gateway.make_key(key=KEY, cache_isolation=True)
    first = salt(gateway, made["token"])
    for fields in ({"cache_isolation": True}, {"tags": ["a"]}):
        gateway.post("/key/update", {"key": KEY, **fields})
        assert salt(gateway, made["token"]) == first
    new = gateway.post("/key/regenerate", {"key": KEY}).json
    assert salt(gateway, new["token"]) == first
    for off in (False, None):
        assert gateway.post("/key/update", {"key": new["key"], "cache_isolation": off}).json["cache_isolation"] is False
        assert salt(gateway, new["token"]) == ""
    gateway.post("/key/update", {"key": new["key"], "cache_isolation": True})
    assert salt(gateway, new["token"]) not in ("", first)


@pytest.mark.parametrize(
    ("key_type", "routes"),
    [
        ("default", []),
        (None, []),
        ("llm_api", ["llm_api_routes"]),
        ("management", ["management"]),
        ("read_only", ["read_only"]),
    ],
)
def test_a_key_type_is_short_for_the_routes_of_that_type(gateway: Gateway, key_type: Any, routes: list[str]) -> None:
    made = gateway.make_key(key=KEY, key_type=key_type)
    assert made["allowed_routes"] == routes
    # as whoever may call what, a key sees itself
    assert gateway.get("/key/info", KEY).status == 200
    assert gateway.get("/user/list", KEY).status == (200 if key_type == "management" else 403)
    gateway.post("/key/update", {"key": KEY, "allowed_routes": ["inference"]})
    updated = gateway.post("/key/update", {"key": KEY, "key_type": key_type}).json
    assert updated["allowed_routes"] == (routes or ["inference"])


def test_the_groups_of_routes_that_litellm_stores_for_its_types_are_taken_as_well(gateway: Gateway) -> None:
    made = gateway.make_key(allowed_routes=["llm_api_routes", "management_routes", "info_routes"])
    assert made["allowed_routes"] == ["llm_api_routes", "management", "read_only"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"key_type": "king"}, "key_type"),
        ({"key_type": "llm_api", "allowed_routes": ["inference"]}, "key_type"),
        ({"cache_isolation": "yes"}, "cache_isolation"),
    ],
)
def test_what_cannot_be_is_refused_by_name(gateway: Gateway, fields: dict[str, object], param: str) -> None:
    answer = gateway.post("/key/generate", fields)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_only_the_master_key_makes_keys_of_the_type_that_administers(gateway: Gateway) -> None:
    manager = gateway.make_key(key_type="management")["key"]
    assert gateway.post("/key/generate", {"key_type": "management"}, manager).status == 403
    assert gateway.post("/key/generate", {"key_type": "llm_api"}, manager).status == 200
