"""What the endpoints of end users answer."""

from __future__ import annotations

from datetime import datetime

from twisted_vllm.admin.answers import Answer, Limits


class BudgetTable(Answer, kw_only=True):
    """An end user's limits, where LiteLLM has them."""

    max_budget: float | None
    soft_budget: float | None
    max_parallel_requests: int | None
    tpm_limit: int | None
    rpm_limit: int | None
    budget_duration: str | None


class CustomerReport(Limits, kw_only=True):
    """An end user; one that nobody made has no times."""

    user_id: str
    alias: str | None
    blocked: bool
    allowed_model_region: None
    default_model: None
    budget_id: None
    litellm_budget_table: BudgetTable | None
    created_at: datetime | None
    created_by: str | None
    updated_at: datetime | None
    updated_by: str | None


class DeletedCustomers(Answer, kw_only=True):
    """How many end users were deleted."""

    deleted_customers: int
    message: str


class BlockedCustomers(Answer, kw_only=True):
    """The end users that were blocked."""

    blocked_users: tuple[CustomerReport, ...]


class UnblockedCustomers(Answer, kw_only=True):
    """The end users that were unblocked."""

    unblocked_users: tuple[CustomerReport, ...]
