"""The error for a refused caller: the limit, its owner, and when to retry."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

from twisted_vllm.errors import BudgetExceeded, RateLimitExceeded
from twisted_vllm.money import to_dollars
from twisted_vllm.ratelimit.allowance import END_USER, KEY, MEMBER, MODEL_BUDGET, ORGANIZATION, PROXY, TEAM, USER
from twisted_vllm.ratelimit.headers import Headers

#: the name of each level in messages; its id is not shown, as it may belong to someone else
LEVELS = {
    KEY: "this key",
    USER: "this key's user",
    TEAM: "this key's team",
    END_USER: "this end user",
    MEMBER: "this key's user in its team",
    ORGANIZATION: "this key's organization",
    MODEL_BUDGET: "this caller with this model",
    PROXY: "the gateway as a whole",
}


class Refusal(msgspec.Struct, frozen=True):
    """One limit that refuses a request.

    Attributes:
        kind: the owner's kind, as in `Limited`.
        limit: the limit's name: ``rpm``, ``tpm``, ``parallel``, ``model_rpm``, ``model_tpm`` or ``budget``.
        allowed: the limit's value.
        needed: the amount that the request needs.
        wait: the seconds until it would admit the request, without other requests; None means never.
        model: the model, for a limit of one model.
        spent: the spend in the period, for a budget.
    """

    kind: str
    limit: str
    allowed: int
    needed: int
    wait: int | None
    model: str = ""
    spent: int = 0


def error_of(refusals: Sequence[Refusal], headers: Headers) -> RateLimitExceeded | BudgetExceeded:
    """Return the error of the refusal with the longest wait."""
    worst = max(refusals, key=_severity)
    message, retry_after = message_of(worst), worst.wait
    if worst.limit == "budget":
        return BudgetExceeded(message, retry_after=retry_after)
    return RateLimitExceeded(message, retry_after=retry_after, limit_headers=headers)


def message_of(refusal: Refusal) -> str:
    """Return the message for a refusal."""
    level = LEVELS.get(refusal.kind, refusal.kind)
    if refusal.limit == "budget":
        return _budget_message(refusal, level)
    if refusal.limit == "parallel":
        what = f"{_count(refusal.allowed, 'request')} of {level} may be in work at a time (max_parallel_requests)"
        return f"Too many requests at once: {what}.{_again(refusal)}"
    unit = "request" if refusal.limit.endswith("rpm") else "token"
    setting = f"{refusal.limit}_limit"
    which = f" of the model {refusal.model}" if refusal.model else ""
    allowed = f"{_count(refusal.allowed, unit)}{which} in 60 seconds ({setting})"
    if unit == "token" and refusal.needed > refusal.allowed > 0:
        return (
            f"The request may use {refusal.needed} tokens, and {level} may use {allowed}. "
            "Lower max_tokens or shorten the prompt."
        )
    need = f", and this request may use {refusal.needed}" if unit == "token" else ""
    return f"Rate limit reached: {level} may use {allowed}{need}.{_again(refusal)}"


def _budget_message(refusal: Refusal, level: str) -> str:
    """Return LiteLLM's words for a budget, which its clients look for, and then what is wrong here."""
    words = f"Budget has been exceeded! Current cost: {_amount(refusal.spent)}, Max budget: {_amount(refusal.allowed)}."
    budget = f"{level} may spend {dollars(refusal.allowed)} (max_budget)"
    if refusal.needed > refusal.allowed > 0:
        return (
            f"{words} The request may cost {dollars(refusal.needed)}, and {budget}. "
            "Lower max_tokens or shorten the prompt."
        )
    budget = budget[0].upper() + budget[1:]
    if refusal.spent >= refusal.allowed:
        return f"{words} {budget} and has spent {dollars(refusal.spent)}.{_again(refusal)}"
    return (
        f"{words} {budget}, has spent {dollars(refusal.spent)}, and the rest is less than this request "
        f"and those in work may cost.{_again(refusal)}"
    )


def _severity(refusal: Refusal) -> float:
    return float("inf") if refusal.wait is None else refusal.wait


def _again(refusal: Refusal) -> str:
    return "" if refusal.wait is None else f" Try again in {_count(refusal.wait, 'second')}."


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


def dollars(picodollars: int) -> str:
    """Return an amount for a message."""
    return f"{_amount(picodollars)} USD"


def _amount(picodollars: int) -> str:
    exact = to_dollars(picodollars)
    rounded = exact.quantize(Decimal("0.000001")) if exact else exact
    # An amount that rounds to 0 is shown exactly.
    return f"{rounded if rounded else exact:f}".rstrip("0").rstrip(".") if exact else "0"
