"""The routes of reports: rows of the ledger, spend, activity and usage. All but the last have LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.keys.models import KeyReport
from twisted_vllm.admin.models import Json, NoQuery
from twisted_vllm.admin.reports import activity, operations
from twisted_vllm.admin.reports.models import (
    Activity,
    ActivityQuery,
    DailyActivityQuery,
    DailyUses,
    DatedSpend,
    DatesQuery,
    GlobalLogsQuery,
    GlobalSpendReport,
    KeyReportQuery,
    KeySpendReport,
    LogsQuery,
    ModelActivity,
    PagedLogsQuery,
    ReportQuery,
    SpendListQuery,
    SpendLogPage,
    SpendUsersQuery,
    TagSpend,
    TeamsSpend,
    TopKey,
    TopModel,
    TopQuery,
    UsageReport,
)
from twisted_vllm.admin.reports.scope import UsageScope, days_of, span_of
from twisted_vllm.admin.reports.usage_report import send_report
from twisted_vllm.admin.routing import Routes
from twisted_vllm.admin.users.models import UserReport
from twisted_vllm.storage.transaction import Transaction

routes = Routes()


async def _read(call: AdminCall, work: Callable[[Transaction], object]) -> msgspec.Raw:
    """Return the result of work as JSON. It is encoded in the report's thread, because it can be large."""
    return msgspec.Raw(await call.report(lambda transaction: msgspec.json.encode(work(transaction))))


@routes.get("/spend/logs", query=LogsQuery, response=tuple[Json, ...], access=Access.ANY_KEY, errors=(504,))
async def logs(call: AdminCall, query: LogsQuery) -> msgspec.Raw:
    """Return requests, the newest first, or sums by day if both dates are given and `summarize` is not false."""
    scope = UsageScope.of(call)
    span = span_of(query.start_date, query.end_date)
    summarize = query.summarize not in ("false", "0") and not query.request_id
    if summarize and span.start is not None and span.end is not None:
        start, end = span.start, span.end
        return await _read(call, lambda transaction: operations.spend_by_day(transaction, scope, query, start, end))
    skip = (query.page - 1) * query.page_size
    return await _read(
        call,
        lambda transaction: operations.rows(transaction, scope, query, query.request_id, span, skip, query.page_size),
    )


@routes.get("/spend/logs/v2", query=PagedLogsQuery, response=SpendLogPage, access=Access.ANY_KEY, errors=(504,))
async def paged_logs(call: AdminCall, query: PagedLogsQuery) -> msgspec.Raw:
    """Return a page of requests, the newest first, and their number."""
    scope, span = UsageScope.of(call), span_of(query.start_date, query.end_date)
    return await _read(call, lambda transaction: operations.page_of_logs(transaction, scope, query, span))


@routes.get("/spend/keys", query=SpendListQuery, response=tuple[KeyReport, ...], errors=(504,))
async def spend_of_keys(call: AdminCall, query: SpendListQuery) -> msgspec.Raw:
    """Return a page of keys, the highest spend first."""
    skip = (query.page - 1) * query.page_size
    return await _read(call, lambda transaction: operations.spend_of_keys(transaction, skip, query.page_size, call.now))


@routes.get("/spend/users", query=SpendUsersQuery, response=tuple[UserReport, ...], errors=(504,))
async def spend_of_users(call: AdminCall, query: SpendUsersQuery) -> msgspec.Raw:
    """Return a page of users, the highest spend first, or one user."""
    skip = (query.page - 1) * query.page_size
    return await _read(
        call,
        lambda transaction: operations.spend_of_users(transaction, query.user_id, skip, query.page_size, call.now),
    )


@routes.get("/spend/tags", query=DatesQuery, response=tuple[TagSpend, ...], errors=(504,))
async def spend_of_tags(call: AdminCall, query: DatesQuery) -> msgspec.Raw:
    """Return the spend of each tag, the highest first. Without dates, of all time."""
    days = days_of(query.start_date or "1970-01-01", query.end_date, call.now)
    return await _read(call, lambda transaction: operations.spend_of_tags(transaction, *days))


@routes.get(
    "/key/spend/report", query=KeyReportQuery, response=tuple[KeySpendReport, ...], access=Access.ANY_KEY, errors=(504,)
)
async def costs_of_keys(call: AdminCall, query: KeyReportQuery) -> msgspec.Raw:
    """Return the cost and tokens of a key by model. Administrators see every key."""
    scope, days = UsageScope.of(call), days_of(query.start_date, query.end_date, call.now)
    return await _read(call, lambda transaction: operations.costs_of_keys(transaction, scope, query.api_key, *days))


@routes.get("/global/spend", query=NoQuery, response=GlobalSpendReport, errors=(504,))
async def total_spend(call: AdminCall, _query: NoQuery) -> msgspec.Raw:
    """Return the spend of everybody together, of the last 30 days and today."""
    days = days_of("", "", call.now)
    return await _read(call, lambda transaction: operations.total_spend(transaction, *days))


@routes.get("/global/spend/logs", query=GlobalLogsQuery, response=tuple[DatedSpend, ...], errors=(504,))
async def total_spend_by_day(call: AdminCall, query: GlobalLogsQuery) -> msgspec.Raw:
    """Return the spend of each of the last 30 days and today, of everybody together or of one key."""
    scope, days = UsageScope.of(call), days_of("", "", call.now)
    return await _read(
        call, lambda transaction: operations.total_spend_by_day(transaction, scope, query.api_key, *days)
    )


@routes.get("/global/spend/keys", query=TopQuery, response=tuple[TopKey, ...], errors=(504,))
async def top_keys(call: AdminCall, query: TopQuery) -> msgspec.Raw:
    """Return the keys with the highest spend of the last 30 days and today."""
    days = days_of("", "", call.now)
    return await _read(call, lambda transaction: operations.top_keys(transaction, query.limit, *days))


@routes.get("/global/spend/teams", query=NoQuery, response=TeamsSpend, errors=(504,))
async def spend_of_teams(call: AdminCall, _query: NoQuery) -> msgspec.Raw:
    """Return the spend of teams in the last 30 days and today, by day and in total."""
    days = days_of("", "", call.now)
    return await _read(call, lambda transaction: operations.spend_of_teams(transaction, *days))


@routes.get("/global/spend/models", query=TopQuery, response=tuple[TopModel, ...], errors=(504,))
async def top_models(call: AdminCall, query: TopQuery) -> msgspec.Raw:
    """Return the models with the highest spend of the last 30 days and today."""
    days = days_of("", "", call.now)
    return await _read(call, lambda transaction: operations.top_models(transaction, query.limit, *days))


@routes.get("/global/activity", query=ActivityQuery, response=Activity, errors=(504,))
async def activity_of_all(call: AdminCall, query: ActivityQuery) -> msgspec.Raw:
    """Return requests and tokens by day."""
    days = days_of(query.start_date, query.end_date, call.now)
    return await _read(call, lambda transaction: activity.activity(transaction, *days))


@routes.get("/global/activity/model", query=ActivityQuery, response=tuple[ModelActivity, ...], errors=(504,))
async def activity_of_models(call: AdminCall, query: ActivityQuery) -> msgspec.Raw:
    """Return requests and tokens by day, of the models with the most requests."""
    days = days_of(query.start_date, query.end_date, call.now)
    return await _read(call, lambda transaction: activity.activity_of_models(transaction, *days))


@routes.get("/user/daily/activity", query=DailyActivityQuery, response=DailyUses, access=Access.ANY_KEY, errors=(504,))
async def daily_activity(call: AdminCall, query: DailyActivityQuery) -> msgspec.Raw:
    """Return usage by day, model and key.

    As in LiteLLM, a virtual key sees the usage of all keys of its user, or its own if it has no user. An entry of a
    page is the sum of a day, a key and a model. The totals are those of the page.
    """
    scope, days = UsageScope.of(call), days_of(query.start_date, query.end_date, call.now)
    return await _read(call, lambda transaction: activity.daily_activity(transaction, scope, query, *days))


@routes.get(
    "/usage/report",
    query=ReportQuery,
    response=UsageReport,
    access=Access.ANY_KEY,
    media_types=("text/csv",),
    errors=(504,),
)
async def usage_report(call: AdminCall, query: ReportQuery) -> bytes:
    """Return usage by any dimensions and by hour, day or month, as JSON or CSV.

    A virtual key sees its own usage. The report can have any size.
    """
    return await send_report(call, query)
