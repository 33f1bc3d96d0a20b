"""What the budget routes do: functions on one transaction. Each change is written to the audit log."""

from __future__ import annotations

from collections.abc import Container, Iterable
from datetime import datetime

import attrs

from twisted_vllm.admin.budget_references import find_budget, holders_of
from twisted_vllm.admin.budgets.models import SETTINGS, NewBudgetRequest, UpdateBudgetRequest
from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.limits import next_period, report_limits
from twisted_vllm.admin.model_limits import check_limits_over_keys, with_names_of_team
from twisted_vllm.admin.models import Json
from twisted_vllm.auth.records import KeyRecord
from twisted_vllm.errors import Conflict
from twisted_vllm.storage.records import BudgetRecord
from twisted_vllm.storage.transaction import Transaction


def add(transaction: Transaction, audit: AuditContext, body: NewBudgetRequest, budget_id: str) -> BudgetRecord:
    """Create a budget.

    Raises:
        Conflict: it exists.
    """
    if transaction.budgets.get(budget_id) is not None:
        raise Conflict("Another budget has this id already. Send another `budget_id`.", param="budget_id")
    budget = BudgetRecord(budget_id, allowance=body.limits(body.__struct_fields__), **audit.created)
    transaction.budgets.insert(budget)
    audit.record(transaction, "budget", budget_id, None, budget)
    return budget


def update(
    transaction: Transaction, audit: AuditContext, body: UpdateBudgetRequest, given: Container[str]
) -> BudgetRecord:
    """Change a budget, and with it the limits of all that name it.

    Args:
        transaction: the transaction.
        audit: who asks.
        body: the request.
        given: the names of the fields that it has.

    Raises:
        NotFound: there is no such budget.
        InvalidRequest: a limit of one model would never count for a key under a name that it has for another.
    """
    budget = find_budget(transaction, body.budget_id)
    changed = attrs.evolve(budget, allowance=body.limits(given, budget.allowance), **audit.updated)
    if changed.allowance.counts_models and changed.allowance != budget.allowance:
        _check_model_limits(transaction, changed)
    transaction.budgets.replace(budget.budget_id, changed)
    audit.record(transaction, "budget", budget.budget_id, budget, changed)
    return changed


def _check_model_limits(transaction: Transaction, budget: BudgetRecord) -> None:
    """Check that each limit of one model counts for all keys below what names a budget, by their teams' names too."""
    budget_id = budget.budget_id
    users = transaction.users.find(budget_id=budget_id)
    teams = transaction.teams.find(budget_id=budget_id)
    organizations = transaction.organizations.find(budget_id=budget_id)
    of_organizations = [each.organization_id for each in organizations]
    members = transaction.members.of_budget(budget_id)
    below = [*teams, *transaction.teams.among("organization_id", of_organizations)]
    pairs = {(member.team_id, member.user_id) for member in members}
    keys = [
        *transaction.keys.find(budget_id=budget_id),
        *transaction.keys.among("user_id", [user.user_id for user in users]),
        *transaction.keys.among("team_id", [team.team_id for team in below]),
        *transaction.keys.among("organization_id", of_organizations),
        *(
            key
            for key in transaction.keys.among("team_id", {team_id for team_id, _ in pairs})
            if (key.team_id, key.user_id) in pairs
        ),
    ]
    names = {team.team_id: team.aliases for team in transaction.teams.among("team_id", _teams_of(keys))}
    check_limits_over_keys(budget.allowance, (with_names_of_team(key, names.get(key.team_id or "")) for key in keys))


def _teams_of(keys: Iterable[KeyRecord]) -> set[str]:
    return {key.team_id for key in keys if key.team_id is not None}


def delete(transaction: Transaction, audit: AuditContext, budget_id: str) -> BudgetRecord:
    """Delete a budget that nobody names, and return it.

    Raises:
        NotFound: there is no such budget.
        Conflict: somebody names it, and would have no limits without it.
    """
    budget = find_budget(transaction, budget_id, "id")
    holders = holders_of(transaction, budget_id)
    if holders:
        who = ", ".join(f"{kind}: {number}" for kind, number in holders.items())
        raise Conflict(
            f"The budget is in use ({who}). Without it they would spend without limit: give them another "
            "`budget_id`, or null, first.",
            param="id",
        )
    transaction.budgets.delete([budget_id])
    audit.record(transaction, "budget", budget_id, budget, None)
    return budget


def report_budget_record(budget: BudgetRecord, now: datetime) -> Json:
    """Return a budget as `BudgetReport` describes it."""
    return {
        **report_limits(budget.allowance),
        "budget_reset_at": next_period(budget.allowance, now),
        "budget_id": budget.budget_id,
        "created_at": budget.created_at,
        "created_by": budget.created_by,
        "updated_at": budget.updated_at,
        "updated_by": budget.updated_by,
    }


def report_settings(budget: BudgetRecord) -> list[Json]:
    """Return the fields of a budget as `BudgetSetting` describes them."""
    limits = report_limits(budget.allowance)
    return [
        {
            "field_name": name,
            "field_type": kind,
            "field_description": description,
            "field_value": limits[name],
            "stored_in_db": True,
            "field_default_value": None,
        }
        for name, (kind, description) in SETTINGS.items()
    ]
