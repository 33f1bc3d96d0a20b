"""The routes of budgets, in LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.budget_references import find_budget, holders_of_each
from twisted_vllm.admin.budgets import operations
from twisted_vllm.admin.budgets.models import (
    BudgetListQuery,
    BudgetPage,
    BudgetPageQuery,
    BudgetReport,
    BudgetSetting,
    BudgetSettingsQuery,
    BudgetsRequest,
    DeleteBudgetRequest,
    NewBudgetRequest,
    UpdateBudgetRequest,
)
from twisted_vllm.admin.budgets.operations import report_budget_record, report_settings
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.lists import asked_page, link_next, place_of, reported
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.routing import Routes
from twisted_vllm.storage.records import BudgetRecord
from twisted_vllm.storage.transaction import Transaction

routes = Routes()


@routes.post("/budget/new", body=NewBudgetRequest, response=BudgetReport, errors=(409,))
async def new(call: AdminCall, body: NewBudgetRequest) -> Json:
    """Create a budget: limits for each key, user, team, organization or customer that names it by `budget_id`."""
    budget_id = call.new_id() if body.budget_id is None else body.budget_id

    def work(transaction: Transaction) -> Json:
        return report_budget_record(operations.add(transaction, call.audit, body, budget_id), call.now)

    return await call.change(work)


@routes.post("/budget/update", body=UpdateBudgetRequest, response=BudgetReport, errors=(404,))
async def update(call: AdminCall, body: UpdateBudgetRequest) -> Json:
    """Change a budget, for all that name it. Fields that are absent stay as they are; null removes a limit."""

    def work(transaction: Transaction) -> Json:
        return report_budget_record(operations.update(transaction, call.audit, body, call.given), call.now)

    return await call.change(work)


@routes.post("/budget/info", access=Access.READER, body=BudgetsRequest, response=tuple[BudgetReport, ...])
async def info(call: AdminCall, body: BudgetsRequest) -> list[Json]:
    """Return several budgets. Those that do not exist are left out."""

    def work(transaction: Transaction) -> list[Json]:
        return [
            report_budget_record(budget, call.now) for budget in transaction.budgets.among("budget_id", body.budgets)
        ]

    return await call.read(work)


@routes.get("/budget/settings", query=BudgetSettingsQuery, response=tuple[BudgetSetting, ...], errors=(404,))
async def settings(call: AdminCall, query: BudgetSettingsQuery) -> list[Json]:
    """Return the fields of a budget with what each means, for a form."""
    return await call.read(lambda transaction: report_settings(find_budget(transaction, query.budget_id)))


@routes.get("/budget/list", query=BudgetListQuery, response=tuple[BudgetReport, ...])
async def list_budgets(call: AdminCall, query: BudgetListQuery) -> msgspec.Raw:
    """Return all budgets. If there are more than 1000, ask for them by page."""

    def work(transaction: Transaction) -> tuple[msgspec.Raw, str | None]:
        page = transaction.budgets.page(query.page_query)
        budgets = asked_page(page, call.given, "budgets", "/budget/list")
        return reported(budgets, lambda some: [report_budget_record(each, call.now) for each in some]), page.next

    found, following = await call.read(work)
    link_next(call, following)
    return found


@routes.get("/v2/budget/list", query=BudgetPageQuery, response=BudgetPage)
async def list_page(call: AdminCall, query: BudgetPageQuery) -> Json:
    """Return a page of budgets, each with the number of those who name it, and how many budgets there are."""

    def work(transaction: Transaction) -> Json:
        page = transaction.budgets.page(query.page_query)
        holders = holders_of_each(transaction, [budget.budget_id for budget in page.records])

        def report(budgets: Sequence[BudgetRecord]) -> list[Json]:
            return [{**report_budget_record(each, call.now), "holders": holders[each.budget_id]} for each in budgets]

        return {"budgets": reported(page.records, report), **place_of(page, query.page_size)}

    return await call.read(work)


@routes.post("/budget/delete", body=DeleteBudgetRequest, response=BudgetReport, errors=(404, 409))
async def delete(call: AdminCall, body: DeleteBudgetRequest) -> Json:
    """Delete a budget that nobody names, and return it."""
    return await call.change(
        lambda transaction: report_budget_record(operations.delete(transaction, call.audit, body.id), call.now)
    )
