"""Every field of LiteLLM's requests does what it says, or is refused by name unless it asks for nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.admin.litellm_fields import REQUESTS, REQUIRED
from twisted_vllm.admin.app import ROUTES
from twisted_vllm.admin.models import Body
from twisted_vllm.admin.parsing import parse_body
from twisted_vllm.errors import InvalidRequest

BODIES: dict[str, type[Body]] = {f"{route.method} {route.path}": route.body for route in ROUTES if route.body}

#: the fewest fields that each request needs
NEEDED: dict[str, dict[str, Any]] = {
    "POST /key/update": {"key": "sk-0123456789abcdef"},
    "POST /key/regenerate": {"key": "sk-0123456789abcdef"},
    "POST /key/delete": {"keys": ["sk-0123456789abcdef"]},
    "POST /user/update": {"user_id": "ada"},
    "POST /user/bulk_update": {"users": [{"user_id": "ada"}]},
    "POST /team/member_update": {"team_id": "x", "user_id": "ada"},
    "POST /team/member_delete": {"team_id": "x", "user_id": "ada"},
    "POST /team/bulk_member_add": {"team_id": "x", "members": [{"user_id": "ada"}]},
    "POST /budget/update": {"budget_id": "b"},
    "PATCH /organization/update": {"organization_id": "o"},
    "PATCH /organization/member_update": {"organization_id": "o", "user_id": "ada"},
    "DELETE /organization/member_delete": {"organization_id": "o", "user_id": "ada"},
}

#: values of what LiteLLM requires
VALUES: dict[str, Any] = {
    "key": "sk-0123456789abcdef",
    "keys": [{"key": "sk-0123456789abcdef"}],
    "user_id": "ada",
    "user_ids": ["ada"],
    "team_id": "x",
    "team_ids": ["x"],
    "member": {"user_id": "ada", "role": "user"},
    "models": ["m"],
    "budgets": ["b"],
    "id": "b",
    "organization_id": "o",
    "organization_ids": ["o"],
    "organizations": ["o"],
    "organization_alias": "Org",
}

#: values that ask for something, where an object would be malformed
DEMANDS: tuple[Any, ...] = ({"a": 1}, [1], True, "x")


def needed(route: str) -> dict[str, Any]:
    required = {name: VALUES[name] for name, default in REQUESTS[route].items() if default == REQUIRED}
    if "/organization/member" in route and "member" in required:
        required["member"] = {"user_id": "ada", "role": "internal_user"}
    return {**required, **NEEDED.get(route, {})}


def fields() -> Iterator[tuple[str, str, Any]]:
    for route, names in REQUESTS.items():
        for name, default in names.items():
            yield route, name, default


def test_every_route_of_the_list_is_served() -> None:
    assert set(REQUESTS) <= set(BODIES)


@pytest.mark.parametrize(("route", "name", "default"), list(fields()))
def test_a_field_is_taken_with_its_default_and_as_null_or_empty(route: str, name: str, default: Any) -> None:
    for value in (None, default):
        if default != REQUIRED and name not in NEEDED.get(route, {}):
            parse_body({**needed(route), name: value}, BODIES[route])
    parse_body(needed(route), BODIES[route])


@pytest.mark.parametrize(("route", "name", "default"), list(fields()))
def test_a_field_that_is_not_kept_is_refused_by_name(route: str, name: str, default: Any) -> None:
    body = BODIES[route]
    if name in body.__struct_fields__:
        assert name not in body.UNSUPPORTED
        return
    assert body.UNSUPPORTED[name] in (None, default) or default is None
    for value in DEMANDS:
        with pytest.raises(InvalidRequest, match=re.escape(f"`{name}`")) as refusal:
            parse_body({**needed(route), name: value}, body)
        assert refusal.value.param == name


@pytest.mark.parametrize("body", sorted(set(BODIES.values()), key=repr))
def test_no_field_is_both_kept_and_refused(body: type[Body]) -> None:
    assert not set(body.__struct_fields__) & set(body.UNSUPPORTED)
