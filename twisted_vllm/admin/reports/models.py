"""The queries and responses of the report routes."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, Literal

import msgspec

from twisted_vllm.admin.fields import Labels
from twisted_vllm.admin.models import (
    MOMENT_SCHEMA,
    MOMENT_WORDS,
    Body,
    Json,
    NumberedPage,
    PageNumber,
    Query,
    Response,
    Strings,
    described,
)
from twisted_vllm.money import from_dollars
from twisted_vllm.storage.usage.queries.plan import DIMENSIONS

_MAX_PAGE_SIZE = 1000

#: US dollars that no request costs
MAX_SPEND = 9_000_000

_DAY = "^2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])$"
_NAMES = "|".join(DIMENSIONS)

Flag = Literal["", "false", "true", "0", "1"]
Start = Annotated[
    str, msgspec.Meta(description=f"The first day or moment: {MOMENT_WORDS}.", extra_json_schema=MOMENT_SCHEMA)
]
End = Annotated[
    str,
    msgspec.Meta(description="The last day or moment (included), likewise.", extra_json_schema=MOMENT_SCHEMA),
]
StartDay = Annotated[str, msgspec.Meta(description="The first day.", extra_json_schema={"pattern": f"({_DAY})|^$"})]
EndDay = Annotated[str, msgspec.Meta(description="The last day.", extra_json_schema={"pattern": f"({_DAY})|^$"})]
KeyName = Annotated[str, msgspec.Meta(description="A key, its hash, or its key id.")]
BigPage = Annotated[int, msgspec.Meta(ge=1, le=_MAX_PAGE_SIZE, description="Entries per page.")]
TopCount = Annotated[int, msgspec.Meta(ge=1, le=_MAX_PAGE_SIZE, description="The number of entries, at most.")]


class Filters(Query, frozen=True, kw_only=True):
    """Whose usage is meant, and of which model or tag."""

    api_key: KeyName = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""
    model: str = ""
    tag: str = ""


class LogsQuery(Filters, frozen=True, kw_only=True):
    """The query of ``GET /spend/logs``."""

    request_id: str = ""
    start_date: Start = ""
    end_date: End = ""
    summarize: Annotated[
        Flag, msgspec.Meta(description="Whether to return sums by day, if both dates are given. Default: true.")
    ] = ""
    page: PageNumber = 1
    page_size: BigPage = 100


class PagedLogsQuery(Filters, frozen=True, kw_only=True):
    """The query of ``GET /spend/logs/v2`` and ``/spend/logs/ui``."""

    UNSUPPORTED = {
        **dict.fromkeys(("error_message", "model_id")),
        "sort_by": "startTime",
        "sort_order": "desc",
    }

    request_id: str = ""
    start_date: Start = ""
    end_date: End = ""
    search: Annotated[str, msgspec.Meta(description="As `request_id`, where that is not given.")] = ""
    status_filter: Literal["", "success", "failure"] = ""
    key_alias: Annotated[str, msgspec.Meta(description="The alias of a key.")] = ""
    error_code: Annotated[str, msgspec.Meta(description="A status such as 429, or a code of the gateway's.")] = ""
    route: Annotated[str, msgspec.Meta(description="A route of vLLM, such as `/v1/chat/completions`.")] = ""
    server: Annotated[str, msgspec.Meta(description="A server's name, for administrators only.")] = ""
    min_spend: Annotated[float, msgspec.Meta(ge=0, le=MAX_SPEND, description="The least cost, in US dollars.")] = 0
    max_spend: Annotated[float, msgspec.Meta(ge=0, le=MAX_SPEND, description="The highest cost.")] = MAX_SPEND
    page: PageNumber = 1
    page_size: BigPage = 50

    @property
    def costs(self) -> tuple[int, int] | None:
        """The least and the highest cost, in picodollars; None for any."""
        if (self.min_spend, self.max_spend) == (0, MAX_SPEND):
            return None
        return from_dollars(self.min_spend), from_dollars(self.max_spend)


class SpendListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /spend/keys``."""

    limit: Annotated[
        int, msgspec.Meta(ge=0, le=_MAX_PAGE_SIZE, description="LiteLLM's name of `page_size`, which it replaces.")
    ] = 0
    page: PageNumber = 1
    page_size: BigPage = 100

    @property
    def size(self) -> int:
        """The entries of a page."""
        return self.limit or self.page_size


class SpendUsersQuery(SpendListQuery, frozen=True, kw_only=True):
    """The query of ``GET /spend/users``."""

    user_id: str = ""


class DatesQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /spend/tags``."""

    start_date: StartDay = ""
    end_date: EndDay = ""


class ActivityQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /global/activity``."""

    start_date: Annotated[
        str, msgspec.Meta(min_length=1, description="The first day.", extra_json_schema={"pattern": _DAY})
    ]
    end_date: Annotated[
        str, msgspec.Meta(min_length=1, description="The last day.", extra_json_schema={"pattern": _DAY})
    ]


class KeyReportQuery(DatesQuery, frozen=True, kw_only=True):
    """The query of ``GET /key/spend/report``."""

    api_key: KeyName = ""


class GlobalLogsQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /global/spend/logs``."""

    api_key: KeyName = ""


class TopQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /global/spend/models`` and ``/global/spend/keys``."""

    limit: TopCount = 10


class ActivityFilters(DatesQuery, frozen=True, kw_only=True):
    """What all queries of the daily activity have."""

    api_key: KeyName = ""
    model: str = ""
    timezone: Annotated[
        str,
        msgspec.Meta(
            description="The minutes from the caller's time to UTC, as JavaScript's getTimezoneOffset. Days are UTC's: "
            "one more is added at the end or the start, so that the caller's days are all covered.",
            extra_json_schema={"pattern": "^(-?[0-9]{1,3})?$"},
        ),
    ] = ""


class ActivityPage(ActivityFilters, frozen=True, kw_only=True):
    """What the queries of its pages have."""

    page: PageNumber = 1
    page_size: BigPage = 50


Ids = Annotated[str, msgspec.Meta(description="Ids, separated by commas.")]


class DailyActivityQuery(ActivityPage, frozen=True, kw_only=True):
    """The query of ``GET /user/daily/activity``."""

    user_id: str = ""


class AllUserActivityQuery(ActivityFilters, frozen=True, kw_only=True):
    """The query of ``GET /user/daily/activity/aggregated``."""

    user_id: str = ""


class TeamActivityQuery(ActivityPage, frozen=True, kw_only=True):
    """The query of ``GET /team/daily/activity``."""

    team_ids: Ids = ""
    exclude_team_ids: Ids = ""


class AllTeamActivityQuery(ActivityFilters, frozen=True, kw_only=True):
    """The query of ``GET /team/daily/activity/aggregated``."""

    team_ids: Ids = ""
    exclude_team_ids: Ids = ""


class OrganizationActivityQuery(ActivityPage, frozen=True, kw_only=True):
    """The query of ``GET /organization/daily/activity``."""

    organization_ids: Ids = ""
    exclude_organization_ids: Ids = ""


class AllOrganizationActivityQuery(ActivityFilters, frozen=True, kw_only=True):
    """The query of ``GET /organization/daily/activity/aggregated``."""

    organization_ids: Ids = ""
    exclude_organization_ids: Ids = ""


class CustomerActivityQuery(ActivityPage, frozen=True, kw_only=True):
    """The query of ``GET /customer/daily/activity``."""

    end_user_ids: Ids = ""
    exclude_end_user_ids: Ids = ""


class AllCustomerActivityQuery(ActivityFilters, frozen=True, kw_only=True):
    """The query of ``GET /customer/daily/activity/aggregated``."""

    end_user_ids: Ids = ""
    exclude_end_user_ids: Ids = ""


class TagActivityQuery(ActivityPage, frozen=True, kw_only=True):
    """The query of ``GET /tag/daily/activity``."""

    tags: Annotated[str, msgspec.Meta(description="Tags, separated by commas.")] = ""


class AllTagActivityQuery(ActivityFilters, frozen=True, kw_only=True):
    """The query of ``GET /tag/daily/activity/aggregated``."""

    tags: Annotated[str, msgspec.Meta(description="Tags, separated by commas.")] = ""


class GlobalReportQuery(DatesQuery, frozen=True, kw_only=True):
    """The query of ``GET /global/spend/report``."""

    group_by: Literal["", "team", "customer", "api_key"] = ""
    api_key: KeyName = ""
    internal_user_id: str = ""
    team_id: str = ""
    customer_id: str = ""


class UserReportQuery(DatesQuery, frozen=True, kw_only=True):
    """The query of ``GET /user/spend/report``."""

    user_id: str = ""


class TeamReportQuery(DatesQuery, frozen=True, kw_only=True):
    """The query of ``GET /team/spend/report``."""

    team_id: str = ""


class OrganizationReportQuery(DatesQuery, frozen=True, kw_only=True):
    """The query of ``GET /organization/spend/report``."""

    organization_id: str = ""


class TagsQuery(DatesQuery, frozen=True, kw_only=True):
    """The query of ``GET /global/spend/tags``."""

    tags: Annotated[str, msgspec.Meta(description="Tags, separated by commas; all-tags for all.")] = ""


class LogPayloadQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /spend/logs/ui/{request_id}``, which needs no dates."""

    start_date: str = ""
    end_date: str = ""


class EndUsersBody(Body, frozen=True, kw_only=True):
    """The body of ``POST /global/spend/end_users``."""

    api_key: Annotated[str | None, described("Only requests of this key: itself, or its SHA-256 in hex.")] = None
    startTime: Annotated[str | None, described("The first day, as in 2026-03-01.")] = None
    endTime: Annotated[str | None, described("The last day, likewise.")] = None


class CalculateBody(Body, frozen=True, kw_only=True):
    """The body of ``POST /spend/calculate``: a prompt that is to be sent, or an answer that came."""

    model: Annotated[str | None, described("The model's name.")] = None
    messages: Annotated[list[Any] | None, described("The messages of a prompt that is to be sent.")] = None
    completion_response: Annotated[dict[str, Any] | None, described("The server's answer, with its usage.")] = None


class GroupsQuery(Filters, frozen=True, kw_only=True):
    """Which usage is reported, and by what."""

    group_by: Annotated[
        str,
        msgspec.Meta(
            description=f"Some of {', '.join(DIMENSIONS)}, separated by commas.",
            extra_json_schema={"pattern": f"^(({_NAMES})(,({_NAMES}))*)?$"},
        ),
    ] = ""
    interval: Literal["hour", "day", "month"] = "day"
    start: Start = ""
    end: End = ""
    route: str = ""
    server: str = ""


class ReportQuery(GroupsQuery, frozen=True, kw_only=True):
    """The query of ``GET /usage/report``."""

    format: Literal["json", "csv"] = "json"


class TopGroupsQuery(GroupsQuery, frozen=True, kw_only=True):
    """The query of ``GET /usage/top``."""

    measure: Annotated[
        Literal["spend", "requests", "failed", "total_tokens", "prompt_tokens", "cached_tokens", "completion_tokens"],
        msgspec.Meta(description="What the groups are compared by, and have by interval."),
    ] = "spend"
    top: Annotated[int, msgspec.Meta(ge=1, le=50, description="The number of groups that are not put together.")] = 8


Amount = Annotated[float, msgspec.Meta(description="US dollars, with all digits.")]
KeyHash = Annotated[str, msgspec.Meta(description="A key's SHA-256. Of a deleted key, what is left of it.")]


class SpendLog(Response, kw_only=True):
    """A request."""

    request_id: str
    call_type: str
    api_key: KeyHash
    spend: Amount
    total_tokens: int
    prompt_tokens: int
    completion_tokens: int
    startTime: datetime
    endTime: datetime
    request_duration_ms: int
    completionStartTime: datetime
    model: str
    model_id: None
    model_group: str
    custom_llm_provider: str
    api_base: Annotated[str | None, msgspec.Meta(description="The server's name, for administrators only.")]
    user: str
    team_id: str | None
    organization_id: str | None
    end_user: str
    request_tags: Strings
    cache_hit: str
    cache_key: None
    requester_ip_address: None
    session_id: None
    messages: Json
    response: Json
    status: str
    metadata: Json


class SpendLogPage(NumberedPage, kw_only=True):
    """A page of requests."""

    data: tuple[SpendLog, ...]
    total_is_capped: Annotated[bool, msgspec.Meta(description="Whether there are more requests than `total`.")]


class TagSum(Response, kw_only=True):
    """The spend of a tag, as LiteLLM's page of tags shows it."""

    name: str
    spend: Amount
    log_count: int


class TagSums(Response, kw_only=True):
    """The spend of tags."""

    spend_per_tag: tuple[TagSum, ...]


class TagNames(Response, kw_only=True):
    """The tags that were used."""

    tag_names: Strings


class TagsRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /tag/info``."""

    names: Annotated[Labels, msgspec.Meta(min_length=1, description="The tags.")]


class TagReport(Response, kw_only=True):
    """A tag: a label that keys and requests have, which limits nothing."""

    name: str
    description: None
    models: None
    model_info: None
    created_at: None
    updated_at: None
    created_by: None


class EndUserNames(Response, kw_only=True):
    """The end users that were named."""

    end_users: Strings


class EndUserSpend(Response, kw_only=True):
    """The spend of an end user."""

    end_user: str
    total_count: int
    total_spend: Amount


class ProviderSpend(Response, kw_only=True):
    """The spend of a provider: there is one, vLLM."""

    provider: str
    spend: Amount


class CalculatedCost(Response, kw_only=True):
    """The cost of a request."""

    cost: Amount


class LogPayload(Response, kw_only=True):
    """What a request and its answer contained: empty where nothing was kept."""

    messages: Json
    response: Json
    proxy_server_request: Json


class Timings(Response, kw_only=True):
    """When a request was where, in microseconds. What is left of `total_us` after the first byte is the answer."""

    queued_us: Annotated[
        int | None, msgspec.Meta(description="How long it waited for a busy server; null if it did not.")
    ]
    first_byte_us: Annotated[
        int | None, msgspec.Meta(description="From its head to the first byte of the answer; null without one.")
    ]
    total_us: int


class FailedAttempt(Response, kw_only=True):
    """An attempt that another followed."""

    server: Annotated[str | None, msgspec.Meta(description="The server's name, for administrators only.")]
    reason: Annotated[str, msgspec.Meta(description="The code of an error, or such as `status_503`.")]


class RequestReport(Response, kw_only=True):
    """All that the ledger knows of a request, and its prompt and answer where they were kept."""

    id: Annotated[str, msgspec.Meta(description="The id of its row, which is its own.")]
    request_id: Annotated[str, msgspec.Meta(description="Its `x-request-id`, which a client may use again.")]
    response_id: str | None
    others: Annotated[
        Strings, msgspec.Meta(description="The ids of other requests with this `request_id`, the newest first.")
    ]
    time: datetime
    kind: Annotated[str, msgspec.Meta(description="Who called: `key`, `master`, `anonymous` and so on.")]
    key_id: str | None
    api_key: Annotated[str | None, msgspec.Meta(description="The key's SHA-256; null if there is none any more.")]
    key_alias: Annotated[str | None, msgspec.Meta(description="The key's name as it was.")]
    user_id: str | None
    team_id: str | None
    organization_id: str | None
    end_user: str | None
    tags: Strings
    model: str
    fallback: Annotated[str | None, msgspec.Meta(description="The model that was asked in place of it.")]
    server: Annotated[str | None, msgspec.Meta(description="The server's name, for administrators only.")]
    route: str
    method: str
    status: int
    outcome: str
    error: str | None
    stream: bool
    timings: Timings
    attempts: Annotated[
        tuple[FailedAttempt, ...], msgspec.Meta(description="The attempts before the last one, which failed.")
    ]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    total_tokens: int
    audio_ms: int
    estimated: Annotated[bool, msgspec.Meta(description="Whether the gateway estimated the tokens.")]
    spend: Amount
    prices: Json
    bytes_in: int
    bytes_out: int
    requests: Annotated[
        int, msgspec.Meta(description="How many requests this is: those that cost nothing may be one row.")
    ]
    headers: Annotated[Json, msgspec.Meta(description="Those of `passthrough.ledger.usage_headers`.")]
    metadata: Annotated[Json | None, msgspec.Meta(description="What the client sent for the ledger.")]
    trace_id: Annotated[str | None, msgspec.Meta(description="The id of its trace, if that is recorded.")]
    contents: Annotated[
        Json | None,
        msgspec.Meta(description="Its prompt and answer as docs/log-bodies.md shows them; null if none are kept."),
    ]


class TagSpend(Response, kw_only=True):
    """The spend of a tag."""

    individual_request_tag: str
    log_count: int
    total_spend: Amount


class Costs(Response, kw_only=True):
    """Cost and tokens."""

    total_cost: Amount
    total_input_tokens: int
    total_output_tokens: int


class ModelCosts(Costs, kw_only=True):
    """The cost and tokens of a model."""

    model: str


class KeySpendReport(Costs, kw_only=True):
    """The cost and tokens of a key."""

    api_key: KeyHash
    model_details: tuple[ModelCosts, ...]


class GlobalSpendReport(Response, kw_only=True):
    """The spend of everybody together."""

    spend: Amount
    max_budget: float | None


class DatedSpend(Response, kw_only=True):
    """The spend of a day."""

    date: date
    spend: Amount
    api_key: KeyHash = ""


class TopKey(Response, kw_only=True):
    """A key with a high spend."""

    api_key: KeyHash
    key_alias: str | None
    key_name: str | None
    total_spend: Amount


class TopModel(Response, kw_only=True):
    """A model with a high spend."""

    model: str
    total_spend: Amount
    total_tokens: int


class TeamSpend(Response, kw_only=True):
    """The spend of a team."""

    team_id: str
    total_spend: Amount


class TeamsSpend(Response, kw_only=True):
    """The spend of teams."""

    daily_spend: Annotated[
        tuple[Json, ...], msgspec.Meta(description="The `date`, and US dollars by the name of the team.")
    ]
    teams: Strings
    total_spend_per_team: tuple[TeamSpend, ...]


class DayActivity(Response, kw_only=True):
    """The requests of a day."""

    date: str
    api_requests: int
    total_tokens: int


class Activity(Response, kw_only=True):
    """The requests of several days."""

    daily_data: tuple[DayActivity, ...]
    sum_api_requests: int
    sum_total_tokens: int


class ModelActivity(Activity, kw_only=True):
    """The requests of several days to one model."""

    model: str


class Metrics(Response, kw_only=True):
    """Sums of usage."""

    spend: Amount
    prompt_tokens: int
    completion_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    total_tokens: int
    successful_requests: int
    failed_requests: int
    api_requests: int
    total_response_time_ms: int
    timed_requests: int
    flat_cost: Amount
    ptu_hours: Amount
    compression_saved_tokens: int
    compression_savings_spend: Amount
    prompt_caching_savings_spend: Amount
    gateway_injected_caching_savings_spend: Amount
    autorouter_savings_spend: Amount


class DailyUse(Response, kw_only=True):
    """The usage of a day, in total and by model and key."""

    date: date
    metrics: Metrics
    breakdown: Json


class DailyUses(Response, kw_only=True):
    """The usage of several days."""

    results: tuple[DailyUse, ...]
    metadata: Annotated[
        Json, msgspec.Meta(description="The number of the page, the number of pages, and the totals of the page.")
    ]


class UsageReport(Response, kw_only=True):
    """Usage by interval and group."""

    start: datetime
    end: Annotated[datetime, msgspec.Meta(description="The moment at which the report ends (excluded).")]
    interval: str
    group_by: Strings
    source: Annotated[
        str, msgspec.Meta(description="`totals` or `daily`, which are kept forever, or `rows`, which may be deleted.")
    ]
    results: Annotated[
        tuple[Json, ...], msgspec.Meta(description="The `start` of the interval, the group's values, and its sums.")
    ]
    totals: Json
    rows_since: Annotated[
        datetime | None, msgspec.Meta(description="When the oldest request began that still has a row.")
    ] = None


class TopGroups(Response, kw_only=True):
    """The groups with the most usage, the others together, and one measure of each by interval."""

    start: datetime
    end: Annotated[datetime, msgspec.Meta(description="The moment at which the report ends (excluded).")]
    interval: str
    group_by: Strings
    measure: str
    source: Annotated[str, msgspec.Meta(description="As in ``/usage/report``.")]
    starts: Annotated[Strings, msgspec.Meta(description="When each interval begins.")]
    groups: Annotated[
        tuple[Json, ...],
        msgspec.Meta(
            description="The group's values, its sums, and as `series` the measure in each interval of `starts`. Those "
            "with most come first; of more than 60,000 groups and intervals, those with the highest cost."
        ),
    ]
    others: Annotated[
        Json | None,
        msgspec.Meta(
            description="The sums and the series of all others; null without, and of very many tags, as a request may "
            "have several."
        ),
    ]
    totals: Json
    intervals: Annotated[
        tuple[Json, ...] | None,
        msgspec.Meta(description="The sums of each interval of `starts`, where nothing is grouped by; else null."),
    ]
    rows_since: Annotated[
        datetime | None, msgspec.Meta(description="When the oldest request began that still has a row.")
    ] = None
