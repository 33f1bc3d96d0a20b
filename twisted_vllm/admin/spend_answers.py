"""What the routes that tell of usage answer, for the document of the API."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any

import msgspec

from twisted_vllm.admin.answers import Answer, NumberedPage, Object, Strings

Dollars = Annotated[float, msgspec.Meta(description="US dollars, with all their digits.")]
KeyHash = Annotated[str, msgspec.Meta(description="A key's SHA-256; of a deleted key what is kept of it.")]


class SpendLog(Answer, kw_only=True):
    """A request."""

    request_id: str
    call_type: str
    api_key: KeyHash
    spend: Dollars
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
    api_base: Annotated[str | None, msgspec.Meta(description="The server's name, for administrators.")]
    user: str
    team_id: str | None
    organization_id: None
    end_user: str
    request_tags: Strings
    cache_hit: str
    cache_key: None
    requester_ip_address: None
    session_id: None
    messages: Object
    response: Object
    status: str
    metadata: Object


class DaySpend(Answer, kw_only=True):
    """The spend of a day; beside these, that of each key by its hash."""

    startTime: date
    spend: Dollars
    users: dict[str, float]
    models: dict[str, float]


class SpendLogPage(NumberedPage, kw_only=True):
    """A page of requests."""

    data: tuple[SpendLog, ...]
    total_is_capped: Annotated[bool, msgspec.Meta(description="Whether there are more than were counted.")]


class TagSpend(Answer, kw_only=True):
    """What a tag spent."""

    individual_request_tag: str
    log_count: int
    total_spend: Dollars


class Costs(Answer, kw_only=True):
    """What something cost."""

    total_cost: Dollars
    total_input_tokens: int
    total_output_tokens: int


class ModelCosts(Costs, kw_only=True):
    """What a model cost."""

    model: str


class KeySpendReport(Costs, kw_only=True):
    """What a key used."""

    api_key: KeyHash
    model_details: tuple[ModelCosts, ...]


class GlobalSpendReport(Answer, kw_only=True):
    """What everybody spent."""

    spend: Dollars
    max_budget: float | None


class DatedSpend(Answer, kw_only=True):
    """The spend of a day."""

    date: date
    spend: Dollars
    api_key: KeyHash = ""


class TopKey(Answer, kw_only=True):
    """A key that spent much."""

    api_key: KeyHash
    key_alias: str | None
    key_name: str | None
    total_spend: Dollars


class TopModel(Answer, kw_only=True):
    """A model that cost much."""

    model: str
    total_spend: Dollars
    total_tokens: int


class TeamSpend(Answer, kw_only=True):
    """What a team spent."""

    team_id: str
    total_spend: Dollars


class TeamsSpend(Answer, kw_only=True):
    """What teams spent."""

    daily_spend: Annotated[tuple[Object, ...], msgspec.Meta(description="A `date`, and dollars by a team's name.")]
    teams: Strings
    total_spend_per_team: tuple[TeamSpend, ...]


class DayActivity(Answer, kw_only=True):
    """The requests of a day."""

    date: str
    api_requests: int
    total_tokens: int


class Activity(Answer, kw_only=True):
    """The requests of some days."""

    daily_data: tuple[DayActivity, ...]
    sum_api_requests: int
    sum_total_tokens: int


class ModelActivity(Activity, kw_only=True):
    """The requests of some days to a model."""

    model: str


class Metrics(Answer, kw_only=True):
    """What was used."""

    spend: Dollars
    prompt_tokens: int
    completion_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    total_tokens: int
    successful_requests: int
    failed_requests: int
    api_requests: int
    total_response_time_ms: int


class DailyUse(Answer, kw_only=True):
    """What was used on a day, and by which models and keys."""

    date: date
    metrics: Metrics
    breakdown: Object


class DailyUses(Answer, kw_only=True):
    """What was used on some days."""

    results: tuple[DailyUse, ...]
    metadata: Annotated[Object, msgspec.Meta(description="The page, how many there are, and the page's totals.")]


class UsageReport(Answer, kw_only=True):
    """What was used, by interval and group."""

    start: datetime
    end: Annotated[datetime, msgspec.Meta(description="The first moment that does not count any more.")]
    interval: str
    group_by: Strings
    source: Annotated[str, msgspec.Meta(description="`totals` or `daily`, which are kept for good, or `rows`.")]
    results: Annotated[tuple[Object, ...], msgspec.Meta(description="`start`, the group's values, and its sums.")]
    totals: Object
    rows_since: Annotated[
        datetime | None, msgspec.Meta(description="When the oldest request began whose row is kept.")
    ] = None


#: `/spend/logs` answers with requests or with days
Logs = tuple[dict[str, Any], ...]
