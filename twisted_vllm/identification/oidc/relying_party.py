"""Signs people in at an OpenID provider: authorization code flow with PKCE (OpenID Connect Core 1.0 §3.1).

Nothing is remembered between the two halves of a sign-in: what is known of it lies sealed in a cookie of the browser
(`twisted_vllm.auth.oidc.attempt`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from twisted_vllm.auth.oidc.attempt import Attempt, Attempts, authorization_url, with_query
from twisted_vllm.auth.oidc.callback import code_of
from twisted_vllm.auth.oidc.id_token import check_id_token, claims_of_person
from twisted_vllm.auth.oidc.provider import Provider
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.token_claims import TokenCaller, caller_of
from twisted_vllm.auth.tokens import TokenRules, fitting, read_header, verify
from twisted_vllm.client_address import client_of
from twisted_vllm.config.oidc import OidcSettings
from twisted_vllm.errors import (
    ExpiredApiKey,
    GatewayError,
    InvalidToken,
    IssuerUnavailable,
    SignInFailed,
    TokenNotAllowed,
    TooManyFailures,
)
from twisted_vllm.identification.caller_lookup import CallerLookup
from twisted_vllm.identification.key_sets import FETCH_INTERVAL, KeySets, reason_of
from twisted_vllm.identification.oidc.document import ProviderDocument
from twisted_vllm.identification.oidc.requests import Client, ProviderError, ProviderRequests, Tokens
from twisted_vllm.identification.waiting_places import WaitingPlaces

#: what refusals call that of which the claims are
NOUN = "account"
#: sign-ins that wait for the provider, and those of one address
MOST_SIGN_INS, MOST_OF_ADDRESS = 128, 32
#: bytes of all teams of a session together, and of the whole caller as JSON: it must fit in a cookie
LONGEST_TEAMS, LONGEST_CALLER = 1_024, 2_560

_TELL = "Tell an administrator: the gateway's log says more."


@attrs.frozen
class Begun:
    """A sign-in that was begun.

    Attributes:
        url: where the browser goes.
        sealed: what it keeps until it comes back.
    """

    url: str = attrs.field(repr=False)
    sealed: str = attrs.field(repr=False)


@attrs.frozen
class SignedIn:
    """Somebody who signed in.

    Attributes:
        caller: who it is.
        sealed: the provider's ID token, sealed, by which the person is signed out there; empty if it is too long.
        page: the page of the console that it wanted.
    """

    caller: TokenCaller
    sealed: str = attrs.field(repr=False)
    page: str


class RelyingParty:
    """Signs people in and out.

    Attributes:
        mark: what sessions hold of provider and settings.
        document: what the provider says of itself.
        key_sets: its keys.
    """

    _log = Logger()

    def __init__(
        self,
        settings: OidcSettings,
        attempts: Attempts,
        document: ProviderDocument,
        key_sets: KeySets,
        requests: ProviderRequests,
        lookup: CallerLookup,
        throttle: AuthenticationThrottle,
        now: Callable[[], float],
        mark: str = "",
    ) -> None:
        """Make it.

        Args:
            settings: the provider's, with issuer and client.
            attempts: makes and seals what browsers keep.
            document: what the provider says of itself.
            key_sets: its keys.
            requests: sends requests to it.
            lookup: looks up users and teams.
            throttle: counts codes that were not valid by address.
            now: the time in Unix seconds.
            mark: what sessions hold of provider and settings, as `twisted_vllm.auth.sessions.provider_mark` returns it.
        """
        assert settings.issuer is not None and settings.client_id is not None
        self.mark = mark
        self.document = document
        self.key_sets = key_sets
        self._settings = settings
        self._issuer = settings.issuer
        self._client = Client(settings.client_id, settings.client_secret)
        self._claims = settings.claims.as_token_claims()
        self._rules = TokenRules(
            frozenset(settings.algorithms),
            frozenset((settings.client_id,)),
            frozenset((settings.issuer,)),
            settings.leeway,
        )
        self._attempts = attempts
        self._requests = requests
        self._lookup = lookup
        self._throttle = throttle
        self._now = now
        self._places = WaitingPlaces(MOST_SIGN_INS, MOST_OF_ADDRESS)

    def __repr__(self) -> str:
        return f"<RelyingParty {self._issuer} waiting={self._places.taken}>"

    @property
    def name(self) -> str:
        """What people call the provider."""
        return self._settings.shown_name

    @inlineCallbacks
    def begin(self, redirect_uri: str, page: str, *, anew: bool = False) -> Generator[Deferred[Any], Any, Begun]:
        """Begin a sign-in.

        Args:
            redirect_uri: the gateway's own page to which the provider sends the browser, a whole URL.
            page: the page of the console that follows.
            anew: whether the person must sign in at the provider once more, perhaps as another.

        Raises:
            IssuerUnavailable: the provider does not answer.
        """
        provider = yield self.document.get()
        attempt = self._attempts.make(self._issuer, self._client.id, redirect_uri, page, self._now())
        url = authorization_url(provider, attempt, self._settings.scopes, anew=anew)
        return Begun(url, self._attempts.seal(attempt))

    @inlineCallbacks
    def finish(
        self, query: Mapping[str, Sequence[str]], sealed: str, address: str
    ) -> Generator[Deferred[Any], Any, SignedIn]:
        """Finish a sign-in with what the browser brings back.

        Args:
            query: the fields of the provider's answer, each with all its values.
            sealed: what the browser kept; empty if it has nothing.
            address: the client's address.

        Raises:
            SignInFailed: nobody signed in.
            TokenNotAllowed, BlockedApiKey: somebody did who is not let in.
            IssuerUnavailable, StoreUnavailable: provider or database do not answer.
            TooManyFailures: too many answers from this address were not valid.
        """
        client = client_of(address)
        if not self._places.take(client):
            raise IssuerUnavailable("Too many people sign in at the same time. Try again.", retry_after=1)
        try:
            found: SignedIn = yield self._finish(query, sealed, address)
        except GatewayError as error:
            reason = error.reason if isinstance(error, SignInFailed) else error.message
            self._log.warn(
                "Nobody was signed in at {provider}: {reason}",
                provider=self._issuer,
                reason=reason,
                # strangers cause some of these lines, and must not keep others out of the log
                once_a_second=reason.partition(":")[0],
            )
            raise error from None
        finally:
            self._places.leave(client)
        return found

    @inlineCallbacks
    def _finish(
        self, query: Mapping[str, Sequence[str]], sealed: str, address: str
    ) -> Generator[Deferred[Any], Any, SignedIn]:
        attempt = self._attempts.open(sealed, self._now())
        if attempt is None:
            raise SignInFailed(
                "This sign-in took longer than ten minutes, was finished already, or began in another browser. Sign in "
                "again.",
                reason="the browser keeps no attempt, or one that is too old",
            )
        if (attempt.issuer, attempt.client_id) != (self._issuer, self._client.id):
            raise SignInFailed(
                "The settings of the gateway changed in the meantime. Sign in again.",
                reason="the attempt is of another issuer or client: the settings changed",
            )
        provider = yield self.document.get()
        code = code_of(query, attempt, provider, self.name)
        if self._throttle.is_over(address, self._now()):
            raise TooManyFailures(
                "Too many sign-ins from this address were not valid. Try again in a minute.", retry_after=60
            )
        try:
            claims, id_token = yield self._claims_of(provider, attempt, code)
        except SignInFailed:
            # what it returns is for requests with keys
            self._throttle.record_failure(InvalidToken("The answer is not valid."), address, self._now())
            raise
        caller = yield self._admitted(claims)
        self._log.info("{name} signed in at {provider}", name=caller.name, provider=self._issuer)
        return SignedIn(caller, self._attempts.seal_token(id_token), attempt.page)

    @inlineCallbacks
    def _claims_of(
        self, provider: Provider, attempt: Attempt, code: str
    ) -> Generator[Deferred[Any], Any, tuple[dict[str, Any], str]]:
        """Return what the provider says of the person, and its ID token."""
        more: dict[str, Any] = {}
        try:
            tokens = yield self._requests.exchange(provider, self._client, code, attempt.verifier, attempt.redirect_uri)
            claims = yield self._checked(tokens, attempt)
            if self._settings.userinfo and tokens.access_token is not None:
                more = yield self._requests.userinfo(provider, tokens.access_token)
            return claims_of_person(claims, more, self._claims.user_id_jwt_field or ""), tokens.id_token
        except (TokenNotAllowed, IssuerUnavailable):
            raise
        except (InvalidToken, ExpiredApiKey) as error:
            raise SignInFailed(f"The answer of {self.name} is not valid. {_TELL}", reason=error.message) from None
        except ProviderError as error:
            raise self._refusal(error) from None
        except Exception as error:
            # what it says may hold what was sent
            raise self._unavailable(reason_of(error)) from None

    @inlineCallbacks
    def _checked(self, tokens: Tokens, attempt: Attempt) -> Generator[Deferred[Any], Any, Mapping[str, Any]]:
        """Return the claims of an ID token that is valid."""
        header = read_header(tokens.id_token, self._rules.algorithms)
        keys = fitting(self.key_sets.keys, header)
        if not keys:
            keys = yield self.key_sets.fetch_for(header)
        claims = verify(tokens.id_token, header, keys, self._rules, self._now()).claims
        check_id_token(
            claims,
            client_id=self._client.id,
            nonce=attempt.nonce,
            alg=header.alg,
            access_token=tokens.access_token,
        )
        return claims

    @inlineCallbacks
    def _admitted(self, claims: Mapping[str, Any]) -> Generator[Deferred[Any], Any, TokenCaller]:
        """Return the caller that the claims say, if it is let in now; with the teams that are known here alone."""
        caller = caller_of(claims, self._claims, NOUN)
        if caller.user_id is None:
            raise TokenNotAllowed(
                f"This account names no user, in its claim {self._claims.user_id_jwt_field}. Tell an administrator."
            )
        yield self._lookup.look_up(caller, makes_user=self._claims.user_id_upsert)
        self._lookup.callers.principal_of(caller, self._now() + 1, noun=NOUN)
        teams: list[str] = []
        for team_id in self._lookup.callers.known_teams(caller):
            if sum(map(_size, teams)) + _size(team_id) > LONGEST_TEAMS:
                break
            teams.append(team_id)
        # it was needed to make the user
        kept = msgspec.structs.replace(caller, user_email=None, team_ids=tuple(teams))
        if len(msgspec.json.encode(kept)) > LONGEST_CALLER:
            raise TokenNotAllowed("The names of this account are too long for a session. Tell an administrator.")
        return kept

    def _refusal(self, error: ProviderError) -> GatewayError:
        if error.is_down:
            return self._unavailable(str(error))
        if error.error == "invalid_grant":
            return SignInFailed(
                f"{self.name} did not accept this sign-in: it took too long, or this page was loaded twice. Sign in "
                "again.",
                reason=f"the code was refused: {error}",
            )
        hint = " (compare client_id and client_secret)" if error.error == "invalid_client" else ""
        return SignInFailed(
            f"{self.name} did not accept the gateway. {_TELL}", reason=f"the exchange of the code failed: {error}{hint}"
        )

    def _unavailable(self, reason: str) -> IssuerUnavailable:
        self._log.warn(
            "{provider} cannot be asked about a sign-in: {reason}",
            provider=self._issuer,
            reason=reason,
            once_a_second=True,
        )
        return IssuerUnavailable(
            f"{self.name} does not answer the gateway. Try again, or sign in with a key.",
            retry_after=int(FETCH_INTERVAL),
        )

    @inlineCallbacks
    def sign_out_url(self, sealed: str, return_uri: str) -> Generator[Deferred[Any], Any, str | None]:
        """Return where the browser goes to sign out at the provider (OpenID Connect RP-Initiated Logout 1.0 §2).

        Args:
            sealed: what the browser kept of the sign-in; empty if it has nothing.
            return_uri: the gateway's own page that follows, a whole URL.

        Returns:
            The URL; None if the provider has no such place, or does not answer.
        """
        try:
            provider: Provider = yield self.document.get()
        except IssuerUnavailable:
            return None
        if provider.end_session_endpoint is None:
            return None
        fields = {"client_id": self._client.id, "post_logout_redirect_uri": return_uri}
        id_token = self._attempts.open_token(sealed)
        if id_token:
            fields["id_token_hint"] = id_token
        return with_query(provider.end_session_endpoint, fields)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
