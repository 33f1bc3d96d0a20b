"""What keys, users, teams and end users spent is shown, by the period of their budget, and can be set anew."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import NOW, Gateway, value_of
from twisted_vllm.auth.records import Spend
from twisted_vllm.ratelimit.periods import period_of

KEY = "sk-custom-0123456789"
DOLLAR = 10**12


def spent(gateway: Gateway, kind: str, identity: str, spend: int, duration: str | None = None) -> None:
    """Note what somebody spent in the present period, as the ledger does."""
    start, _ = period_of(duration, NOW.timestamp())
    value_of(gateway.store.change(lambda transaction: transaction.spend.set(kind, identity, spend, start)))


def key_id(gateway: Gateway, token: str) -> str:
    return gateway.principal_of(token).key_id


def test_what_was_spent_is_shown_in_dollars_wherever_a_record_is(gateway: Gateway) -> None:
    gateway.post("/user/new", {"user_id": "ada", "auto_create_key": False})
    gateway.post("/team/new", {"team_id": "x", "members_with_roles": [{"user_id": "ada"}]})
    gateway.post("/customer/new", {"user_id": "eve"})
    made = gateway.make_key(key=KEY, user_id="ada", team_id="x")
    spent(gateway, "key", key_id(gateway, made["token"]), DOLLAR // 10)
    for kind, identity, amount in (("user", "ada", 2), ("team", "x", 3), ("end_user", "eve", 4)):
        spent(gateway, kind, identity, amount * DOLLAR)

    user, team = gateway.get("/user/info?user_id=ada").json, gateway.get("/team/info?team_id=x").json
    keys = [
        gateway.get(f"/key/info?key={KEY}").json["info"],
        gateway.get("/key/list?return_full_object=true").json["keys"][0],
        gateway.post("/v2/key/info", {"keys": [KEY]}).json["info"][0],
        user["keys"][0],
        team["keys"][0],
        gateway.post("/key/update", {"key": KEY, "tags": []}).json,
        gateway.post("/key/regenerate", {"key": KEY}).json,
    ]
    assert {key["spend"] for key in keys} == {0.1}
    assert user["user_info"]["spend"] == gateway.get("/user/list").json["users"][0]["spend"] == 2
    assert team["team_info"]["spend"] == gateway.get("/team/list").json[0]["spend"] == user["teams"][0]["spend"] == 3
    assert gateway.get("/customer/info?end_user_id=eve").json["spend"] == 4
    assert gateway.get("/end_user/list").json[0]["spend"] == 4


def test_a_key_without_administration_sees_its_own_spend_and_its_user_s(gateway: Gateway) -> None:
    gateway.post("/user/new", {"user_id": "ada", "auto_create_key": False, "max_budget": 5, "budget_duration": "1d"})
    made = gateway.make_key(key=KEY, user_id="ada", rpm_limit=9)
    spent(gateway, "key", key_id(gateway, made["token"]), DOLLAR)
    spent(gateway, "user", "ada", 2 * DOLLAR, "1d")
    own = gateway.get("/key/info", KEY).json["info"]
    assert (own["spend"], own["rpm_limit"]) == (1, 9)
    user = gateway.get("/user/info", KEY).json["user_info"]
    assert (user["spend"], user["max_budget"], user["budget_reset_at"]) == (2, 5, "2026-03-02T00:00:00Z")
    gateway.make_key(key=KEY + "b")
    assert gateway.get(f"/key/info?key={KEY}b", KEY).status == 403
    assert gateway.post(f"/key/{KEY}/reset_spend", {"reset_to": 0}, KEY).status == 403


def test_a_period_that_is_over_is_spent_no_more(gateway: Gateway) -> None:
    made = gateway.make_key(key=KEY, budget_duration="1d")
    assert made["budget_reset_at"] == "2026-03-02T00:00:00Z"
    spent(gateway, "key", key_id(gateway, made["token"]), DOLLAR, "1d")
    assert gateway.get("/key/info", KEY).json["info"]["spend"] == 1
    gateway.clock.advance(12 * 3600)
    info = gateway.get("/key/info", KEY).json["info"]
    assert (info["spend"], info["budget_reset_at"]) == (0, "2026-03-03T00:00:00Z")
    forever = gateway.post("/key/update", {"key": KEY, "budget_duration": None}).json
    assert (forever["spend"], forever["budget_reset_at"]) == (1, None)


@pytest.mark.parametrize("duration", [None, "1d", "30d"])
def test_reset_spend_sets_what_the_period_has_and_leaves_the_total(gateway: Gateway, duration: str | None) -> None:
    made = gateway.make_key(key=KEY, max_budget=10, budget_duration=duration)
    identity = key_id(gateway, made["token"])
    start, _ = period_of(duration, NOW.timestamp())

    def total(transaction: Any) -> None:
        transaction.spend.set("key", identity, 7 * DOLLAR, start)
        transaction.connection.exec_driver_sql(f"UPDATE vllm_passthrough_spend SET total_spend = {9 * DOLLAR}")

    value_of(gateway.store.change(total))
    answer = gateway.post(f"/key/{KEY}/reset_spend", {"reset_to": 2.5})
    assert answer.status == 200
    assert answer.json == {
        "key_hash": made["token"],
        "previous_spend": 7,
        "spend": 2.5,
        "total_spend": 9,
        "max_budget": 10,
        "budget_reset_at": made["budget_reset_at"],
    }
    assert gateway.get("/key/info", KEY).json["info"]["spend"] == 2.5
    assert value_of(gateway.store.spend()) == [Spend("key", identity, 5 * DOLLAR // 2, start, 9 * DOLLAR)]
    [entry] = gateway.get("/audit/list?action=key/reset_spend").json["audit_logs"]
    assert (entry["object_id"], entry["before"], entry["after"]) == (made["token"][:8], {"spend": 7}, {"spend": 2.5})
    assert gateway.post(f"/key/{made['token']}/reset_spend", {"reset_to": 0}).json["spend"] == 0


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "reset_to"),
        ({"reset_to": None}, 400, "reset_to"),
        ({"reset_to": -1}, 400, "reset_to"),
        ({"reset_to": "0"}, 400, "reset_to"),
        ({"reset_to": 1.01}, 409, "reset_to"),
        ({"reset_to": 0, "key": KEY}, 400, "key"),
    ],
)
def test_a_reset_that_cannot_be_is_refused_and_changes_nothing(
    gateway: Gateway, body: dict[str, object], status: int, param: str
) -> None:
    made = gateway.make_key(key=KEY)
    spent(gateway, "key", key_id(gateway, made["token"]), DOLLAR)
    answer = gateway.post(f"/key/{KEY}/reset_spend", body)
    assert (answer.status, answer.error["param"]) == (status, param)
    assert gateway.get("/key/info", KEY).json["info"]["spend"] == 1


def test_a_reset_of_a_key_that_is_not_known_or_that_administers_is_refused(gateway: Gateway) -> None:
    assert gateway.post("/key/sk-unknown-0123456789/reset_spend", {"reset_to": 0}).status == 404
    manager = gateway.make_key(key_type="management")["key"]
    assert gateway.post(f"/key/{manager}/reset_spend", {"reset_to": 0}, manager).status == 403


def test_keys_are_listed_by_what_they_spent(gateway: Gateway) -> None:
    keys = {amount: gateway.make_key() for amount in (2, 0, 3)}
    for amount, made in keys.items():
        spent(gateway, "key", key_id(gateway, made["token"]), amount * DOLLAR)
    listed = gateway.get("/key/list?sort_by=spend").json["keys"]
    assert listed == [keys[amount]["token"] for amount in (3, 2, 0)]


@pytest.mark.parametrize(
    ("kind", "make", "delete"),
    [
        ("user", ("/user/new", {"user_id": "a", "auto_create_key": False}), ("/user/delete", {"user_ids": ["a"]})),
        ("team", ("/team/new", {"team_id": "a"}), ("/team/delete", {"team_ids": ["a"]})),
        ("end_user", ("/customer/new", {"user_id": "a"}), ("/customer/delete", {"user_ids": ["a"]})),
    ],
)
def test_who_is_made_again_begins_at_nothing(gateway: Gateway, kind: str, make: Any, delete: Any) -> None:
    assert gateway.post(*make).json["spend"] == 0
    spent(gateway, kind, "a", DOLLAR)
    gateway.post(*delete)
    assert gateway.post(*make).json["spend"] == 0


def test_what_was_spent_is_shown_to_the_last_digit(gateway: Gateway) -> None:
    made = gateway.make_key(key=KEY)
    spent(gateway, "key", key_id(gateway, made["token"]), 1_234_567_890_123_456_789)
    for path in ("/spend/keys", "/key/list?return_full_object=true"):
        assert b'"spend":1234567.890123456789,' in gateway.get(path).body
