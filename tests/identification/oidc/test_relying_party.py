"""People are signed in by what the provider answers to this gateway, for this browser, now, and by nothing else."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.identification.issuer import ISSUER, SigningKey
from tests.identification.oidc.provider import CALLBACK, CLIENT, SECRET, MemoryProvider
from tests.identification.test_verifier import people
from twisted_vllm.auth.grants import Changes, TeamGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.named_callers import NamedCallers
from twisted_vllm.auth.oidc.attempt import Attempts
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.config.oidc import OidcClaims, OidcSettings
from twisted_vllm.config.secret import Secret
from twisted_vllm.errors import (
    BlockedApiKey,
    GatewayError,
    IssuerUnavailable,
    SignInFailed,
    TokenNotAllowed,
    TooManyFailures,
)
from twisted_vllm.identification.caller_lookup import CallerLookup
from twisted_vllm.identification.key_sets import FETCH_INTERVAL, KeySets, fetch
from twisted_vllm.identification.oidc.document import FRESH_SECONDS, STALE_SECONDS, ProviderDocument
from twisted_vllm.identification.oidc.relying_party import LONGEST_TEAMS, MOST_OF_ADDRESS, RelyingParty, SignedIn
from twisted_vllm.identification.oidc.requests import ANSWER_SECONDS, LARGEST_ANSWER, ProviderRequests

ADDRESS = "192.0.2.1"
SETTINGS = OidcSettings(
    issuer=ISSUER,
    client_id=CLIENT,
    client_secret=Secret(SECRET),
    name="Example",
    claims=OidcClaims(
        team_ids_jwt_field="groups", roles_jwt_field="groups", role_mappings=(("admins", "proxy_admin"),)
    ),
)


class Silent:
    """An agent whose server never answers."""

    def request(self, *_: Any) -> Deferred[Any]:
        return Deferred()


class Signing:
    """A relying party with a provider in memory."""

    def __init__(self, settings: OidcSettings = SETTINGS, limit: int | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.provider = MemoryProvider(self.clock)
        self.index = KeyIndex()
        self.people = people()
        self.callers = NamedCallers(self.index)
        self.agent: Any = self.provider.agent
        self.settings = settings
        self.throttle = AuthenticationThrottle(limit)
        self.party = self.make(settings)

    def make(self, settings: OidcSettings, secret: str = "sk-master") -> RelyingParty:
        """Return a relying party as another process, or one after a reload, has it."""
        assert settings.issuer is not None
        get = partial(fetch, self.agent)
        return RelyingParty(
            settings,
            Attempts(Secret(secret), os.urandom),
            ProviderDocument(settings.issuer, get, self.clock),
            KeySets([f"{ISSUER}/.well-known/openid-configuration"], 600, 3_600, get, self.clock, lambda: None),
            ProviderRequests(self.agent, self.clock),
            CallerLookup(self.callers, self.people),
            self.throttle,
            self.clock.seconds,
        )

    def begin(self, page: str = "/ui/keys") -> Any:
        return result(self.party.begin(CALLBACK, page))

    def finish(self, query: Any, sealed: str, address: str = ADDRESS) -> SignedIn:
        found: SignedIn = result(self.party.finish(query, sealed, address))
        return found

    def sign_in(self, **claims: Any) -> SignedIn:
        """Sign somebody in from the beginning to the end."""
        begun = self.begin()
        return self.finish(self.provider.sign_in(begun.url, **claims), begun.sealed)


def result(waiting: Deferred[Any]) -> Any:
    """Return the result of a Deferred that has fired, or raise its error."""
    found: list[Any] = []
    waiting.addBoth(found.append)
    assert found, "it waits still"
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


@pytest.fixture
def signing() -> Signing:
    return Signing()


@pytest.fixture
def lines() -> Any:
    """The lines of the log so far."""
    written: list[str] = []

    @implementer(ILogObserver)
    def write(event: Any) -> None:
        written.append(formatEvent(event))

    globalLogPublisher.addObserver(write)
    yield written
    globalLogPublisher.removeObserver(write)


def test_somebody_signs_in_and_is_who_the_claims_say(signing: Signing) -> None:
    found = signing.sign_in(email="ada@example.com", groups=["unknown", "physics"])
    assert (found.caller.user_id, found.caller.name, found.caller.administers) == ("ada", "ada@example.com", False)
    # teams that are not known here would only fill the cookie
    assert found.caller.team_ids == ("physics",)
    assert found.page == "/ui/keys"
    assert len(found.caller.key_id) == 32
    assert found.sealed and found.sealed not in repr(found)


def test_a_role_of_the_provider_makes_an_administrator(signing: Signing) -> None:
    assert signing.sign_in(groups=["admins"]).caller.administers


def test_the_caller_is_that_of_a_token_of_the_same_person(signing: Signing) -> None:
    """What the ledger and the limits know of somebody is the same, whichever way one came."""
    from twisted_vllm.auth.token_claims import caller_of
    from twisted_vllm.config.jwt import JwtClaims

    assert signing.sign_in().caller.key_id == caller_of({"iss": ISSUER, "sub": "ada"}, JwtClaims()).key_id


@pytest.mark.parametrize(
    ("methods", "settings"),
    [
        (["client_secret_basic"], SETTINGS),
        (["client_secret_post"], SETTINGS),
        (["none"], attrs.evolve(SETTINGS, client_secret=None)),
    ],
)
def test_the_client_proves_itself_as_the_provider_takes_it(methods: list[str], settings: OidcSettings) -> None:
    signing = Signing(settings)
    signing.provider.document["token_endpoint_auth_methods_supported"] = methods
    signing.provider.secret = None if settings.client_secret is None else SECRET
    assert signing.sign_in().caller.user_id == "ada"
    [form] = signing.provider.posted
    assert ("client_secret" in form) == (methods == ["client_secret_post"])


def test_any_process_with_the_same_secret_finishes_a_sign_in(signing: Signing) -> None:
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    signing.party = signing.make(SETTINGS)
    assert signing.finish(query, begun.sealed).caller.user_id == "ada"


@pytest.mark.parametrize("sealed", ["", "v1.abc", "nothing"])
def test_an_answer_without_the_attempt_of_this_browser_is_refused(signing: Signing, sealed: str) -> None:
    """Whoever stole an answer, or wants somebody to be signed in as another (fixation), has no such cookie."""
    query = signing.provider.sign_in(signing.begin().url)
    with pytest.raises(SignInFailed, match="another browser"):
        signing.finish(query, sealed)
    assert "/token" not in signing.provider.requests


def test_an_answer_to_the_attempt_of_another_browser_is_refused(signing: Signing) -> None:
    mine, others = signing.begin(), signing.begin()
    with pytest.raises(SignInFailed, match="belongs to another sign-in"):
        signing.finish(signing.provider.sign_in(others.url), mine.sealed)
    assert "/token" not in signing.provider.requests


def test_an_attempt_of_another_gateway_is_refused(signing: Signing) -> None:
    begun = result(signing.make(SETTINGS, "sk-other").begin(CALLBACK, "/ui"))
    with pytest.raises(SignInFailed, match="another browser"):
        signing.finish(signing.provider.sign_in(begun.url), begun.sealed)


def test_an_answer_that_comes_too_late_is_refused(signing: Signing) -> None:
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    signing.clock.advance(600)
    with pytest.raises(SignInFailed, match="longer than ten minutes"):
        signing.finish(query, begun.sealed)


def test_an_answer_counts_once(signing: Signing) -> None:
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    signing.finish(query, begun.sealed)
    with pytest.raises(SignInFailed, match="loaded twice"):
        signing.finish(query, begun.sealed)


def test_a_code_of_another_attempt_does_not_pass_pkce(signing: Signing) -> None:
    """A code that was injected into the answer of this browser."""
    mine, others = signing.begin(), signing.begin()
    query = signing.provider.sign_in(mine.url) | {"code": signing.provider.sign_in(others.url)["code"]}
    with pytest.raises(SignInFailed, match="Sign in again"):
        signing.finish(query, mine.sealed)


def test_an_answer_of_another_provider_is_not_exchanged_here(signing: Signing) -> None:
    """The mix-up attack: its code would be sent to the wrong provider."""
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url) | {"iss": ["https://evil.example.com"]}
    with pytest.raises(SignInFailed, match="not of Example"):
        signing.finish(query, begun.sealed)
    assert "/token" not in signing.provider.requests


@pytest.mark.parametrize("changed", [{"issuer": "https://other.example.com"}, {"client_id": "other"}])
def test_an_attempt_ends_when_the_provider_of_the_settings_changes(signing: Signing, changed: dict[str, Any]) -> None:
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    signing.party = signing.make(attrs.evolve(SETTINGS, **changed))
    with pytest.raises(SignInFailed, match="settings of the gateway changed"):
        signing.finish(query, begun.sealed)


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"nonce": "other"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"aud": "other"}, "made for another program"),
        ({"iss": "https://evil.example.com"}, "issuer"),
        ({"azp": "other"}, "azp"),
        ({"aud": [CLIENT, "other"]}, "azp"),
        ({"exp": 1_799_999_000}, "expired"),
        ({"exp": None}, "never expires"),
        ({"iat": 1_800_001_000}, "not valid yet"),
        ({"at_hash": "other"}, "at_hash"),
        ({"sub": ""}, "subject"),
    ],
)
def test_an_id_token_that_is_not_valid_signs_nobody_in(
    signing: Signing, lines: list[str], claims: dict[str, Any], says: str
) -> None:
    with pytest.raises(SignInFailed, match=r"The answer of Example is not valid\. Tell an administrator"):
        signing.sign_in(**claims)
    assert any("Nobody was signed in at https://login.example.com" in line and says in line for line in lines)


def test_an_id_token_that_another_key_signed_signs_nobody_in(signing: Signing) -> None:
    forged = SigningKey(alg="EdDSA")
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    nonce = begun.url.partition("nonce=")[2].partition("&")[0]
    signing.provider.token = {"id_token": forged.token(signing.clock.seconds(), aud=CLIENT, nonce=nonce)}
    with pytest.raises(SignInFailed, match="is not valid"):
        signing.finish(query, begun.sealed)


@pytest.mark.parametrize("token", ["", "nothing", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.", 7, None])
def test_what_is_no_id_token_signs_nobody_in(signing: Signing, token: Any) -> None:
    signing.provider.token = {"id_token": token}
    with pytest.raises(SignInFailed):
        signing.sign_in()


def test_a_key_that_the_provider_made_since_is_fetched(signing: Signing) -> None:
    signing.sign_in()
    signing.provider.keys.insert(0, SigningKey("k2", alg="ES256"))
    signing.clock.advance(FETCH_INTERVAL)
    assert signing.sign_in().caller.user_id == "ada"


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"sub": "eve"}, "The user of this account, 'eve', is not known here. Ask an administrator to make the user."),
        ({"groups": ["none", "nix"]}, "None of the teams of this account is known here: 'none', 'nix'."),
    ],
)
def test_who_is_not_known_here_is_told_so(signing: Signing, claims: dict[str, Any], says: str) -> None:
    with pytest.raises(TokenNotAllowed) as raised:
        signing.sign_in(**claims)
    assert raised.value.message.startswith(says)


def test_who_is_of_a_blocked_team_is_refused(signing: Signing) -> None:
    signing.index.apply(Changes(teams={"physics": TeamGrant(blocked=True)}))
    with pytest.raises(BlockedApiKey, match="team of this account was blocked"):
        signing.sign_in(groups=["physics"])


def test_a_user_is_made_where_the_settings_say_so() -> None:
    signing = Signing(attrs.evolve(SETTINGS, claims=OidcClaims(user_id_upsert=True)))
    assert signing.sign_in(sub="eve").caller.user_id == "eve"
    assert [each.user_id for each in signing.people.made] == ["eve"]


@pytest.mark.parametrize(
    ("claims", "person", "says"),
    [
        (OidcClaims(user_allowed_email_domain="example.com"), {"email": "a@evil.com"}, "not of a domain"),
        (
            OidcClaims(user_allowed_email_domain="example.com"),
            {"email": "a@example.com", "email_verified": False},
            "not of a domain",
        ),
        (OidcClaims(user_id_jwt_field="email"), {"email": "a@b.c", "email_verified": False}, "has not verified"),
        (OidcClaims(user_id_jwt_field="upn"), {}, "names no user, in its claim upn"),
        (
            OidcClaims(user_roles_jwt_field="roles", user_allowed_roles=("console",)),
            {"roles": ["other"]},
            "This account has none of the roles that are let in",
        ),
        (
            OidcClaims(roles_jwt_field="roles", role_mappings=(("a", "proxy_admin"),), enforce_rbac=True),
            {"roles": ["b"]},
            "This account has no role that is known here",
        ),
    ],
)
def test_who_is_not_let_in_is_told_why(claims: OidcClaims, person: dict[str, Any], says: str) -> None:
    with pytest.raises(TokenNotAllowed, match=says):
        Signing(attrs.evolve(SETTINGS, claims=claims)).sign_in(**person)


def test_more_teams_than_a_cookie_holds_are_left_out(signing: Signing) -> None:
    teams = [f"team-{number:04}-{'x' * 30}" for number in range(150)]
    signing.people.known |= {("team", name) for name in teams}
    found = signing.sign_in(groups=teams).caller.team_ids
    assert found == tuple(teams[: len(found)])
    assert LONGEST_TEAMS - 50 < sum(map(len, found)) <= LONGEST_TEAMS


def test_the_userinfo_endpoint_is_asked_where_the_settings_say_so() -> None:
    signing = Signing(attrs.evolve(SETTINGS, userinfo=True))
    signing.provider.userinfo = {"sub": "ada", "groups": ["admins"]}
    assert signing.sign_in().caller.administers
    signing.provider.userinfo = {"sub": "eve", "groups": ["admins"]}
    with pytest.raises(SignInFailed):
        signing.sign_in()


def test_what_the_provider_says_of_an_error_is_in_the_log_alone(signing: Signing, lines: list[str]) -> None:
    signing.provider.secret = "other"
    with pytest.raises(SignInFailed, match=r"Example did not accept the gateway\. Tell an administrator"):
        signing.sign_in()
    assert any("invalid_client: the provider's words" in line and "compare client_id" in line for line in lines)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"error": "a b\r\n", "error_description": "x"}).encode(),
        b'{"id_token": "' + b"x" * LARGEST_ANSWER + b'"}',
    ],
)
@pytest.mark.parametrize("status", [200, 302, 400])
def test_an_answer_that_makes_no_sense_signs_nobody_in(
    signing: Signing, lines: list[str], status: int, body: bytes
) -> None:
    signing.provider.errors = [(status, body)]
    with pytest.raises((SignInFailed, IssuerUnavailable)):
        signing.sign_in()
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_provider_that_is_down_is_said_to_be(signing: Signing, status: int) -> None:
    signing.provider.errors = [(status, b"oops")]
    with pytest.raises(IssuerUnavailable, match="Example does not answer the gateway") as raised:
        signing.sign_in()
    assert raised.value.retry_after == FETCH_INTERVAL


def test_no_secret_gets_into_the_log(signing: Signing, lines: list[str]) -> None:
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    [code] = query["code"]
    echo = {"error": "invalid_request", "error_description": f"the code {code} and {SECRET}"}
    signing.provider.errors = [(400, json.dumps(echo).encode())]
    with pytest.raises(SignInFailed):
        signing.finish(query, begun.sealed)
    signing.provider.token = {"id_token": "x.y.z"}
    with pytest.raises(SignInFailed):
        signing.sign_in()
    log = "\n".join(lines)
    assert "invalid_request" in log
    [form] = signing.provider.posted[:1]
    for secret in (code, SECRET, begun.sealed, form["code_verifier"], "acce55", "x.y.z", *query["state"]):
        assert secret not in log


def test_a_provider_that_never_answers_is_given_up(signing: Signing) -> None:
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    signing.agent = Silent()
    document = signing.party.document
    signing.party = signing.make(SETTINGS)
    signing.party.document = document
    waiting = signing.party.finish(query, begun.sealed, ADDRESS)
    signing.clock.advance(ANSWER_SECONDS)
    with pytest.raises(IssuerUnavailable):
        result(waiting)


def test_one_address_waits_for_few_sign_ins(signing: Signing) -> None:
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    signing.agent = Silent()
    document = signing.party.document
    signing.party = signing.make(SETTINGS)
    signing.party.document = document
    waiting = [signing.party.finish(query, begun.sealed, ADDRESS) for _ in range(MOST_OF_ADDRESS)]
    with pytest.raises(IssuerUnavailable, match="Too many people"):
        signing.finish(query, begun.sealed)
    signing.clock.advance(ANSWER_SECONDS)
    for each in waiting:
        with pytest.raises(IssuerUnavailable):
            result(each)
    assert "waiting=0" in repr(signing.party)


def test_guessed_codes_are_throttled() -> None:
    signing = Signing(limit=3)
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    for _ in range(3):
        with pytest.raises(SignInFailed):
            signing.finish(query | {"code": ["guess"]}, begun.sealed)
    with pytest.raises(TooManyFailures):
        signing.finish(query, begun.sealed)
    # of another address it is
    assert signing.finish(query, begun.sealed, "198.51.100.7").caller.user_id == "ada"


def test_others_cannot_have_somebody_throttled() -> None:
    """A page of another site can send a browser to the callback, without the cookie or the state."""
    signing = Signing(limit=1)
    begun = signing.begin()
    query = signing.provider.sign_in(begun.url)
    for forged, sealed in ((query, ""), (query | {"state": ["x"]}, begun.sealed)) * 3:
        with pytest.raises(SignInFailed):
            signing.finish(forged, sealed)
    assert signing.finish(query, begun.sealed).caller.user_id == "ada"


def test_the_document_is_fetched_once_and_used_while_the_provider_is_down(signing: Signing, lines: list[str]) -> None:
    for _ in range(3):
        signing.begin()
    assert signing.provider.requests == ["/.well-known/openid-configuration"]
    signing.provider.status = 503
    signing.clock.advance(FRESH_SECONDS)
    for _ in range(3):
        signing.begin()
    assert len(signing.provider.requests) == 2
    assert [line for line in lines if "and the known one is used: it answers 503" in line]
    signing.clock.advance(STALE_SECONDS)
    with pytest.raises(IssuerUnavailable):
        signing.begin()
    signing.provider.status = 200
    signing.clock.advance(FETCH_INTERVAL)
    signing.begin()
    assert lines[-1].endswith("can be fetched again")


def test_a_document_of_another_issuer_lets_nobody_in(signing: Signing, lines: list[str]) -> None:
    signing.provider.document["issuer"] = f"{ISSUER}/"
    with pytest.raises(IssuerUnavailable, match="does not answer"):
        signing.begin()
    assert "of another issuer: write issuer: 'https://login.example.com/'" in lines[-1]


def test_those_who_begin_at_once_wait_for_one_document(signing: Signing) -> None:
    waiting: list[Deferred[bytes]] = []

    def get(_url: str) -> Deferred[bytes]:
        waiting.append(Deferred())
        return waiting[-1]

    document = ProviderDocument(ISSUER, get, signing.clock)
    asked = [document.get() for _ in range(3)]
    [answer] = waiting
    answer.callback(json.dumps(signing.provider.document).encode())
    assert {result(each).issuer for each in asked} == {ISSUER}


def test_somebody_signs_out_at_the_provider(signing: Signing) -> None:
    sealed = signing.sign_in().sealed
    for kept, is_named in ((sealed, True), ("", False), ("v1.other", False), ("x" * 5_000, False)):
        url = result(signing.party.sign_out_url(kept, "https://gateway.example.com/ui/sign-in"))
        assert url.startswith(
            f"{ISSUER}/logout?client_id=gateway&post_logout_redirect_uri=https%3A%2F%2Fgateway.example.com"
        )
        assert ("id_token_hint=eyJ" in url) == is_named


def test_an_id_token_that_no_cookie_holds_is_not_kept(signing: Signing) -> None:
    assert signing.sign_in(picture="x" * 4_000).sealed == ""


@pytest.mark.parametrize("anew", [True, False])
def test_somebody_may_sign_in_as_another(signing: Signing, anew: bool) -> None:
    assert ("prompt=login" in result(signing.party.begin(CALLBACK, "/ui", anew=anew)).url) == anew


def test_names_that_no_cookie_holds_are_refused(signing: Signing) -> None:
    name = "\N{GRINNING FACE}" * 200
    signing.people.known |= {("user", name), ("organization", name)}
    claims = OidcClaims(user_id_jwt_field="name", org_id_jwt_field="name", user_email_jwt_field="name")
    signing.party = signing.make(attrs.evolve(SETTINGS, claims=claims))
    with pytest.raises(TokenNotAllowed, match="too long for a session"):
        signing.sign_in(name=name)


def test_a_provider_without_signing_out_is_left_alone(signing: Signing) -> None:
    del signing.provider.document["end_session_endpoint"]
    assert result(signing.party.sign_out_url("a.b.c", "https://gateway.example.com/ui")) is None
    signing = Signing()
    signing.provider.status = 503
    assert result(signing.party.sign_out_url("a.b.c", "https://gateway.example.com/ui")) is None


def test_every_refusal_is_an_error_of_the_gateway() -> None:
    assert issubclass(SignInFailed, GatewayError)
    assert SignInFailed("m", reason="r").status == 403
