"""The endpoints of the ledger's rows: ``/spend/logs``, newest first, or added up by day."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from twisted.web.iweb import IRequest

from twisted_vllm.admin.allowances import money
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.queries import parse_query
from twisted_vllm.admin.respond import read_query
from twisted_vllm.admin.spend_access import Caller, answer, caller_of
from twisted_vllm.admin.spend_queries import LOGS_DEFAULTS, Filters, LogsQuery, PagedLogsQuery, Span, span_of
from twisted_vllm.admin.spend_shapes import name_of_key, show_row
from twisted_vllm.errors import InvalidRequest
from twisted_vllm.storage.usage.queries.plan import MODEL, UsageQuery, moment_of
from twisted_vllm.storage.usage.queries.reports import read_all
from twisted_vllm.storage.usage.queries.rows import MOST_COUNTED, RowFilter, count_rows, key_labels, page_of_rows
from twisted_vllm.storage.usage.tables import DAY, DAY_US, END_USER, KEY, SUMS, TAG, TEAM, USER

_COST = SUMS.index("cost")
_FILTERS = {USER: "user_id", TEAM: "team_id", END_USER: "end_user", MODEL: "model", TAG: "tag"}
#: the most groups that are added up in one answer, which is made in memory, and the most days without any
_MOST_GROUPS, _MOST_DAYS = 200_000, 366


class SpendLogs:
    """Shows the ledger's rows."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def logs(self, request: IRequest) -> bytes:
        """Answer ``GET /spend/logs``: rows, or with both dates the sums of each day unless `summarize` is false."""
        caller = caller_of(self._office, request)
        asked = parse_query(read_query(request), LogsQuery)
        span = span_of(asked.start_date, asked.end_date)
        summarized = asked.summarize not in ("false", "0") and not asked.request_id
        if summarized and span.start is not None and span.end is not None:
            start, end = span.start, span.end
            return await answer(self._office, request, lambda connection: _days(connection, caller, asked, start, end))
        skip = (asked.page - 1) * asked.page_size

        def work(connection: Connection) -> list[dict[str, Any]]:
            wanted = _rows_asked(connection, caller, asked, asked.request_id, span)
            return _shown(connection, caller, wanted, skip, asked.page_size)

        return await answer(self._office, request, work)

    async def paged_logs(self, request: IRequest) -> bytes:
        """Answer ``GET /spend/logs/v2``: a page of rows, and how many there are."""
        caller = caller_of(self._office, request)
        asked = parse_query(read_query(request), PagedLogsQuery, LOGS_DEFAULTS)
        span = span_of(asked.start_date, asked.end_date)
        skip = (asked.page - 1) * asked.page_size
        successful = asked.status_filter == "success" if asked.status_filter else None

        def work(connection: Connection) -> dict[str, Any]:
            wanted = _rows_asked(connection, caller, asked, asked.request_id, span, successful)
            counted = 0 if wanted is None else count_rows(connection, wanted)
            total = min(counted, MOST_COUNTED)
            return {
                "data": _shown(connection, caller, wanted, skip, asked.page_size),
                "total": total,
                "page": asked.page,
                "page_size": asked.page_size,
                "total_pages": -(-total // asked.page_size),
                "total_is_capped": counted > total,
            }

        return await answer(self._office, request, work)


def filters_of(connection: Connection, caller: Caller, asked: Filters) -> dict[str, str] | None:
    """Return the dimensions that a query holds to one value each, and that value; None where nothing can have it.

    Raises:
        RouteNotAllowed: the caller may not see it.
    """
    equals = {name: value for name, field in _FILTERS.items() if (value := getattr(asked, field))}
    if asked.api_key:
        key_id = caller.find_key(connection, asked.api_key)
        if key_id is None:
            return None
        equals[KEY] = key_id
    return caller.narrowed(equals)


def _rows_asked(
    connection: Connection, caller: Caller, asked: Filters, request_id: str, span: Span, successful: bool | None = None
) -> RowFilter | None:
    equals = filters_of(connection, caller, asked)
    if equals is None:
        return None
    return RowFilter(span.start, span.end, equals, request_id or None, successful)


def _shown(
    connection: Connection, caller: Caller, wanted: RowFilter | None, skip: int, limit: int
) -> list[dict[str, Any]]:
    if wanted is None or skip >= MOST_COUNTED:
        return []
    rows = page_of_rows(connection, wanted, skip, limit)
    labels = key_labels(connection, sorted({row.key_id for row in rows if row.key_id}))
    return [show_row(row, labels, server=caller.principal.may_administer) for row in rows]


def _days(connection: Connection, caller: Caller, asked: LogsQuery, start: int, end: int) -> list[dict[str, Any]]:
    """Return the spend of each day, by key, user and model; days after the last with any are zero, as in LiteLLM."""
    equals = filters_of(connection, caller, asked)
    days: dict[str, dict[str, Any]] = {}
    if equals is None:
        return []
    left = _MOST_GROUPS
    for name in (KEY, USER, MODEL):
        for group in read_all(connection, UsageQuery((name,), DAY, start, end, equals)):
            left -= 1
            if left < 0:
                raise InvalidRequest(
                    "This is too much to add up in one answer: ask for fewer days, or /usage/report.",
                    param="start_date",
                )
            day = days.setdefault(group.start, {KEY: {}, USER: {}, MODEL: {}})
            day[name][group.values[0]] = group.sums[_COST]
    labels = key_labels(connection, sorted({key_id for day in days.values() for key_id in day[KEY]}))
    found: list[dict[str, Any]] = [
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
    return found + [{"startTime": name, **empty} for name in names if name > last][:_MOST_DAYS]
