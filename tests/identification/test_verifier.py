"""Whose a token is is found out once for all who ask, in bounded time and memory."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from tests.identification.issuer import AUDIENCE, ISSUER, SigningKey, key_set
from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.grants import Changes, TeamGrant, UserGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.named_callers import NamedCallers
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.token_index import TokenIndex
from twisted_vllm.auth.tokens import TokenRules
from twisted_vllm.config.jwt import ALGORITHMS, JwtClaims
from twisted_vllm.errors import (
    ExpiredApiKey,
    InvalidToken,
    StoreUnavailable,
    TokenNotAllowed,
    TooManyFailures,
    UnverifiedToken,
)
from twisted_vllm.identification.caller_lookup import MOST_NEW_USERS, CallerLookup
from twisted_vllm.identification.key_sets import KeySets
from twisted_vllm.identification.verifier import (
    MOST_FOR_GUESSERS,
    REFUSED_SECONDS,
    TokenVerifier,
)
from twisted_vllm.identification.waiting_places import MOST_OF_ADDRESS, MOST_WAITING

KEY = SigningKey(alg="EdDSA")
ADDRESS = "192.0.2.1"
CLAIMS = JwtClaims(user_id_jwt_field="sub", team_ids_jwt_field="groups", end_user_id_jwt_field="for")


class People:
    """A directory in memory, which answers at once or when the test says so."""

    def __init__(self) -> None:
        self.known = {("user", "ada"), ("team", "physics")}
        self.changes = 0
        self.looks = 0
        self.answer: Deferred[Any] | None = None
        self.made: list[Any] = []

    def look_up(self, names: Any) -> Deferred[Any]:
        self.looks += 1
        found = {name: name in self.known for name in names}
        return succeed(found) if self.answer is None else self.answer.addCallback(lambda _: found)

    def make_user(self, caller: Any) -> Deferred[None]:
        self.made.append(caller)
        self.known.add(("user", caller.user_id))
        return succeed(None)


def people() -> Any:
    return People()


class Verifying:
    """A verifier with an issuer and a directory of the test."""

    def __init__(self, claims: JwtClaims = CLAIMS, limit: int | None = None) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.index = KeyIndex()
        self.tokens = TokenIndex(NamedCallers(self.index))
        self.people = people()
        self.answer: Deferred[bytes] | None = None
        self.throttle = AuthenticationThrottle(limit)
        rules = TokenRules(frozenset(ALGORITHMS), frozenset((AUDIENCE,)), frozenset((ISSUER,)), 10)
        sets = KeySets(["https://x"], 600, 3600, self._fetch, self.clock, self.index.settings_changed)
        lookup = CallerLookup(self.tokens.callers, self.people)
        self.verifier = TokenVerifier(self.tokens, sets, rules, claims, lookup, self.throttle, self.clock.seconds)

    def _fetch(self, _url: str) -> Deferred[bytes]:
        return succeed(key_set(KEY)) if self.answer is None else self.answer

    def token(self, **claims: Any) -> str:
        return KEY.token(self.clock.seconds(), **claims)

    def find_out(self, token: str, address: str = ADDRESS) -> list[None]:
        told: list[None] = []
        waiting = self.verifier.find_out(token, hash_key(token), address)
        assert waiting is not None
        waiting.addCallback(told.append)
        return told

    def principal(self, token: str, **headers: bytes) -> Principal:
        """Return the principal of a token, as a request gets it."""
        named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
        try:
            return self.tokens.authenticate(hash_key(token), named, self.clock.seconds())
        except UnverifiedToken:
            assert self.find_out(token) == [None]
        return self.tokens.authenticate(hash_key(token), named, self.clock.seconds())


@pytest.fixture
def verifying() -> Verifying:
    return Verifying()


def test_a_token_is_a_tenant_with_the_limits_of_its_user_and_team(verifying: Verifying) -> None:
    verifying.index.apply(Changes(users={"ada": UserGrant(models=("m",))}, teams={"physics": TeamGrant(models=("n",))}))
    found = verifying.principal(verifying.token(groups=["physics"], **{"for": "eve"}))
    assert (found.kind, found.user_id, found.team_id, found.end_user_id) == ("key", "ada", "physics", "eve")
    assert (found.user_models, found.team_models, found.may_administer) == (("m",), ("n",), False)
    assert len(found.key_id) == 32


def test_a_principal_is_the_same_object_until_something_changes(verifying: Verifying) -> None:
    token = verifying.token(groups=["physics"])
    first = verifying.principal(token)
    assert verifying.principal(token) is first
    verifying.index.apply(Changes(teams={"physics": TeamGrant(models=("n",))}))
    assert verifying.principal(token).team_models == ("n",)


def test_all_who_send_one_token_wait_for_one_look(verifying: Verifying) -> None:
    verifying.answer = Deferred()
    token = verifying.token()
    told = [verifying.find_out(token) for _ in range(5)]
    assert told == [[]] * 5
    verifying.answer.callback(key_set(KEY))
    assert told == [[None]] * 5
    assert verifying.people.looks == 1


def test_the_requests_that_wait_are_bounded(verifying: Verifying) -> None:
    verifying.answer = Deferred()
    for number in range(MOST_WAITING):
        address = f"192.0.2.{number // MOST_OF_ADDRESS}"
        verifying.find_out(verifying.token(jti=f"{number % 10}"), address)
    assert verifying.verifier.find_out("eyJ", "hash", "198.51.100.1") is None
    verifying.answer.callback(key_set(KEY))
    assert verifying.find_out(verifying.token(jti="more")) == [None]
    assert "waiting=0" in repr(verifying.verifier)


def test_one_address_takes_a_part_of_the_places_only(verifying: Verifying) -> None:
    """While the issuer does not answer, whoever sends tokens of unknown keys leaves places for others."""
    verifying.answer = Deferred()
    for number in range(MOST_OF_ADDRESS):
        verifying.find_out(verifying.token(jti=f"{number % 10}"))
    assert verifying.verifier.find_out("eyJ", "hash", ADDRESS) is None
    assert verifying.find_out(verifying.token(jti="another"), "198.51.100.1") == []
    verifying.answer.callback(key_set(KEY))
    assert verifying.find_out(verifying.token(jti="more")) == [None]


def test_a_refused_token_is_refused_again_without_a_look_for_a_moment(verifying: Verifying) -> None:
    token = SigningKey(alg="EdDSA").token(verifying.clock.seconds())
    verifying.find_out(token)
    errors = []
    for _ in range(2):
        with pytest.raises(InvalidToken, match="signature") as raised:
            verifying.tokens.authenticate(hash_key(token), {}, verifying.clock.seconds())
        errors.append(raised.value)
    assert errors[0] is not errors[1]
    verifying.clock.advance(REFUSED_SECONDS)
    with pytest.raises(UnverifiedToken):
        verifying.tokens.authenticate(hash_key(token), {}, verifying.clock.seconds())


def test_a_token_expires_though_it_was_verified(verifying: Verifying) -> None:
    token = verifying.token()
    assert verifying.principal(token).expires <= verifying.clock.seconds() + 610
    verifying.clock.advance(610)
    with pytest.raises(ExpiredApiKey):
        verifying.principal(token)


def test_signatures_of_guessers_are_checked_so_often_in_a_second() -> None:
    verifying = Verifying(limit=1)
    verifying.principal(verifying.token())
    verifying.throttle.record_failure(InvalidToken(""), ADDRESS, verifying.clock.seconds())
    checked = 0
    for number in range(MOST_FOR_GUESSERS + 5):
        try:
            verifying.principal(verifying.token(jti=f"{number}"))
            checked += 1
        except TooManyFailures as error:
            assert error.retry_after == 1
    assert checked == MOST_FOR_GUESSERS
    verifying.clock.advance(1)
    assert verifying.principal(verifying.token(jti="later"))


def test_a_database_that_is_away_is_503_and_no_refusal(verifying: Verifying) -> None:
    token = verifying.token()
    verifying.people.answer = fail(StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable):
        verifying.principal(token)
    verifying.people.answer = None
    verifying.clock.advance(1)
    assert verifying.principal(token).user_id == "ada"


def test_what_a_change_overtakes_is_looked_up_again(verifying: Verifying) -> None:
    look_up = verifying.people.look_up

    def overtaken(names: Any) -> Deferred[Any]:
        if verifying.people.looks == 0:
            verifying.people.changes += 1
        found: Deferred[Any] = look_up(names)
        return found

    verifying.people.look_up = overtaken
    assert verifying.principal(verifying.token()).user_id == "ada"
    assert verifying.people.looks == 2


def test_a_user_that_is_deleted_is_refused_and_one_that_is_made_is_let_in(verifying: Verifying) -> None:
    token = verifying.token()
    assert verifying.principal(token)
    verifying.index.apply(Changes(users={"ada": None}))
    with pytest.raises(TokenNotAllowed, match="user"):
        verifying.principal(token)
    verifying.index.apply(Changes(users={"ada": UserGrant()}))
    assert verifying.principal(token)


def test_users_that_are_being_made_are_bounded() -> None:
    verifying = Verifying(attrs.evolve(CLAIMS, user_id_upsert=True))
    assert verifying.principal(verifying.token(sub="new")).user_id == "new"
    never: list[Deferred[None]] = []

    def make_user(_: Any) -> Deferred[None]:
        never.append(Deferred())
        return never[-1]

    verifying.people.make_user = make_user
    for number in range(MOST_NEW_USERS):
        verifying.find_out(verifying.token(sub=f"user-{number}"))
    with pytest.raises(StoreUnavailable, match="new users"):
        verifying.principal(verifying.token(sub="one-more"))


def test_a_defect_is_logged_without_the_token_and_refuses(verifying: Verifying, logged_failures: Any) -> None:
    token = verifying.token()
    verifying.people.answer = fail(ZeroDivisionError())
    with pytest.raises(Exception, match="log says why"):
        verifying.principal(token)
    [failure] = logged_failures.flush(ZeroDivisionError)
    assert token not in str(failure)
