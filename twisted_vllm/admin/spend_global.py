"""The endpoints of what everybody together spent, of the last 30 days and today as in LiteLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from twisted.web.iweb import IRequest

from twisted_vllm.admin.allowances import money
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.queries import NoQuery, parse_query
from twisted_vllm.admin.respond import read_query
from twisted_vllm.admin.spend_access import answer, caller_of
from twisted_vllm.admin.spend_queries import ActivityQuery, GlobalLogsQuery, TopQuery, days_of
from twisted_vllm.admin.spend_shapes import name_of_key
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.plan import MODEL, UsageQuery
from twisted_vllm.storage.usage.queries.reports import Group, read_all
from twisted_vllm.storage.usage.queries.rows import key_labels
from twisted_vllm.storage.usage.tables import DAY, KEY, MONTH, SUMS, TEAM

_COST, _REQUESTS, _TOKENS = (SUMS.index(name) for name in ("cost", "requests", "total_tokens"))
_TOP = 10
_UNASSIGNED = "Unassigned"


class GlobalSpend:
    """Shows what everybody spent."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def spend(self, request: IRequest) -> bytes:
        """Answer ``GET /global/spend``: what everybody spent in the last 30 days and today."""
        self._asked(request, NoQuery)
        start, end = self._recent()

        def work(connection: Connection) -> dict[str, Any]:
            groups = read_all(connection, UsageQuery((), MONTH, start, end))
            return {"spend": money(sum(group.sums[_COST] for group in groups)), "max_budget": None}

        return await answer(self._office, request, work)

    async def logs(self, request: IRequest) -> bytes:
        """Answer ``GET /global/spend/logs``: the spend of each day, of one key if it is named."""
        asked = self._asked(request, GlobalLogsQuery)
        caller = caller_of(self._office, request)
        start, end = self._recent()

        def work(connection: Connection) -> list[dict[str, Any]]:
            if not asked.api_key:
                groups = read_all(connection, UsageQuery((), DAY, start, end))
                return [{"date": group.start, "spend": money(group.sums[_COST])} for group in groups]
            key_id = caller.find_key(connection, asked.api_key)
            if key_id is None:
                return []
            name = name_of_key(key_id, key_labels(connection, [key_id]))
            groups = read_all(connection, UsageQuery((), DAY, start, end, {KEY: key_id}))
            return [{"date": group.start, "spend": money(group.sums[_COST]), "api_key": name} for group in groups]

        return await answer(self._office, request, work)

    async def keys(self, request: IRequest) -> bytes:
        """Answer ``GET /global/spend/keys``: the keys that spent the most."""
        limit = self._asked(request, TopQuery).limit
        start, end = self._recent()

        def work(connection: Connection) -> list[dict[str, Any]]:
            top = _top(read_all(connection, UsageQuery((KEY,), MONTH, start, end)), limit)
            labels = key_labels(connection, [key_id for key_id, _ in top])
            found = []
            for key_id, sums in top:
                label = labels.get(key_id)
                found.append(
                    {
                        "api_key": name_of_key(key_id, labels),
                        "key_alias": None if label is None else label.key_alias,
                        "key_name": None if label is None else label.key_name,
                        "total_spend": money(sums[_COST]),
                    }
                )
            return found

        return await answer(self._office, request, work)

    async def models(self, request: IRequest) -> bytes:
        """Answer ``GET /global/spend/models``: the models that cost the most."""
        limit = self._asked(request, TopQuery).limit
        start, end = self._recent()

        def work(connection: Connection) -> list[dict[str, Any]]:
            top = _top(
                (each for each in read_all(connection, UsageQuery((MODEL,), MONTH, start, end)) if each[1][0]), limit
            )
            return [
                {"model": model, "total_spend": money(sums[_COST]), "total_tokens": sums[_TOKENS]}
                for model, sums in top
            ]

        return await answer(self._office, request, work)

    async def teams(self, request: IRequest) -> bytes:
        """Answer ``GET /global/spend/teams``: the spend of each day by team, and the teams that spent the most."""
        self._asked(request, NoQuery)
        start, end = self._recent()

        def work(connection: Connection) -> dict[str, Any]:
            groups = list(read_all(connection, UsageQuery((TEAM,), DAY, start, end)))
            names = _team_names(connection, sorted({group.values[0] for group in groups}))
            days: dict[str, dict[str, Any]] = {}
            whole: dict[str, int] = {}
            for group in groups:
                name, cost = names[group.values[0]], group.sums[_COST]
                day = days.setdefault(group.start, {})
                day[name] = day.get(name, 0) + cost
                whole[name] = whole.get(name, 0) + cost
            most = sorted(whole.items(), key=lambda each: -each[1])
            return {
                "daily_spend": [
                    {**{name: money(cost) for name, cost in spent.items()}, "date": day} for day, spent in days.items()
                ],
                "teams": list(whole),
                "total_spend_per_team": [{"team_id": name, "total_spend": money(cost)} for name, cost in most[:_TOP]],
            }

        return await answer(self._office, request, work)

    async def activity(self, request: IRequest) -> bytes:
        """Answer ``GET /global/activity``: requests and tokens of each day."""
        asked = self._asked(request, ActivityQuery)
        start, end = days_of(asked.start_date, asked.end_date, self._office.now())
        return await answer(
            self._office, request, lambda connection: _activity(read_all(connection, UsageQuery((), DAY, start, end)))
        )

    async def activity_of_models(self, request: IRequest) -> bytes:
        """Answer ``GET /global/activity/model``: likewise, of the models that were asked the most."""
        asked = self._asked(request, ActivityQuery)
        start, end = days_of(asked.start_date, asked.end_date, self._office.now())

        def work(connection: Connection) -> list[dict[str, Any]]:
            models: dict[str, list[Group]] = {}
            for group in read_all(connection, UsageQuery((MODEL,), DAY, start, end)):
                models.setdefault(group.values[0], []).append(group)
            found = [{"model": model, **_activity(groups)} for model, groups in models.items()]
            return sorted(found, key=lambda each: -each["sum_api_requests"])[:_TOP]

        return await answer(self._office, request, work)

    def _asked(self, request: IRequest, struct: Any) -> Any:
        self._office.gatekeeper.administrator_of(request)
        return parse_query(read_query(request), struct)

    def _recent(self) -> tuple[int, int]:
        return days_of("", "", self._office.now())


def _top(groups: Any, limit: int) -> list[tuple[str, list[int]]]:
    """Return the values that cost the most and their sums, over all intervals."""
    found: dict[str, list[int]] = {}
    for group in groups:
        value = group.values[0]
        known = found.get(value)
        found[value] = list(group.sums) if known is None else [a + b for a, b in zip(known, group.sums, strict=True)]
    return sorted(found.items(), key=lambda each: -each[1][_COST])[:limit]


def _team_names(connection: Connection, team_ids: Sequence[str]) -> dict[str, str]:
    """Return what teams are shown as: their aliases, as in LiteLLM, or their ids."""
    names = {team_id: team_id or _UNASSIGNED for team_id in team_ids}
    for team in Transaction(connection).teams.among("team_id", team_ids):
        names[team.team_id] = team.team_alias or team.team_id
    return names


def _activity(groups: Any) -> dict[str, Any]:
    days = [
        {"date": _short(group.start), "api_requests": group.sums[_REQUESTS], "total_tokens": group.sums[_TOKENS]}
        for group in groups
    ]
    return {
        "daily_data": days,
        "sum_api_requests": sum(day["api_requests"] for day in days),
        "sum_total_tokens": sum(day["total_tokens"] for day in days),
    }


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _short(day: str) -> str:
    """Return a date as LiteLLM writes it here: ``Jan 22``."""
    return f"{_MONTHS[int(day[5:7]) - 1]} {day[8:]}"
