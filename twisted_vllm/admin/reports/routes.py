"""The routes of reports: rows of the ledger, spend, activity and usage. All but the last have LiteLLM's shapes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from twisted_vllm.admin.access import Access
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.keys.answers import KeyReport
from twisted_vllm.admin.models import Json, NoQuery
from twisted_vllm.admin.reports import activity, breakdowns, operations
from twisted_vllm.admin.reports.models import (
    Activity,
    ActivityFilters,
    ActivityPage,
    ActivityQuery,
    AllCustomerActivityQuery,
    AllOrganizationActivityQuery,
    AllTagActivityQuery,
    AllTeamActivityQuery,
    AllUserActivityQuery,
    CalculateBody,
    CalculatedCost,
    CustomerActivityQuery,
    DailyActivityQuery,
    DailyUses,
    DatedSpend,
    DatesQuery,
    EndUserNames,
    EndUsersBody,
    EndUserSpend,
    GlobalLogsQuery,
    GlobalReportQuery,
    GlobalSpendReport,
    KeyReportQuery,
    KeySpendReport,
    LogPayload,
    LogPayloadQuery,
    LogsQuery,
    ModelActivity,
    OrganizationActivityQuery,
    OrganizationReportQuery,
    PagedLogsQuery,
    ProviderSpend,
    ReportQuery,
    RequestReport,
    SpendListQuery,
    SpendLogPage,
    SpendUsersQuery,
    TagActivityQuery,
    TagNames,
    TagReport,
    TagSpend,
    TagsQuery,
    TagsRequest,
    TagSums,
    TeamActivityQuery,
    TeamReportQuery,
    TeamsSpend,
    TopGroups,
    TopGroupsQuery,
    TopKey,
    TopModel,
    TopQuery,
    UsageReport,
    UserReportQuery,
)
from twisted_vllm.admin.reports.scope import (
    UsageScope,
    check_servers,
    days_of,
    dimensions_of,
    entities_of,
    local_days_of,
    one_entity,
    span_of,
)
from twisted_vllm.admin.routing import Routes
from twisted_vllm.admin.users.models import UserReport
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.days import Entities
from twisted_vllm.storage.usage.tables import END_USER, ORGANIZATION, TAG, TEAM, USER

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


@routes.get(
    *("/spend/logs/v2", "/spend/logs/ui"),
    query=PagedLogsQuery,
    response=SpendLogPage,
    access=Access.ANY_KEY,
    errors=(504,),
)
async def paged_logs(call: AdminCall, query: PagedLogsQuery) -> msgspec.Raw:
    """Return a page of requests, the newest first, and their number."""
    scope, span = UsageScope.of(call), span_of(query.start_date, query.end_date)
    return await _read(call, lambda transaction: operations.page_of_logs(transaction, scope, query, span))


@routes.get(
    "/spend/logs/ui/<string:request_id>",
    query=LogPayloadQuery,
    response=LogPayload | None,
    access=Access.ANY_KEY,
    errors=(504,),
)
async def log_payload(call: AdminCall, _query: LogPayloadQuery) -> msgspec.Raw:
    """Return what a request and its answer contained, where that was kept. null, if there is no such request."""
    # loaded once somebody asks for a request, as few gateways are asked
    from twisted_vllm.admin.reports import requests

    scope, request_id = UsageScope.of(call), call.path["request_id"]
    return await _read(call, lambda transaction: requests.contents_as_litellm(transaction, scope, request_id))


@routes.get(
    "/usage/requests/<string:request_id>",
    query=NoQuery,
    response=RequestReport,
    access=Access.ANY_KEY,
    errors=(404, 504),
)
async def one_request(call: AdminCall, _query: NoQuery) -> msgspec.Raw:
    """Return all that is known of a request: timings, tokens, cost, attempts, and prompt and answer where kept.

    It is found by the id of its row, its `x-request-id` or the id of its answer; of several, the newest is returned.
    """
    from twisted_vllm.admin.reports import requests

    scope, request_id = UsageScope.of(call), call.path["request_id"]
    return await _read(call, lambda transaction: requests.report_request(transaction, scope, request_id))


@routes.get("/spend/keys", query=SpendListQuery, response=tuple[KeyReport, ...], errors=(504,))
async def spend_of_keys(call: AdminCall, query: SpendListQuery) -> msgspec.Raw:
    """Return a page of keys, the highest spend first."""
    skip = (query.page - 1) * query.size
    return await _read(call, lambda transaction: operations.spend_of_keys(transaction, skip, query.size, call.now))


@routes.get("/spend/users", query=SpendUsersQuery, response=tuple[UserReport, ...], errors=(504,))
async def spend_of_users(call: AdminCall, query: SpendUsersQuery) -> msgspec.Raw:
    """Return a page of users, the highest spend first, or one user."""
    skip = (query.page - 1) * query.size
    return await _read(
        call,
        lambda transaction: operations.spend_of_users(transaction, query.user_id, skip, query.size, call.now),
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


@routes.get("/user/spend/report", query=UserReportQuery, response=tuple[KeySpendReport, ...], errors=(504,))
async def costs_of_user(call: AdminCall, query: UserReportQuery) -> msgspec.Raw:
    """Return the cost and tokens of the keys of a user by model."""
    return await _costs(call, query, USER, query.user_id)


@routes.get("/team/spend/report", query=TeamReportQuery, response=tuple[KeySpendReport, ...], errors=(504,))
async def costs_of_team(call: AdminCall, query: TeamReportQuery) -> msgspec.Raw:
    """Return the cost and tokens of the keys of a team by model."""
    return await _costs(call, query, TEAM, query.team_id)


@routes.get(
    "/organization/spend/report", query=OrganizationReportQuery, response=tuple[KeySpendReport, ...], errors=(504,)
)
async def costs_of_organization(call: AdminCall, query: OrganizationReportQuery) -> msgspec.Raw:
    """Return the cost and tokens of the keys and teams that are in an organization now, by model."""
    if not query.organization_id:
        return await _costs(call, query, ORGANIZATION, "")
    days = days_of(query.start_date, query.end_date, call.now)
    return await _read(
        call, lambda transaction: operations.costs_of_organization(transaction, query.organization_id, *days)
    )


async def _costs(call: AdminCall, query: DatesQuery, dimension: str, id: str) -> msgspec.Raw:
    days = days_of(query.start_date, query.end_date, call.now)
    equals = {dimension: id} if id else {}
    return await _read(call, lambda transaction: operations.costs_by_key(transaction, equals, *days))


@routes.get("/global/spend/report", query=GlobalReportQuery, response=tuple[Json, ...], errors=(504,))
async def spend_report(call: AdminCall, query: GlobalReportQuery) -> msgspec.Raw:
    """Return spend by day and team or customer, or by key and model.

    With `api_key` or `internal_user_id`, that of the keys by model; with `team_id` and `customer_id`, that of both.
    """
    scope, days = UsageScope.of(call), days_of(query.start_date, query.end_date, call.now)
    return await _read(call, lambda transaction: breakdowns.spend_report(transaction, scope, query, *days))


@routes.get("/global/spend/tags", query=TagsQuery, response=TagSums, errors=(504,))
async def spend_per_tag(call: AdminCall, query: TagsQuery) -> msgspec.Raw:
    """Return the spend of tags, the highest first. Without dates, of the last 30 days and today."""
    days = days_of(query.start_date, query.end_date, call.now)
    return await _read(call, lambda transaction: breakdowns.spend_per_tag(transaction, query.tags, *days))


@routes.get("/global/spend/all_tag_names", query=NoQuery, response=TagNames, errors=(504,))
async def tag_names(call: AdminCall, _query: NoQuery) -> msgspec.Raw:
    """Return the tags that were used, at most 10,000."""
    return await _read(call, breakdowns.tag_names)


@routes.get("/tag/list", query=DatesQuery, response=tuple[TagReport, ...], errors=(504,))
async def tags(call: AdminCall, query: DatesQuery) -> msgspec.Raw:
    """Return the tags that were used, at most 10,000; without dates at any time. They are names, without limits."""
    dates = query.start_date, query.end_date
    days = days_of(*dates, call.now) if any(dates) else None
    return await _read(call, lambda transaction: breakdowns.tags(transaction, days))


@routes.post("/tag/info", access=Access.READER, body=TagsRequest, response=dict[str, TagReport], errors=(404, 504))
async def tags_named(call: AdminCall, body: TagsRequest) -> msgspec.Raw:
    """Return tags by their names."""
    return await _read(call, lambda transaction: breakdowns.tags_named(transaction, body.names))


@routes.get("/global/all_end_users", query=NoQuery, response=EndUserNames, errors=(504,))
async def end_user_names(call: AdminCall, _query: NoQuery) -> msgspec.Raw:
    """Return the end users that were named, at most 10,000."""
    return await _read(call, breakdowns.end_user_names)


@routes.get("/global/spend/provider", query=DatesQuery, response=tuple[ProviderSpend, ...], errors=(504,))
async def spend_of_provider(call: AdminCall, query: DatesQuery) -> msgspec.Raw:
    """Return the spend of vLLM, the only provider. Without dates, of the last 30 days and today."""
    days = days_of(query.start_date, query.end_date, call.now)
    return await _read(call, lambda transaction: breakdowns.spend_of_provider(transaction, *days))


@routes.post(
    "/global/spend/end_users", access=Access.READER, body=EndUsersBody, response=tuple[EndUserSpend, ...], errors=(504,)
)
async def spend_of_end_users(call: AdminCall, body: EndUsersBody) -> msgspec.Raw:
    """Return the 100 end users with the highest spend, by default of the last 30 days and today.

    Days count as a whole. With `api_key`, the rows of that key are added up, as far back as they are kept.
    """
    start, end = ((text or "")[: len("2026-03-01")] for text in (body.startTime, body.endTime))
    scope, days, api_key = UsageScope.of(call), days_of(start, end, call.now), body.api_key or ""
    return await _read(call, lambda transaction: breakdowns.spend_of_end_users(transaction, scope, api_key, *days))


@routes.post(
    "/spend/calculate",
    access=Access.READER,
    body=CalculateBody,
    response=CalculatedCost,
    constraint={
        "anyOf": [
            {"required": ["completion_response"], "properties": {"completion_response": {"type": "object"}}},
            {
                "required": ["model", "messages"],
                "properties": {"model": {"type": "string"}, "messages": {"type": "array"}},
            },
        ]
    },
    errors=(404,),
)
async def calculate(call: AdminCall, body: CalculateBody) -> Json:
    """Return the cost of an answer, or of a prompt, whose tokens are estimated; by the prices in effect."""
    return breakdowns.calculated_cost(call.context.settings_in_effect(), body)


@routes.get("/global/spend", query=NoQuery, response=GlobalSpendReport, errors=(504,))
async def total_spend(call: AdminCall, _query: NoQuery) -> msgspec.Raw:
    """Return the spend of everybody together: of the period of litellm_settings.max_budget, or of the last 30 days."""
    days, settings = days_of("", "", call.now), call.context.settings_in_effect()
    return await _read(call, lambda transaction: operations.total_spend(transaction, settings, *days, call.now))


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


async def _page(call: AdminCall, query: ActivityPage, entities: Entities) -> msgspec.Raw:
    scope, days = UsageScope.of(call), local_days_of(query, call.now)
    return await _read(call, lambda transaction: activity.page_of_activity(transaction, scope, query, entities, *days))


async def _whole(call: AdminCall, query: ActivityFilters, entities: Entities) -> msgspec.Raw:
    scope, days = UsageScope.of(call), local_days_of(query, call.now)
    return await _read(call, lambda transaction: activity.whole_activity(transaction, scope, query, entities, *days))


@routes.get("/user/daily/activity", query=DailyActivityQuery, response=DailyUses, access=Access.ANY_KEY, errors=(504,))
async def daily_activity(call: AdminCall, query: DailyActivityQuery) -> msgspec.Raw:
    """Return usage by day, user, model and key.

    As in LiteLLM, a virtual key sees the usage of all keys of its user, or its own if it has no user. An entry of a
    page is the sum of a day, a user, a key and a model. The totals are those of the page.
    """
    return await _page(call, query, one_entity(USER, query.user_id))


@routes.get(
    "/user/daily/activity/aggregated",
    query=AllUserActivityQuery,
    response=DailyUses,
    access=Access.ANY_KEY,
    errors=(504,),
)
async def whole_daily_activity(call: AdminCall, query: AllUserActivityQuery) -> msgspec.Raw:
    """Return usage by day, user, model and key, as one page."""
    return await _whole(call, query, one_entity(USER, query.user_id))


@routes.get("/team/daily/activity", query=TeamActivityQuery, response=DailyUses, access=Access.ANY_KEY, errors=(504,))
async def team_activity(call: AdminCall, query: TeamActivityQuery) -> msgspec.Raw:
    """Return usage by day, team, model and key. A virtual key sees its own usage in its team."""
    return await _page(call, query, entities_of(TEAM, query.team_ids, query.exclude_team_ids))


@routes.get(
    "/team/daily/activity/aggregated",
    query=AllTeamActivityQuery,
    response=DailyUses,
    access=Access.ANY_KEY,
    errors=(504,),
)
async def whole_team_activity(call: AdminCall, query: AllTeamActivityQuery) -> msgspec.Raw:
    """Return usage by day, team, model and key, as one page."""
    return await _whole(call, query, entities_of(TEAM, query.team_ids, query.exclude_team_ids))


@routes.get("/organization/daily/activity", query=OrganizationActivityQuery, response=DailyUses, errors=(504,))
async def organization_activity(call: AdminCall, query: OrganizationActivityQuery) -> msgspec.Raw:
    """Return usage by day, organization and model. It is not kept by key."""
    return await _page(call, query, entities_of(ORGANIZATION, query.organization_ids, query.exclude_organization_ids))


@routes.get(
    "/organization/daily/activity/aggregated", query=AllOrganizationActivityQuery, response=DailyUses, errors=(504,)
)
async def whole_organization_activity(call: AdminCall, query: AllOrganizationActivityQuery) -> msgspec.Raw:
    """Return usage by day, organization and model, as one page."""
    return await _whole(call, query, entities_of(ORGANIZATION, query.organization_ids, query.exclude_organization_ids))


@routes.get(
    *("/customer/daily/activity", "/end_user/daily/activity"),
    query=CustomerActivityQuery,
    response=DailyUses,
    errors=(504,),
)
async def customer_activity(call: AdminCall, query: CustomerActivityQuery) -> msgspec.Raw:
    """Return usage by day, customer and model. It is not kept by key."""
    return await _page(call, query, entities_of(END_USER, query.end_user_ids, query.exclude_end_user_ids))


@routes.get(
    *("/customer/daily/activity/aggregated", "/end_user/daily/activity/aggregated"),
    query=AllCustomerActivityQuery,
    response=DailyUses,
    errors=(504,),
)
async def whole_customer_activity(call: AdminCall, query: AllCustomerActivityQuery) -> msgspec.Raw:
    """Return usage by day, customer and model, as one page."""
    return await _whole(call, query, entities_of(END_USER, query.end_user_ids, query.exclude_end_user_ids))


@routes.get("/tag/daily/activity", query=TagActivityQuery, response=DailyUses, errors=(504,))
async def tag_activity(call: AdminCall, query: TagActivityQuery) -> msgspec.Raw:
    """Return usage by day, tag and model. It is not kept by key; a request with several tags counts for each."""
    return await _page(call, query, entities_of(TAG, query.tags))


@routes.get("/tag/daily/activity/aggregated", query=AllTagActivityQuery, response=DailyUses, errors=(504,))
async def whole_tag_activity(call: AdminCall, query: AllTagActivityQuery) -> msgspec.Raw:
    """Return usage by day, tag and model, as one page."""
    return await _whole(call, query, entities_of(TAG, query.tags))


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
    # likewise
    from twisted_vllm.admin.reports.usage_report import send_report

    return await send_report(call, query)


@routes.get("/usage/top", query=TopGroupsQuery, response=TopGroups, access=Access.ANY_KEY, errors=(504,))
async def most_usage(call: AdminCall, query: TopGroupsQuery) -> msgspec.Raw:
    """Return the groups with the most usage, all others together, and one measure of each by interval: for charts."""
    # likewise
    from twisted_vllm.admin.reports.top_groups import top_groups

    scope, group_by, now = UsageScope.of(call), dimensions_of(query.group_by), call.now
    check_servers(scope, group_by, query.server)
    return await _read(call, lambda transaction: top_groups(transaction, scope, query, group_by, now))
