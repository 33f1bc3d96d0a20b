"""What was spent today and this month, by model, team and key, and of which budgets: on one transaction that reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import inf

import msgspec

from twisted_vllm.admin.limits import current_spend, money
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.reports.scope import RECENT_DAYS
from twisted_vllm.auth.records import Principal
from twisted_vllm.ratelimit.allowance import KEY as OF_KEY
from twisted_vllm.ratelimit.allowance import MEMBER, MODEL_BUDGET, ORGANIZATION, PROXY, SEPARATOR
from twisted_vllm.ratelimit.allowance import TEAM as OF_TEAM
from twisted_vllm.ratelimit.allowance import USER as OF_USER
from twisted_vllm.ratelimit.periods import period_of
from twisted_vllm.ratelimit.used_budget import UsedBudget
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.plan import MODEL, UsageQuery, microseconds, moment_of, month_start
from twisted_vllm.storage.usage.queries.reports import Group, read_all, read_totals
from twisted_vllm.storage.usage.queries.rows import KeyLabel, key_labels
from twisted_vllm.storage.usage.queries.sums import iso_day
from twisted_vllm.storage.usage.tables import DAY, DAY_US, KEY, MONTH, SUMS, TEAM, USER

_WANTED = ("requests", "successful", "failed", "prompt_tokens", "completion_tokens", "cost")
#: budgets in an overview
MOST_BUDGETS = 50
_NOTHING = (0,) * len(SUMS)
_PLACES = {name: SUMS.index(name) for name in ("requests", "failed", "prompt_tokens", "completion_tokens", "cost")}

#: the budgets that people without more rights see: those of others above them are not theirs to know
_OWN_BUDGETS = (OF_KEY, OF_USER, OF_TEAM, MEMBER)


class Whose(msgspec.Struct, frozen=True):
    """Whose spend is meant.

    Attributes:
        of: as in `SpendOverview`.
        equals: the values that dimensions of usage must have.
    """

    of: str
    equals: Mapping[str, str]

    @classmethod
    def caller(cls, principal: Principal, *, sees_all: bool) -> Whose:
        """Return what a caller sees: all of it, that of all keys of its user, or its key's."""
        if sees_all:
            return cls("everybody", {})
        if principal.user_id is not None:
            return cls("user", {USER: principal.user_id})
        return cls("key", {KEY: principal.key_id})


def overview(transaction: Transaction, whose: Whose, budgets: Sequence[UsedBudget], top: int, now: datetime) -> Json:
    """Return an overview as `SpendOverview` describes it.

    Args:
        transaction: the transaction.
        whose: whose usage it is.
        budgets: the budgets to show.
        top: the most models, teams and keys of a period.
        now: the time.
    """
    moment = microseconds(now)
    today, end = moment // DAY_US * DAY_US, moment // DAY_US * DAY_US + DAY_US
    return {
        "of": whose.of,
        "today": _period(transaction, whose, today, end, top),
        "month": _period(transaction, whose, month_start(moment), end, top),
        "days": _days(transaction, whose, end - (RECENT_DAYS + 1) * DAY_US, end),
        "budgets": _named(transaction, budgets),
    }


def own_budgets(transaction: Transaction, principal: Principal, now: datetime) -> list[UsedBudget]:
    """Return the budgets of a key, and of its user and team, the most used first."""
    found = []
    for subject in principal.limited:
        most = subject.allowance.max_budget
        if not most or subject.kind not in _OWN_BUDGETS:
            continue
        spent = current_spend(subject.allowance, transaction.spend.of(subject.kind, [subject.id])[subject.id], now)
        _, ends = period_of(subject.allowance.budget_duration, now.timestamp())
        name = principal.name if subject.kind == OF_KEY else ""
        found.append(UsedBudget(subject.kind, subject.id, spent, most, inf if ends is None else ends, name))
    return sorted(found, key=lambda each: each.share, reverse=True)


# the periods


def _period(transaction: Transaction, whose: Whose, start: int, end: int, top: int) -> Json:
    def totals(*group_by: str) -> list[Group]:
        query = UsageQuery(group_by, MONTH, start, end, whose.equals)
        return read_totals(transaction.connection, query, top if group_by else None, wanted=_WANTED)

    whole, by_model, by_team, by_key = totals(), totals(MODEL), totals(TEAM), totals(KEY)
    labels = key_labels(transaction.connection, [group.values[0] for group in by_key])
    aliases = _team_aliases(transaction, (group.values[0] for group in by_team))
    return {
        "start": moment_of(start),
        **_sums(whole[0].sums if whole else _NOTHING),
        "models": [{"model": group.values[0], **_sums(group.sums)} for group in by_model],
        "teams": [
            {"team_id": group.values[0], "team_alias": aliases.get(group.values[0]), **_sums(group.sums)}
            for group in by_team
        ],
        "keys": [{**_key(group.values[0], labels), **_sums(group.sums)} for group in by_key],
    }


def _days(transaction: Transaction, whose: Whose, start: int, end: int) -> list[Json]:
    groups = read_all(transaction.connection, UsageQuery((), DAY, start, end, whose.equals), wanted=_WANTED)
    by_day = {group.start: group.sums for group in groups}
    days = (iso_day(each // DAY_US) for each in range(start, end, DAY_US))
    return [{"date": each, **_sums(by_day.get(each, _NOTHING))} for each in days]


def _sums(sums: Sequence[int]) -> Json:
    return {
        "spend": money(sums[_PLACES["cost"]]),
        "requests": sums[_PLACES["requests"]],
        "failed": sums[_PLACES["failed"]],
        "input_tokens": sums[_PLACES["prompt_tokens"]],
        "output_tokens": sums[_PLACES["completion_tokens"]],
    }


def _key(key_id: str, labels: Mapping[str, KeyLabel]) -> Json:
    label = labels.get(key_id)
    return {
        "key_id": key_id,
        "api_key": None if label is None else label.token,
        "key_alias": None if label is None else label.key_alias,
        "key_name": None if label is None else label.key_name,
    }


def _team_aliases(transaction: Transaction, team_ids: Iterable[str]) -> dict[str, str | None]:
    ids = sorted({*team_ids} - {""})
    return {team.team_id: team.team_alias for team in transaction.teams.among("team_id", ids)} if ids else {}


# budgets


def _named(transaction: Transaction, budgets: Sequence[UsedBudget]) -> list[Json]:
    """Return the budgets that are used most, with the names of their holders."""
    budgets = sorted(budgets, key=lambda each: each.share, reverse=True)[:MOST_BUDGETS]
    ids: dict[str, list[str]] = {}
    for each in budgets:
        ids.setdefault(each.kind, []).append(each.id)
    names: dict[tuple[str, str], str | None] = {}
    for kind in (OF_TEAM, MEMBER):
        # a member is named by its team's name and its user
        found = _team_aliases(transaction, (id.partition(SEPARATOR)[0] for id in ids.get(kind, ())))
        for id in ids.get(kind, ()):
            team, _, user = id.partition(SEPARATOR)
            names[kind, id] = f"{found.get(team) or team} · {user}" if user else found.get(team)
    if ids.get(ORGANIZATION):
        for organization in transaction.organizations.among("organization_id", ids[ORGANIZATION]):
            names[ORGANIZATION, organization.organization_id] = organization.organization_alias
    if ids.get(OF_USER):
        for holder in transaction.users.among("user_id", ids[OF_USER]):
            names[OF_USER, holder.user_id] = holder.user_alias or holder.user_email
    return [_budget(each, names.get((each.kind, each.id)) or "") for each in budgets]


def _budget(budget: UsedBudget, name: str) -> Json:
    shown = budget.id.replace(SEPARATOR, "/")
    if budget.kind == PROXY:
        name = "the whole gateway"
    elif budget.kind == MODEL_BUDGET:
        holder, _, rest = budget.id.partition(SEPARATOR)
        id, _, model = rest.rpartition(SEPARATOR)
        name = f"{model} of {holder} {budget.name or id}"
    return {
        "kind": budget.kind,
        "id": shown,
        "name": name or budget.name or shown,
        "api_key": budget.token or None,
        "spend": money(budget.spent),
        "max_budget": money(budget.max_budget),
        "percent": round(100 * budget.share, 1),
        "resets_at": None if budget.ends == inf else datetime.fromtimestamp(budget.ends, UTC),
    }


encode = msgspec.json.encode
