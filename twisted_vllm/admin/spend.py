"""The endpoints of what keys, users and tags spent."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from twisted.web.iweb import IRequest

from twisted_vllm.admin.allowances import money
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.queries import parse_query
from twisted_vllm.admin.reports import report_keys, report_users
from twisted_vllm.admin.respond import read_query
from twisted_vllm.admin.spend_access import answer, caller_of
from twisted_vllm.admin.spend_queries import DatesQuery, KeyReportQuery, SpendListQuery, SpendUsersQuery, days_of
from twisted_vllm.admin.spend_shapes import name_of_key
from twisted_vllm.storage.transaction import Transaction
from twisted_vllm.storage.usage.queries.plan import MODEL, UsageQuery
from twisted_vllm.storage.usage.queries.reports import keys_by_spend, read_all, users_by_spend
from twisted_vllm.storage.usage.queries.rows import key_labels
from twisted_vllm.storage.usage.tables import KEY, MONTH, SUMS, TAG

_COST, _REQUESTS = SUMS.index("cost"), SUMS.index("requests")
_INPUT, _OUTPUT = SUMS.index("prompt_tokens"), SUMS.index("completion_tokens")


class SpendEndpoints:
    """Shows who spent how much."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def keys(self, request: IRequest) -> bytes:
        """Answer ``GET /spend/keys``: a page of keys, the one that spent the most first."""
        self._office.gatekeeper.administrator_of(request)
        asked = parse_query(read_query(request), SpendListQuery)
        now = self._office.now()

        def work(connection: Connection) -> list[dict[str, Any]]:
            spent = keys_by_spend(connection, (asked.page - 1) * asked.page_size, asked.page_size)
            transaction = Transaction(connection)
            records = {record.token: record for record in transaction.keys.among("token", spent)}
            return report_keys(transaction, [records[token] for token in spent], now)

        return await answer(self._office, request, work)

    async def users(self, request: IRequest) -> bytes:
        """Answer ``GET /spend/users``: a page of users likewise, or the one that is named."""
        self._office.gatekeeper.administrator_of(request)
        asked = parse_query(read_query(request), SpendUsersQuery)
        skip = (asked.page - 1) * asked.page_size
        now = self._office.now()

        def work(connection: Connection) -> list[dict[str, Any]]:
            ids = [asked.user_id] if asked.user_id else users_by_spend(connection, skip, asked.page_size)
            transaction = Transaction(connection)
            records = {record.user_id: record for record in transaction.users.among("user_id", ids)}
            return report_users(transaction, [records[each] for each in ids if each in records], now)

        return await answer(self._office, request, work)

    async def tags(self, request: IRequest) -> bytes:
        """Answer ``GET /spend/tags``: what each tag spent, the most first; without dates, ever."""
        self._office.gatekeeper.administrator_of(request)
        asked = parse_query(read_query(request), DatesQuery)
        start, end = days_of(asked.start_date or "1970-01-01", asked.end_date, self._office.now())

        def work(connection: Connection) -> list[dict[str, Any]]:
            found: dict[str, list[int]] = {}
            for group in read_all(connection, UsageQuery((TAG,), MONTH, start, end, {})):
                sums = found.setdefault(group.values[0], [0, 0])
                sums[0] += group.sums[_REQUESTS]
                sums[1] += group.sums[_COST]
            return [
                {"individual_request_tag": tag, "log_count": count, "total_spend": money(cost)}
                for tag, (count, cost) in sorted(found.items(), key=lambda each: -each[1][1])
            ]

        return await answer(self._office, request, work)

    async def key_report(self, request: IRequest) -> bytes:
        """Answer ``GET /key/spend/report``: what a key used by model; of every key for an administrator."""
        caller = caller_of(self._office, request)
        asked = parse_query(read_query(request), KeyReportQuery)
        start, end = days_of(asked.start_date, asked.end_date, self._office.now())

        def work(connection: Connection) -> list[dict[str, Any]]:
            equals = {}
            if asked.api_key:
                key_id = caller.find_key(connection, asked.api_key)
                if key_id is None:
                    return []
                equals[KEY] = key_id
            models: dict[str, dict[str, list[int]]] = {}
            for group in read_all(connection, UsageQuery((KEY, MODEL), MONTH, start, end, caller.narrowed(equals))):
                key_id, model = group.values
                sums = models.setdefault(key_id, {}).setdefault(model, [0, 0, 0])
                for place, number in enumerate((_COST, _INPUT, _OUTPUT)):
                    sums[place] += group.sums[number]
            labels = key_labels(connection, [key_id for key_id in models if key_id])
            found = [
                (
                    [sum(column) for column in zip(*used.values(), strict=True)],
                    {
                        "api_key": name_of_key(key_id, labels),
                        "model_details": [{"model": model, **_costs(sums)} for model, sums in used.items()],
                    },
                )
                for key_id, used in models.items()
            ]
            found.sort(key=lambda each: -each[0][0])
            return [{**shown, **_costs(whole)} for whole, shown in found]

        return await answer(self._office, request, work)


def _costs(sums: list[int]) -> dict[str, Any]:
    return {"total_cost": money(sums[0]), "total_input_tokens": sums[1], "total_output_tokens": sums[2]}
