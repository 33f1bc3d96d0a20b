"""Limits, budgets and spend in LiteLLM's names and in US dollars, as the admin API reads and reports them."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from typing import Annotated, ClassVar

import msgspec

from twisted_vllm.admin.fields import MAX_ITEMS, MAX_LENGTH, PRINTABLE, UNITS
from twisted_vllm.admin.model_limits import NAMES_ONE_MODEL, check_limited_models
from twisted_vllm.admin.models import Body, Json, described
from twisted_vllm.auth.records import Spend
from twisted_vllm.config.checks import MAX_DOLLARS
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.money import PICODOLLARS, float_dollars, from_dollars
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, ModelBudget
from twisted_vllm.ratelimit.periods import period_of

#: the largest whole number that every JSON reader keeps exact (RFC 8259, section 6)
MAX_COUNT = 2**53 - 1

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]

_ModelName = Annotated[
    str,
    msgspec.Meta(
        min_length=1, max_length=MAX_LENGTH, extra_json_schema={"pattern": f"{NAMES_ONE_MODEL}{PRINTABLE[1:]}"}
    ),
]
Counts = Annotated[dict[_ModelName, Count], msgspec.Meta(max_length=MAX_ITEMS)]

#: an amount that fits in 64 bits of picodollars
Dollars = Annotated[float, msgspec.Meta(ge=0, le=MAX_DOLLARS, description="US dollars.")]

#: what a key, user or customer has spent; None leaves it
Spent = Annotated[
    float,
    msgspec.Meta(ge=0, le=MAX_DOLLARS, description="The spend in the budget's current period, in US dollars."),
]

BudgetDuration = Annotated[
    str,
    msgspec.Meta(
        description="A number and a unit (s, m, h, d, w or mo), as in 30d.",
        extra_json_schema={"pattern": f"^({UNITS})$"},
    ),
]


class ModelBudgetFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget for one model. LiteLLM has two names for each of its parts, and the first of each pair wins.

    Without an amount it limits nothing.
    """

    budget_limit: Annotated[
        Dollars | None, described("The most that may be spent on the model in a period, in US dollars.")
    ] = None
    max_budget: Annotated[Dollars | None, described("The same as `budget_limit`.")] = None
    time_period: Annotated[
        BudgetDuration | None, described("The length of a period, as in 1d. Without it there is one period for ever.")
    ] = None
    budget_duration: Annotated[BudgetDuration | None, described("The same as `time_period`.")] = None

    @property
    def duration(self) -> str | None:
        """The length of its period."""
        return self.budget_duration if self.time_period is None else self.time_period

    @property
    def dollars(self) -> float | None:
        """The most that may be spent in a period, in US dollars."""
        return self.max_budget if self.budget_limit is None else self.budget_limit


ModelBudgets = Annotated[
    dict[_ModelName, Dollars | ModelBudgetFields],
    msgspec.Meta(
        max_length=MAX_ITEMS,
        description="Budgets for single models: an amount, or an amount and the length of its period.",
    ),
]


class LimitFields(Body, frozen=True, kw_only=True):
    """The limits that a request may set. 0 allows nothing; null removes the limit."""

    rpm_limit: Annotated[Count | None, described("The most requests in any 60 seconds.")] = None
    tpm_limit: Annotated[
        Count | None, described("The most tokens, of prompts and answers together, in any 60 seconds.")
    ] = None
    max_parallel_requests: Annotated[Count | None, described("The most requests in flight at a time.")] = None
    model_rpm_limit: Annotated[
        Counts | None, described("The most requests in any 60 seconds for single models, by their names.")
    ] = None
    model_tpm_limit: Annotated[
        Counts | None, described("The most tokens in any 60 seconds for single models, by their names.")
    ] = None
    max_budget: Annotated[
        Dollars | None,
        described("The most that may be spent in a budget period, in US dollars. Then requests are refused."),
    ] = None
    soft_budget: Annotated[
        Dollars | None,
        described("The spend, in US dollars, at which the log warns once in each period. It refuses nothing."),
    ] = None
    budget_duration: Annotated[
        BudgetDuration | None,
        described(
            "The length of a budget period: a number and a unit (s, m, h, d, w or mo), as in 30d. "
            "Without it there is one period for ever."
        ),
    ] = None
    model_max_budget: Annotated[
        ModelBudgets | None,
        described(
            "Budgets for single models, by their names: an amount in US dollars, or an amount and the "
            "length of its period."
        ),
    ] = None

    WHOLE_NUMBER_MAPS: ClassVar[tuple[str, ...]] = ("model_rpm_limit", "model_tpm_limit")

    #: LiteLLM's names, and the attributes of an `Allowance`
    ATTRIBUTES: ClassVar[Mapping[str, str]] = {
        "rpm_limit": "rpm",
        "tpm_limit": "tpm",
        "max_parallel_requests": "parallel",
        "model_rpm_limit": "model_rpm",
        "model_tpm_limit": "model_tpm",
        "max_budget": "max_budget",
        "soft_budget": "soft_budget",
        "budget_duration": "budget_duration",
        "model_max_budget": "model_budgets",
    }

    def check(self) -> None:
        """Check the budget's duration and the names of models.

        Raises:
            InvalidRequest: the duration is malformed, or a name can be no model's.
        """
        check_budget_duration(self.budget_duration, "budget_duration")
        for name in LimitFields.WHOLE_NUMBER_MAPS:
            check_limited_models(getattr(self, name) or (), name)
        check_model_budgets(self.model_max_budget, "model_max_budget")

    def limits(self, given: Container[str], before: Allowance = UNLIMITED) -> Allowance:
        """Return the limits after a request: those that it gives replace the ones from before.

        Args:
            given: the names of the fields that the request has; null in one of them removes that limit.
            before: the limits until now.
        """
        values = {
            "rpm_limit": self.rpm_limit,
            "tpm_limit": self.tpm_limit,
            "max_parallel_requests": self.max_parallel_requests,
            "model_rpm_limit": self.model_rpm_limit or {},
            "model_tpm_limit": self.model_tpm_limit or {},
            "max_budget": None if self.max_budget is None else from_dollars(self.max_budget),
            "soft_budget": None if self.soft_budget is None else from_dollars(self.soft_budget),
            "budget_duration": self.budget_duration,
            "model_max_budget": model_budgets(self.model_max_budget),
        }
        changed = {self.ATTRIBUTES[name]: value for name, value in values.items() if name in given}
        return msgspec.structs.replace(before, **changed) if changed else before


def check_budget_duration(duration: str | None, param: str) -> None:
    """Check the length of a budget's period.

    Raises:
        InvalidRequest: it is malformed.
    """
    if duration is not None and not re.fullmatch(UNITS, duration):
        raise InvalidRequest(
            f"`{param}` must be a number above 0, of at most 5 digits, and a unit, one of s, m, h, d, w and "
            "mo (as in 30d), or null for a budget that never begins anew.",
            param=param,
        )


def check_model_budgets(budgets: Mapping[str, float | ModelBudgetFields] | None, param: str) -> None:
    """Check budgets for single models.

    Raises:
        InvalidRequest: a name can be no model's, or a period is malformed.
    """
    check_limited_models(budgets or (), param)
    for budget in (budgets or {}).values():
        if isinstance(budget, ModelBudgetFields):
            check_budget_duration(budget.time_period, param)
            check_budget_duration(budget.budget_duration, param)


def model_budgets(budgets: Mapping[str, float | ModelBudgetFields] | None) -> dict[str, ModelBudget]:
    """Return budgets for single models as an `Allowance` has them."""
    found = {}
    for model, each in (budgets or {}).items():
        budget = ModelBudgetFields(max_budget=each) if isinstance(each, float | int) else each
        if budget.dollars is not None:
            found[model] = ModelBudget(from_dollars(budget.dollars), budget.duration)
    return found


def allowance_in_team(max_budget: float | None, duration: str | None = None) -> Allowance:
    """Return the limits of a member who may spend some US dollars in the team."""
    return Allowance(max_budget=None if max_budget is None else from_dollars(max_budget), budget_duration=duration)


def dollars(picodollars: int | None) -> float | None:
    """Return an amount in US dollars."""
    return None if picodollars is None else float_dollars(picodollars)


def money_text(picodollars: int) -> str:
    """Return an amount in US dollars as decimal text with all its digits."""
    sign = "-" if picodollars < 0 else ""
    whole, part = divmod(abs(picodollars), PICODOLLARS)
    return f"{sign}{whole}.{f'{part:012d}'.rstrip('0') or '0'}"


def money(picodollars: int) -> msgspec.Raw:
    """Return an amount in US dollars as a JSON number with all its digits."""
    return msgspec.Raw(money_text(picodollars).encode())


def report_limits(allowance: Allowance) -> Json:
    """Return limits under LiteLLM's names."""
    return {
        "rpm_limit": allowance.rpm,
        "tpm_limit": allowance.tpm,
        "max_parallel_requests": allowance.parallel,
        "model_rpm_limit": allowance.model_rpm or None,
        "model_tpm_limit": allowance.model_tpm or None,
        "max_budget": dollars(allowance.max_budget),
        "soft_budget": dollars(allowance.soft_budget),
        "budget_duration": allowance.budget_duration,
        "model_max_budget": {
            model: {
                "max_budget": dollars(budget.max_budget),
                "budget_duration": budget.budget_duration,
                "budget_limit": dollars(budget.max_budget),
                "time_period": budget.budget_duration,
            }
            for model, budget in allowance.model_budgets.items()
        },
    }


def current_spend(allowance: Allowance, spend: Spend, now: datetime) -> int:
    """Return the spend in the budget's current period, in picodollars."""
    start, _ = period_of(allowance.budget_duration, now.timestamp())
    return spend.spend if spend.period_start >= start else 0


def report_usage(allowance: Allowance, spend: Spend, now: datetime, effective: Allowance | None = None) -> Json:
    """Return limits, the spend in the current period and in total, and when the next period begins.

    Args:
        allowance: the limits.
        spend: what was spent.
        now: the time.
        effective: the limits that hold, where a budget adds to them; its period is what counts.
    """
    holding = allowance if effective is None else effective
    return {
        **report_limits(allowance),
        "spend": money(current_spend(holding, spend, now)),
        "total_spend": money(spend.total_spend),
        "budget_reset_at": next_period(holding, now),
    }


def next_period(allowance: Allowance, now: datetime) -> datetime | None:
    """Return when the next period of a budget begins; None for one that is endless."""
    _, end = period_of(allowance.budget_duration, now.timestamp())
    return None if end is None else datetime.fromtimestamp(end, UTC)
