"""What the budget routes do: functions on one transaction. Each change is written to the audit log."""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime

import attrs

from twisted_vllm.admin.budget_references import find_budget, holders_of
from twisted_vllm.admin.budgets.models import SETTINGS, NewBudgetRequest, UpdateBudgetRequest
from twisted_vllm.admin.context import AuditContext
from twisted_vllm.admin.limits import next_period, report_limits
from twisted_vllm.admin.models import Json
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
    """
    budget = find_budget(transaction, body.budget_id)
    changed = attrs.evolve(budget, allowance=body.limits(given, budget.allowance), **audit.updated)
    transaction.budgets.replace(budget.budget_id, changed)
    audit.record(transaction, "budget", budget.budget_id, budget, changed)
    return changed


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
