"""What deleting a key, user, team, organization, customer or budget would break, asked before it is done.

The routes only read, and their answers are short: a console shows them beside the button.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.budget_references import effective_limits, find_budget, holders_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.fields import redacted
from twisted_vllm.admin.limits import current_spend, money
from twisted_vllm.admin.memberships import find_organization, find_team
from twisted_vllm.admin.models import Json, Query, Response
from twisted_vllm.admin.routing import Routes
from twisted_vllm.admin.users.operations import find as find_user
from twisted_vllm.auth.records import KeyRecord, Spend
from twisted_vllm.errors import NotFound
from twisted_vllm.ratelimit.allowance import END_USER, KEY, ORGANIZATION, TEAM, USER, Allowance
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.tables import BUDGET
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.lookups import RowFilter
from twisted_vllm.storage.usage.queries.plan import MODEL, microseconds, moment_of
from twisted_vllm.storage.usage.queries.recent import RecentUse, recent_use
from twisted_vllm.storage.usage.queries.rows import page_of_rows
from twisted_vllm.storage.usage.tables import DAY_US

#: days of use that are added up
RECENT_DAYS = 7

#: keys that are named
SHOWN_KEYS = 10

_Id = Annotated[str, msgspec.Meta(min_length=1)]


class KeyImpactQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /key/impact``."""

    key: Annotated[str, msgspec.Meta(min_length=1, description="The key or its hash.")]


class UserImpactQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /user/impact``."""

    user_id: _Id


class TeamImpactQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /team/impact``."""

    team_id: _Id


class OrganizationImpactQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /organization/impact``."""

    organization_id: _Id


class CustomerImpactQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /customer/impact``."""

    end_user_id: _Id


class BudgetImpactQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /budget/impact``."""

    budget_id: _Id


class ModelImpactQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /model/impact``."""

    id: Annotated[str, msgspec.Meta(min_length=1, description="The id of the entry.")]


class StoppedKey(Response, kw_only=True):
    """A key that would stop working."""

    token: str
    key_name: str
    key_alias: str | None
    user_id: str | None
    team_id: str | None


class Impact(Response, kw_only=True):
    """What a deletion would break."""

    object_type: Literal["key", "user", "team", "organization", "customer", "budget", "model"]
    object_id: str
    name: Annotated[str, msgspec.Meta(description="What people call it: its alias or address, or else its id.")]
    breaks: Annotated[tuple[str, ...], msgspec.Meta(description="What would break, a sentence for each.")]
    refused: Annotated[str | None, msgspec.Meta(description="Why it cannot be deleted now; null if it can.")]
    keys: Annotated[int, msgspec.Meta(description="Keys that would be deleted, and stop working at once.")]
    shown_keys: Annotated[
        tuple[StoppedKey, ...], msgspec.Meta(description=f"The newest of these keys, {SHOWN_KEYS} at most.")
    ]
    members: Annotated[int, msgspec.Meta(description="Users who would be in it no longer.")]
    teams: Annotated[int, msgspec.Meta(description="Teams that would be deleted, or that a user would leave.")]
    holders: Annotated[dict[str, int], msgspec.Meta(description="How many of each kind name this budget.")]
    spend: Annotated[float, msgspec.Meta(description="In the budget's current period, in US dollars.")]
    total_spend: Annotated[float, msgspec.Meta(description="In total, in US dollars. The ledger keeps it.")]
    requests: Annotated[int, msgspec.Meta(description=f"Requests in the last {RECENT_DAYS} days (UTC).")]
    tokens: Annotated[int, msgspec.Meta(description="Tokens of these requests.")]
    cost: Annotated[float, msgspec.Meta(description="What these requests cost, in US dollars.")]
    last_used_on: Annotated[
        str | None, msgspec.Meta(description=f"The last of the {RECENT_DAYS} days with a request; null without any.")
    ]
    last_used_at: Annotated[
        datetime | None,
        msgspec.Meta(description="When the last request of a key or customer began, as far as the ledger goes."),
    ]


routes = Routes()


@routes.get("/key/impact", query=KeyImpactQuery, response=Impact, access=Access.ANY_KEY, errors=(404,))
async def of_key(call: AdminCall, query: KeyImpactQuery) -> Json:
    """Return what deleting a key would break. A key asks about those that it sees with `/key/info`."""

    def work(transaction: Transaction) -> Json:
        missing = NotFound("No such key is known.", param="key")
        key = call.scope.visible_key(transaction, transaction.keys.get(token_of(query.key)), missing)
        spent = _spent(transaction, KEY, key.key_id, effective_limits(transaction, key), call.now)
        use = _use(transaction, KEY, key.key_id, call.now)
        return {
            **_impact("key", key.token, key.key_alias or key.key_name, spent, use),
            "breaks": _of_keys(1, use),
            "keys": 1,
            "shown_keys": _shown([key]),
            "last_used_at": _last_used(transaction, KEY, key.key_id),
        }

    return await call.report(work)


@routes.get("/user/impact", query=UserImpactQuery, response=Impact, errors=(404,))
async def of_user(call: AdminCall, query: UserImpactQuery) -> Json:
    """Return what deleting a user would break."""

    def work(transaction: Transaction) -> Json:
        user = find_user(transaction, query.user_id)
        identity = user.user_id
        teams = len(transaction.members.of_users([identity])[identity])
        organizations = len(transaction.organization_members.of_users([identity])[identity])
        count, shown = _keys(transaction, user_id=identity)
        spent = _spent(transaction, USER, identity, effective_limits(transaction, user), call.now)
        use = _use(transaction, USER, identity, call.now)
        breaks = _of_keys(count, use)
        if teams or organizations:
            breaks.append(f"The user leaves {_number(teams, 'team')} and {_number(organizations, 'organization')}.")
        return {
            **_impact("user", identity, user.user_alias or user.user_email or identity, spent, use),
            "breaks": breaks,
            "keys": count,
            "shown_keys": shown,
            "teams": teams,
        }

    return await call.report(work)


@routes.get("/team/impact", query=TeamImpactQuery, response=Impact, errors=(404,))
async def of_team(call: AdminCall, query: TeamImpactQuery) -> Json:
    """Return what deleting a team would break."""

    def work(transaction: Transaction) -> Json:
        team = find_team(transaction, query.team_id)
        identity = team.team_id
        members = transaction.members.count_in([identity])[identity]
        count, shown = _keys(transaction, team_id=identity)
        spent = _spent(transaction, TEAM, identity, effective_limits(transaction, team), call.now)
        use = _use(transaction, TEAM, identity, call.now)
        return {
            **_impact("team", identity, team.team_alias or identity, spent, use),
            "breaks": [*_of_keys(count, use), *_of_members(members)],
            "keys": count,
            "shown_keys": shown,
            "members": members,
        }

    return await call.report(work)


@routes.get("/organization/impact", query=OrganizationImpactQuery, response=Impact, errors=(404,))
async def of_organization(call: AdminCall, query: OrganizationImpactQuery) -> Json:
    """Return what deleting an organization would break."""

    def work(transaction: Transaction) -> Json:
        organization = find_organization(transaction, query.organization_id)
        identity = organization.organization_id
        members = transaction.organization_members.count_in([identity])[identity]
        teams = [team.team_id for team in transaction.teams.among("organization_id", [identity])]
        own, shown = _keys(transaction, organization_id=identity)
        # A key of its teams may name it as well.
        of_teams = transaction.keys.count_by("team_id", teams)
        twice = PageQuery(size=1, equals={"organization_id": identity}, among={"team_id": teams})
        both = transaction.keys.page(twice).total_count if teams else 0
        count = own + sum(of_teams.values()) - both
        if len(shown) < SHOWN_KEYS and teams:
            more = transaction.keys.page(PageQuery(size=SHOWN_KEYS, among={"team_id": teams}))
            known = {each["token"] for each in shown}
            shown = (shown + [each for each in _shown(more.records) if each["token"] not in known])[:SHOWN_KEYS]
        spent = _spent(transaction, ORGANIZATION, identity, effective_limits(transaction, organization), call.now)
        use = _use(transaction, ORGANIZATION, identity, call.now)
        breaks = [f"{_number(len(teams), 'team')} in it {_are(len(teams))} deleted as well."] if teams else []
        return {
            **_impact("organization", identity, organization.organization_alias or identity, spent, use),
            "breaks": [*breaks, *_of_keys(count, use), *_of_members(members)],
            "keys": count,
            "shown_keys": shown,
            "members": members,
            "teams": len(teams),
        }

    return await call.report(work)


@routes.get("/customer/impact", "/end_user/impact", query=CustomerImpactQuery, response=Impact, errors=(404,))
async def of_customer(call: AdminCall, query: CustomerImpactQuery) -> Json:
    """Return what deleting a customer would break."""

    def work(transaction: Transaction) -> Json:
        identity = query.end_user_id
        customer = transaction.end_users.get(identity)
        if customer is None:
            raise NotFound(f"No customer has the id `{redacted(identity)}`.", param="end_user_id")
        spent = _spent(transaction, END_USER, identity, effective_limits(transaction, customer), call.now)
        use = _use(transaction, END_USER, identity, call.now)
        breaks = ["Requests for this customer are served as those of one that was never created."]
        if customer.blocked:
            breaks.append("The customer is blocked now, and would be served again.")
        if not customer.allowance.is_unlimited or customer.budget_id is not None:
            breaks.append("Its limits and its budget no longer hold.")
        return {
            **_impact("customer", identity, customer.alias or identity, spent, use),
            "breaks": breaks,
            "last_used_at": _last_used(transaction, END_USER, identity),
        }

    return await call.report(work)


@routes.get("/budget/impact", query=BudgetImpactQuery, response=Impact, errors=(404,))
async def of_budget(call: AdminCall, query: BudgetImpactQuery) -> Json:
    """Return who names a budget: nobody may, when it is deleted."""

    def work(transaction: Transaction) -> Json:
        budget = find_budget(transaction, query.budget_id)
        holders = holders_of(transaction, budget.budget_id)
        who = ", ".join(f"{kind}: {number}" for kind, number in holders.items())
        shown = _keys(transaction, budget_id=budget.budget_id)[1] if holders.get("keys") else []
        return {
            **_impact(BUDGET, budget.budget_id, budget.budget_id, Spend(BUDGET, ""), RecentUse()),
            "refused": f"The budget is in use ({who}). Give them another `budget_id`, or none, first."
            if holders
            else None,
            "shown_keys": shown,
            "holders": holders,
        }

    return await call.report(work)


@routes.get("/model/impact", query=ModelImpactQuery, response=Impact, errors=(404,))
async def of_model(call: AdminCall, query: ModelImpactQuery) -> Json:
    """Return what deleting an entry of the model list would break."""
    entries = call.context.settings_in_effect().models
    found = [entry for entry in entries if entry.model_id == query.id]
    if not found:
        raise NotFound(f"No model has the id `{redacted(query.id)}`.", param="id")
    name = found[0].model_name
    others = sum(entry.model_name == name for entry in entries) - 1

    def work(transaction: Transaction) -> Json:
        use = _use(transaction, MODEL, name, call.now)
        is_stored = transaction.models.get(query.id) is not None
        served = f"{_number(others, 'other entry', 'other entries')} of the same name {_are(others)} left to serve it."
        refused = "It is an entry of the configuration file: change the file and reload it."
        return {
            **_impact("model", query.id, name, Spend(MODEL, ""), use),
            "breaks": [served if others else "Nothing else serves this name: requests for it are refused."],
            "refused": None if is_stored else refused,
        }

    return await call.report(work)


def _impact(object_type: str, object_id: str, name: str, spent: Spend, use: RecentUse) -> Json:
    return {
        "object_type": object_type,
        "object_id": object_id,
        "name": name,
        "breaks": [],
        "refused": None,
        "keys": 0,
        "shown_keys": [],
        "members": 0,
        "teams": 0,
        "holders": {},
        "spend": money(spent.spend),
        "total_spend": money(spent.total_spend),
        "requests": use.requests,
        "tokens": use.tokens,
        "cost": money(use.cost),
        "last_used_on": None if use.last_day is None else use.last_day.isoformat(),
        "last_used_at": None,
    }


def _keys(transaction: Transaction, **equals: str) -> tuple[int, list[Json]]:
    """Return how many keys have certain values, and the newest of them."""
    page = transaction.keys.page(PageQuery(size=SHOWN_KEYS, equals=equals))
    return page.total_count, _shown(page.records)


def _shown(keys: Sequence[KeyRecord]) -> list[Json]:
    return [{name: getattr(key, name) for name in StoppedKey.__struct_fields__} for key in keys]


def _spent(transaction: Transaction, kind: str, identity: str, limits: Allowance, now: datetime) -> Spend:
    spend = transaction.spend.of(kind, [identity])[identity]
    return Spend(kind, identity, current_spend(limits, spend, now), spend.period_start, spend.total_spend)


def _use(transaction: Transaction, kind: str, identity: str, now: datetime) -> RecentUse:
    return recent_use(transaction.connection, kind, identity, microseconds(now) // DAY_US, RECENT_DAYS)


def _last_used(transaction: Transaction, kind: str, identity: str) -> datetime | None:
    rows = page_of_rows(transaction.connection, RowFilter(equals={kind: identity}), 0, 1)
    return moment_of(rows[0].time) if rows else None


def _of_keys(count: int, use: RecentUse) -> list[str]:
    if not count:
        return []
    those = "it" if count == 1 else "them"
    used = f" {_number(use.requests, 'request')} came with {those} in the last {RECENT_DAYS} days."
    stops = f"{_number(count, 'key')} {'stops' if count == 1 else 'stop'} working at once."
    return [stops + (used if use.requests else "")]


def _of_members(count: int) -> list[str]:
    return [f"{_number(count, 'member')} {_are(count)} in it no longer."] if count else []


def _number(count: int, word: str, several: str = "") -> str:
    return f"{count:,} {word if count == 1 else several or word + 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
