"""Signing in to the console at an OpenID provider: sessions of people, what they may do, and their end."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import attrs
import pytest

from tests.admin.admin_harness import MASTER_KEY, Answer
from tests.admin.web.web_harness import Browser, ConsoleGateway, words
from tests.identification.issuer import ISSUER
from tests.identification.oidc.provider import MemoryProvider
from tests.identification.oidc.test_relying_party import SETTINGS
from twisted_vllm.admin.responses import send_json
from twisted_vllm.admin.web.all_pages import PAGES
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.auth.oidc.attempt import Attempts
from twisted_vllm.auth.oidc.provider import discovery_url
from twisted_vllm.auth.sessions import SessionSealer, provider_mark
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.config.console import ConsoleSettings
from twisted_vllm.config.oidc import OidcClaims
from twisted_vllm.config.secret import Secret
from twisted_vllm.identification.caller_lookup import CallerLookup
from twisted_vllm.identification.directory import Directory
from twisted_vllm.identification.identifier import Identifier
from twisted_vllm.identification.inquiry import Inquiry
from twisted_vllm.identification.key_sets import KeySets, fetch
from twisted_vllm.identification.oidc.document import ProviderDocument
from twisted_vllm.identification.oidc.relying_party import RelyingParty
from twisted_vllm.identification.oidc.requests import ProviderRequests

UPSERT = attrs.evolve(SETTINGS, claims=attrs.evolve(SETTINGS.claims, user_id_upsert=True))


class OidcGateway(ConsoleGateway):
    """A gateway whose people sign in at a provider in memory."""

    def __init__(self, oidc: Any = UPSERT, **console: Any) -> None:
        self.party: RelyingParty | None = None
        self.identifier: Identifier
        super().__init__(
            settings=ConsoleSettings(oidc=oidc, **console),
            provider=provider_mark(oidc),
            parts={"relying_party": lambda: self.party},
            before_session_ends=lambda *given: self.identifier.before_session_ends(*given),
        )
        self.provider = MemoryProvider(self)
        lookup = CallerLookup(self.callers, Directory(self.registry, self.seconds))
        self.identifier = Identifier(Inquiry(self.registry.catch_up, self.clock), lookup=lookup)
        get = partial(fetch, self.provider.agent)
        self.party = RelyingParty(
            oidc,
            Attempts(Secret(MASTER_KEY), os.urandom),
            ProviderDocument(ISSUER, get, self.clock),
            KeySets([discovery_url(ISSUER)], 600, 3_600, get, self.clock, lambda: None),
            ProviderRequests(self.provider.agent, self.clock),
            lookup,
            AuthenticationThrottle(None),
            self.seconds,
            provider_mark(oidc),
        )

    def seconds(self) -> float:
        """The time in Unix seconds."""
        return self.now().timestamp()

    def perform(self, browser: Browser, route: str, body: dict[str, Any], proof: str | None = None) -> Answer:
        """Have a page call an operation of the admin API, as those of keys and teams do."""
        form = {"route": route, "body": json.dumps(body)}
        return browser.post("/ui/perform", form, proof, accept="application/json")

    def person(self, page: str = "/ui", **claims: Any) -> Browser:
        """Return a browser in which somebody signed in at the provider."""
        browser = self.browser()
        answer = sign_in(browser, self.provider, page, **claims)
        assert answer.status == 200, answer.body
        return browser


def begin(browser: Browser, page: str = "/ui") -> str:
    """Begin a sign-in; return the provider's URL to which the browser is led."""
    answer = browser.get(f"/ui/oidc/sign-in?next={page}")
    assert answer.status == 303, answer.body
    return answer.headers["location"]


def come_back(browser: Browser, fields: dict[str, list[str]]) -> Answer:
    """Let the browser come back from the provider."""
    return browser.get(f"/ui/oidc/callback?{urlencode(fields, doseq=True)}", sec_fetch_site="cross-site")


def sign_in(browser: Browser, provider: MemoryProvider, page: str = "/ui", **claims: Any) -> Answer:
    """Sign somebody in; return the page that follows."""
    return come_back(browser, provider.sign_in(begin(browser, page), **claims))


performing = Pages()


@performing.post("/ui/perform")
async def perform(call: PageCall) -> bytes:
    form = await call.form()
    [route], [body] = form["route"], form["body"]
    return send_json(call.request, await call.post(route, json.loads(body)))


@pytest.fixture(autouse=True)
def _with_a_page_that_performs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twisted_vllm.admin.web.load.PAGES", (*PAGES, *performing))


@pytest.fixture
def gateway() -> OidcGateway:
    return OidcGateway()


def test_the_form_has_a_way_to_the_provider_and_the_page_that_was_wanted(gateway: OidcGateway) -> None:
    page = gateway.browser().get("/ui/sign-in?next=/ui/keys%3Fpage=2")
    assert "Sign in with Example" in words(page)
    assert b'href="/ui/oidc/sign-in?next=/ui/keys%3Fpage%3D2"' in page.body


def test_where_no_session_can_be_sealed_nobody_is_sent_to_the_provider(gateway: OidcGateway) -> None:
    gateway.sealer = SessionSealer(None, os.urandom)
    browser = gateway.browser()
    assert "Sign in with Example" not in words(browser.get("/ui/sign-in"))
    page = browser.get("/ui/oidc/sign-in")
    assert page.status == 400
    assert "Nobody can sign in here" in words(page)


def test_a_gateway_without_a_provider_has_no_such_way() -> None:
    gateway = ConsoleGateway()
    assert "Sign in with" not in words(gateway.browser().get("/ui/sign-in"))
    assert gateway.browser().get("/ui/oidc/sign-in").status == 404
    assert gateway.browser().get("/ui/oidc/callback?code=x&state=y").status == 404


def test_somebody_signs_in_and_is_led_to_the_page_that_was_wanted(gateway: OidcGateway) -> None:
    browser = gateway.browser()
    page = sign_in(browser, gateway.provider, "/ui/keys%3Fpage=2", email="ada@example.com")
    assert page.headers["referrer-policy"] == "no-referrer"
    assert b'<meta http-equiv="refresh" content="0; url=/ui/keys?page=2">' in page.body
    assert "You are ada@example.com." in words(page)
    assert "ada@example.com" in words(browser.get("/ui"))


def test_the_provider_is_asked_with_the_address_that_the_browser_sees(gateway: OidcGateway) -> None:
    gateway.origin, gateway.prefix = "https://gateway.example.com", "/team-a"
    asked = parse_qs(urlsplit(begin(gateway.browser())).query)
    assert asked["redirect_uri"] == ["https://gateway.example.com/team-a/ui/oidc/callback"]


def test_an_address_of_the_settings_wins_and_the_browser_goes_there_first() -> None:
    gateway = OidcGateway(url="https://gateway.example.com")
    browser = gateway.browser()
    moved = begin(browser, "/ui/keys")
    assert moved == "https://gateway.example.com/ui/oidc/sign-in?next=%2Fui%2Fkeys&moved=1"
    assert browser.cookies == {}
    # behind a proxy that is not trusted it seems never to be there: one move is enough
    asked = parse_qs(urlsplit(browser.get("/ui/oidc/sign-in?moved=1").headers["location"]).query)
    assert asked["redirect_uri"] == ["https://gateway.example.com/ui/oidc/callback"]
    gateway.origin = "https://gateway.example.com"
    assert begin(browser).startswith(f"{ISSUER}/auth?")


def test_the_cookies_are_what_each_needs_to_be(gateway: OidcGateway) -> None:
    gateway.origin = "https://gateway.example.com"
    browser = gateway.browser()
    url = begin(browser)
    [attempt] = browser.set_cookies
    assert attempt.startswith("__Secure-vllm_console_attempt=v1.")
    for part in ("Path=/ui/oidc", "HttpOnly", "Secure", "SameSite=lax", "Max-Age=600"):
        assert part in attempt
    come_back(browser, gateway.provider.sign_in(url))
    forgotten, session, person = sorted(browser.set_cookies, key=lambda line: line.split("=")[0])
    assert forgotten.startswith("__Secure-vllm_console=") or "Max-Age=0" in forgotten + session
    for line in browser.set_cookies:
        assert "HttpOnly" in line and "Secure" in line
        if "vllm_console_attempt" not in line:
            assert "SameSite=strict" in line
    assert "Path=/ui/oidc" in person
    assert all(len(line) < 4_096 for line in browser.set_cookies)
    assert gateway.provider.posted[0]["code"] not in str(browser.set_cookies)


@pytest.mark.parametrize(
    "page", ["https://evil.example.com/", "//evil.example.com", "/vllm/v1/models", "/ui/../key/list"]
)
def test_nobody_is_led_to_another_site(gateway: OidcGateway, page: str) -> None:
    shown = sign_in(gateway.browser(), gateway.provider, page)
    assert b'content="0; url=/ui">' in shown.body


def test_an_answer_counts_once_and_in_the_browser_that_asked(gateway: OidcGateway) -> None:
    browser, other = gateway.browser(), gateway.browser()
    fields = gateway.provider.sign_in(begin(browser))
    refused = come_back(other, fields)
    assert (refused.status, refused.headers["x-vllm-passthrough-error"]) == (403, "sign_in_failed")
    assert other.cookies == {}
    assert come_back(browser, fields).status == 200
    again = come_back(browser, fields)
    assert again.status == 403
    assert "was finished already" in words(again)


def test_a_failed_sign_in_leaves_the_session_as_it_was(gateway: OidcGateway) -> None:
    browser = gateway.person()
    assert come_back(browser, {"error": ["access_denied"], "state": ["x"]}).status == 403
    assert browser.get("/ui").status == 200


def test_who_declined_is_told_so_and_may_try_again_as_another(gateway: OidcGateway) -> None:
    browser = gateway.browser()
    fields = gateway.provider.sign_in(begin(browser))
    page = come_back(browser, {"error": ["access_denied"], "state": fields["state"], "iss": [ISSUER]})
    assert "Example did not let you in, or you declined there." in words(page)
    assert "Sign in with another account" in words(page)
    assert "prompt=login" in browser.get("/ui/oidc/sign-in?anew=1&next=/ui").headers["location"]


def test_text_of_strangers_stays_text(gateway: OidcGateway) -> None:
    browser = gateway.browser()
    page = sign_in(browser, gateway.provider, email="<script>alert(1)</script>@x")
    assert b"<script>alert" not in page.body
    assert b"<script>alert" not in browser.get("/ui").body
    for query in ('error=<script>&state="><script>', "code=%22%3E%3Cscript%3E", "a=%ff", "%00=1"):
        assert b"<script>al" not in browser.get(f"/ui/oidc/callback?{query}").body


def test_a_member_does_what_its_user_may_do(gateway: OidcGateway) -> None:
    browser = gateway.person()
    # as a key of this user by the API
    made = gateway.perform(browser, "/key/generate", {"key_alias": "mine"}).json
    assert made["user_id"] == "ada"
    assert made["expires"] is None
    # it does not end with the session
    assert gateway.perform(browser, "/team/new", {"team_alias": "x"}).error["code"] == "route_not_allowed"


def test_the_audit_log_names_the_person(gateway: OidcGateway) -> None:
    browser = gateway.person(email="ada@example.com")
    gateway.perform(browser, "/key/generate", {"key_alias": "mine"})
    entries = gateway.get("/audit/list").json["audit_logs"]
    assert [(each["action"], each["actor_name"]) for each in entries][:2] == [
        ("key/generate", "ada@example.com"),
        ("user/upsert", "ada@example.com"),
    ]


def test_a_role_of_the_provider_administers(gateway: OidcGateway) -> None:
    browser = gateway.person(groups=["admins"])
    assert gateway.perform(browser, "/team/new", {"team_alias": "x"}).json["team_alias"] == "x"


def test_a_role_that_changes_in_the_gateway_counts_at_once(gateway: OidcGateway) -> None:
    browser = gateway.person()
    assert gateway.perform(browser, "/team/new", {"team_alias": "x"}).error["code"] == "route_not_allowed"
    gateway.post("/user/update", {"user_id": "ada", "user_role": "proxy_admin"})
    assert gateway.perform(browser, "/team/new", {"team_alias": "x"}).json["team_alias"] == "x"
    gateway.post("/user/update", {"user_id": "ada", "user_role": "internal_user"})
    assert gateway.perform(browser, "/team/new", {"team_alias": "y"}).error["code"] == "route_not_allowed"


def test_the_session_of_a_deleted_user_is_over(gateway: OidcGateway) -> None:
    browser = gateway.person()
    proof = browser.proof()
    gateway.post("/user/delete", {"user_ids": ["ada"]})
    assert gateway.perform(browser, "/key/generate", {"key_alias": "x"}, proof).error["code"] == "token_not_allowed"
    browser = gateway.person()
    gateway.post("/user/delete", {"user_ids": ["ada"]})
    answer = browser.get("/ui")
    assert answer.headers["location"].endswith("reason=token_not_allowed")
    assert "your user or team is not known here any more" in words(browser.get(answer.headers["location"]))
    assert "vllm_console" not in browser.cookies


def test_the_session_of_somebody_whose_team_is_blocked_is_over(gateway: OidcGateway) -> None:
    gateway.post("/team/new", {"team_id": "physics", "team_alias": "Physics"})
    browser = gateway.person(groups=["physics"])
    assert browser.get("/ui").status == 200
    gateway.post("/team/block", {"team_id": "physics"})
    answer = browser.get("/ui")
    assert answer.headers["location"].endswith("reason=blocked_api_key")
    assert "was blocked" in words(browser.get(answer.headers["location"]))


def test_who_is_not_known_is_refused_with_words() -> None:
    gateway = OidcGateway(SETTINGS)
    page = sign_in(gateway.browser(), gateway.provider)
    assert page.status == 403
    assert "The user of this account, 'ada', is not known here. Ask an administrator" in words(page)


def test_sessions_end_when_the_settings_of_the_provider_change(gateway: OidcGateway) -> None:
    browser = gateway.person()
    changed = OidcGateway(attrs.evolve(UPSERT, claims=OidcClaims()))
    copy = changed.browser()
    copy.cookies = dict(browser.cookies)
    assert copy.get("/ui").headers["location"].endswith("reason=invalid_api_key")


def test_other_processes_know_the_session_without_being_told(gateway: OidcGateway) -> None:
    """Another worker or gateway on the same database has never seen the person: it looks."""
    browser = gateway.person()
    gateway.callers.forget()
    assert browser.get("/ui").status == 200


def test_a_database_that_does_not_answer_ends_no_session(gateway: OidcGateway) -> None:
    browser = gateway.person()
    gateway.callers.forget()
    gateway.identifier = Identifier(Inquiry(gateway.registry.catch_up, gateway.clock))
    page = browser.get("/ui")
    assert page.status == 503
    assert "vllm_console" in browser.cookies
    assert "could not be looked up now" in words(page)


def test_a_provider_that_is_down_leaves_the_other_way(gateway: OidcGateway) -> None:
    gateway.provider.status = 503
    browser = gateway.browser()
    page = browser.get("/ui/oidc/sign-in")
    assert page.status == 503
    assert "does not answer" in words(page)
    assert browser.post("/ui/sign-in", {"key": MASTER_KEY}).status == 303


def test_somebody_signs_out_here_and_at_the_provider(gateway: OidcGateway) -> None:
    browser = gateway.person()
    copy = dict(browser.cookies)
    answer = browser.post("/ui/sign-out")
    assert (answer.status, answer.headers["location"]) == (303, "/ui/oidc/sign-out")
    page = browser.get("/ui/oidc/sign-out")
    assert f'content="0; url={ISSUER}/logout?client_id=gateway'.encode() in page.body
    assert b"id_token_hint=eyJ" in page.body
    assert b"post_logout_redirect_uri=http%3A%2F%2Fgateway%3A4000%2Fui%2Foidc%2Fsigned-out" in page.body
    assert browser.cookies == {}
    back = browser.get("/ui/oidc/signed-out")
    assert "You have signed out." in words(browser.get(back.headers["location"]))
    browser.cookies = copy
    assert browser.get("/ui").status == 303


def test_the_longest_names_fit_in_a_cookie(gateway: OidcGateway) -> None:
    teams = [f"{number:03}{'x' * 97}" for number in range(20)]
    for team_id in teams:
        gateway.post("/team/new", {"team_id": team_id})
    browser = gateway.person(sub="u" * 255, email="e" * 256, groups=teams, realm="x" * 800)
    assert len(browser.set_cookies) == 3
    # browsers take 4,096 bytes of name and value
    assert all(len(line.partition(";")[0]) <= 4_096 for line in browser.set_cookies)
    assert browser.get("/ui").status == 200


def test_another_site_signs_nobody_out(gateway: OidcGateway) -> None:
    """The page that leads to the provider ends no session here."""
    browser = gateway.person()
    browser.get("/ui/oidc/sign-out", sec_fetch_site="cross-site")
    assert browser.get("/ui").status == 200


def test_a_key_signs_out_without_the_provider(gateway: OidcGateway) -> None:
    browser = gateway.browser(MASTER_KEY)
    assert browser.post("/ui/sign-out").headers["location"] == "/ui/sign-in?reason=signed_out"


def test_a_ticket_acts_as_the_person(gateway: OidcGateway) -> None:
    browser = gateway.person()
    ticket = browser.post("/ui/ticket", accept="application/json").json["ticket"]
    assert ticket.startswith("sk-ticket-")
    assert gateway.get("/key/list", key=ticket).status == 401
