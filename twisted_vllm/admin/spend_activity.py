"""``GET /user/daily/activity``: what was used on each day, by model and key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from twisted.web.iweb import IRequest

from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.queries import parse_query
from twisted_vllm.admin.respond import read_query
from twisted_vllm.admin.spend_access import Caller, answer, caller_of
from twisted_vllm.admin.spend_queries import ACTIVITY_DEFAULTS, DailyActivityQuery, days_of
from twisted_vllm.admin.spend_shapes import PROVIDER, name_of_key, show_metrics
from twisted_vllm.errors import RouteNotAllowed
from twisted_vllm.storage.usage.queries.plan import MODEL
from twisted_vllm.storage.usage.queries.reports import page_of_days
from twisted_vllm.storage.usage.queries.rows import KeyLabel, key_labels
from twisted_vllm.storage.usage.tables import KEY, SUMS, USER

Sums = list[int]


class DailyActivity:
    """Shows what was used on each day."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def daily(self, request: IRequest) -> bytes:
        """Answer ``GET /user/daily/activity``: what was used on each day, by model and key.

        As in LiteLLM a virtual key sees what all keys of its user used, or itself if it has no user; a page holds so
        many sums of a day, a key and a model, and the totals beside it are those of the page.
        """
        caller = caller_of(self._office, request)
        asked = parse_query(read_query(request), DailyActivityQuery, ACTIVITY_DEFAULTS)
        start, end = days_of(asked.start_date, asked.end_date, self._office.now())

        def work(connection: Connection) -> dict[str, Any]:
            equals = _filters(connection, caller, asked)
            rows: Sequence[Any] = []
            total = 0
            if equals is not None:
                skip = (asked.page - 1) * asked.page_size
                rows, total = page_of_days(connection, equals, start, end, skip, asked.page_size)
            labels = key_labels(connection, sorted({row.key_id for row in rows if row.key_id}))
            pages = max(1, -(-total // asked.page_size))
            return {
                "results": _results(rows, labels),
                "metadata": {
                    **_totals(rows),
                    "page": asked.page,
                    "total_pages": pages,
                    "has_more": asked.page < pages,
                },
            }

        return await answer(self._office, request, work)


def _filters(connection: Connection, caller: Caller, asked: DailyActivityQuery) -> dict[str, str] | None:
    equals = {MODEL: asked.model} if asked.model else {}
    principal = caller.principal
    if asked.user_id:
        if not principal.may_administer and asked.user_id != principal.user_id:
            raise RouteNotAllowed("A virtual key may see the usage of its own user only.")
        equals[USER] = asked.user_id
    elif not principal.may_administer and principal.user_id is not None:
        equals[USER] = principal.user_id
    if asked.api_key:
        key_id = caller.find_key(connection, asked.api_key)
        if key_id is None:
            return None
        equals[KEY] = key_id
    elif not principal.may_administer and principal.user_id is None:
        equals[KEY] = principal.key_id
    return equals


class _Breakdown:
    """The sums of a day, in all, by model and by key."""

    def __init__(self) -> None:
        self.whole: Sums = [0] * len(SUMS)
        self.models: dict[str, Sums] = {}
        self.keys: dict[str, Sums] = {}
        self.keys_of_models: dict[str, dict[str, Sums]] = {}

    def add(self, key_id: str, model: str, sums: Sequence[int]) -> None:
        """Add what a key used of a model."""
        empty = [0] * len(SUMS)
        self.whole = _sum(self.whole, sums)
        self.models[model] = _sum(self.models.get(model, empty), sums)
        self.keys[key_id] = _sum(self.keys.get(key_id, empty), sums)
        self.keys_of_models.setdefault(model, {})[key_id] = list(sums)


def _sum(one: Sequence[int], other: Sequence[int]) -> Sums:
    return [a + b for a, b in zip(one, other, strict=True)]


def _results(rows: Sequence[Any], labels: Mapping[str, KeyLabel]) -> list[dict[str, Any]]:
    days: dict[str, _Breakdown] = {}
    for row in rows:
        days.setdefault(row[0].isoformat(), _Breakdown()).add(row[1], row[2], row[3:])
    found = []
    for name, day in days.items():
        models = {
            model: {
                "metrics": show_metrics(sums),
                "metadata": {},
                "api_key_breakdown": _keys(day.keys_of_models[model], labels),
            }
            for model, sums in day.models.items()
        }
        keys = _keys(day.keys, labels)
        metrics = show_metrics(day.whole)
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


def _keys(used: Mapping[str, Sums], labels: Mapping[str, KeyLabel]) -> dict[str, Any]:
    found = {}
    for key_id, sums in used.items():
        label = labels.get(key_id)
        found[name_of_key(key_id, labels)] = {
            "metrics": show_metrics(sums),
            "metadata": {
                "key_alias": None if label is None else label.key_alias,
                "team_id": None if label is None else label.team_id,
                "user_id": None if label is None else label.user_id,
                "key_exists": label is not None,
            },
        }
    return found


def _totals(rows: Sequence[Any]) -> dict[str, Any]:
    whole: Sums = [0] * len(SUMS)
    for row in rows:
        whole = _sum(whole, row[3:])
    metrics = show_metrics(whole)
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
