"""LiteLLM's reports for its dashboard and its scripts: by team, customer, tag and provider, and the cost of an answer.

Functions on one transaction that read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from twisted_vllm.admin.fields import redacted
from twisted_vllm.admin.limits import money
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.reports.models import CalculateBody, GlobalReportQuery
from twisted_vllm.admin.reports.operations import PROVIDER, costs_by_key, name_of_key, team_names
from twisted_vllm.admin.reports.scope import UsageScope
from twisted_vllm.config.settings import Settings
from twisted_vllm.errors import InvalidRequest, ModelNotFound, NotFound
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.names import names_used
from twisted_vllm.storage.usage.queries.plan import MODEL, UsageQuery
from twisted_vllm.storage.usage.queries.reports import Group, read_all, read_totals
from twisted_vllm.storage.usage.queries.rows import KeyLabel, key_labels
from twisted_vllm.storage.usage.tables import DAY, END_USER, KEY, MONTH, OTHER, SUMS, TAG, TEAM, USER
from twisted_vllm.usage.estimate import estimate_prompt
from twisted_vllm.usage.pricing import PriceTable, cost_of
from twisted_vllm.usage.readers.counts import UsageResponse, read_usage
from twisted_vllm.usage.records import Usage

#: end users in `/global/spend/end_users`, as in LiteLLM
TOP_END_USERS = 100
#: names in `/global/spend/all_tag_names` and `/global/all_end_users`
MAX_NAMES = 10_000

_COST, _REQUESTS, _TOKENS = (SUMS.index(name) for name in ("cost", "requests", "total_tokens"))
_OF_PARTS = ("cost", "total_tokens")
_UNASSIGNED_TEAM = "Unassigned Team"

_encode = msgspec.json.Encoder().encode
_decode_usage = msgspec.json.Decoder(UsageResponse).decode


def spend_report(
    transaction: Transaction, scope: UsageScope, query: GlobalReportQuery, start: int, end: int
) -> list[Json]:
    """Return what ``/global/spend/report`` does: spend by day and team or customer, or by key and model.

    Raises:
        InvalidRequest: it is too much for one response.
    """
    connection = transaction.connection
    if query.api_key:
        key_id = scope.find_key(connection, query.api_key)
        return [] if key_id is None else costs_by_key(transaction, {KEY: key_id}, start, end)
    if query.internal_user_id:
        return costs_by_key(transaction, {USER: query.internal_user_id}, start, end)
    if query.team_id and query.customer_id:
        # added up from the rows, as far back as they are kept
        wanted = {TEAM: query.team_id, END_USER: query.customer_id}
        groups = list(read_all(connection, UsageQuery((KEY, MODEL), DAY, start, end, wanted)))
        name = team_names(transaction, [query.team_id], _UNASSIGNED_TEAM)[query.team_id]
        labels = _labels(transaction, (group.values[0] for group in groups))
        return [
            {
                "group_by_day": day,
                "teams_customers": [{"team_name": name, "customer": query.customer_id, **_spent(parts, labels)}],
            }
            for day, parts in _by_day((group, group.values) for group in groups).items()
        ]
    if query.group_by == "api_key":
        return costs_by_key(transaction, {}, start, end)
    if query.group_by == "customer":
        return _by_customer(transaction, query.customer_id, start, end)
    return _by_team(transaction, query.team_id, start, end)


#: the groups of a day, each with its key and its model
_Parts = list[tuple[Group, tuple[str, ...]]]


def _by_day(groups: Iterable[tuple[Group, tuple[str, ...]]]) -> dict[str, _Parts]:
    days: dict[str, _Parts] = {}
    for group, values in groups:
        days.setdefault(group.start, []).append((group, values))
    return days


def _labels(transaction: Transaction, key_ids: Iterable[str]) -> dict[str, KeyLabel]:
    return key_labels(transaction.connection, sorted(set(key_ids) - {""}))


def _spent(parts: _Parts, labels: dict[str, KeyLabel], *, has_keys: bool = True) -> Json:
    return {
        "total_spend": money(sum(group.sums[_COST] for group, _ in parts)),
        "metadata": [
            {
                "model": model,
                "api_key": name_of_key(key_id, labels) if has_keys else None,
                "spend": money(group.sums[_COST]),
                "total_tokens": group.sums[_TOKENS],
            }
            for group, (key_id, model) in parts
        ],
    }


def _by_team(transaction: Transaction, team_id: str, start: int, end: int) -> list[Json]:
    equals = {TEAM: team_id} if team_id else {}
    groups = list(
        read_all(transaction.connection, UsageQuery((KEY, TEAM, MODEL), DAY, start, end, equals), wanted=_OF_PARTS)
    )
    labels = _labels(transaction, (group.values[0] for group in groups))
    names = team_names(transaction, sorted({group.values[1] for group in groups}), _UNASSIGNED_TEAM)
    days: dict[str, dict[str, _Parts]] = {}
    for group in groups:
        key_id, team, model = group.values
        days.setdefault(group.start, {}).setdefault(names[team], []).append((group, (key_id, model)))
    return [
        {
            "group_by_day": day,
            "teams": [{"team_name": name, **_spent(parts, labels)} for name, parts in teams.items()],
        }
        for day, teams in days.items()
    ]


def _by_customer(transaction: Transaction, customer_id: str, start: int, end: int) -> list[Json]:
    """Return the spend of customers. Their sums are not kept by key."""
    equals = {END_USER: customer_id} if customer_id else {}
    days: dict[str, dict[str, _Parts]] = {}
    for group in read_all(
        transaction.connection, UsageQuery((END_USER, MODEL), DAY, start, end, equals), wanted=_OF_PARTS
    ):
        customer, model = group.values
        days.setdefault(group.start, {}).setdefault(customer, []).append((group, ("", model)))
    return [
        {
            "group_by_day": day,
            "customers": [
                {"customer": customer, **_spent(parts, {}, has_keys=False)} for customer, parts in customers.items()
            ],
        }
        for day, customers in days.items()
    ]


def spend_per_tag(transaction: Transaction, tags: str, start: int, end: int) -> Json:
    """Return the spend of tags, the highest first."""
    wanted = {part for each in tags.split(",") if (part := each.strip())}
    return {
        "spend_per_tag": [
            {"name": group.values[0], "spend": money(group.sums[_COST]), "log_count": group.sums[_REQUESTS]}
            for group in read_totals(
                transaction.connection, UsageQuery((TAG,), MONTH, start, end), wanted=("cost", "requests")
            )
            if not wanted or "all-tags" in wanted or group.values[0] in wanted
        ]
    }


def tag_names(transaction: Transaction) -> Json:
    """Return the tags that were used, in order."""
    return {"tag_names": names_used(transaction.connection, TAG, MAX_NAMES)}


def tags(transaction: Transaction, days: tuple[int, int] | None) -> list[Json]:
    """Return the tags that were used, in order, as `TagReport` describes them.

    Args:
        transaction: the transaction.
        days: between which times, in microseconds since 1970; None for any time.
    """
    connection = transaction.connection
    if days is None:
        names = names_used(connection, TAG, MAX_NAMES)
    else:
        groups = read_totals(connection, UsageQuery((TAG,), MONTH, *days), wanted=("requests",))
        names = sorted({group.values[0] for group in groups} - {"", OTHER})[:MAX_NAMES]
    return [_report_tag(name) for name in names]


def tags_named(transaction: Transaction, names: Sequence[str]) -> Json:
    """Return some of the tags that were used, by their names.

    Raises:
        NotFound: one was never used.
    """
    used = set(names_used(transaction.connection, TAG, len(names), names))
    for name in names:
        if name not in used:
            raise NotFound(f"No request had the tag `{redacted(name)}`.", param="names")
    return {name: _report_tag(name) for name in names}


def _report_tag(name: str) -> Json:
    about = ("description", "models", "model_info", "created_at", "updated_at", "created_by")
    return {"name": name, **dict.fromkeys(about)}


def end_user_names(transaction: Transaction) -> Json:
    """Return the end users that were named, in order."""
    return {"end_users": names_used(transaction.connection, END_USER, MAX_NAMES)}


def spend_of_end_users(transaction: Transaction, scope: UsageScope, api_key: str, start: int, end: int) -> list[Json]:
    """Return the end users with the highest spend, of everybody or of one key.

    Args:
        transaction: the transaction.
        scope: what the caller may see.
        api_key: a key, its hash or its id; its rows are added up, as far back as they are kept. ``""`` for everybody.
        start: the first microsecond since 1970.
        end: the first microsecond after the last.
    """
    connection = transaction.connection
    found: Sequence[tuple[str, int, int]]
    if api_key:
        key_id = scope.find_key(connection, api_key)
        if key_id is None:
            return []
        summed: dict[str, list[int]] = {}
        for group in read_all(connection, UsageQuery((END_USER,), DAY, start, end, {KEY: key_id})):
            of_user = summed.setdefault(group.values[0], [0, 0])
            of_user[0] += group.sums[_REQUESTS]
            of_user[1] += group.sums[_COST]
        found = sorted(((name, requests, cost) for name, (requests, cost) in summed.items()), key=lambda each: -each[2])
    else:
        groups = read_totals(
            connection, UsageQuery((END_USER,), MONTH, start, end), TOP_END_USERS, wanted=("cost", "requests")
        )
        found = [(group.values[0], group.sums[_REQUESTS], group.sums[_COST]) for group in groups]
    return [
        {"end_user": name, "total_count": requests, "total_spend": money(cost)}
        for name, requests, cost in found[:TOP_END_USERS]
    ]


def spend_of_provider(transaction: Transaction, start: int, end: int) -> list[Json]:
    """Return the spend of vLLM, the only provider."""
    groups = read_totals(transaction.connection, UsageQuery((), MONTH, start, end), wanted=("cost",))
    return [{"provider": PROVIDER, "spend": money(group.sums[_COST])} for group in groups]


def calculated_cost(settings: Settings, body: CalculateBody) -> Json:
    """Return the cost of an answer, or of a prompt whose tokens are estimated, by the prices in effect.

    Args:
        settings: the settings, with all entries of the model list.
        body: the request.

    Raises:
        InvalidRequest: there is neither, or the answer reports no usage.
        ModelNotFound: no entry has the model.
    """
    response = body.completion_response
    if body.model is not None and response is None:
        if body.messages is None:
            raise InvalidRequest("`messages` is required beside `model`.", param="messages")
        prompt = estimate_prompt(_encode(body.messages))
        return {"cost": money(cost_of(Usage(prompt_tokens=prompt, total_tokens=prompt), _prices(settings, body.model)))}
    if response is None:
        raise InvalidRequest("Send `model` and `messages`, or `completion_response`.", param="model")
    model = body.model if body.model is not None else response.get("model")
    if not isinstance(model, str):
        raise InvalidRequest("`completion_response.model` must be a text.", param="completion_response.model")
    usage = _usage_in(response)
    if usage is None:
        raise InvalidRequest(
            "`completion_response.usage` must have the tokens, as vLLM's answers have.",
            param="completion_response.usage",
        )
    return {"cost": money(cost_of(usage, _prices(settings, model)))}


def _usage_in(response: Json) -> Usage | None:
    try:
        return read_usage(_decode_usage(_encode(response)))
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _prices(settings: Settings, model: str) -> Any:
    """Return the dearest prices of a model's entries, as a budget reserves them."""
    table = PriceTable(settings.models, settings.default_prices)
    entries = [entry for entry in settings.models if model in (entry.model_name, entry.upstream_model)]
    if not entries and settings.models:
        raise ModelNotFound(f"No entry of the model list has the model {model[:100]!r}.", param="model")
    found = [table.of(entry) for entry in entries] or [table.of(None)]
    return max(found, key=lambda prices: (prices.completion, prices.prompt))
