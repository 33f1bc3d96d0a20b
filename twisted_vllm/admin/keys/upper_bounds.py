"""Holds keys to ``litellm_settings.upperbound_key_generate_params``.

As in LiteLLM, a new key that leaves out a limit gets the bound, and more than the bound is refused. Unlike in LiteLLM,
an update that removes a limit sets it to the bound as well: otherwise the bound would hold for nobody.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime

import msgspec

from twisted_vllm.admin.fields import expiry_of
from twisted_vllm.config.settings import KeyUpperBounds
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.money import from_dollars
from twisted_vllm.ratelimit.allowance import Allowance

#: the bounds that are numbers, and the attributes of an `Allowance`
_NUMBERS: Mapping[str, str] = {"rpm_limit": "rpm", "tpm_limit": "tpm", "max_parallel_requests": "parallel"}


def bounded_allowance(bounds: KeyUpperBounds, limits: Allowance, given: Container[str], now: datetime) -> Allowance:
    """Return the limits of a key, with the bound in place of each given limit that is null.

    Args:
        bounds: the operator's bounds.
        limits: the limits after the request.
        given: the names of the fields that the request has; the other limits stay as they are.
        now: the time of the request.

    Raises:
        InvalidRequest: a given limit is more than its bound.
    """
    most: dict[str, int | str] = {}
    for name, attribute in _NUMBERS.items():
        bound = getattr(bounds, name)
        if bound is not None and name in given:
            most[attribute] = _at_most(name, getattr(limits, attribute), bound, str(bound))
    if bounds.max_budget is not None and "max_budget" in given:
        bound = from_dollars(bounds.max_budget)
        most["max_budget"] = _at_most("max_budget", limits.max_budget, bound, f"{bounds.max_budget:f}")
    if bounds.budget_duration is not None and "budget_duration" in given:
        chosen = limits.budget_duration or bounds.budget_duration
        if _end(chosen, now) > _end(bounds.budget_duration, now):
            raise _refusal("budget_duration", bounds.budget_duration)
        most["budget_duration"] = chosen
    return msgspec.structs.replace(limits, **most) if most else limits


def bounded_expiry(bounds: KeyUpperBounds, duration: str | int | None, now: datetime) -> datetime | None:
    """Return when a key expires that is given a duration; a duration of null is the bound.

    Raises:
        InvalidRequest: the duration is malformed, or more than the bound.
    """
    expiry = expiry_of(duration, now)
    if bounds.duration is None:
        return expiry
    latest = _end(bounds.duration, now)
    if duration is None:
        return latest
    if expiry is None or expiry > latest:
        raise _refusal("duration", bounds.duration)
    return expiry


def _at_most(name: str, value: int | None, bound: int, text: str) -> int:
    if value is None:
        return bound
    if value > bound:
        raise _refusal(name, text)
    return value


def _end(duration: str, now: datetime) -> datetime:
    found = expiry_of(duration, now)
    assert found is not None, duration
    return found


def _refusal(name: str, bound: str) -> InvalidRequest:
    return InvalidRequest(
        f"`{name}` is more than the operator allows for a key: send at most {bound} "
        "(litellm_settings.upperbound_key_generate_params).",
        param=name,
    )
