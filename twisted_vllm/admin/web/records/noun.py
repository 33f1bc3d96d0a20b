"""What the pages of a noun are made of. Each noun declares it once; `twisted_vllm.admin.web.pages.records` does the
rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import attrs

from twisted_vllm.admin.models import Json
from twisted_vllm.admin.web.forms import Form
from twisted_vllm.admin.web.page import PageCall

#: records on one page of a list
PAGE_SIZE = 50
#: records that a section of a page shows, of a longer list elsewhere
SHOWN = 10

#: kinds of cells
LINK, TEXT, STATUS, MONEY, BUDGET, MOMENT, NUMBER, NAMES, ID = (
    *("link", "text", "status", "money", "budget", "moment", "number", "names", "id"),
)

#: the class of a badge by what it says
BADGES = {"active": "good", "expired": "warn", "blocked": "bad"}


@attrs.frozen
class Link:
    """A text that leads to another page of the console; without an address it is text.

    Attributes:
        text: what it says.
        path: the page, such as ``/ui/keys``.
        query: the page's parameters.
    """

    text: str
    path: str = ""
    query: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def address(self) -> str:
        """The page with its parameters, for ``url`` of a template."""
        return self.path + (f"?{urlencode(self.query)}" if self.query else "")


@attrs.frozen(kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        title: its head.
        value: returns what a row shows: for `LINK` a `Link`, for `BUDGET` a pair of spend and limit.
        kind: how that is shown.
        sort: the API's name to sort by; empty for none.
    """

    title: str
    value: Callable[[Json], Any]
    kind: str = TEXT
    sort: str = ""

    @property
    def is_number(self) -> bool:
        """Whether it stands at the right."""
        return self.kind in (MONEY, NUMBER, BUDGET)


@attrs.frozen(kw_only=True)
class Filter:
    """A filter of a list, by the API's parameter.

    Attributes:
        name: the parameter.
        label: its name for people.
        choices: its values with their words; empty for any text.
        sees_all: whether only those who see everything have it.
        rare: whether it stands behind "More filters".
    """

    name: str
    label: str
    choices: tuple[tuple[str, str], ...] = ()
    sees_all: bool = False
    rare: bool = False


@attrs.frozen(kw_only=True)
class Fact:
    """Something about a record.

    Attributes:
        name: what it is.
        value: what it is for this record, as in `Column`.
        kind: how that is shown.
    """

    name: str
    value: Any
    kind: str = TEXT


@attrs.frozen(kw_only=True)
class Section:
    """A part of a record's page: a table, with words above it and a form to add to it.

    Attributes:
        title: its head.
        columns: of the table.
        rows: records.
        note: words above the table.
        more: where all of them are.
        empty: what stands there without rows.
        members: the address to which forms that add and remove members are sent; empty for none.
        roles: the roles that a new member may have, with their words.
        member_of: the id of what they are members of.
    """

    title: str
    columns: tuple[Column, ...] = ()
    rows: Sequence[Json] = ()
    note: str = ""
    more: Link | None = None
    empty: str = "None."
    members: str = ""
    roles: tuple[tuple[str, str], ...] = ()
    member_of: str = ""


@attrs.frozen(kw_only=True)
class Act:
    """Something to do with a record besides changing and deleting it.

    Attributes:
        name: in the address, and in the audit log.
        label: on the button.
        route: the route of the API, which decides who may.
        perform: does it.
        done: what the page says afterwards.
        applies: whether it makes sense for a record.
        danger: whether it takes something away.
    """

    name: str
    label: str
    route: str
    perform: Callable[[PageCall, str], Awaitable[Any]]
    done: str
    applies: Callable[[Json], bool]
    danger: bool = False


def _never(_record: Json) -> bool:
    return False


def _as_it_is(body: Json) -> Json:
    return body


async def _nothing(_call: PageCall, _record: Json) -> list[Section]:
    return []


@attrs.frozen(kw_only=True, eq=False)
class Noun:
    """A kind of record.

    Attributes:
        word: one of them, such as ``key``.
        words: several.
        title: the head of the list.
        about: what they are, for who sees the page for the first time.
        path: the address of the list.
        list_route: the route of the API that lists them.
        items: the field of its answer that has them.
        always: parameters that it always gets.
        size: its parameter for the number of records on a page.
        total: the field of its answer with how many there are.
        identity: returns the id of a record.
        name: returns what people call it.
        columns: of the list.
        filters: likewise.
        sort: what the list is sorted by at first, and how.
        info_route: the route that decides who may see one.
        find: returns a record.
        facts: returns what its page says first.
        sections: returns the tables below.
        new_route: the route that makes one.
        new_form: its form.
        edit_route: the route that changes one.
        edit_form: its form.
        change: sends a change, with the fields of the API.
        delete_route: the route that deletes one.
        delete: deletes it.
        impact_param: the parameter of ``GET /WORD/impact``.
        acts: what else can be done with one.
        own_fields: of the forms, those that people may fill in for what is their own; None for all.
        searched: what a search looks at.
        live_by: the parameter of ``GET /request/live`` that names one; empty for none.
        is_fixed: whether a record cannot be changed here.
        sort_names: the API's names of the parameters for the order.
        body: returns the API's body for a new record, of the fields of the form.
        used_by: the parameter of reports and lists of requests that names one; empty for none.
    """

    word: str
    words: str
    title: str
    about: str
    path: str
    list_route: str
    items: str
    identity: Callable[[Json], str]
    name: Callable[[Json], str]
    columns: tuple[Column, ...]
    sort: tuple[str, str]
    searched: str
    info_route: str
    find: Callable[[PageCall, str], Awaitable[Json]]
    facts: Callable[[Json], list[Fact]]
    new_route: str
    new_form: Form
    edit_route: str
    edit_form: Form
    change: Callable[[PageCall, str, Json], Awaitable[Any]]
    delete_route: str
    delete: Callable[[PageCall, str], Awaitable[Any]]
    impact_param: str
    always: Mapping[str, str] = attrs.field(factory=dict)
    size: str = "page_size"
    total: str = "total"
    filters: tuple[Filter, ...] = ()
    sections: Callable[[PageCall, Json], Awaitable[list[Section]]] = _nothing
    acts: tuple[Act, ...] = ()
    own_fields: frozenset[str] | None = None
    live_by: str = ""
    is_fixed: Callable[[Json], bool] = _never
    sort_names: tuple[str, str] = ("sort_by", "sort_order")
    body: Callable[[Json], Json] = _as_it_is
    used_by: str = ""

    def link(self, record: Json) -> Link:
        """Return the link to a record's page."""
        return link_to(self.path, self.identity(record), self.name(record))


def link_to(path: str, identity: str | None, name: str | None = None) -> Link:
    """Return the link to the page of a record.

    Args:
        path: the address of the list.
        identity: the record's id; None for no link.
        name: what people call it; the id by default.
    """
    if not identity:
        return Link("")
    return Link(name or identity, f"{path}/detail", {"id": identity})


def budget_of(record: Json) -> tuple[float, float | None]:
    """Return what a record spent in its period, and the most that it may spend, its own or its budget's."""
    table = record.get("litellm_budget_table") or {}
    most = record.get("max_budget")
    return record["spend"], table.get("max_budget") if most is None else most


def limits_of(record: Json) -> list[Fact]:
    """Return the limits of a record that are set."""
    table = record.get("litellm_budget_table") or {}
    words = {
        "rpm_limit": "Requests in 60 seconds",
        "tpm_limit": "Tokens in 60 seconds",
        "max_parallel_requests": "Requests at a time",
        "soft_budget": "Warning at",
    }
    found = []
    for name, label in words.items():
        own, shared = record.get(name), table.get(name)
        value = shared if own is None else own
        if value is not None:
            found.append(Fact(name=label, value=value, kind=MONEY if name == "soft_budget" else NUMBER))
    for name, label in (("model_rpm_limit", "Requests by model"), ("model_tpm_limit", "Tokens by model")):
        if record.get(name):
            found.append(
                Fact(name=label, value=[f"{model}: {each:,}" for model, each in record[name].items()], kind=NAMES)
            )
    if record.get("model_max_budget"):
        budgets = [
            f"{model}: ${each['max_budget']:g}" + (f" in {each['budget_duration']}" if each["budget_duration"] else "")
            for model, each in record["model_max_budget"].items()
        ]
        found.append(Fact(name="Budgets by model", value=budgets, kind=NAMES))
    return found


def spending_of(record: Json) -> list[Fact]:
    """Return what a record spent, and its budget."""
    period = record.get("budget_duration") or (record.get("litellm_budget_table") or {}).get("budget_duration")
    following = record["budget_reset_at"]
    return [
        Fact(name=f"Spent in the period ({period})" if period else "Spent", value=budget_of(record), kind=BUDGET),
        Fact(name="Spent in total", value=record["total_spend"], kind=MONEY),
        *([Fact(name="Next period", value=following, kind=MOMENT)] if following else []),
        *(
            [Fact(name="Budget", value=link_to("/ui/budgets", record["budget_id"]), kind=LINK)]
            if record.get("budget_id")
            else []
        ),
    ]


def models_of(record: Json) -> Fact:
    """Return which models a record allows."""
    return Fact(name="Models", value=list(record["models"]) or ["all"], kind=NAMES)


def made(record: Json) -> list[Fact]:
    """Return when a record was made and changed, and by whom."""
    if record.get("created_at") is None:
        return []
    return [
        Fact(name="Made", value=record["created_at"], kind=MOMENT),
        Fact(name="Made by", value=record["created_by"]),
        Fact(name="Changed", value=record["updated_at"], kind=MOMENT),
        Fact(name="Changed by", value=record["updated_by"]),
    ]
