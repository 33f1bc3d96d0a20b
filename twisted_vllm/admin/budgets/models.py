"""The requests and responses of the budget routes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.fields import Label, Labels, Reference, check_alias
from twisted_vllm.admin.limits import LimitFields
from twisted_vllm.admin.models import (
    MAX_LISTED,
    After,
    Body,
    ListSize,
    OwnLimits,
    PageNumber,
    PageSize,
    Query,
    Response,
    SortOrder,
    WalkedPage,
    described,
)
from twisted_vllm.admin.unsupported import ON_BUDGETS
from twisted_vllm.storage.paging import PageQuery

#: the fields that LiteLLM's dashboard can change, with their types in its words
SETTINGS = {
    "max_parallel_requests": ("Integer", "Requests in flight at a time."),
    "tpm_limit": ("Integer", "Tokens in any 60 seconds."),
    "rpm_limit": ("Integer", "Requests in any 60 seconds."),
    "budget_duration": ("String", "The length of the budget's period, as in 30d; null for one endless period."),
    "max_budget": ("Float", "The most that may be spent in a period, in US dollars."),
    "soft_budget": ("Float", "The spend at which a warning is logged, in US dollars."),
    "model_max_budget": ("Object", "Budgets for single models."),
}


class NewBudgetRequest(LimitFields, frozen=True, kw_only=True):
    """The body of ``POST /budget/new``."""

    UNSUPPORTED = ON_BUDGETS

    budget_id: Annotated[
        Reference | None, described("The budget's id, by which others name it. Without it, a random one.")
    ] = None

    def check(self) -> None:
        """Check the id and the limits."""
        check_alias(self.budget_id, "budget_id")
        super().check()


class UpdateBudgetRequest(LimitFields, frozen=True, kw_only=True):
    """The body of ``POST /budget/update``. Fields that are absent stay as they are; null removes a limit."""

    UNSUPPORTED = ON_BUDGETS

    budget_id: Annotated[Label, described("The budget to change, for all that name it.")]


class BudgetsRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /budget/info``."""

    budgets: Annotated[Labels, msgspec.Meta(min_length=1, description="The ids of the budgets.")]


class DeleteBudgetRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /budget/delete``."""

    id: Annotated[Label, described("The budget to delete. Nobody may name it.")]


class BudgetSettingsQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /budget/settings``."""

    budget_id: Annotated[str, msgspec.Meta(min_length=1)]


class BudgetListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /budget/list``."""

    page: PageNumber = 1
    after: After = ""
    page_size: ListSize = MAX_LISTED

    @property
    def page_query(self) -> PageQuery:
        """The page that is asked for."""
        return PageQuery(self.page, self.page_size, self.after, sort_by="budget_id", descending=False)


class BudgetPageQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /v2/budget/list``."""

    search: Annotated[str, msgspec.Meta(description="Text that the id contains, in any case.")] = ""
    page: PageNumber = 1
    after: After = ""
    page_size: PageSize = 25
    sort_by: Literal["budget_id", "created_at", "updated_at"] = "budget_id"
    sort_order: SortOrder = "asc"

    @property
    def page_query(self) -> PageQuery:
        """The page that is asked for."""
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.page_size,
            search=self.search,
            search_in=("budget_id",),
            sort_by=self.sort_by,
            descending=self.sort_order == "desc",
        )


class BudgetReport(OwnLimits, kw_only=True):
    """A budget: limits for each that names it. Each of these has a spend of its own."""

    budget_id: str
    budget_reset_at: Annotated[datetime | None, msgspec.Meta(description="When its next period begins.")]
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


class ListedBudget(BudgetReport, kw_only=True):
    """A budget, with those who name it."""

    holders: Annotated[dict[str, int], msgspec.Meta(description="How many of each kind name it.")]


class BudgetPage(WalkedPage, kw_only=True):
    """A page of budgets."""

    budgets: tuple[ListedBudget, ...]


class BudgetSetting(Response, kw_only=True):
    """A field of a budget, for a form."""

    field_name: str
    field_type: str
    field_description: str
    field_value: Any
    stored_in_db: bool
    field_default_value: None
