"""The endpoints of end users, in the shapes of LiteLLM's customers."""

from __future__ import annotations

from typing import Any

from twisted.web.iweb import IRequest

from twisted_vllm.admin import customer_operations as operations
from twisted_vllm.admin.customer_schemas import (
    CustomerInfoQuery,
    CustomerListQuery,
    NewCustomerRequest,
    UpdateCustomerRequest,
    parse_customer,
    parse_customers,
)
from twisted_vllm.admin.office import AdminContext
from twisted_vllm.admin.queries import parse_query
from twisted_vllm.admin.reports import report_end_users, report_unmade_end_user
from twisted_vllm.admin.respond import read_object, read_query, send_json
from twisted_vllm.errors import InvalidRequest, NotFound
from twisted_vllm.storage.repository import PageQuery
from twisted_vllm.storage.transaction import Transaction


class CustomerEndpoints:
    """Makes, shows, changes, blocks and deletes end users."""

    def __init__(self, office: AdminContext) -> None:
        self._office = office

    async def new(self, request: IRequest) -> bytes:
        """Answer ``POST /customer/new``: an end user with limits or a budget of its own."""
        act = self._office.act(request, "customer/new")
        asked = parse_customer(read_object(request), NewCustomerRequest)

        def work(transaction: Transaction) -> dict[str, Any]:
            return report_end_users(transaction, [operations.add(transaction, act, asked)], act.now)[0]

        return send_json(request, await self._office.change(work))

    async def info(self, request: IRequest) -> bytes:
        """Answer ``GET /customer/info``: an end user, also one that only used something."""
        self._office.gatekeeper.administrator_of(request)
        user_id = parse_query(read_query(request), CustomerInfoQuery).end_user_id
        now = self._office.now()

        def work(transaction: Transaction) -> dict[str, Any]:
            record = transaction.end_users.get(user_id)
            if record is not None:
                return report_end_users(transaction, [record], now)[0]
            spend = transaction.spend.of("end_user", [user_id])[user_id]
            if not spend.total_spend:
                raise NotFound("No such customer is known.", param="end_user_id")
            return report_unmade_end_user(spend, now)

        return send_json(request, await self._office.read(work))

    async def update(self, request: IRequest) -> bytes:
        """Answer ``POST /customer/update``: what is absent stays, null clears."""
        act = self._office.act(request, "customer/update")
        body = read_object(request)
        asked = parse_customer(body, UpdateCustomerRequest)

        def work(transaction: Transaction) -> dict[str, Any]:
            return report_end_users(transaction, [operations.update(transaction, act, asked, body)], act.now)[0]

        return send_json(request, await self._office.change(work))

    async def delete(self, request: IRequest) -> bytes:
        """Answer ``POST /customer/delete``: all that were named, or none."""
        act = self._office.act(request, "customer/delete")
        user_ids = parse_customers(read_object(request))
        count = await self._office.change(lambda transaction: operations.delete(transaction, act, user_ids))
        return send_json(request, {"deleted_customers": count, "message": f"{count} customers were deleted."})

    async def list_customers(self, request: IRequest) -> bytes:
        """Answer ``GET /customer/list``: all that were made, by page where there are many."""
        self._office.gatekeeper.administrator_of(request)
        query = read_query(request)
        asked = parse_query(query, CustomerListQuery)
        now = self._office.now()

        def work(transaction: Transaction) -> list[dict[str, Any]]:
            page = transaction.end_users.page(
                PageQuery(page=asked.page, size=asked.page_size, sort_by="user_id", descending=False)
            )
            if page.total_pages > 1 and not (query.get("page") or query.get("page_size")):
                # LiteLLM's answer is a bare list, which cannot say that it is not the whole
                raise InvalidRequest(
                    f"There are {page.total_count} customers: ask for one page after the other, as in "
                    "/customer/list?page=1&page_size=1000.",
                    param="page",
                )
            return report_end_users(transaction, page.records, now)

        return send_json(request, await self._office.read(work))

    async def block(self, request: IRequest) -> bytes:
        """Answer ``POST /customer/block``: requests for them are refused; one that is not known yet is made."""
        act = self._office.act(request, "customer/block")
        user_ids = parse_customers(read_object(request))

        def work(transaction: Transaction) -> list[dict[str, Any]]:
            return report_end_users(transaction, operations.block(transaction, act, user_ids), act.now)

        return send_json(request, {"blocked_users": await self._office.change(work)})

    async def unblock(self, request: IRequest) -> bytes:
        """Answer ``POST /customer/unblock``: all that were named, or none."""
        act = self._office.act(request, "customer/unblock")
        user_ids = parse_customers(read_object(request))

        def work(transaction: Transaction) -> list[dict[str, Any]]:
            return report_end_users(transaction, operations.unblock(transaction, act, user_ids), act.now)

        return send_json(request, {"unblocked_users": await self._office.change(work)})
