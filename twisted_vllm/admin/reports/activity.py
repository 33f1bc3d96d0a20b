"""Requests and tokens by day: functions on one transaction that read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twisted_vllm.admin.limits import money
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.reports.models import ActivityFilters, ActivityPage
from twisted_vllm.admin.reports.operations import PROVIDER, name_of_key
from twisted_vllm.admin.reports.scope import UsageScope
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.days import NO_KEY, Entities, day_of, page_of_days
from twisted_vllm.storage.usage.queries.plan import MODEL, UsageQuery
from twisted_vllm.storage.usage.queries.reports import Group, read_all
from twisted_vllm.storage.usage.queries.rows import KeyLabel, key_labels
from twisted_vllm.storage.usage.tables import DAY, SUMS, TEAM

#: models with the most requests in `/global/activity/model`
_TOP_MODELS = 10

_REQUESTS, _TOKENS = SUMS.index("requests"), SUMS.index("total_tokens")

#: what LiteLLM also counts, and this gateway has nothing of
NOT_METERED = (
    *("flat_cost", "ptu_hours", "compression_saved_tokens", "compression_savings_spend"),
    *("prompt_caching_savings_spend", "gateway_injected_caching_savings_spend", "autorouter_savings_spend"),
)
#: the most sums of a day, an entity, a key and a model in one response
MAX_ENTRIES = 20_000
# the name of usage that no entity of the kind caused
_UNASSIGNED = "Unassigned"

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

Sums = list[int]


def activity(transaction: Transaction, start: int, end: int) -> Json:
    """Return requests and tokens by day, as `Activity` describes them."""
    return _report(read_all(transaction.connection, UsageQuery((), DAY, start, end)))


def activity_of_models(transaction: Transaction, start: int, end: int) -> list[Json]:
    """Return requests and tokens by day of the models with the most requests."""
    models: dict[str, list[Group]] = {}
    for group in read_all(transaction.connection, UsageQuery((MODEL,), DAY, start, end)):
        models.setdefault(group.values[0], []).append(group)
    found = [{"model": model, **_report(groups)} for model, groups in models.items()]
    return sorted(found, key=lambda each: -each["sum_api_requests"])[:_TOP_MODELS]


def _report(groups: Iterable[Group]) -> Json:
    days = [
        {"date": _short_date(group.start), "api_requests": group.sums[_REQUESTS], "total_tokens": group.sums[_TOKENS]}
        for group in groups
    ]
    return {
        "daily_data": days,
        "sum_api_requests": sum(day["api_requests"] for day in days),
        "sum_total_tokens": sum(day["total_tokens"] for day in days),
    }


def _short_date(day: str) -> str:
    """Return a date as LiteLLM writes it here: ``Jan 22``."""
    return f"{_MONTHS[int(day[5:7]) - 1]} {day[8:]}"


def page_of_activity(
    transaction: Transaction, scope: UsageScope, query: ActivityPage, entities: Entities, start: int, end: int
) -> Json:
    """Return a page of usage by day, entity, key and model, as `DailyUses` describes it.

    Args:
        transaction: the transaction.
        scope: what the caller may see.
        query: the request.
        entities: whose usage it asks for.
        start: the first microsecond since 1970.
        end: the first microsecond after the last.

    Raises:
        RouteNotAllowed: the caller may not see it.
        InvalidRequest: the sums that it asks for are not kept.
    """
    equals = _filters(transaction, scope, query, entities)
    rows: Sequence[Any] = []
    total = 0
    if equals is not None:
        skip = (query.page - 1) * query.page_size
        rows, total = page_of_days(transaction.connection, entities, equals, start, end, skip, query.page_size)
    pages = max(1, -(-total // query.page_size))
    place = {"page": query.page, "total_pages": pages, "has_more": query.page < pages}
    return _report_activity(transaction, entities, rows, place)


def whole_activity(
    transaction: Transaction, scope: UsageScope, query: ActivityFilters, entities: Entities, start: int, end: int
) -> Json:
    """Return all usage by day, entity, key and model, as one page of `page_of_activity`.

    Raises:
        RouteNotAllowed: the caller may not see it.
        InvalidRequest: it is too much for one response.
    """
    equals = _filters(transaction, scope, query, entities)
    rows: Sequence[Any] = []
    if equals is not None:
        rows, total = page_of_days(transaction.connection, entities, equals, start, end, 0, MAX_ENTRIES)
        if total > MAX_ENTRIES:
            raise InvalidRequest(
                f"This is more than {MAX_ENTRIES:,} entries: ask for fewer days, or for the pages of the route without "
                "/aggregated.",
                param="start_date",
            )
    return _report_activity(transaction, entities, rows, {"page": 1, "total_pages": 1, "has_more": False})


def _filters(
    transaction: Transaction, scope: UsageScope, query: ActivityFilters, entities: Entities
) -> dict[str, str] | None:
    if query.api_key and not entities.has_keys:
        raise InvalidRequest(
            "Sums of organizations, customers and tags are not kept by key: leave out `api_key`, or ask /usage/report.",
            param="api_key",
        )
    return scope.activity_filters(transaction.connection, query, entities)


def _report_activity(transaction: Transaction, entities: Entities, rows: Sequence[Any], place: Json) -> Json:
    labels = key_labels(transaction.connection, sorted({row.key_id for row in rows if row.key_id}))
    values = sorted({row[1] for row in rows if row[1]})
    metadata: dict[str, Json] = {}
    if entities.dimension == TEAM:
        metadata = {
            team.team_id: {"team_alias": team.team_alias} for team in transaction.teams.among("team_id", values)
        }
    return {"results": _report_days(rows, labels, metadata), "metadata": {**_totals(rows), **place}}


class _Part:
    """The sums of a part of a day, in total and by key."""

    __slots__ = ("keys", "total")

    def __init__(self) -> None:
        self.total: Sums = [0] * len(SUMS)
        self.keys: dict[str, Sums] = {}

    def add(self, key_id: str, sums: Sequence[int]) -> None:
        """Add the usage of a key."""
        self.total = _add(self.total, sums)
        found = self.keys.get(key_id)
        self.keys[key_id] = list(sums) if found is None else _add(found, sums)

    def report(self, labels: Mapping[str, KeyLabel], metadata: Json | None = None) -> Json:
        """Return the part as LiteLLM shows it."""
        keys = {key_id: sums for key_id, sums in self.keys.items() if key_id != NO_KEY}
        return {
            "metrics": _metrics(self.total),
            "metadata": metadata or {},
            "api_key_breakdown": _report_keys(keys, labels),
        }


class _Day:
    """The sums of a day: in total, by model and by entity."""

    def __init__(self) -> None:
        self.total = _Part()
        self.models: dict[str, _Part] = {}
        self.entities: dict[str, _Part] = {}

    def add(self, entity: str, key_id: str, model: str, sums: Sequence[int]) -> None:
        """Add the usage of a model by a key."""
        for part in (
            self.total,
            self.models.setdefault(model, _Part()),
            self.entities.setdefault(entity, _Part()),
        ):
            part.add(key_id, sums)


def _add(one: Sequence[int], other: Sequence[int]) -> Sums:
    return [a + b for a, b in zip(one, other, strict=True)]


def _report_days(rows: Sequence[Any], labels: Mapping[str, KeyLabel], metadata: Mapping[str, Json]) -> list[Json]:
    days: dict[str, _Day] = {}
    for row in rows:
        days.setdefault(day_of(row), _Day()).add(row[1], row[2], row[3], row[4:])
    found = []
    for name, day in days.items():
        models = {model: part.report(labels) for model, part in day.models.items()}
        whole = day.total.report(labels)
        found.append(
            {
                "date": name,
                "metrics": whole["metrics"],
                "breakdown": {
                    "models": models,
                    "model_groups": models,
                    "providers": {PROVIDER: whole},
                    "api_keys": whole["api_key_breakdown"],
                    "mcp_servers": {},
                    "endpoints": {},
                    "entities": {
                        entity or _UNASSIGNED: part.report(labels, metadata.get(entity))
                        for entity, part in day.entities.items()
                    },
                },
            }
        )
    return found


def _report_keys(used: Mapping[str, Sums], labels: Mapping[str, KeyLabel]) -> Json:
    found = {}
    for key_id, sums in used.items():
        label = labels.get(key_id)
        found[name_of_key(key_id, labels)] = {
            "metrics": _metrics(sums),
            "metadata": {
                "key_alias": None if label is None else label.key_alias,
                "team_id": None if label is None else label.team_id,
                "user_id": None if label is None else label.user_id,
                "user_email": None,
                "key_exists": label is not None,
            },
        }
    return found


def _metrics(sums: Sequence[int]) -> Json:
    """Return sums as `Metrics` describes them."""
    values = dict(zip(SUMS, sums, strict=True))
    return {
        "spend": money(values["cost"]),
        "prompt_tokens": values["prompt_tokens"],
        "completion_tokens": values["completion_tokens"],
        "cache_read_input_tokens": values["cached_tokens"],
        "cache_creation_input_tokens": 0,
        "total_tokens": values["total_tokens"],
        "successful_requests": values["successful"],
        "failed_requests": values["failed"],
        "api_requests": values["requests"],
        "total_response_time_ms": values["total_us"] // 1000,
        "timed_requests": values["requests"],
        **dict.fromkeys(NOT_METERED, 0),
    }


def _totals(rows: Sequence[Any]) -> Json:
    total: Sums = [0] * len(SUMS)
    for row in rows:
        total = _add(total, row[4:])
    metrics = _metrics(total)
    return {
        "total_spend": metrics["spend"],
        "total_prompt_tokens": metrics["prompt_tokens"],
        "total_completion_tokens": metrics["completion_tokens"],
        "total_tokens": metrics["total_tokens"],
        "total_api_requests": metrics["api_requests"],
        "total_successful_requests": metrics["successful_requests"],
        "total_failed_requests": metrics["failed_requests"],
        "total_cache_read_input_tokens": metrics["cache_read_input_tokens"],
        "total_cache_creation_input_tokens": 0,
        "total_response_time_ms": metrics["total_response_time_ms"],
        "total_timed_requests": metrics["timed_requests"],
        **{f"total_{name}": 0 for name in NOT_METERED},
    }
