"""Requests and tokens by day: functions on one transaction that read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twisted_vllm.admin.limits import money
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.reports.models import DailyActivityQuery
from twisted_vllm.admin.reports.operations import PROVIDER, name_of_key
from twisted_vllm.admin.reports.scope import UsageScope
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.plan import MODEL, UsageQuery
from twisted_vllm.storage.usage.queries.reports import Group, page_of_days, read_all
from twisted_vllm.storage.usage.queries.rows import KeyLabel, key_labels
from twisted_vllm.storage.usage.tables import DAY, SUMS

#: models with the most requests in `/global/activity/model`
_TOP_MODELS = 10

_REQUESTS, _TOKENS = SUMS.index("requests"), SUMS.index("total_tokens")
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


def daily_activity(
    transaction: Transaction, scope: UsageScope, query: DailyActivityQuery, start: int, end: int
) -> Json:
    """Return a page of usage by day, model and key, as `DailyUses` describes it.

    Args:
        transaction: the transaction.
        scope: what the caller may see.
        query: the request.
        start: the first microsecond since 1970.
        end: the first microsecond after the last.

    Raises:
        RouteNotAllowed: the caller may not see it.
    """
    connection = transaction.connection
    equals = scope.activity_filters(connection, query)
    rows: Sequence[Any] = []
    total = 0
    if equals is not None:
        skip = (query.page - 1) * query.page_size
        rows, total = page_of_days(connection, equals, start, end, skip, query.page_size)
    labels = key_labels(connection, sorted({row.key_id for row in rows if row.key_id}))
    pages = max(1, -(-total // query.page_size))
    return {
        "results": _report_days(rows, labels),
        "metadata": {
            **_totals(rows),
            "page": query.page,
            "total_pages": pages,
            "has_more": query.page < pages,
        },
    }


class _Breakdown:
    """The sums of a day: in total, by model, by key, and by key of each model."""

    def __init__(self) -> None:
        self.total: Sums = [0] * len(SUMS)
        self.models: dict[str, Sums] = {}
        self.keys: dict[str, Sums] = {}
        self.keys_of_models: dict[str, dict[str, Sums]] = {}

    def add(self, key_id: str, model: str, sums: Sequence[int]) -> None:
        """Add the usage of a model by a key."""
        empty = [0] * len(SUMS)
        self.total = _add(self.total, sums)
        self.models[model] = _add(self.models.get(model, empty), sums)
        self.keys[key_id] = _add(self.keys.get(key_id, empty), sums)
        self.keys_of_models.setdefault(model, {})[key_id] = list(sums)


def _add(one: Sequence[int], other: Sequence[int]) -> Sums:
    return [a + b for a, b in zip(one, other, strict=True)]


def _report_days(rows: Sequence[Any], labels: Mapping[str, KeyLabel]) -> list[Json]:
    days: dict[str, _Breakdown] = {}
    for row in rows:
        days.setdefault(row[0].isoformat(), _Breakdown()).add(row[1], row[2], row[3:])
    found = []
    for name, day in days.items():
        models = {
            model: {
                "metrics": _metrics(sums),
                "metadata": {},
                "api_key_breakdown": _report_keys(day.keys_of_models[model], labels),
            }
            for model, sums in day.models.items()
        }
        keys = _report_keys(day.keys, labels)
        metrics = _metrics(day.total)
        found.append(
            {
                "date": name,
                "metrics": metrics,
                "breakdown": {
                    "models": models,
                    "model_groups": models,
                    "providers": {PROVIDER: {"metrics": metrics, "metadata": {}, "api_key_breakdown": keys}},
                    "api_keys": keys,
                    "mcp_servers": {},
                    "endpoints": {},
                    "entities": {},
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
    }


def _totals(rows: Sequence[Any]) -> Json:
    total: Sums = [0] * len(SUMS)
    for row in rows:
        total = _add(total, row[3:])
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
    }
