"""Principals that may do the same are of one class, which is forgotten with them."""

from __future__ import annotations

import gc
from typing import Any

import attrs
import pytest

from twisted_vllm.auth.permissions import PermissionClasses
from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.field_policy.rules import rules_of
from twisted_vllm.ratelimit.allowance import Allowance, Limited, ModelBudget

TENANT = Principal(kind="key", name="team-a", key_id="1" * 32)


def limited(**limits: Any) -> tuple[Limited, ...]:
    return (Limited("key", "1" * 32, Allowance(**limits)),)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "team-b", "key_id": "2" * 32, "hash_prefix": "a" * 8},
        {"user_id": "ada", "team_id": "x", "organization_id": "acme", "tags": ("blue",)},
        {"expires": 5.0, "end_user_id": "eve"},
        {"limited": limited(rpm=1, parallel=2)},
    ],
)
def test_who_a_caller_is_does_not_matter(values: dict[str, Any]) -> None:
    classes = PermissionClasses()
    assert classes.of(attrs.evolve(TENANT, **values)) is classes.of(TENANT)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "preflight"},
        {"models": ("m",)},
        {"team_models": ("m",)},
        {"allowed_routes": ("inference",)},
        {"aliases": {"a": "b"}},
        {"priority": 0},
        {"granted_headers": frozenset({b"x-session-id"})},
        {"cache_salt": "salt"},
        {"key_fields": rules_of(("background",))},
        {"team_fields": rules_of(("background",))},
        {"limited": limited(tpm=1)},
        {"limited": limited(model_rpm={"m": 1})},
        {"limited": limited(model_budgets={"m": ModelBudget(1)})},
    ],
)
def test_what_it_may_do_does(values: dict[str, Any]) -> None:
    classes = PermissionClasses()
    mine = classes.of(TENANT)
    assert classes.of(attrs.evolve(TENANT, **values)) is not mine
    assert classes.of(TENANT) is mine


def test_administrators_are_classes_of_their_own() -> None:
    classes = PermissionClasses()
    found = [classes.of(each) for each in (TENANT, MASTER, ANONYMOUS)]
    assert len(set(map(id, found))) == 3


def test_a_class_that_nobody_has_is_forgotten() -> None:
    classes = PermissionClasses()
    for number in range(10):
        classes.of(attrs.evolve(TENANT, priority=number))
    gc.collect()
    assert len(classes) == 0
