"""Budgets that are used up, as LiteLLM tells programs of them (``WebhookEvent``), and as people read them."""

from __future__ import annotations

import msgspec

from twisted_vllm.money import float_dollars
from twisted_vllm.ratelimit.allowance import (
    END_USER,
    KEY,
    MEMBER,
    MODEL_BUDGET,
    ORGANIZATION,
    PROXY,
    SEPARATOR,
    TEAM,
    USER,
)
from twisted_vllm.ratelimit.refusals import dollars

#: LiteLLM's names of those who have budgets
_GROUPS = {
    KEY: "key",
    USER: "user",
    TEAM: "team",
    MEMBER: "team_member",
    ORGANIZATION: "organization",
    END_USER: "end_user",
    PROXY: "proxy",
}
_WORDS = {KEY: "key", USER: "user", TEAM: "team", ORGANIZATION: "organization", END_USER: "end user"}


class Spender(msgspec.Struct, frozen=True, gc=False):
    """Who has a budget.

    Attributes:
        kind: as in `Limited`.
        id: likewise.
        key_name: the alias of a key, or ``sk-...abcd``; empty for others.
        token: the SHA-256 of the key; None for others, likewise `user_id` and `team_id`.
    """

    kind: str
    id: str
    key_name: str = ""
    token: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    organization_id: str | None = None


class BudgetEvent(msgspec.Struct, frozen=True, kw_only=True):
    """LiteLLM's ``WebhookEvent``; amounts in US dollars. Fields that the gateway does not know are null."""

    spend: float
    max_budget: float | None
    soft_budget: float | None
    token: str | None
    customer_id: str | None
    user_id: str | None
    team_id: str | None
    team_alias: str | None = None
    organization_id: str | None
    user_email: str | None = None
    key_alias: str | None
    projected_exceeded_date: str | None = None
    projected_spend: float | None = None
    event_group: str
    alert_emails: list[str] | None = None
    max_budget_alert_emails: dict[str, list[str]] | None = None
    event: str
    event_message: str


def budget_event(spender: Spender, spent: int, *, max_budget: int | None, soft_budget: int | None, share: int) -> bytes:
    """Return the JSON of an event.

    Args:
        spender: who has the budget.
        spent: what was spent in the period, in picodollars.
        max_budget: the budget, likewise.
        soft_budget: the soft budget, if that was reached.
        share: the percent of the budget that are used, at least.
    """
    kind, ids = _owner(spender)
    if soft_budget is not None:
        event, message = "soft_budget_crossed", f"Soft Budget Crossed: Total Soft Budget:`{_number(soft_budget)}`"
    elif share >= 100:
        event, message = "budget_crossed", f"Budget Crossed\n Total Budget:`{_number(max_budget)}`"
    else:
        event, message = "threshold_crossed", f"{100 - share}% or less of budget remaining"
    found = BudgetEvent(
        spend=_number(spent) or 0.0,
        max_budget=_number(max_budget),
        soft_budget=_number(soft_budget),
        token=spender.token,
        customer_id=ids.get(END_USER),
        user_id=ids.get(USER, spender.user_id),
        team_id=ids.get(TEAM, spender.team_id),
        organization_id=ids.get(ORGANIZATION, spender.organization_id),
        key_alias=spender.key_name or None,
        event_group=_GROUPS[kind],
        event=event,
        event_message=f"{who(spender)}: {message}",
    )
    return msgspec.json.encode(found)


def budget_text(spender: Spender, spent: int, *, max_budget: int, share: int) -> str:
    """Return the event for people; the arguments are those of `budget_event`."""
    used = "all" if share >= 100 else f"{share} %"
    return f"{who(spender)} has used {used} of its budget: {dollars(spent)} of {dollars(max_budget)}"


def soft_budget_text(spender: Spender, spent: int, soft_budget: int) -> str:
    """Return for people that a soft budget was reached."""
    return f"{who(spender)} is over its soft budget: {dollars(spent)}, and {dollars(soft_budget)} are meant"


def who(spender: Spender) -> str:
    """Return who has a budget, for people."""
    if spender.kind == PROXY:
        return "The whole gateway"
    if spender.kind == MODEL_BUDGET:
        kind, _, rest = spender.id.partition(SEPARATOR)
        owner, _, model = rest.rpartition(SEPARATOR)
        return f"{who(msgspec.structs.replace(spender, kind=kind, id=owner))} for the model {model}"
    if spender.kind == MEMBER:
        team, _, user = spender.id.partition(SEPARATOR)
        return f"The user {user} in the team {team}"
    if spender.kind == KEY and spender.key_name:
        of = f" of the user {spender.user_id}" if spender.user_id else ""
        of += f" of the team {spender.team_id}" if spender.team_id else ""
        return f"The key {spender.key_name}{of}"
    return f"The {_WORDS[spender.kind]} {spender.id}"


def _owner(spender: Spender) -> tuple[str, dict[str, str]]:
    """Return the kind of the owner, and the ids that its own says."""
    kind, id = spender.kind, spender.id
    if kind == MODEL_BUDGET:
        kind, _, rest = id.partition(SEPARATOR)
        id = rest.rpartition(SEPARATOR)[0]
    if kind == MEMBER:
        team, _, user = id.partition(SEPARATOR)
        return kind, {TEAM: team, USER: user}
    return kind, {kind: id}


def _number(picodollars: int | None) -> float | None:
    return None if picodollars is None else float_dollars(picodollars)
