"""Which pages there are pictures of, and how each is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote

import attrs
import msgspec
from playwright.sync_api import Browser, Page, StorageState

from benchmarks.console.pictures.household import MEMBERS_KEY, SHOWN_KEY, Household
from benchmarks.console.pictures.montage import VIEWS, View
from benchmarks.console.windows import FIRST_PAGE, SIGN_IN
from benchmarks.dashboards.world import administer
from benchmarks.peers import RunningGateway

#: milliseconds that a page has to fill itself: two turns of what updates itself
_SETTLE = 4_500.0
_PATIENCE = 30_000.0
_PROMPT = "What should I see in Paris in two days?"


def _ask_model(page: Page) -> None:
    page.get_by_label("Most tokens").fill("60")
    page.get_by_label("Your message").fill(_PROMPT)
    page.get_by_role("button", name="Send").click()
    page.wait_for_timeout(_SETTLE)


def _ask_tester(page: Page) -> None:
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_load_state()


@attrs.frozen
class Shot:
    """A page of which there is a picture.

    Attributes:
        name: of the file.
        path: its address, with the places of `Places`.
        prepare: what is done on the page first.
        key: the alias of the key that signs in; None is the administrator, "" nobody.
    """

    name: str
    path: str
    prepare: Callable[[Page], None] | None = None
    key: str | None = None


SHOTS = (
    Shot("sign-in", SIGN_IN, key=""),
    Shot("overview", "/ui"),
    Shot("live", "/ui/live"),
    Shot("servers", "/ui/servers"),
    Shot("server", "/ui/servers/detail?server={server}"),
    Shot("usage", "/ui/usage"),
    Shot("requests", "/ui/requests"),
    Shot("request", "/ui/requests/{request}"),
    Shot("keys", "/ui/keys"),
    Shot("key", "/ui/keys/detail?id={token}"),
    Shot("new-key", "/ui/keys/new"),
    Shot("users", "/ui/users"),
    Shot("teams", "/ui/teams"),
    Shot("team", "/ui/teams/detail?id=physics"),
    Shot("organizations", "/ui/organizations"),
    Shot("customers", "/ui/customers"),
    Shot("budgets", "/ui/budgets"),
    Shot("tester", "/ui/tester?key={token}&model={model}", _ask_tester),
    Shot("models", "/ui/models"),
    Shot("model-list", "/ui/config/models"),
    Shot("configuration", "/ui/config"),
    Shot("audit", "/ui/audit"),
    Shot("playground", "/ui/playground", _ask_model),
    Shot("connect", "/ui/connect"),
    Shot("member", "/ui", key=MEMBERS_KEY),
)


@attrs.frozen
class Places:
    """What the addresses of pages need.

    Attributes:
        server: a server's name.
        model: its model.
        token: the hash of a key.
        request: the id of a request.
    """

    server: str
    model: str
    token: str
    request: str

    def address(self, shot: Shot) -> str:
        """Return the address of a page."""
        places = {name: quote(value, safe="") for name, value in attrs.asdict(self).items()}
        return shot.path.format(**places)


def find_places(gateway: RunningGateway, household: Household, server: str, model: str) -> Places:
    """Return what is shown: of the requests, a stream of the shown key that took long.

    Raises:
        CannotStart: the gateway does not tell.
    """
    token = household.tokens[SHOWN_KEY]
    path = f"/spend/logs/v2?api_key={token}&model={quote(model, safe='')}&status_filter=success&page_size=100"
    rows = msgspec.json.decode(administer(gateway, "GET", path))["data"]
    row = max(rows, key=lambda row: row["completion_tokens"] or 0)
    return Places(server, model, token, str(row["request_id"]))


class Photographer:
    """Signs in to a gateway's console, and takes pictures.

    Args:
        browser: the browser.
        gateway: the gateway.
        keys: the keys that may sign in, by their aliases.
    """

    def __init__(self, browser: Browser, gateway: RunningGateway, keys: Mapping[str, str]) -> None:
        self._browser = browser
        self._url = f"http://127.0.0.1:{gateway.port}"
        self._master_key = gateway.master_key
        self._keys = keys
        self._states: dict[str | None, StorageState] = {}

    def take(self, shot: Shot, address: str) -> dict[View, bytes]:
        """Return screenshots in PNG of all views."""
        shots = {}
        for view in VIEWS:
            with self._window(view, shot.key) as page:
                page.goto(self._url + address)
                page.wait_for_timeout(_SETTLE)
                if shot.prepare is not None:
                    shot.prepare(page)
                shots[view] = page.screenshot()
        return shots

    @contextmanager
    def _window(self, view: View, key: str | None) -> Iterator[Page]:
        context = self._browser.new_context(
            viewport={"width": view.width, "height": view.height},
            color_scheme="dark" if view.scheme == "dark" else "light",
            storage_state=self._signed_in(key),
        )
        context.set_default_timeout(_PATIENCE)
        try:
            yield context.new_page()
        finally:
            context.close()

    def _signed_in(self, key: str | None) -> StorageState | None:
        if key == "":
            return None
        if key not in self._states:
            context = self._browser.new_context()
            page = context.new_page()
            page.goto(self._url + SIGN_IN)
            page.get_by_label("Your key").fill(self._master_key if key is None else self._keys[key])
            page.get_by_role("button", name="Sign in", exact=True).click()
            page.wait_for_url(self._url + FIRST_PAGE)
            self._states[key] = context.storage_state()
            context.close()
        return self._states[key]
