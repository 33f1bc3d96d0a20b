"""What new keys, users and teams get that the request leaves out."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from twisted_vllm.config.new_records import (
    DefaultMembership,
    NewKeyDefaults,
    NewTeamDefaults,
    NewUserDefaults,
    RecordDefaults,
)

DEFAULTS = RecordDefaults(
    keys=NewKeyDefaults(
        max_budget=Decimal("1.5"),
        budget_duration="30d",
        duration="90d",
        rpm_limit=6,
        models=("a",),
        team_id="x",
        metadata={"from": "defaults"},
    ),
    users=NewUserDefaults(
        user_role="internal_user_viewer", rpm_limit=7, teams=(DefaultMembership("x", "admin", Decimal(2)),)
    ),
    teams=NewTeamDefaults(max_budget=Decimal(9), models=("t",)),
)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(record_defaults=DEFAULTS)


def shown(report: Any, *names: str) -> tuple[Any, ...]:
    return tuple(report[name] for name in names)


def test_a_key_gets_what_its_request_leaves_out(gateway: Gateway) -> None:
    made = gateway.make_key()
    names = ("max_budget", "budget_duration", "rpm_limit", "models", "team_id", "metadata")
    assert shown(made, *names) == (1.5, "30d", 6, ["a"], "x", {"from": "defaults"})
    assert made["expires"] == "2026-05-30T12:00:00Z"


def test_what_a_request_has_wins_and_a_period_of_null_stays(gateway: Gateway) -> None:
    made = gateway.make_key(max_budget=0, budget_duration=None, rpm_limit=1, models=["b"], metadata={"mine": 1})
    assert shown(made, "max_budget", "budget_duration", "rpm_limit") == (0, None, 1)
    assert shown(made, "models", "metadata") == (["b"], {"mine": 1})


def test_a_service_account_has_no_user_all_the_same() -> None:
    gateway = Gateway(record_defaults=RecordDefaults(keys=NewKeyDefaults(user_id="ada", rpm_limit=2)))
    made = gateway.post("/key/service-account/generate", {"team_id": "x"}).json
    assert shown(made, "user_id", "rpm_limit") == (None, 2)


def test_an_update_gets_no_defaults(gateway: Gateway) -> None:
    key = gateway.make_key(max_budget=3)["key"]
    assert gateway.post("/key/update", {"key": key, "max_budget": None}).json["max_budget"] is None


def test_a_user_joins_the_default_teams_unless_it_names_some(gateway: Gateway) -> None:
    for team in "xy":
        gateway.post("/team/new", {"team_id": team})
    made = gateway.post("/user/new", {"user_id": "ada"}).json
    assert shown(made, "user_role", "rpm_limit", "teams") == ("internal_user_viewer", 7, ["x"])
    [membership] = gateway.get("/team/info?team_id=x").json["team_memberships"]
    assert membership["litellm_budget_table"]["max_budget"] == 2
    assert gateway.post("/user/new", {"user_id": "bob", "teams": ["y"]}).json["teams"] == ["y"]
    assert gateway.post("/user/new", {"user_id": "cyd", "team_id": "y"}).json["teams"] == ["y"]


def test_an_internal_user_gets_the_budget_of_internal_users() -> None:
    gateway = Gateway(record_defaults=RecordDefaults(user_budget=Decimal(4), user_budget_duration="1d"))
    assert shown(gateway.post("/user/new").json, "max_budget", "budget_duration") == (4, "1d")
    assert gateway.post("/user/new", {"max_budget": 1}).json["max_budget"] == 1
    viewer = gateway.post("/user/new", {"user_role": "internal_user_viewer"}).json
    assert shown(viewer, "max_budget", "budget_duration") == (None, None)


def test_a_team_gets_what_its_request_leaves_out(gateway: Gateway) -> None:
    assert shown(gateway.post("/team/new", {"models": ["u"]}).json, "max_budget", "models") == (9, ["u"])
    assert gateway.post("/team/new", {}).json["models"] == ["t"]
