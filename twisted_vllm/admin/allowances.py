"""Limits and budgets in LiteLLM's names and in dollars, as the admin API takes and shows them."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec

from twisted_vllm.admin.fields import UNITS
from twisted_vllm.admin.schemas import Label, is_printable
from twisted_vllm.auth.records import Spend
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.money import PICODOLLARS, from_dollars, to_dollars
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance
from twisted_vllm.ratelimit.periods import period_of

#: the largest whole number that every JSON reader takes
_LARGEST = 2**53 - 1

Count = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
Counts = Annotated[dict[Label, Count], msgspec.Meta(max_length=1000)]

#: an amount that fits in 64 bits of picodollars
Dollars = Annotated[float, msgspec.Meta(ge=0, le=9_000_000, description="US dollars.")]

BudgetDuration = Annotated[
    str,
    msgspec.Meta(
        description="A number and a unit, one of s, m, h, d, w and mo, as in 30d.",
        extra_json_schema={"pattern": f"^({UNITS})$"},
    ),
]


class LimitFields(msgspec.Struct, frozen=True, kw_only=True):
    """What an administrator may say of how much somebody may use; 0 allows nothing, null anything."""

    rpm_limit: Count | None = None
    tpm_limit: Count | None = None
    max_parallel_requests: Count | None = None
    model_rpm_limit: Counts | None = None
    model_tpm_limit: Counts | None = None
    max_budget: Dollars | None = None
    soft_budget: Dollars | None = None
    budget_duration: BudgetDuration | None = None

    #: the fields whose values are whole numbers by name
    WHOLE_NUMBERS_WITHIN: ClassVar[tuple[str, ...]] = ("model_rpm_limit", "model_tpm_limit")

    #: LiteLLM's names, and the attributes of an allowance
    ATTRIBUTES: ClassVar[Mapping[str, str]] = {
        "rpm_limit": "rpm",
        "tpm_limit": "tpm",
        "max_parallel_requests": "parallel",
        "model_rpm_limit": "model_rpm",
        "model_tpm_limit": "model_tpm",
        "max_budget": "max_budget",
        "soft_budget": "soft_budget",
        "budget_duration": "budget_duration",
    }

    def limits(self, given: Container[str], before: Allowance = UNLIMITED) -> Allowance:
        """Return an allowance with the limits that were given in the place of those from before; null clears."""
        values = {
            "rpm_limit": self.rpm_limit,
            "tpm_limit": self.tpm_limit,
            "max_parallel_requests": self.max_parallel_requests,
            "model_rpm_limit": self.model_rpm_limit or {},
            "model_tpm_limit": self.model_tpm_limit or {},
            "max_budget": None if self.max_budget is None else from_dollars(self.max_budget),
            "soft_budget": None if self.soft_budget is None else from_dollars(self.soft_budget),
            "budget_duration": self.budget_duration,
        }
        changed = {self.ATTRIBUTES[name]: value for name, value in values.items() if name in given}
        return msgspec.structs.replace(before, **changed) if changed else before


def check_limits(found: LimitFields) -> None:
    """Return if limits can be kept.

    Raises:
        InvalidRequest: a budget's duration is not one, or a model's name cannot be printed.
    """
    if found.budget_duration is not None and not re.fullmatch(UNITS, found.budget_duration):
        raise InvalidRequest(
            "`budget_duration` must be a number above 0, of at most 5 digits, and a unit, one of s, m, h, d, w and mo "
            "(as in 30d), or null for a budget that never begins anew.",
            param="budget_duration",
        )
    for name in found.WHOLE_NUMBERS_WITHIN:
        if not all(is_printable(model) for model in getattr(found, name) or ()):
            raise InvalidRequest(f"`{name}`: holds a character that cannot be printed.", param=name)


def dollars(picodollars: int | None) -> float | None:
    """Return an amount as JSON has it."""
    return None if picodollars is None else float(to_dollars(picodollars))


def money_text(picodollars: int) -> str:
    """Return an amount in dollars as decimal text, exactly."""
    sign = "-" if picodollars < 0 else ""
    whole, part = divmod(abs(picodollars), PICODOLLARS)
    return f"{sign}{whole}.{f'{part:012d}'.rstrip('0') or '0'}"


def money(picodollars: int) -> msgspec.Raw:
    """Return an amount in dollars as a JSON number, exactly."""
    return msgspec.Raw(money_text(picodollars).encode())


def show_limits(allowance: Allowance) -> dict[str, Any]:
    """Return limits in LiteLLM's names."""
    return {
        "rpm_limit": allowance.rpm,
        "tpm_limit": allowance.tpm,
        "max_parallel_requests": allowance.parallel,
        "model_rpm_limit": allowance.model_rpm or None,
        "model_tpm_limit": allowance.model_tpm or None,
        "max_budget": dollars(allowance.max_budget),
        "soft_budget": dollars(allowance.soft_budget),
        "budget_duration": allowance.budget_duration,
    }


def present_spend(allowance: Allowance, spend: Spend, now: datetime) -> int:
    """Return what was spent in the budget's present period, in picodollars."""
    start, _ = period_of(allowance.budget_duration, now.timestamp())
    return spend.spend if spend.period_start >= start else 0


def show_use(allowance: Allowance, spend: Spend, now: datetime) -> dict[str, Any]:
    """Return limits, what was spent in the present period and in all, and when the next period begins."""
    _, end = period_of(allowance.budget_duration, now.timestamp())
    return {
        **show_limits(allowance),
        "spend": money(present_spend(allowance, spend, now)),
        "total_spend": money(spend.total_spend),
        "budget_reset_at": None if end is None else datetime.fromtimestamp(end, UTC),
    }
