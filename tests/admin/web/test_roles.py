"""The walk of roles: every address of the console for everybody, and nothing of one member in what another gets.

A new page fails here until it has a row in `TABLE`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import treq

from tests.admin.admin_harness import MASTER_KEY, Answer, value_of
from tests.admin.reports.usage_rows import id_of, keep, row_at
from tests.admin.web.web_harness import ConsoleGateway, words
from twisted_vllm.admin.access import EXTENTS, Access, Extent
from twisted_vllm.admin.app import ROUTES
from twisted_vllm.admin.web.all_pages import PAGES
from twisted_vllm.admin.web.page import Page
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.roles import Standing

#: every address of the console, by who may ask for it: the access of the route that its page needs, `session` for
#: every session, `open` for everybody
TABLE = {
    "open": """
        GET /ui/sign-in POST /ui/sign-in
        GET /ui/oidc/sign-in GET /ui/oidc/callback GET /ui/oidc/sign-out GET /ui/oidc/signed-out
    """,
    "session": """
        GET /ui POST /ui/sign-out POST /ui/ticket
        GET /ui/playground GET /ui/connect POST /ui/connect
    """,
    "any_key": """
        GET /ui/live GET /ui/live/events
        GET /ui/usage GET /ui/usage/csv GET /ui/requests GET /ui/requests/<string:id>
        GET /ui/requests/<string:id>/contents
        GET /ui/tester POST /ui/tester
        GET /ui/playground/answer
        GET /ui/overview/spend
        GET /ui/keys GET /ui/keys/detail GET /ui/users/detail GET /ui/teams GET /ui/teams/detail
        GET /ui/organizations GET /ui/organizations/detail GET /ui/models GET /ui/models/detail
    """,
    "self_service": """
        POST /ui/connect/key POST /ui/live/cut
        GET /ui/keys/new POST /ui/keys/new GET /ui/keys/edit POST /ui/keys/edit
        GET /ui/keys/delete POST /ui/keys/delete GET /ui/keys/regenerate POST /ui/keys/regenerate
        POST /ui/keys/block POST /ui/keys/unblock POST /ui/keys/several POST /ui/teams/members
    """,
    "reader": """
        GET /ui/servers GET /ui/servers/detail GET /ui/servers/events
        GET /ui/overview/traffic GET /ui/overview/problems
        GET /ui/config GET /ui/config/models GET /ui/audit GET /ui/audit/<string:id>
        GET /ui/users GET /ui/customers GET /ui/customers/detail GET /ui/budgets GET /ui/budgets/detail
    """,
    "administrator": """
        POST /ui/config/log-level POST /ui/servers/drain POST /ui/servers/undrain
        POST /ui/keys/reset-spend POST /ui/organizations/members
        GET /ui/users/new POST /ui/users/new GET /ui/users/edit POST /ui/users/edit
        GET /ui/users/delete POST /ui/users/delete
        GET /ui/teams/new POST /ui/teams/new GET /ui/teams/edit POST /ui/teams/edit
        GET /ui/teams/delete POST /ui/teams/delete POST /ui/teams/block POST /ui/teams/unblock
        GET /ui/organizations/new POST /ui/organizations/new GET /ui/organizations/edit POST /ui/organizations/edit
        GET /ui/organizations/delete POST /ui/organizations/delete
        GET /ui/customers/new POST /ui/customers/new GET /ui/customers/edit POST /ui/customers/edit
        GET /ui/customers/delete POST /ui/customers/delete POST /ui/customers/block POST /ui/customers/unblock
        GET /ui/budgets/new POST /ui/budgets/new GET /ui/budgets/edit POST /ui/budgets/edit
        GET /ui/budgets/delete POST /ui/budgets/delete
        GET /ui/models/new POST /ui/models/new GET /ui/models/edit POST /ui/models/edit
        GET /ui/models/delete POST /ui/models/delete
    """,
    "master": "POST /ui/config/reload",
}

#: what a form is sent with, where an empty one says nothing of what belongs to others; `{key}` and the like are the
#: names of `FOREIGN`. No form has the alias of another's key: it is taken, because aliases are unique in a gateway.
FORMS: Mapping[str, Mapping[str, str]] = {
    "POST /ui/ticket": {"key": "{key}"},
    "POST /ui/live/cut": {"request_id": "{request_id}"},
    "POST /ui/tester": {"key": "{key}", "model": "{model}"},
    "POST /ui/servers/drain": {"server": "{model}"},
    "POST /ui/servers/undrain": {"server": "{model}"},
    "POST /ui/connect": {"key": "{key}", "model": "{model}", "client": "{word}"},
    "POST /ui/sign-in": {"key": "sk-nobody-has-this-key-0123"},
    "POST /ui/keys/new": {"key_alias": "{word}", "team_id": "{team_id}", "models": "{model}"},
    "POST /ui/keys/edit": {"id": "{key}", "key_alias": "{word}", "was.key_alias": ""},
    **{
        f"POST /ui/keys/{act}": {"id": "{key}", "confirm": "{word}"}
        for act in ("block", "unblock", "delete", "regenerate")
    },
    "POST /ui/keys/several": {"chosen": "{key}", "act": "delete"},
    "POST /ui/teams/members": {"id": "{team_id}", "user": "{user_id}", "act": "add"},
}

#: the ids of the nouns, by their part of the path
IDS = {
    "keys": "{key}",
    "users": "{user_id}",
    "teams": "{team_id}",
    "organizations": "{organization_id}",
    "customers": "{customer}",
    "budgets": "{budget_id}",
}

#: further queries by which a page may be asked for what belongs to others
QUERIES: Mapping[str, tuple[str, ...]] = {
    "GET /ui/tester": ("key={key}&model={model}",),
    "GET /ui/servers/detail": ("server={model}",),
}

#: what is asked of every page: to find, to sort, to filter and to page
TRIED = (
    *("search={word}", "q={word}", "search={key}", "page=2", "size=1", "sort_by=spend&sort_order=asc", "sort=-spend"),
    *("user_id={user_id}", "user={user_id}", "team_id={team_id}", "team={team_id}", "key={key}", "api_key={key}"),
    *("request_id={request_id}", "request={request_id}", "customer={customer}", "end_user={customer}", "tag={tag}"),
    *("organization_id={organization_id}", "model={model}", "group_by=api_key", "group_by=user", "group_by=team"),
    *("id={key}", "id={user_id}", "id={team_id}", "id={organization_id}", "id={budget_id}", "id={customer}"),
    "start_date=2026-01-01&end_date=2026-03-02",
)

#: a word that is in every name and id of the other member, and one that stands beside it: to search for the first must
#: not find the second
WORD, BESIDE = "zorblax", "quuxtle"
_NAME = f"{WORD}-{BESIDE}"
KEY = f"sk-{_NAME}-0123456789"

#: what belongs to the other member; the guesses of those who know its ids
FOREIGN = {
    "word": WORD,
    "key": hash_key(KEY),
    "key_id": hash_key(KEY),
    "token": hash_key(KEY),
    "user_id": f"{_NAME}-user",
    "team_id": f"{_NAME}-team",
    "organization_id": f"{_NAME}-organization",
    "budget_id": f"{_NAME}-budget",
    "customer": f"{_NAME}-customer",
    "customer_id": f"{_NAME}-customer",
    "end_user": f"{_NAME}-customer",
    "request_id": f"{_NAME}-request",
    "tag": f"{_NAME}-tag",
    "model": f"{_NAME}-model",
    "model_id": f"{_NAME}-model",
    "id": f"{_NAME}-request",
}

#: digits of what the other member spent: 87,654.3219 dollars
_SPENT = 87_654_321_900_000_000
SPENT = re.compile(rb"87[,.]?654|87\.?7 ?k")

ROLES = {
    "boss": "proxy_admin",
    "auditor": "proxy_admin_viewer",
    "ada": "internal_user",
    "eve": "internal_user_viewer",
}

MEMBERS = (Standing.INTERNAL_USER, Standing.INTERNAL_USER_VIEWER, Standing.KEY)


class World(ConsoleGateway):
    """A gateway with people of every role.

    Attributes:
        keys: the key of each role.
    """

    def __init__(self, *, others: bool) -> None:
        """Make it.

        Args:
            others: whether the other member exists, with keys, a team, requests and spend.
        """
        super().__init__(parts={"relying_party": lambda: None})
        for user_id, role in ROLES.items():
            self._do("/user/new", user_id=user_id, user_role=role, auto_create_key=False)
        self._do(
            "/team/new", team_id="blue", team_alias="blue", members_with_roles=[{"role": "user", "user_id": "ada"}]
        )
        made = {
            Standing.PROXY_ADMIN: self.make_key(user_id="boss", key_alias="of-boss"),
            Standing.MANAGER: self.make_key(allowed_routes=["management"], key_alias="of-manager"),
            Standing.PROXY_ADMIN_VIEWER: self.make_key(user_id="auditor", key_alias="of-auditor"),
            Standing.INTERNAL_USER: self.make_key(user_id="ada", key_alias="of-ada"),
            Standing.INTERNAL_USER_VIEWER: self.make_key(user_id="eve", key_alias="of-eve"),
            Standing.KEY: self.make_key(key_alias="of-nobody"),
        }
        self.keys = {Standing.MASTER: MASTER_KEY, **{role: each["key"] for role, each in made.items()}}
        self.make_key(user_id="ada", team_id="blue", key_alias="of-ada-in-blue")
        self.blocked = self.make_key(key_alias="to-be-blocked", user_id="ada")["key"]
        self.expired = self.make_key(key_alias="to-expire", user_id="ada", duration="1h")["key"]
        mine = {"key_id": id_of(self, made[Standing.INTERNAL_USER]), "user_id": "ada", "team_id": "blue"}
        keep(self, [row_at(number, "2026-02-28T10:00:00", **mine) for number in (1, 2)])
        if others:
            self._make_others()
        # what is made from now on is random in the same way, whether others exist or not
        self._random = 1_000_000

    def _do(self, path: str, **fields: object) -> Any:
        answer = self.post(path, fields)
        assert answer.status == 200, (path, answer.body)
        return answer.json

    def _make_others(self) -> None:
        at = FOREIGN
        self._do("/budget/new", budget_id=at["budget_id"], max_budget=99_999)
        self._do("/organization/new", organization_id=at["organization_id"], organization_alias=f"{_NAME}-alias")
        self._do(
            "/user/new",
            user_id=at["user_id"],
            user_email=f"{WORD}@{BESIDE}.example",
            auto_create_key=False,
            user_role="internal_user",
        )
        self._do(
            "/team/new",
            team_id=at["team_id"],
            team_alias=f"{_NAME}-alias",
            organization_id=at["organization_id"],
            members_with_roles=[{"role": "admin", "user_id": at["user_id"]}],
        )
        self._do("/customer/new", user_id=at["customer"], alias=f"{_NAME}-alias")
        made = self.make_key(
            key=KEY,
            key_alias=f"{_NAME}-key",
            user_id=at["user_id"],
            team_id=at["team_id"],
            metadata={"note": f"{_NAME}-note"},
        )
        for number in range(60):
            self.make_key(key_alias=f"{_NAME}-key-{number}", user_id=at["user_id"])
        fields = {
            "key_id": id_of(self, made),
            "key_name": f"{_NAME}-key",
            "user_id": at["user_id"],
            "team_id": at["team_id"],
            "model": at["model"],
            "end_user": at["customer"],
            "tags": (at["tag"],),
            "cost": _SPENT,
        }
        keep(self, [row_at(100, "2026-02-28T11:00:00", **{**fields, "request_id": at["request_id"]})])


@pytest.fixture(scope="module")
def walked() -> World:
    """A gateway that everybody may change."""
    return World(others=True)


@pytest.fixture(scope="module")
def world() -> World:
    """One of two gateways that are asked the same."""
    return World(others=True)


@pytest.fixture(scope="module")
def world_without() -> World:
    return World(others=False)


def name_of(page: Page) -> str:
    return f"{page.method} {page.path}"


def _filled(text: str, values: Mapping[str, str] = FOREIGN) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], text)


def address(page: Page, values: Mapping[str, str] = FOREIGN) -> str:
    """Return the path of a page, whose parameters are what belongs to the other member."""
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda found: values[found[1]], page.path)


def is_stream(page: Page) -> bool:
    """Return whether a page is a stream of events, which has no end."""
    return page.path.endswith("/events")


class Visitor:
    """A browser that asks for pages of what belongs to the other member."""

    def __init__(self, world: World, key: str | None = None) -> None:
        self._world = world
        self._browser = world.browser(key)
        self._proof = self._browser.proof() if key is not None else None

    def ask(self, page: Page, query: str = "") -> Answer:
        """Ask for a page, or send its form."""
        path = address(page) + (f"?{query}" if query else "")
        if page.method == "POST":
            return self._browser.post(path, form_of(page), self._proof)
        return self._first_message(path) if is_stream(page) else self._browser.get(path)

    def ask_as_script(self, page: Page) -> Answer:
        """Ask for a page as a script does."""
        return self._browser.get(address(page), accept="application/json")

    def _first_message(self, path: str) -> Answer:
        """Return what a stream sends first."""
        world = self._world
        world.forget_cookies()
        cookie = "; ".join(f"{name}={value}" for name, value in self._browser.cookies.items())
        headers = {"accept": "text/event-stream", "cookie": cookie}
        response = value_of(world.ask("GET", path, key=None, headers=headers))
        read: list[bytes] = []
        treq.collect(response, read.append)
        found = {name.decode().lower(): values[-1].decode() for name, values in response.headers.getAllRawHeaders()}
        return Answer(response.code, found, b"".join(read), 0)


def form_of(page: Page) -> dict[str, str]:
    """Return what a form of a page is sent with: by default, with the id of what belongs to the other member."""
    [id_of_noun] = [value for noun, value in IDS.items() if page.path.startswith(f"/ui/{noun}/")] or [""]
    given = FORMS.get(name_of(page), {"id": id_of_noun} if id_of_noun else {})
    return {name: _filled(value) for name, value in given.items()}


def meaning() -> dict[str, str]:
    """Return the word of each address in `TABLE`."""
    return {address: word for word, addresses in TABLE.items() for address in re.findall(r"[A-Z]+ \S+", addresses)}


def allowed(word: str, standing: Standing) -> bool:
    return word in ("open", "session") or EXTENTS[Access(word.replace("_", " "))][standing] is not Extent.NONE


def is_refused(answer: Answer) -> bool:
    return answer.status == 403 and b"may not see this page" in answer.body


def test_every_address_has_a_row_that_says_what_its_page_needs() -> None:
    access = {f"{route.method} {route.path}": route.access for route in ROUTES}
    found = {}
    for page in PAGES:
        needed = access[page.needs].value.replace(" ", "_") if page.needs else "open" if page.open else "session"
        found[name_of(page)] = needed
    assert found == meaning()


# One test of many pages: each test ends with a collection, which takes longer than ten pages.
@pytest.mark.parametrize("standing", Standing, ids=lambda standing: standing.value)
def test_each_role_gets_what_the_table_says(walked: World, standing: Standing) -> None:
    rows = meaning()
    for page in PAGES:
        word = rows.get(name_of(page), "open")
        # signing out ends a session
        visitor = Visitor(walked, walked.keys[standing])
        answer = visitor.ask(page)
        assert is_refused(answer) == (not allowed(word, standing)), (name_of(page), answer.status)
        assert answer.status < 500, (name_of(page), words(answer))


def test_who_has_no_session_must_sign_in(walked: World) -> None:
    visitor = Visitor(walked)
    for page in PAGES:
        if page.open:
            continue
        if not is_stream(page):
            answer = visitor.ask(page)
            assert answer.status == 303, name_of(page)
            assert answer.headers["location"].startswith("/ui/sign-in?next=%2Fui")
        if page.method == "GET":
            assert visitor.ask_as_script(page).status == 401, name_of(page)


@pytest.mark.parametrize("how", ["blocked", "expired"])
def test_the_session_of_a_key_ends_with_it_on_every_page(how: str) -> None:
    world = World(others=False)
    browser = world.browser(getattr(world, how))
    if how == "blocked":
        world.post("/key/block", {"key": world.blocked})
    else:
        # the session itself is younger than its idle time
        world.clock.advance(3_601 - 1_000)
        browser = world.browser(world.expired)
        world.clock.advance(1_000)
    cookies = dict(browser.cookies)
    for page in PAGES:
        if page.open:
            continue
        browser.cookies = dict(cookies)
        answer = browser.post(address(page), proof="x" * 32) if page.method == "POST" else browser.get(address(page))
        assert (answer.status, browser.cookies) == (303, {}), name_of(page)
        assert f"reason={how}_api_key" in answer.headers["location"]


def _variants(page: Page, standing: Standing) -> Iterator[str]:
    yield ""
    if is_stream(page):
        # so many streams a session may have
        yield from map(_filled, ("search={word}", "user_id={user_id}", "key={key}", "model={model}"))
    elif page.method == "GET":
        # others than users see by the same rules, and less
        step = 1 if standing is Standing.INTERNAL_USER else 3
        yield from map(_filled, (*TRIED[::step], *QUERIES.get(name_of(page), ())))


def _said(answer: Answer) -> tuple[int, str, bytes]:
    """Return what an answer says, without what differs between sessions."""
    body = re.sub(
        rb'(name="anti[_-]forgery" (?:value|content)=")\w+|(x-anti-forgery&?#?\w*;?[": ]+)\w+', rb"\1\2", answer.body
    )
    # tickets, and new keys
    body = re.sub(rb"sk-[\w-]{20,}", b"", body)
    return answer.status, answer.headers.get("location", ""), body


@pytest.mark.parametrize("standing", MEMBERS, ids=lambda standing: standing.value)
def test_a_member_cannot_tell_whether_another_exists(world: World, world_without: World, standing: Standing) -> None:
    for page in PAGES:
        visitors = [Visitor(each, each.keys[standing]) for each in (world, world_without)]
        for query in _variants(page, standing):
            found, without = (each.ask(page, query) for each in visitors)
            where = name_of(page), query
            assert _said(found) == _said(without), where
            # nor is a name there that was not sent
            sent = _filled(query + str(form_of(page)) + address(page))
            for secret in (BESIDE, *FOREIGN.values()):
                assert secret in sent or secret.encode() not in found.body, (*where, secret)
            assert SPENT.search(found.body) is None, where
            if is_refused(found):
                # whatever it is asked
                break


def test_the_walk_would_notice_a_leak(world: World, world_without: World) -> None:
    """An administrator sees the other member, and so the comparison finds it."""
    answers = [each.get("/key/list?return_full_object=true") for each in (world, world_without)]
    assert BESIDE.encode() in answers[0].body
    assert _said(answers[0]) != _said(answers[1])
    spent = world.get("/spend/logs").body + world.get("/global/spend").body
    assert SPENT.search(spent) is not None
