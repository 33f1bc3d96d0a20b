"""The pages of keys, users, teams, organizations, customers, budgets and models: one code for all of them.

A noun declares what differs (`twisted_vllm.admin.web.records.noun.Noun`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any
from urllib.parse import urlencode

import msgspec

from twisted_vllm.admin.access import Extent
from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.models import Json
from twisted_vllm.admin.web.forms import WAS, Form, field_at_fault
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.records.keys import KEYS
from twisted_vllm.admin.web.records.limited import BUDGETS, CUSTOMERS
from twisted_vllm.admin.web.records.models import MODELS
from twisted_vllm.admin.web.records.noun import BADGES, PAGE_SIZE, Act, Link, Noun
from twisted_vllm.admin.web.records.people import ORGANIZATIONS, TEAMS, USERS
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH
from twisted_vllm.errors import GatewayError, NotFound

#: all nouns, in the order of the navigation
NOUNS = (KEYS, USERS, TEAMS, ORGANIZATIONS, CUSTOMERS, BUDGETS, MODELS)

#: what a page says after something was done
_DONE = {
    "made": "It is made.",
    "changed": "The change is saved. It holds from the next request on.",
    "deleted": "It is deleted.",
    "added": "The member is added.",
    "removed": "The member is removed.",
    "blocked-some": "The keys are blocked, from the next request on.",
    "unblocked-some": "The keys work again.",
    "deleted-some": "The keys are deleted.",
}

#: ids that a field suggests
_SUGGESTED = 100
_SUGGESTIONS = {
    "team_id": ("/v2/team/list", "teams", "team_id", "team_alias"),
    "organization_id": ("/v2/organizations/list", "organizations", "organization_id", "organization_alias"),
    "budget_id": ("/v2/budget/list", "budgets", "budget_id", ""),
}


def pages_of(noun: Noun) -> Pages:
    """Return the pages of a noun."""
    pages = Pages()
    path = noun.path

    @pages.get(path, needs=f"GET {noun.list_route}", title=noun.title, group="Access")
    async def show_list(call: PageCall) -> bytes:
        return await _show_list(call, noun)

    @pages.get(f"{path}/detail", needs=noun.info_route)
    async def show(call: PageCall) -> bytes:
        return await _show(call, noun)

    @pages.get(f"{path}/new", needs=noun.new_route)
    async def begin(call: PageCall) -> bytes:
        form = _form_of(call, noun, noun.new_route, noun.new_form)
        texts = form.texts()
        texts.update({name: text for name, text in call.query.items() if name in texts})
        return await _show_form(call, noun, form, texts)

    @pages.post(f"{path}/new", needs=noun.new_route)
    async def make(call: PageCall) -> bytes:
        return await _make(call, noun)

    @pages.get(f"{path}/edit", needs=noun.edit_route)
    async def edit(call: PageCall) -> bytes:
        record = await noun.find(call, _id_of(call.query))
        form = _form_of(call, noun, noun.edit_route, noun.edit_form)
        texts = form.texts(record)
        return await _show_form(call, noun, form, texts, before=texts, record=record)

    @pages.post(f"{path}/edit", needs=noun.edit_route)
    async def change(call: PageCall) -> bytes:
        return await _change(call, noun)

    @pages.get(f"{path}/delete", needs=noun.delete_route)
    async def ask(call: PageCall) -> bytes:
        return await _ask_to_delete(call, noun, _id_of(call.query))

    @pages.post(f"{path}/delete", needs=noun.delete_route)
    async def delete(call: PageCall) -> bytes:
        return await _delete(call, noun)

    for act in noun.acts:
        _declare_act(pages, noun, act)
    return pages


def _declare_act(pages: Pages, noun: Noun, act: Act) -> None:
    @pages.post(f"{noun.path}/{act.name}", needs=act.route)
    async def perform(call: PageCall) -> bytes:
        identity = _id_of(_single(await call.form()))
        await act.perform(call, identity)
        return call.redirect(f"{noun.path}/detail", id=identity, done=act.name)


def _id_of(given: Mapping[str, str]) -> str:
    """Return the id that a query or a form names.

    Raises:
        NotFound: it names none.
    """
    identity = given.get("id", "")
    if not identity:
        raise NotFound("The address names no record: go to the list and choose one.", param="id")
    return identity


def _single(form: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {name: values[0] for name, values in form.items()}


# the list


async def _show_list(call: PageCall, noun: Noun) -> bytes:
    asked = {name: text.strip() for name, text in call.query.items() if text.strip()}
    filters = [each for each in noun.filters if call.reads_everything or not each.sees_all]
    names = {"search", "sort_by", "sort_order", "page", *(each.name for each in filters)}
    given = {name: text for name, text in asked.items() if name in names}
    query = dict(given)
    search = query.get("search", "")
    if search.startswith("sk-"):
        # A key stands neither in the browser's history nor in an address: it is found by its hash.
        given["search"] = query["search"] = token_of(search)
    sort_by, sort_order = query.setdefault("sort_by", noun.sort[0]), query.setdefault("sort_order", noun.sort[1])
    query.setdefault("page", "1")
    if not any(column.sort == sort_by for column in noun.columns):
        raise NotFound("This list cannot be sorted so.", param="sort_by")
    sent = {
        dict(zip(("sort_by", "sort_order"), noun.sort_names, strict=True)).get(name, name): text
        for name, text in query.items()
        if name != "sort_by" or len(_sorts(noun)) > 1
    }
    found = await call.get(noun.list_route, **noun.always, **{noun.size: PAGE_SIZE}, **sent)
    if call.is_fragment:
        call.request.setHeader(b"hx-replace-url", _address(call, noun.path, given).encode("ascii"))

    def link(page: int) -> str:
        return _address(call, noun.path, {**given, "page": str(page)})

    def sorted_by(column: str) -> str:
        descending = column == sort_by and sort_order == "asc"
        order = {"sort_by": column, "sort_order": "desc" if descending else "asc"}
        return _address(call, noun.path, {**{n: text for n, text in given.items() if n != "page"}, **order})

    return call.render(
        "records/list.html",
        noun=noun,
        badges=BADGES,
        rows=found[noun.items],
        total=found[noun.total],
        page=int(query["page"]),
        pages=found["total_pages"],
        filters=filters,
        given=given,
        sort_by=sort_by,
        sort_order=sort_order,
        link=link,
        sorted_by=sorted_by,
        done=_DONE.get(asked.get("done", "")),
        may_make=call.may(noun.new_route),
        may_choose=noun is KEYS and call.may("POST /key/block"),
        own=None if call.reads_everything else call.principal.user_id,
    )


def _sorts(noun: Noun) -> list[str]:
    return [column.sort for column in noun.columns if column.sort]


def _address(call: PageCall, path: str, query: Mapping[str, str]) -> str:
    return call.console.url(call.request, path) + (f"?{urlencode(query)}" if query else "")


# one record


async def _show(call: PageCall, noun: Noun) -> bytes:
    identity = _id_of(call.query)
    record = await noun.find(call, identity)
    done = call.query.get("done", "")
    words = {act.name: act.done for act in noun.acts}
    return call.render(
        "records/detail.html",
        noun=noun,
        badges=BADGES,
        record=record,
        identity=identity,
        facts=noun.facts(record),
        notes=record.get("metadata") or None,
        sections=await noun.sections(call, record),
        acts=[act for act in noun.acts if act.applies(record) and call.may(act.route)],
        may_edit=call.may(noun.edit_route) and not noun.is_fixed(record),
        may_delete=call.may(noun.delete_route) and not noun.is_fixed(record),
        may_regenerate=noun is KEYS and call.may("POST /key/regenerate"),
        links=_links(call, noun, record),
        done=words.get(done) or _DONE.get(done),
        problem="",
    )


def _links(call: PageCall, noun: Noun, record: Json) -> list[Link]:
    """Return the pages of others that tell more of a record, those that there are and the caller may see."""
    identity = noun.identity(record)
    # The audit log names a key by the first digits of its hash.
    wanted = [
        Link("Audit log", "/ui/audit", {"object_id": identity[:HASH_PREFIX_LENGTH] if noun is KEYS else identity})
    ]
    if noun.used_by:
        wanted[:0] = [
            Link("Usage", "/ui/usage", {noun.used_by: identity}),
            Link("Requests", "/ui/requests", {noun.used_by: identity}),
        ]
    if noun is KEYS:
        wanted.append(Link("What may it call?", "/ui/tester", {"key": identity}))
    known = {page.path: page for page in call.console.pages if page.method == "GET"}
    return [
        each
        for each in wanted
        if each.path in known and (not known[each.path].needs or call.may(known[each.path].needs))
    ]


# forms


def _form_of(call: PageCall, noun: Noun, route: str, form: Form) -> Form:
    """Return the form with the fields that the caller may fill in."""
    return form.only(noun.own_fields if call.extent(route) is Extent.OWN else None)


async def _show_form(
    call: PageCall,
    noun: Noun,
    form: Form,
    texts: Mapping[str, str],
    *,
    before: Mapping[str, str] | None = None,
    record: Json | None = None,
    problems: Mapping[str, str] | None = None,
    problem: str = "",
    status: int = 200,
) -> bytes:
    return call.render(
        "records/form.html",
        status,
        noun=noun,
        form=form,
        texts=texts,
        before=before or {},
        was=WAS,
        record=record,
        problems=problems or {},
        problem=problem,
        suggestions=await _suggestions(call, form),
    )


async def _suggestions(call: PageCall, form: Form) -> dict[str, list[tuple[str, str]]]:
    """Return ids, with names, that fields of a form may hold."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, (route, items, identity, alias) in _SUGGESTIONS.items():
        if name in form.fields and call.may(f"GET {route}"):
            page = await call.get(route, page_size=_SUGGESTED)
            found[name] = [(each[identity], (alias and each[alias]) or "") for each in page[items]]
    return found


async def _make(call: PageCall, noun: Noun) -> bytes:
    form = _form_of(call, noun, noun.new_route, noun.new_form)
    texts = form.sent(await call.form())
    body, problems = form.new(texts)
    if problems:
        return await _show_form(call, noun, form, texts, problems=problems, problem=_CORRECT, status=400)
    try:
        made = await call.post(noun.new_route.removeprefix("POST "), noun.body(body))
    except GatewayError as error:
        return await _refused(call, noun, form, texts, error)
    if made.get("key"):
        return await show_value(call, made, "The key is made." if noun is KEYS else "The user is made, with a key.")
    return call.redirect(f"{noun.path}/detail", id=noun.identity(made), done="made")


async def _change(call: PageCall, noun: Noun) -> bytes:
    sent = await call.form()
    identity = _id_of(_single(sent))
    form = _form_of(call, noun, noun.edit_route, noun.edit_form)
    texts, before = form.sent(sent), form.sent(sent, prefix=WAS)
    body, problems = form.changes(texts, before)
    record = await noun.find(call, identity)
    if problems:
        return await _show_form(
            call, noun, form, texts, before=before, record=record, problems=problems, problem=_CORRECT, status=400
        )
    if body:
        try:
            await noun.change(call, identity, body)
        except GatewayError as error:
            return await _refused(call, noun, form, texts, error, before=before, record=record)
    return call.redirect(f"{noun.path}/detail", id=identity, done="changed")


_CORRECT = "Something is not right yet: see the fields that are marked."


async def _refused(
    call: PageCall, noun: Noun, form: Form, texts: Mapping[str, str], error: GatewayError, **shown: Any
) -> bytes:
    """Show a form again with what the API said about it."""
    name = field_at_fault(error.param, form)
    problems = {} if name is None else {name: error.message}
    problem = error.message if name is None else _CORRECT
    return await _show_form(call, noun, form, texts, problems=problems, problem=problem, status=error.status, **shown)


async def show_value(call: PageCall, made: Json, done: str) -> bytes:
    """Show the value of a new or regenerated key, which nobody can see again, with a request to try."""
    named = [model for model in made["models"] if not {"*", "?"} & set(model)]
    if not named:
        listed = (await call.get("/v1/models"))["data"]
        named = [each["id"] for each in listed]
    return call.render(
        "records/value.html",
        value=made["key"],
        made=made,
        done=done,
        record=KEYS.link({**made, "token": made["token_id"]}),
        example=_example(call, made["key"], named[0] if named else "MODEL"),
    )


def _example(call: PageCall, value: str, model: str) -> str:
    """Return a request with a key, for a shell."""
    address = call.origin + call.console.url(call.request, "/vllm/v1/chat/completions")
    body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": "Hello"}]}).decode()
    return (
        f"curl {quote(address)} \\\n  -H {quote(f'Authorization: Bearer {value}')} \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d {quote(body)}"
    )


# deleting


async def _ask_to_delete(call: PageCall, noun: Noun, identity: str, problem: str = "") -> bytes:
    impact = await call.get(f"/{noun.word}/impact", **{noun.impact_param: identity})
    live = {} if not noun.live_by else await call.get("/request/live", **{noun.live_by: identity}, limit=1)
    return call.render(
        "records/delete.html",
        400 if problem else 200,
        noun=noun,
        identity=identity,
        impact=impact,
        must_type=_must_type(impact),
        in_flight=live.get("matching", 0),
        problem=problem,
        keys=[KEYS.link(each) for each in impact["shown_keys"]],
    )


def _must_type(impact: Json) -> bool:
    """Return whether somebody must type the name first: what was used lately is missed at once."""
    return bool(impact["requests"])


async def _delete(call: PageCall, noun: Noun) -> bytes:
    given = _single(await call.form())
    identity = _id_of(given)
    impact = await call.get(f"/{noun.word}/impact", **{noun.impact_param: identity})
    if _must_type(impact) and given.get("confirm", "").strip() != impact["name"].strip():
        return await _ask_to_delete(call, noun, identity, "Type the name as it stands above.")
    try:
        await noun.delete(call, identity)
    except GatewayError as error:
        return await _ask_to_delete(call, noun, identity, error.message)
    return call.redirect(noun.path, done="deleted")


pages = [page for noun in NOUNS for page in pages_of(noun)]
