"""Rows of the ledger, and the spend of keys, users, teams, tags and models: functions on one transaction that read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
import msgspec
from sqlalchemy import Connection, Row, select, union

from twisted_vllm.admin.keys.operations import report_keys
from twisted_vllm.admin.limits import current_spend, money
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.reports.models import Filters, PagedLogsQuery
from twisted_vllm.admin.reports.scope import Span, UsageScope, check_servers, iso
from twisted_vllm.admin.users.operations import report_users
from twisted_vllm.config.settings import Settings
from twisted_vllm.money import from_dollars
from twisted_vllm.ratelimit.allowance import PROXY, Allowance
from twisted_vllm.storage import tables
from twisted_vllm.storage.by_spend import keys_by_spend, users_by_spend
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.lookups import RowFilter
from twisted_vllm.storage.usage.queries.names import costs_by_day, costs_of_keys_and_users
from twisted_vllm.storage.usage.queries.plan import MODEL, ROUTE, SERVER, UsageQuery, moment_of
from twisted_vllm.storage.usage.queries.reports import MAX_GROUPS, read_all, read_totals, too_much
from twisted_vllm.storage.usage.queries.rows import (
    MAX_COUNTED,
    KeyLabel,
    count_rows,
    key_labels,
    page_of_rows,
)
from twisted_vllm.storage.usage.tables import DAY, DAY_US, KEY, MONTH, SUMS, TAG, TEAM, USER, usage_payers

#: LiteLLM's name of the provider of vLLM servers
PROVIDER = "hosted_vllm"

#: teams with the highest spend in `/global/spend/teams`
_TOP_TEAMS = 10

#: the empty days at the end of `/spend/logs` by day
_MAX_EMPTY_DAYS = 366

_COST, _REQUESTS, _TOKENS = (SUMS.index(name) for name in ("cost", "requests", "total_tokens"))
_OF_COSTS = ("cost", "prompt_tokens", "completion_tokens")
_INPUT, _OUTPUT = SUMS.index("prompt_tokens"), SUMS.index("completion_tokens")


def name_of_key(key_id: str, labels: Mapping[str, KeyLabel]) -> str:
    """Return the name of a key in reports: its hash, of a deleted key its id, of the master key ``master``."""
    if not key_id:
        return "master"
    label = labels.get(key_id)
    return key_id if label is None else label.token


def rows(
    transaction: Transaction, scope: UsageScope, query: Filters, request_id: str, span: Span, skip: int, limit: int
) -> list[Json]:
    """Return rows of the ledger, the newest first.

    Raises:
        RouteNotAllowed: the caller may not see them.
    """
    wanted = _rows_asked(transaction, scope, query, request_id, span)
    return _report_rows(transaction, scope, wanted, skip, limit)


def page_of_logs(transaction: Transaction, scope: UsageScope, query: PagedLogsQuery, span: Span) -> Json:
    """Return a page of rows as `SpendLogPage` describes it.

    Raises:
        RouteNotAllowed: the caller may not see them.
    """
    check_servers(scope, (), query.server)
    wanted = _rows_asked(transaction, scope, query, query.request_id or query.search, span)
    if wanted is not None:
        others = {name: value for name, value in ((ROUTE, query.route), (SERVER, query.server)) if value}
        wanted = attrs.evolve(wanted, equals={**wanted.equals, **others})
    if wanted is not None and query.key_alias:
        wanted = scope.of_alias(transaction, wanted, query.key_alias)
    if wanted is not None:
        wanted = attrs.evolve(
            wanted,
            successful=query.status_filter == "success" if query.status_filter else None,
            error=query.error_code,
            costs=query.costs,
        )
    counted = 0 if wanted is None else count_rows(transaction.connection, wanted)
    total = min(counted, MAX_COUNTED)
    skip = (query.page - 1) * query.page_size
    return {
        # To find that there are none takes as long as to count them.
        "data": _report_rows(transaction, scope, wanted, skip, query.page_size) if skip < total else [],
        "total": total,
        "page": query.page,
        "page_size": query.page_size,
        "total_pages": -(-total // query.page_size),
        "total_is_capped": counted > total,
    }


def _rows_asked(
    transaction: Transaction,
    scope: UsageScope,
    query: Filters,
    request_id: str,
    span: Span,
) -> RowFilter | None:
    equals = scope.filters(transaction.connection, query)
    if equals is None:
        return None
    return RowFilter(span.start, span.end, equals, request_id or None)


def _report_rows(
    transaction: Transaction, scope: UsageScope, wanted: RowFilter | None, skip: int, limit: int
) -> list[Json]:
    if wanted is None or skip >= MAX_COUNTED:
        return []
    found = page_of_rows(transaction.connection, wanted, skip, limit)
    labels = key_labels(transaction.connection, sorted({row.key_id for row in found if row.key_id}))
    return [_report_row(row, labels, with_server=scope.sees_all) for row in found]


def _report_row(row: Row[Any], labels: Mapping[str, KeyLabel], *, with_server: bool) -> Json:
    """Return a row as `SpendLog` describes it."""
    label = labels.get(row.key_id)
    requests = row.requests or 1
    duration = row.total_us // requests
    end = row.time + duration
    first = end if row.first_byte_us is None else row.time + row.first_byte_us
    success = row.outcome == "completed" and row.status < 400
    return {
        "request_id": row.request_id,
        "call_type": "pass_through_endpoint",
        "api_key": row.key_hash if label is None else label.token,
        "spend": money(row.cost),
        "total_tokens": row.total_tokens,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "startTime": iso(row.time),
        "endTime": iso(end),
        "request_duration_ms": duration // 1000,
        "completionStartTime": iso(first),
        "model": row.model,
        "model_id": None,
        "model_group": row.model,
        "custom_llm_provider": PROVIDER,
        "api_base": row.server if with_server else None,
        "user": row.user_id or "",
        "team_id": row.team_id,
        "organization_id": row.organization_id or None,
        "end_user": row.end_user or "",
        "request_tags": list(dict.fromkeys((*row.tags, *(row.request_tags or ())))),
        "cache_hit": "False",
        "cache_key": None,
        "requester_ip_address": None,
        "session_id": None,
        "messages": {},
        "response": {},
        "status": "success" if success else "failure",
        "metadata": {
            "usage_id": row.id,
            "user_api_key_alias": row.key_name,
            "user_api_key_user_id": row.user_id,
            "user_api_key_team_id": row.team_id,
            "user_api_key_org_id": row.organization_id or None,
            "user_api_key_end_user_id": row.end_user or None,
            "key_id": row.key_id,
            "kind": row.kind,
            "method": row.method,
            "route": row.route,
            "status_code": row.status,
            "outcome": row.outcome,
            "error_code": row.error or None,
            "stream": row.stream,
            "cached_tokens": row.cached_tokens,
            "reasoning_tokens": row.reasoning_tokens,
            "audio_seconds": row.audio_ms / 1000,
            "estimated": row.estimated,
            "prices": row.prices,
            "headers": row.headers or {},
            "bytes_in": row.bytes_in,
            "bytes_out": row.bytes_out,
            "requests": requests,
            "attempts": failed_attempts(row.attempts, with_server=with_server),
            "response_id": row.response_id,
            "spend_logs_metadata": None if row.spend_metadata is None else msgspec.Raw(row.spend_metadata.encode()),
        },
    }


def failed_attempts(text: str | None, *, with_server: bool) -> list[Json]:
    """Return the attempts before the last one, from `RequestContext.failed_attempts`."""
    found = [each.rpartition(" ") for each in (text or "").split(", ") if each]
    return [{"server": server if with_server else None, "reason": reason} for server, _, reason in found]


def spend_by_day(transaction: Transaction, scope: UsageScope, query: Filters, start: int, end: int) -> list[Json]:
    """Return the spend of each day, by key, user and model. As in LiteLLM, later days without any are zero.

    Raises:
        RouteNotAllowed: the caller may not see it.
        InvalidRequest: it is too much for one response.
    """
    connection = transaction.connection
    equals = scope.filters(connection, query)
    if equals is None:
        return []
    days = _costs_of_days(connection, equals, start, end)
    labels = key_labels(connection, sorted({key_id for day in days.values() for key_id in day[KEY]}))
    found: list[Json] = [
        {
            **{name_of_key(key_id, labels): money(cost) for key_id, cost in day[KEY].items()},
            "startTime": start_of_day,
            "spend": money(sum(day[KEY].values())),
            "users": {user: money(cost) for user, cost in day[USER].items()},
            "models": {model: money(cost) for model, cost in day[MODEL].items()},
        }
        for start_of_day, day in days.items()
    ]
    last = max(days, default="9999")
    names = (moment_of(moment).date().isoformat() for moment in range(start // DAY_US * DAY_US, end, DAY_US))
    empty = {"spend": money(0), "users": {}, "models": {}}
    return found + [{"startTime": name, **empty} for name in names if name > last][:_MAX_EMPTY_DAYS]


def _costs_of_days(
    connection: Connection, equals: Mapping[str, str], start: int, end: int
) -> dict[str, dict[str, dict[str, int]]]:
    """Return the costs of each day by key, user and model.

    Raises:
        InvalidRequest: there are more than `MAX_GROUPS`.
    """
    days: dict[str, dict[str, dict[str, int]]] = {}
    left = MAX_GROUPS
    others: tuple[str, ...] = (KEY, USER, MODEL)
    if equals.keys() <= {KEY, USER, TEAM}:
        costs = costs_of_keys_and_users(connection, equals, start, end, left)
        if costs is None:
            raise too_much()
        for name, of_days in zip((KEY, USER), costs, strict=True):
            for date, of_day in of_days.items():
                days.setdefault(date, {KEY: {}, USER: {}, MODEL: {}})[name] = dict(sorted(of_day.items()))
                left -= len(of_day)
        others = (MODEL,)
    if left < 0:
        raise too_much()
    for name in others:
        for group in read_all(connection, UsageQuery((name,), DAY, start, end, equals), left, wanted=("cost",)):
            left -= 1
            day = days.setdefault(group.start, {KEY: {}, USER: {}, MODEL: {}})
            day[name][group.values[0]] = group.sums[_COST]
    return days


def spend_of_keys(transaction: Transaction, skip: int, limit: int, now: datetime) -> list[Json]:
    """Return keys as `KeyReport` describes them, the highest spend first."""
    tokens = keys_by_spend(transaction.connection, skip, limit)
    records = {record.token: record for record in transaction.keys.among("token", tokens)}
    return report_keys(transaction, [records[token] for token in tokens], now)


def spend_of_users(transaction: Transaction, user_id: str, skip: int, limit: int, now: datetime) -> list[Json]:
    """Return users as `UserReport` describes them, the highest spend first, or only one user."""
    ids = [user_id] if user_id else users_by_spend(transaction.connection, skip, limit)
    records = {record.user_id: record for record in transaction.users.among("user_id", ids)}
    return report_users(transaction, [records[each] for each in ids if each in records], now)


def spend_of_tags(transaction: Transaction, start: int, end: int) -> list[Json]:
    """Return the spend of each tag, the highest first."""
    return [
        {
            "individual_request_tag": group.values[0],
            "log_count": group.sums[_REQUESTS],
            "total_spend": money(group.sums[_COST]),
        }
        for group in read_totals(
            transaction.connection, UsageQuery((TAG,), MONTH, start, end), wanted=("cost", "requests")
        )
    ]


def costs_of_keys(transaction: Transaction, scope: UsageScope, api_key: str, start: int, end: int) -> list[Json]:
    """Return the cost and tokens of keys by model, the highest cost first.

    Args:
        transaction: the transaction.
        scope: what the caller may see.
        api_key: a key, its hash or its id; ``""`` for all that the caller may see.
        start: the first microsecond since 1970.
        end: the first microsecond after the last.

    Raises:
        RouteNotAllowed: the caller may not see the key.
    """
    connection = transaction.connection
    equals = {}
    if api_key:
        key_id = scope.find_key(connection, api_key)
        if key_id is None:
            return []
        equals[KEY] = key_id
    return costs_by_key(transaction, scope.restrict(connection, equals), start, end)


def costs_by_key(transaction: Transaction, equals: Mapping[str, str], start: int, end: int) -> list[Json]:
    """Return the cost and tokens of the keys of some usage by model, the highest cost first.

    Args:
        transaction: the transaction.
        equals: values that ``key``, ``user`` and ``team`` must have.
        start: the first microsecond since 1970.
        end: the first microsecond after the last.
    """
    asked = UsageQuery((KEY, MODEL), MONTH, start, end, equals)
    groups = read_totals(transaction.connection, asked, wanted=_OF_COSTS)
    rows = ((key_id, model, group.sums) for group in groups for key_id, model in [group.values])
    return _report_costs(transaction.connection, rows)


def costs_of_organization(transaction: Transaction, organization_id: str, start: int, end: int) -> list[Json]:
    """Return the cost and tokens of the keys and teams that are in an organization now, as `costs_by_key`."""
    keys, teams, payers = tables.keys.c, tables.teams.c, usage_payers.c
    # With OR, PostgreSQL would read all payers.
    in_it = union(
        select(payers.id).where(payers.key_id.in_(select(keys.key_id).where(keys.organization_id == organization_id))),
        select(payers.id).where(
            payers.team_id.in_(select(teams.team_id).where(teams.organization_id == organization_id))
        ),
    ).subquery("in_it")
    asked = UsageQuery((KEY, MODEL), MONTH, start, end)
    groups = read_totals(transaction.connection, asked, wanted=_OF_COSTS, payers=select(in_it.c.id))
    rows = ((key_id, model, group.sums) for group in groups for key_id, model in [group.values])
    return _report_costs(transaction.connection, rows)


def _report_costs(connection: Connection, rows: Iterable[tuple[str, str, Sequence[int]]]) -> list[Json]:
    """Return sums as `KeySpendReport` describes them, the highest cost first.

    Args:
        connection: a connection to the database.
        rows: the id of a key, a model, and sums of both; several rows of the same are added up.
    """
    keys: dict[str, dict[str, list[int]]] = {}
    for key_id, model, sums in rows:
        total = keys.setdefault(key_id, {}).setdefault(model, [0, 0, 0])
        for place, number in enumerate((_COST, _INPUT, _OUTPUT)):
            total[place] += sums[number]
    labels = key_labels(connection, [key_id for key_id in keys if key_id])
    found = [
        (
            [sum(column) for column in zip(*models.values(), strict=True)],
            {
                "api_key": name_of_key(key_id, labels),
                "model_details": [{"model": model, **_costs(sums)} for model, sums in sorted(models.items())],
            },
        )
        for key_id, models in keys.items()
    ]
    found.sort(key=lambda each: -each[0][0])
    return [{**report, **_costs(total)} for total, report in found]


def _costs(sums: list[int]) -> Json:
    return {"total_cost": money(sums[0]), "total_input_tokens": sums[1], "total_output_tokens": sums[2]}


def total_spend(transaction: Transaction, settings: Settings, start: int, end: int, now: datetime) -> Json:
    """Return the spend of everybody together: of the period of the budget of all, if there is one, else of some days.

    Args:
        transaction: the transaction.
        settings: they may have a budget of all requests together.
        start: the first microsecond since 1970.
        end: the first microsecond after the last.
        now: the time.
    """
    if settings.max_budget:
        budget = Allowance(max_budget=from_dollars(settings.max_budget), budget_duration=settings.budget_duration)
        spend = transaction.spend.of(PROXY, [PROXY])[PROXY]
        return {"spend": money(current_spend(budget, spend, now)), "max_budget": float(settings.max_budget)}
    groups = read_totals(transaction.connection, UsageQuery((), MONTH, start, end), wanted=("cost",))
    return {"spend": money(sum(group.sums[_COST] for group in groups)), "max_budget": None}


def total_spend_by_day(transaction: Transaction, scope: UsageScope, api_key: str, start: int, end: int) -> list[Json]:
    """Return the spend of each day, in total or of one key."""
    connection = transaction.connection
    if not api_key:
        groups = read_all(connection, UsageQuery((), DAY, start, end), wanted=("cost",))
        return [{"date": group.start, "spend": money(group.sums[_COST])} for group in groups]
    key_id = scope.find_key(connection, api_key)
    if key_id is None:
        return []
    name = name_of_key(key_id, key_labels(connection, [key_id]))
    groups = read_all(connection, UsageQuery((), DAY, start, end, {KEY: key_id}))
    return [{"date": group.start, "spend": money(group.sums[_COST]), "api_key": name} for group in groups]


def top_keys(transaction: Transaction, limit: int, start: int, end: int) -> list[Json]:
    """Return the keys with the highest spend."""
    connection = transaction.connection
    top = read_totals(connection, UsageQuery((KEY,), MONTH, start, end), limit, wanted=("cost",))
    labels = key_labels(connection, [group.values[0] for group in top])
    found = []
    for group in top:
        [key_id] = group.values
        label = labels.get(key_id)
        found.append(
            {
                "api_key": name_of_key(key_id, labels),
                "key_alias": None if label is None else label.key_alias,
                "key_name": None if label is None else label.key_name,
                "total_spend": money(group.sums[_COST]),
            }
        )
    return found


def top_models(transaction: Transaction, limit: int, start: int, end: int) -> list[Json]:
    """Return the models with the highest spend."""
    # One more: requests without a model are none of them.
    asked = UsageQuery((MODEL,), MONTH, start, end)
    groups = read_totals(transaction.connection, asked, limit + 1, wanted=("cost", "total_tokens"))
    return [
        {
            "model": group.values[0],
            "total_spend": money(group.sums[_COST]),
            "total_tokens": group.sums[_TOKENS],
        }
        for group in groups
        if group.values[0]
    ][:limit]


def spend_of_teams(transaction: Transaction, start: int, end: int) -> Json:
    """Return the spend of teams, by day and in total, as `TeamsSpend` describes it."""
    found = costs_by_day(transaction.connection, TEAM, start, end, MAX_GROUPS)
    if found is None:
        raise too_much()
    names = team_names(transaction, sorted({team_id for costs in found.values() for team_id in costs}))
    days: dict[str, dict[str, int]] = {}
    total: dict[str, int] = {}
    for date, costs in found.items():
        day = days[date] = {}
        for team_id, cost in costs.items():
            name = names[team_id]
            day[name] = day.get(name, 0) + cost
            total[name] = total.get(name, 0) + cost
    top = sorted(total.items(), key=lambda each: -each[1])[:_TOP_TEAMS]
    return {
        "daily_spend": [
            {**{name: money(cost) for name, cost in sorted(spent.items())}, "date": day} for day, spent in days.items()
        ],
        "teams": list(total),
        "total_spend_per_team": [{"team_id": name, "total_spend": money(cost)} for name, cost in top],
    }


def team_names(transaction: Transaction, team_ids: Sequence[str], unassigned: str = "Unassigned") -> dict[str, str]:
    """Return the names of teams in reports: their aliases, as in LiteLLM, or their ids."""
    names = {team_id: team_id or unassigned for team_id in team_ids}
    for team in transaction.teams.among("team_id", team_ids):
        names[team.team_id] = team.team_alias or team.team_id
    return names
