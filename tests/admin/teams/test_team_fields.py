"""`forbidden_fields` and `field_limits` of teams: they are stored, shown, changed and audited, and hold for keys."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.field_policy.rules import NO_RULES, rules_of

KEY = "sk-custom-0123456789"
FIELDS: dict[str, Any] = {"forbidden_fields": ["background"], "field_limits": {"n": 4}}


def shown(answer: Any) -> dict[str, Any]:
    return {name: answer[name] for name in FIELDS}


def test_a_team_s_rules_hold_for_its_keys_from_the_next_request_on(gateway: Gateway) -> None:
    gateway.make_key(key=KEY, team_id="engines")
    assert shown(gateway.post("/team/new", {"team_id": "engines", **FIELDS}).json) == FIELDS
    assert shown(gateway.get("/team/info?team_id=engines").json["team_info"]) == FIELDS
    found = gateway.index.find(hash_key(KEY))
    assert found is not None
    assert found.principal.team_fields == rules_of(("background",), {"n": 4})
    answer = gateway.post("/team/update", {"team_id": "engines", "forbidden_fields": None})
    assert shown(answer.json["data"]) == {**FIELDS, "forbidden_fields": []}
    gateway.post("/team/update", {"team_id": "engines", "field_limits": {}})
    found = gateway.index.find(hash_key(KEY))
    assert found is not None
    assert found.principal.team_fields is NO_RULES


def test_a_change_of_a_team_s_rules_is_audited(gateway: Gateway) -> None:
    gateway.post("/team/new", {"team_id": "engines", **FIELDS})
    gateway.post("/team/update", {"team_id": "engines", "field_limits": {"n": 1}})
    entry = gateway.get("/audit/list?action=team/update").json["audit_logs"][0]
    assert (shown(entry["before"]), shown(entry["after"])) == (FIELDS, {**FIELDS, "field_limits": {"n": 1}})
    assert "allowed_fields" not in entry["after"]


@pytest.mark.parametrize("fields", [{"forbidden_fields": ["a b"]}, {"field_limits": {"model": 1}}])
def test_what_is_no_rule_is_refused(gateway: Gateway, fields: Any) -> None:
    for path in ("/team/new", "/team/update"):
        answer = gateway.post(path, {"team_id": "engines", **fields})
        assert (answer.status, answer.error["param"]) == (400, next(iter(fields)))


def test_a_team_grants_nothing(gateway: Gateway) -> None:
    assert gateway.post("/team/new", {"allowed_fields": ["priority"]}).status == 400
