"""Compares what two keys may do. Whoever serves itself makes no key that may do more than its own.

A key may do no more than another if that holds for every attribute. Attributes that are not known here must be equal,
so an attribute that is added later cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from twisted_vllm.auth.policy import matches_model
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.config.log_bodies import OFF
from twisted_vllm.field_policy.rules import EVERYTHING, FieldRules
from twisted_vllm.ratelimit.allowance import Allowance, ModelBudget

#: routes that every key may call, so that a key may be held to them
ROUTE_PRESETS = frozenset(("llm_api_routes", "read_only"))

#: attributes that grant nothing
_HARMLESS = frozenset(
    (
        *("token", "key_name", "key_id", "created_at", "created_by", "updated_at", "updated_by"),
        *("key_alias", "metadata", "rotation_count", "last_rotation_at"),
        # names of models; what they stand for must be allowed by itself
        "aliases",
        # compared with the limits of the budget that they name
        *("allowance", "budget_id"),
        # whose it is and whether it is blocked is decided by who asks
        *("user_id", "team_id", "blocked"),
    )
)

_WILDCARDS = frozenset("*?")

#: limits that are one number, and what the admin API calls them
NUMBERS = {"rpm": "rpm_limit", "tpm": "tpm_limit", "parallel": "max_parallel_requests", "max_budget": "max_budget"}
#: limits by model
BY_MODEL = {"model_rpm": "model_rpm_limit", "model_tpm": "model_tpm_limit", "model_budgets": "model_max_budget"}
#: the limits for all models together that a limit by model is a part of
_OF_ALL_MODELS = {"model_rpm": "rpm", "model_tpm": "tpm", "model_budgets": "max_budget"}


def covers_models(most: tuple[str, ...], models: Iterable[str]) -> bool:
    """Return whether patterns of models allow no more than others.

    A pattern with wildcards must be one of the others, literally.

    Args:
        most: the others; empty allows all models.
        models: the patterns, at least one if there are others.
    """
    if not most:
        return True
    models = tuple(models)
    return bool(models) and all(
        each in most or (_WILDCARDS.isdisjoint(each) and matches_model(most, each)) for each in models
    )


def covers_routes(most: tuple[str, ...], routes: tuple[str, ...], presets: bool) -> bool:
    """Return whether ``allowed_routes`` allow no more than others.

    Args:
        most: the others; empty allows what every key may call.
        routes: the rules.
        presets: whether every key may call the routes of `ROUTE_PRESETS`.
    """
    if routes == most:
        return True
    if most:
        return bool(routes) and set(routes) <= set(most)
    return presets and ROUTE_PRESETS.issuperset(routes)


def covers_fields(most: FieldRules, rules: FieldRules) -> bool:
    """Return whether rules about fields allow no more than others."""
    limits = dict(rules.limits)
    return (
        set(rules.forbidden) >= set(most.forbidden)
        and all(name in limits and limits[name] <= limit for name, limit in most.limits)
        and (EVERYTHING in most.allowed or set(rules.allowed) <= set(most.allowed))
    )


def excess_of_limits(most: Allowance, limits: Allowance) -> str | None:
    """Return the name of a limit that allows more than another's; None if none does. soft_budget refuses nobody."""
    for attribute, name in NUMBERS.items():
        bound, value = getattr(most, attribute), getattr(limits, attribute)
        if bound is not None and (value is None or value > bound):
            return name
    if most.max_budget is not None and limits.budget_duration != most.budget_duration:
        return "budget_duration"
    for attribute, name in BY_MODEL.items():
        values = getattr(limits, attribute)
        for model, bound in getattr(most, attribute).items():
            if model not in values or not _is_within(bound, values[model]):
                return name
    return None


def _is_within(bound: int | ModelBudget, value: int | ModelBudget) -> bool:
    if isinstance(bound, ModelBudget) and isinstance(value, ModelBudget):
        return value.max_budget <= bound.max_budget and value.budget_duration == bound.budget_duration
    return isinstance(bound, int) and isinstance(value, int) and value <= bound


def unshared_limit(own: Allowance, shared: Iterable[Allowance]) -> str | None:
    """Return the name of a limit that holds for one key alone, and for none of those that its keys share.

    A second key would count apart from it.

    Args:
        own: the limits of the key.
        shared: the limits of its user, team and the others that all its keys count for.
    """
    shared = tuple(shared)
    for attribute, name in NUMBERS.items():
        if getattr(own, attribute) is not None and all(getattr(each, attribute) is None for each in shared):
            return name
    for attribute, name in BY_MODEL.items():
        whole = _OF_ALL_MODELS[attribute]
        for model in getattr(own, attribute):
            if all(model not in getattr(each, attribute) and getattr(each, whole) is None for each in shared):
                return name
    return None


@attrs.frozen
class Comparison:
    """Compares keys.

    Attributes:
        allowance_of: returns the limits of a key, with those of the budget that it names.
        presets: whether every key may call the routes of `ROUTE_PRESETS`.
    """

    allowance_of: Callable[[KeyRecord], Allowance]
    presets: bool

    def excess(self, most: KeyRecord, key: KeyRecord) -> str | None:
        """Return the field in which a key may do more than another; None if it does in none."""
        for attribute in attrs.fields(KeyRecord):
            name = attribute.name
            if name in _HARMLESS:
                continue
            bound, value = getattr(most, name), getattr(key, name)
            compare = _COMPARISONS.get(name)
            if name == "allowed_routes":
                if not covers_routes(bound, value, self.presets):
                    return name
            elif not (value == bound if compare is None else compare(bound, value)):
                return _NAMES.get(name, name)
        return excess_of_limits(self.allowance_of(most), self.allowance_of(key))


def _later(most: Any, value: Any) -> bool:
    return most is None or (value is not None and value <= most)


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "models": covers_models,
    "expires": _later,
    # what is counted for a label must not be without it
    "tags": lambda most, tags: set(tags) >= set(most),
    # vLLM serves lower numbers first
    "priority": lambda most, priority: (priority or 0) >= (most or 0),
    "granted_headers": lambda most, headers: set(headers) <= set(most),
    "cache_salt": lambda most, salt: most is None or salt is not None,
    "fields": covers_fields,
    # more or fewer may be kept by the operator's settings, unless it is off
    "log_bodies": lambda most, mode: mode in (most, OFF),
}

#: what the admin API calls an attribute
_NAMES = {"expires": "duration", "cache_salt": "cache_isolation", "fields": "the rules about fields"}
