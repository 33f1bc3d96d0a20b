"""A key that administers: it does what the master key does, except to keys of its own kind."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway


@pytest.fixture
def manager(gateway: Gateway) -> dict[str, Any]:
    return gateway.make_key(key_alias="manager", allowed_routes=["management"])


def test_it_administers_ordinary_keys_in_its_own_name(gateway: Gateway, manager: dict[str, Any]) -> None:
    made = gateway.post("/key/generate", {"key_alias": "tenant", "allowed_routes": ["privileged"]}, manager["key"])
    assert (made.status, made.json["created_by"]) == (200, manager["token"][:8])
    for path, body in (
        ("/key/update", {"key_alias": "tenant", "tags": ["a"]}),
        ("/key/block", {"key_alias": "tenant"}),
        ("/key/regenerate", {"key_alias": "tenant"}),
        ("/key/bulk_update", {"keys": [{"key_alias": "tenant"}]}),
        ("/key/delete", {"key_aliases": ["tenant"]}),
    ):
        assert gateway.post(path, body, manager["key"]).status == 200
    assert gateway.get("/key/list", manager["key"]).json["total_count"] == 1
    assert gateway.get(f"/key/info?key={manager['token']}", manager["key"]).status == 200


def test_litellms_name_for_it_means_the_same(gateway: Gateway) -> None:
    made = gateway.make_key(allowed_routes=["management_routes", "inference"])
    assert made["allowed_routes"] == ["management", "inference"]
    assert gateway.get("/key/list", made["key"]).status == 200


def test_it_neither_makes_nor_changes_keys_that_administer_itself_included(
    gateway: Gateway, manager: dict[str, Any]
) -> None:
    other = gateway.make_key(key_alias="other", allowed_routes=["management"])
    gateway.make_key(key_alias="tenant")
    before = gateway.records()
    for path, body in (
        ("/key/generate", {"allowed_routes": ["inference", "management"]}),
        ("/key/update", {"key_alias": "tenant", "allowed_routes": ["management"]}),
        ("/key/update", {"key": manager["key"], "allowed_routes": ["management", "privileged"]}),
        ("/key/update", {"key_alias": "other", "tags": ["a"]}),
        ("/key/update", {"key_alias": "other", "allowed_routes": None}),
        ("/key/block", {"key": other["key"]}),
        ("/key/regenerate", {"key": manager["key"]}),
        ("/key/regenerate", {"key_alias": "tenant", "allowed_routes": ["management"]}),
        ("/key/delete", {"key_aliases": ["tenant", "other"]}),
    ):
        answer = gateway.post(path, body, manager["key"])
        assert (answer.status, answer.error["code"]) == (403, "route_not_allowed"), path
    answer = gateway.post("/key/bulk_update", {"keys": [{"key_alias": "other", "tags": ["a"]}]}, manager["key"])
    assert len(answer.json["failed_updates"]) == 1
    assert gateway.records() == before


def test_the_master_key_changes_it_and_takes_its_office_away(gateway: Gateway, manager: dict[str, Any]) -> None:
    assert gateway.post("/key/update", {"key_alias": "manager", "allowed_routes": ["inference"]}).status == 200
    assert gateway.get("/user/list", manager["key"]).status == 403


def test_it_stops_administering_when_it_is_blocked_or_expires(gateway: Gateway) -> None:
    made = gateway.make_key(allowed_routes=["management"], duration="1m")
    gateway.clock.advance(60)
    assert gateway.get("/key/list", made["key"]).error["code"] == "expired_api_key"
