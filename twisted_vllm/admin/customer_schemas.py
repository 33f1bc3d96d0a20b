"""What the endpoints of end users take; LiteLLM calls them customers."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from twisted_vllm.admin.allowances import LimitFields, check_limits
from twisted_vllm.admin.fields import Alias
from twisted_vllm.admin.litellm import CUSTOMER_DEFAULTS
from twisted_vllm.admin.queries import PageNumber, Query
from twisted_vllm.admin.schemas import MOST, check_alias, parse
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance

#: end users that one answer lists
MOST_CUSTOMERS = 1000

CustomerT = TypeVar("CustomerT", bound="CustomerFields")


class CustomerFields(LimitFields, frozen=True, kw_only=True):
    """What an administrator may say of an end user."""

    user_id: Alias
    alias: Alias | None = None
    blocked: bool | None = None

    def values(self, given: Container[str], before: Allowance = UNLIMITED) -> dict[str, Any]:
        """Return the attributes of a record that were given; null is the empty value of each, no limit of a limit."""
        found: dict[str, Any] = {"alias": self.alias, "blocked": bool(self.blocked)}
        found = {name: value for name, value in found.items() if name in given}
        return {**found, "allowance": self.limits(given, before)}


class NewCustomerRequest(CustomerFields, frozen=True, kw_only=True):
    """The body of ``POST /customer/new``."""


class UpdateCustomerRequest(CustomerFields, frozen=True, kw_only=True):
    """The body of ``POST /customer/update``: what is absent stays, null clears."""


class CustomersRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /customer/delete``, ``/customer/block`` and ``/customer/unblock``."""

    user_ids: Annotated[tuple[Alias, ...], msgspec.Meta(min_length=1, max_length=MOST)]


class CustomerInfoQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /customer/info``."""

    end_user_id: Annotated[str, msgspec.Meta(min_length=1)]


class CustomerListQuery(Query, frozen=True, kw_only=True):
    """The query of ``GET /customer/list``."""

    page: PageNumber = 1
    page_size: Annotated[int, msgspec.Meta(ge=1, le=MOST_CUSTOMERS, description="How many entries a page holds.")] = (
        MOST_CUSTOMERS
    )


def parse_customer(body: Mapping[str, Any], struct: type[CustomerT]) -> CustomerT:
    """Return what is asked of ``/customer/new`` or ``/customer/update``.

    Raises:
        InvalidRequest: something in it cannot be done.
    """
    found = parse(body, struct, CUSTOMER_DEFAULTS)
    check_alias(found.user_id, "user_id")
    check_alias(found.alias, "alias")
    check_limits(found)
    return found


def parse_customers(body: Mapping[str, Any]) -> list[str]:
    """Return the ids of the end users that are meant, each once.

    Raises:
        InvalidRequest: it names none.
    """
    found = list(dict.fromkeys(parse(body, CustomersRequest, {}).user_ids))
    for number, user_id in enumerate(found):
        check_alias(user_id, f"user_ids[{number}]")
    return found
