"""Who names which budget (``budget_id``), and which limits hold for it then. All nouns that may name one share this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import attrs

from twisted_vllm.admin.fields import redacted
from twisted_vllm.admin.limits import report_limits
from twisted_vllm.admin.models import BudgetTable, Json
from twisted_vllm.errors import NotFound
from twisted_vllm.ratelimit.allowance import Allowance
from twisted_vllm.storage.records import BudgetRecord
from twisted_vllm.storage.transaction import Transaction


class Holder(Protocol):
    """A record with limits of its own, which may name a budget as well."""

    @property
    def allowance(self) -> Allowance:
        """Its own limits."""

    @property
    def budget_id(self) -> str | None:
        """The budget whose limits hold where it has none of its own."""


def find_budget(transaction: Transaction, budget_id: str, param: str = "budget_id") -> BudgetRecord:
    """Return a budget.

    Raises:
        NotFound: there is none with this id.
    """
    budget = transaction.budgets.get(budget_id)
    if budget is None:
        raise NotFound(f"No budget has the id `{redacted(budget_id)}`. GET /budget/list shows all.", param=param)
    return budget


def check_budget(transaction: Transaction, budget_id: str | None) -> None:
    """Check that the budget that a request names exists: one that is mistyped would limit nothing.

    Raises:
        NotFound: it does not.
    """
    if budget_id is not None:
        find_budget(transaction, budget_id)


def budgets_of(transaction: Transaction, holders: Iterable[Holder]) -> dict[str, Allowance]:
    """Return the limits of all budgets that some records name, by their ids."""
    ids = [each.budget_id for each in holders if each.budget_id is not None]
    return {budget.budget_id: budget.allowance for budget in transaction.budgets.among("budget_id", ids)}


def effective(holder: Holder, budgets: Mapping[str, Allowance]) -> Allowance:
    """Return the limits that hold for a record: its own, and those of its budget where it sets none.

    Args:
        holder: the record.
        budgets: as from `budgets_of`.
    """
    shared = None if holder.budget_id is None else budgets.get(holder.budget_id)
    return holder.allowance if shared is None else holder.allowance.within(shared)


def effective_limits(transaction: Transaction, holder: Holder) -> Allowance:
    """Return the limits that hold for one record, as `effective`."""
    return effective(holder, budgets_of(transaction, [holder]))


@attrs.frozen
class _Alone:
    """A budget as what names it and sets nothing of its own would hold it."""

    allowance: Allowance
    budget_id: str | None


def budget_holder(budget: BudgetRecord) -> Holder:
    """Return a holder of a budget that sets no limits of its own, for `report_budget`."""
    return _Alone(budget.allowance, budget.budget_id)


def holders_of(transaction: Transaction, budget_id: str) -> dict[str, int]:
    """Return how many records of each kind name a budget; empty for none."""
    return holders_of_each(transaction, [budget_id])[budget_id]


def holders_of_each(transaction: Transaction, budget_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return how many records of each kind name each of some budgets."""
    counted = {
        "keys": transaction.keys.count_by("budget_id", budget_ids),
        "users": transaction.users.count_by("budget_id", budget_ids),
        "teams": transaction.teams.count_by("budget_id", budget_ids),
        "members of teams": transaction.members.count_by_budget(budget_ids),
        "organizations": transaction.organizations.count_by("budget_id", budget_ids),
        "customers": transaction.end_users.count_by("budget_id", budget_ids),
    }
    return {
        budget_id: {kind: counts[budget_id] for kind, counts in counted.items() if budget_id in counts}
        for budget_id in budget_ids
    }


def report_budget(holder: Holder, budgets: Mapping[str, Allowance], *, always: bool = False) -> Json:
    """Return the budget of a record and the limits that hold for it, in the fields where LiteLLM has them.

    Args:
        holder: the record.
        budgets: as from `budgets_of`.
        always: whether the limits are there even if there are none, as LiteLLM has it of organizations.
    """
    allowance = effective(holder, budgets)
    limits = {**report_limits(allowance), "budget_id": holder.budget_id}
    table = (
        None
        if allowance.is_unlimited and not always
        else {name: limits[name] for name in BudgetTable.__struct_fields__}
    )
    return {"budget_id": holder.budget_id, "litellm_budget_table": table}
