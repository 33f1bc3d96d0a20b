"""Customers, LiteLLM's name for the end users whom the callers of keys name in their requests.

The models, the operations on one transaction, and the routes. Each change is written to the audit log.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import attrs
import msgspec

from twisted_vllm.admin.budget_references import (
    budgets_of,
    check_budget,
    effective,
    report_budget,
)
from twisted_vllm.admin.context import AdminCall, AuditContext
from twisted_vllm.admin.fields import MAX_ITEMS, Alias, Reference, check_alias, redacted
from twisted_vllm.admin.limits import LimitFields, Spent, report_usage
from twisted_vllm.admin.lists import asked_page, link_next, place_of, reported
from twisted_vllm.admin.models import (
    MAX_LISTED,
    After,
    Body,
    BudgetTable,
    IsBlocked,
    Json,
    Limits,
    ListSize,
    PageNumber,
    PageSize,
    Query,
    Response,
    SortOrder,
    WalkedPage,
    are_blocked,
    described,
)
from twisted_vllm.admin.routing import Routes
from twisted_vllm.admin.spending import set_given_spend
from twisted_vllm.admin.unsupported import ON_CUSTOMERS
from twisted_vllm.auth.records import Spend
from twisted_vllm.errors import Conflict, NotFound
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance
from twisted_vllm.storage.paging import PageQuery
from twisted_vllm.storage.records import EndUserRecord
from twisted_vllm.storage.transaction import Transaction

#: what the audit log and the spend table call a customer
_KIND = "end_user"

_CHANGES = ("created_at", "created_by", "updated_at", "updated_by")


class CustomerFields(LimitFields, frozen=True, kw_only=True):
    """The fields of a customer that an administrator may set."""

    UNSUPPORTED = ON_CUSTOMERS

    user_id: Annotated[
        Alias, described("The name by which requests tell who the end user is. It must not look like a key.")
    ]
    alias: Annotated[Alias | None, described("The name that people know. It must not look like a key.")] = None
    blocked: Annotated[bool | None, described("Whether requests for this customer are refused.")] = None
    budget_id: Annotated[
        Reference | None, described("A budget whose limits hold where the customer has none of its own.")
    ] = None
    spend: Annotated[
        Spent | None, described("What the customer has spent already in the present budget period, in US dollars.")
    ] = None

    def check(self) -> None:
        """Check the id, the name and the limits."""
        check_alias(self.user_id, "user_id")
        check_alias(self.alias, "alias")
        super().check()

    def values(self, given: Container[str], before: Allowance = UNLIMITED) -> dict[str, Any]:
        """Return the attributes of an `EndUserRecord` that a request sets. null sets the empty value.

        Args:
            given: the names of the fields that the request has.
            before: the limits until now.
        """
        found: dict[str, Any] = {"alias": self.alias, "blocked": bool(self.blocked), "budget_id": self.budget_id}
        found = {name: value for name, value in found.items() if name in given}
        return {**found, "allowance": self.limits(given, before)}


class NewCustomerRequest(CustomerFields, frozen=True, kw_only=True):
    """The body of ``POST /customer/new``."""


class UpdateCustomerRequest(CustomerFields, frozen=True, kw_only=True):
    """The body of ``POST /customer/update``. Fields that are absent stay as they are; null clears a field."""


class CustomersRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /customer/delete``, ``/customer/block`` and ``/customer/unblock``."""

    user_ids: Annotated[
        tuple[Alias, ...],
        msgspec.Meta(min_length=1, max_length=MAX_ITEMS, description="The ids of the customers."),
    ]

    @property
    def unique_ids(self) -> list[str]:
        """The ids, each once."""
        return list(dict.fromkeys(self.user_ids))

    def check(self) -> None:
        """Check the ids."""
        for number, user_id in enumerate(self.unique_ids):
            check_alias(user_id, f"user_ids[{number}]")


class CustomerInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /customer/info``."""

    end_user_id: Annotated[str, msgspec.Meta(min_length=1)]


class CustomerListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /customer/list``."""

    page: PageNumber = 1
    after: After = ""
    page_size: ListSize = MAX_LISTED


class CustomerPageQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /v2/customer/list``."""

    search: Annotated[str, msgspec.Meta(description="Text that the id or the name contains, in any case.")] = ""
    budget_id: Annotated[str, msgspec.Meta(description="Only customers who name this budget.")] = ""
    blocked: IsBlocked = ""
    page: PageNumber = 1
    after: After = ""
    page_size: PageSize = 25
    sort_order: SortOrder = "asc"

    @property
    def page_query(self) -> PageQuery:
        """The page that is asked for: customers are sorted by their ids, as a large list needs an index."""
        return PageQuery(
            page=self.page,
            after=self.after,
            size=self.page_size,
            equals={**({"budget_id": self.budget_id} if self.budget_id else {}), **are_blocked(self.blocked)},
            search=self.search,
            search_in=("user_id", "alias"),
            sort_by="user_id",
            descending=self.sort_order == "desc",
        )


class CustomerReport(Limits, kw_only=True):
    """A customer. The times are null for one that only appeared in requests."""

    user_id: str
    alias: str | None
    blocked: bool
    allowed_model_region: None
    default_model: None
    budget_id: str | None
    litellm_budget_table: BudgetTable | None
    created_at: datetime | None
    created_by: str | None
    updated_at: datetime | None
    updated_by: str | None


class CustomerPage(WalkedPage, kw_only=True):
    """A page of customers."""

    customers: tuple[CustomerReport, ...]


class DeletedCustomers(Response, kw_only=True):
    """The number of customers that were deleted."""

    deleted_customers: int
    message: str


class BlockedCustomers(Response, kw_only=True):
    """The customers that were blocked."""

    blocked_users: tuple[CustomerReport, ...]


class UnblockedCustomers(Response, kw_only=True):
    """The customers that were unblocked."""

    unblocked_users: tuple[CustomerReport, ...]


def add_customer(transaction: Transaction, audit: AuditContext, body: NewCustomerRequest) -> EndUserRecord:
    """Create a customer.

    Raises:
        Conflict: the customer exists.
        NotFound: its budget does not exist.
    """
    if transaction.end_users.get(body.user_id) is not None:
        raise Conflict("Another customer has this id already. Send another `user_id`.", param="user_id")
    check_budget(transaction, body.budget_id)
    record = _insert(transaction, audit, body.user_id, body.values(body.__struct_fields__))
    set_given_spend(transaction, audit, _KIND, record.user_id, record, body.spend)
    return record


def update_customer(
    transaction: Transaction, audit: AuditContext, body: UpdateCustomerRequest, given: Container[str]
) -> EndUserRecord:
    """Change a customer.

    Args:
        transaction: the transaction.
        audit: who asks.
        body: the request.
        given: the names of the fields that it has.

    Raises:
        NotFound: there is no such customer, or its budget does not exist.
    """
    record = transaction.end_users.get(body.user_id)
    if record is None:
        raise NotFound(f"No customer has the id `{redacted(body.user_id)}`.", param="user_id")
    check_budget(transaction, body.budget_id)
    changed = _change(transaction, audit, record, body.values(given, record.allowance))
    set_given_spend(transaction, audit, _KIND, changed.user_id, changed, body.spend)
    return changed


def block_customers(transaction: Transaction, audit: AuditContext, user_ids: Sequence[str]) -> list[EndUserRecord]:
    """Block customers. One that was never created is created."""
    known = {record.user_id: record for record in transaction.end_users.among("user_id", user_ids)}
    blocked = {"blocked": True}
    return [
        _change(transaction, audit, known[user_id], blocked)
        if user_id in known
        else _insert(transaction, audit, user_id, blocked)
        for user_id in user_ids
    ]


def unblock_customers(transaction: Transaction, audit: AuditContext, user_ids: Sequence[str]) -> list[EndUserRecord]:
    """Unblock customers, all or none.

    Raises:
        NotFound: one of them does not exist.
    """
    return [_change(transaction, audit, record, {"blocked": False}) for record in _find_all(transaction, user_ids)]


def delete_customers(transaction: Transaction, audit: AuditContext, user_ids: Sequence[str]) -> int:
    """Delete customers, all or none, and return how many. The ledger keeps what they used.

    Raises:
        NotFound: one of them does not exist.
    """
    records = _find_all(transaction, user_ids)
    ids = [record.user_id for record in records]
    transaction.end_users.delete(ids)
    transaction.spend.forget(_KIND, ids)
    for record in records:
        audit.record(transaction, _KIND, record.user_id, record, None)
    return len(records)


def _insert(transaction: Transaction, audit: AuditContext, user_id: str, values: Mapping[str, Any]) -> EndUserRecord:
    record = EndUserRecord(user_id=user_id, **audit.created, **values)
    transaction.end_users.insert(record)
    audit.record(transaction, _KIND, record.user_id, None, record)
    return record


def _change(
    transaction: Transaction, audit: AuditContext, record: EndUserRecord, values: Mapping[str, Any]
) -> EndUserRecord:
    changed = attrs.evolve(record, **values, **audit.updated)
    transaction.end_users.replace(record.user_id, changed)
    audit.record(transaction, _KIND, record.user_id, record, changed)
    return changed


def _find_all(transaction: Transaction, user_ids: Sequence[str]) -> list[EndUserRecord]:
    known = {record.user_id: record for record in transaction.end_users.among("user_id", user_ids)}
    for user_id in user_ids:
        if user_id not in known:
            raise NotFound(f"No customer has the id `{redacted(user_id)}`. Nothing was changed.", param="user_ids")
    return [known[user_id] for user_id in user_ids]


def report_customers(transaction: Transaction, records: Sequence[EndUserRecord], now: datetime) -> list[Json]:
    """Return customers as `CustomerReport` describes them."""
    spend = transaction.spend.of(_KIND, [record.user_id for record in records])
    budgets = budgets_of(transaction, records)
    return [
        {
            **report_usage(record.allowance, spend[record.user_id], now, effective(record, budgets)),
            **report_budget(record, budgets),
            **{name: getattr(record, name) for name in ("user_id", "alias", "blocked")},
            "allowed_model_region": None,
            "default_model": None,
            **{name: getattr(record, name) for name in _CHANGES},
        }
        for record in records
    ]


def _report_unknown(user_id: str, spend: Spend, now: datetime) -> Json:
    """Return a customer that was never created and only appeared in requests."""
    return {
        **report_usage(UNLIMITED, spend, now),
        **dict.fromkeys(("budget_id", "litellm_budget_table", "alias", "allowed_model_region", "default_model")),
        "user_id": user_id,
        "blocked": False,
        **dict.fromkeys(_CHANGES),
    }


routes = Routes()


@routes.post("/customer/new", "/end_user/new", body=NewCustomerRequest, response=CustomerReport, errors=(404, 409))
async def new(call: AdminCall, body: NewCustomerRequest) -> Json:
    """Create a customer, with its own limits or budget."""

    def work(transaction: Transaction) -> Json:
        return report_customers(transaction, [add_customer(transaction, call.audit, body)], call.now)[0]

    return await call.change(work)


@routes.get("/customer/info", "/end_user/info", query=CustomerInfoQuery, response=CustomerReport, errors=(404,))
async def info(call: AdminCall, query: CustomerInfoQuery) -> Json:
    """Return a customer, also one that was never created and only appeared in requests."""
    user_id = query.end_user_id

    def work(transaction: Transaction) -> Json:
        record = transaction.end_users.get(user_id)
        if record is not None:
            return report_customers(transaction, [record], call.now)[0]
        spend = transaction.spend.of(_KIND, [user_id])[user_id]
        if not spend.total_spend:
            raise NotFound("No such customer is known.", param="end_user_id")
        return _report_unknown(user_id, spend, call.now)

    return await call.read(work)


@routes.post(
    "/customer/update",
    "/end_user/update",
    body=UpdateCustomerRequest,
    response=CustomerReport,
    errors=(404,),
)
async def update(call: AdminCall, body: UpdateCustomerRequest) -> Json:
    """Change a customer. Fields that are absent stay as they are; null clears a field."""

    def work(transaction: Transaction) -> Json:
        return report_customers(transaction, [update_customer(transaction, call.audit, body, call.given)], call.now)[0]

    return await call.change(work)


@routes.post("/customer/delete", "/end_user/delete", body=CustomersRequest, response=DeletedCustomers, errors=(404,))
async def delete(call: AdminCall, body: CustomersRequest) -> Json:
    """Delete customers: all that the request names, or none if one does not exist."""
    count = await call.change(lambda transaction: delete_customers(transaction, call.audit, body.unique_ids))
    return {"deleted_customers": count, "message": f"{count} customers were deleted."}


@routes.get("/customer/list", "/end_user/list", query=CustomerListQuery, response=tuple[CustomerReport, ...])
async def list_customers(call: AdminCall, query: CustomerListQuery) -> msgspec.Raw:
    """Return all customers that were created. If there are more than 1000, ask for them by page."""

    def work(transaction: Transaction) -> tuple[msgspec.Raw, str | None]:
        asked = PageQuery(query.page, query.page_size, query.after, sort_by="user_id", descending=False)
        page = transaction.end_users.page(asked)
        customers = asked_page(page, call.given, "customers", "/customer/list")
        return reported(customers, lambda some: report_customers(transaction, some, call.now)), page.next

    found, following = await call.read(work)
    link_next(call, following)
    return found


@routes.get("/v2/customer/list", query=CustomerPageQuery, response=CustomerPage)
async def list_page(call: AdminCall, query: CustomerPageQuery) -> Json:
    """Return a page of the customers that were created, and how many there are."""

    def work(transaction: Transaction) -> Json:
        page = transaction.end_users.page(query.page_query)
        found = reported(page.records, lambda some: report_customers(transaction, some, call.now))
        return {"customers": found, **place_of(page, query.page_size)}

    return await call.read(work)


@routes.post("/customer/block", "/end_user/block", body=CustomersRequest, response=BlockedCustomers)
async def block(call: AdminCall, body: CustomersRequest) -> Json:
    """Block customers, from the next request on. One that was never created is created."""

    def work(transaction: Transaction) -> list[Json]:
        return report_customers(transaction, block_customers(transaction, call.audit, body.unique_ids), call.now)

    return {"blocked_users": await call.change(work)}


@routes.post(
    "/customer/unblock",
    "/end_user/unblock",
    body=CustomersRequest,
    response=UnblockedCustomers,
    errors=(404,),
)
async def unblock(call: AdminCall, body: CustomersRequest) -> Json:
    """Unblock customers: all that the request names, or none if one does not exist."""

    def work(transaction: Transaction) -> list[Json]:
        return report_customers(transaction, unblock_customers(transaction, call.audit, body.unique_ids), call.now)

    return {"unblocked_users": await call.change(work)}
