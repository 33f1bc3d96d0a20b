"""`forbidden_fields`, `field_limits` and `allowed_fields` of keys: they are stored, shown, changed and audited."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.admin_harness import Gateway
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.field_policy.rules import NO_RULES, rules_of

KEY = "sk-custom-0123456789"
FIELDS: dict[str, Any] = {
    "forbidden_fields": ["background", "tools.type=mcp"],
    "field_limits": {"n": 4, "max_tokens": 500},
    "allowed_fields": ["vllm_xargs"],
}
EMPTY: dict[str, Any] = {"forbidden_fields": [], "field_limits": {}, "allowed_fields": []}


def shown(answer: Any) -> dict[str, Any]:
    return {name: answer[name] for name in FIELDS}


def test_a_key_has_its_rules_from_the_first_request_on(gateway: Gateway) -> None:
    assert shown(gateway.make_key(key=KEY, **FIELDS)) == FIELDS
    assert shown(gateway.get(f"/key/info?key={KEY}").json["info"]) == FIELDS
    found = gateway.index.find(hash_key(KEY))
    assert found is not None
    assert found.principal.key_fields == rules_of(
        ("background", "tools.type=mcp"), {"max_tokens": 500, "n": 4}, ("vllm_xargs",)
    )


def test_a_key_without_rules_says_so(gateway: Gateway) -> None:
    assert shown(gateway.make_key(key=KEY)) == EMPTY
    found = gateway.index.find(hash_key(KEY))
    assert found is not None
    assert found.principal.key_fields is found.principal.team_fields is NO_RULES


@pytest.mark.parametrize("name", FIELDS)
def test_null_and_empty_clear_one_and_leave_the_others(gateway: Gateway, name: str) -> None:
    for nothing in (None, type(FIELDS[name])()):
        gateway.make_key(key=f"{KEY}-{nothing}", **FIELDS)
        answer = gateway.post("/key/update", {"key": f"{KEY}-{nothing}", name: nothing})
        assert shown(answer.json) == {**FIELDS, name: EMPTY[name]}


def test_an_update_replaces_a_field_and_is_audited(gateway: Gateway) -> None:
    gateway.make_key(key=KEY, **FIELDS)
    gateway.post("/key/update", {"key": KEY, "field_limits": {"n": 1.0}})
    assert shown(gateway.get(f"/key/info?key={KEY}").json["info"]) == {**FIELDS, "field_limits": {"n": 1}}
    entry = gateway.get("/audit/list?action=key/update").json["audit_logs"][0]
    assert shown(entry["before"]) == FIELDS
    assert shown(entry["after"]) == {**FIELDS, "field_limits": {"n": 1}}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"forbidden_fields": ["a b"]}, "forbidden_fields", "must be the name of a field, or a path"),
        ({"forbidden_fields": ["*"]}, "forbidden_fields", "must be the name of a field, or a path"),
        ({"forbidden_fields": ["model"]}, "forbidden_fields", "must not be the model"),
        ({"forbidden_fields": "a"}, "forbidden_fields", "must be a list or null, and not a text"),
        ({"allowed_fields": ["a..b"]}, "allowed_fields", "must be the name of a field, or a path"),
        ({"field_limits": {"n": -1}}, "field_limits[...]", "must be at least 0"),
        ({"field_limits": {"n": 1.5}}, "field_limits[...]", "must be a whole number, and not a number"),
        ({"field_limits": {"*": 1}}, "field_limits", "must be the name of a field, or a path"),
        ({"field_limits": {"tools.type=mcp": 1}}, "field_limits", "must be a field without a value"),
        ({"field_limits": ["n"]}, "field_limits", "must be an object or null, and not a list"),
    ],
)
def test_what_is_no_rule_is_refused(gateway: Gateway, fields: Any, param: str, says: str) -> None:
    for path, body in (("/key/generate", fields), ("/key/update", {"key": KEY, **fields})):
        answer = gateway.post(path, body)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert says in answer.error["message"]


def test_a_path_may_have_a_star(gateway: Gateway) -> None:
    fields = {"forbidden_fields": ["messages.*.name"], "field_limits": {"messages.*.content": 5}}
    made = gateway.make_key(key=KEY, **fields)
    assert {name: made[name] for name in fields} == fields


def test_a_star_allows_every_field(gateway: Gateway) -> None:
    assert gateway.make_key(key=KEY, allowed_fields=["*"])["allowed_fields"] == ["*"]


def test_a_regenerated_key_keeps_its_rules(gateway: Gateway) -> None:
    gateway.make_key(key=KEY, **FIELDS)
    assert shown(gateway.post("/key/regenerate", {"key": KEY}).json) == FIELDS
