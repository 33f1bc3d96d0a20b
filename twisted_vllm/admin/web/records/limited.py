"""Customers and budgets: how the console lists, shows and changes them."""

from __future__ import annotations

from typing import Any

from twisted_vllm.admin.models import Json
from twisted_vllm.admin.web.page import PageCall
from twisted_vllm.admin.web.records.forms import EDIT_BUDGET, EDIT_CUSTOMER, NEW_BUDGET, NEW_CUSTOMER
from twisted_vllm.admin.web.records.noun import (
    BUDGET,
    ID,
    LINK,
    MOMENT,
    MONEY,
    NUMBER,
    STATUS,
    Act,
    Column,
    Fact,
    Link,
    Noun,
    Section,
    budget_of,
    limits_of,
    link_to,
    made,
    spending_of,
)
from twisted_vllm.admin.web.records.people import BLOCKED, OF_BUDGET, state_of
from twisted_vllm.errors import NotFound

# customers


async def _find_customer(call: PageCall, identity: str) -> Json:
    found: Json = await call.get("/customer/info", end_user_id=identity)
    return found


def _facts_of_customer(customer: Json) -> list[Fact]:
    return [
        Fact(name="ID", value=customer["user_id"], kind=ID),
        Fact(name="Status", value=state_of(customer), kind=STATUS),
        *spending_of(customer),
        *limits_of(customer),
        *made(customer),
    ]


async def _change_customer(call: PageCall, identity: str, body: Json) -> Any:
    return await call.post("/customer/update", {"user_id": identity, **body})


async def _delete_customer(call: PageCall, identity: str) -> Any:
    return await call.post("/customer/delete", {"user_ids": [identity]})


async def _block_customer(call: PageCall, identity: str) -> Any:
    return await call.post("/customer/block", {"user_ids": [identity]})


async def _unblock_customer(call: PageCall, identity: str) -> Any:
    return await call.post("/customer/unblock", {"user_ids": [identity]})


CUSTOMERS = Noun(
    word="customer",
    words="customers",
    title="Customers",
    about="A customer is an end user whom an application names in its requests. It has no key. Those who only appeared "
    "in requests are not in this list.",
    path="/ui/customers",
    list_route="/v2/customer/list",
    items="customers",
    identity=lambda customer: str(customer["user_id"]),
    name=lambda customer: str(customer["alias"] or customer["user_id"]),
    columns=(
        Column(
            title="Customer",
            value=lambda customer: link_to("/ui/customers", customer["user_id"], customer["alias"]),
            kind=LINK,
        ),
        Column(title="ID", value=lambda customer: customer["user_id"], kind=ID, sort="user_id"),
        Column(title="Status", value=state_of, kind=STATUS),
        Column(title="Spent", value=budget_of, kind=BUDGET),
        Column(title="Made", value=lambda customer: customer["created_at"], kind=MOMENT),
    ),
    filters=(BLOCKED, OF_BUDGET),
    sort=("user_id", "asc"),
    searched="id or name",
    info_route="GET /customer/info",
    find=_find_customer,
    facts=_facts_of_customer,
    new_route="POST /customer/new",
    new_form=NEW_CUSTOMER,
    edit_route="POST /customer/update",
    edit_form=EDIT_CUSTOMER,
    change=_change_customer,
    delete_route="POST /customer/delete",
    delete=_delete_customer,
    impact_param="end_user_id",
    used_by="end_user",
    acts=(
        Act(
            name="block",
            label="Block",
            route="POST /customer/block",
            perform=_block_customer,
            done="Requests for the customer are refused, from the next one on.",
            applies=lambda customer: not customer["blocked"],
            danger=True,
        ),
        Act(
            name="unblock",
            label="Unblock",
            route="POST /customer/unblock",
            perform=_unblock_customer,
            done="Requests for the customer are served again.",
            applies=lambda customer: bool(customer["blocked"]),
        ),
    ),
)


# budgets

#: the lists of those who name a budget, by the API's words
_HOLDERS = {
    "keys": "/ui/keys",
    "users": "/ui/users",
    "teams": "/ui/teams",
    "organizations": "/ui/organizations",
    "customers": "/ui/customers",
}


async def _find_budget(call: PageCall, identity: str) -> Json:
    found = await call.post("/budget/info", {"budgets": [identity]})
    if not found:
        raise NotFound("No such budget is known.", param="id")
    budget: Json = found[0]
    return budget


def _facts_of_budget(budget: Json) -> list[Fact]:
    return [
        Fact(name="Budget", value=budget["max_budget"], kind=MONEY),
        Fact(name="Period", value=budget["budget_duration"] or "for ever"),
        *(
            [Fact(name="Next period", value=budget["budget_reset_at"], kind=MOMENT)]
            if budget["budget_reset_at"]
            else []
        ),
        *limits_of(budget),
        *made(budget),
    ]


async def _sections_of_budget(call: PageCall, budget: Json) -> list[Section]:
    identity = budget["budget_id"]
    holders = (await call.get("/budget/impact", budget_id=identity))["holders"]
    rows = [
        {
            "link": Link(kind, _HOLDERS[kind], {"budget_id": identity}) if kind in _HOLDERS else Link(kind),
            "number": number,
        }
        for kind, number in holders.items()
    ]
    return [
        Section(
            title="Who names it",
            note="Each of them has these limits where it has none of its own, and a spend of its own.",
            columns=(
                Column(title="Kind", value=lambda row: row["link"], kind=LINK),
                Column(title="How many", value=lambda row: row["number"], kind=NUMBER),
            ),
            rows=rows,
            empty="Nobody: it can be deleted.",
        )
    ]


async def _change_budget(call: PageCall, identity: str, body: Json) -> Any:
    return await call.post("/budget/update", {"budget_id": identity, **body})


async def _delete_budget(call: PageCall, identity: str) -> Any:
    return await call.post("/budget/delete", {"id": identity})


BUDGETS = Noun(
    word="budget",
    words="budgets",
    title="Budgets",
    about="A budget is a set of limits with a name. Keys, users, teams, organizations and customers that name it share "
    "its limits, and not its money: each may spend as much.",
    path="/ui/budgets",
    list_route="/v2/budget/list",
    items="budgets",
    identity=lambda budget: str(budget["budget_id"]),
    name=lambda budget: str(budget["budget_id"]),
    columns=(
        Column(
            title="Budget",
            value=lambda budget: link_to("/ui/budgets", budget["budget_id"]),
            kind=LINK,
            sort="budget_id",
        ),
        Column(title="US dollars", value=lambda budget: budget["max_budget"], kind=MONEY),
        Column(title="Period", value=lambda budget: budget["budget_duration"] or "for ever"),
        Column(title="Requests in 60 s", value=lambda budget: budget["rpm_limit"], kind=NUMBER),
        Column(title="Tokens in 60 s", value=lambda budget: budget["tpm_limit"], kind=NUMBER),
        Column(title="Named by", value=lambda budget: sum(budget["holders"].values()), kind=NUMBER),
        Column(title="Made", value=lambda budget: budget["created_at"], kind=MOMENT, sort="created_at"),
    ),
    sort=("budget_id", "asc"),
    searched="id",
    info_route="POST /budget/info",
    find=_find_budget,
    facts=_facts_of_budget,
    sections=_sections_of_budget,
    new_route="POST /budget/new",
    new_form=NEW_BUDGET,
    edit_route="POST /budget/update",
    edit_form=EDIT_BUDGET,
    change=_change_budget,
    delete_route="POST /budget/delete",
    delete=_delete_budget,
    impact_param="budget_id",
)
