"""Verifies JSON Web Tokens: with the keys of their issuer, against the users and teams of the database."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.token_claims import caller_of
from twisted_vllm.auth.token_index import TokenIndex
from twisted_vllm.auth.tokens import TokenRules, fitting, read_header, verify
from twisted_vllm.client_address import client_of
from twisted_vllm.config.jwt import JwtClaims
from twisted_vllm.errors import GatewayError, TooManyFailures
from twisted_vllm.identification.caller_lookup import CallerLookup
from twisted_vllm.identification.key_sets import KeySets
from twisted_vllm.identification.waiting_places import WaitingPlaces

#: seconds in which a token that was refused is refused again without a look
REFUSED_SECONDS = 1.0
#: signatures in a second that are checked for addresses which sent too many invalid credentials
MOST_FOR_GUESSERS = 20


class TokenVerifier:
    """Finds out whose a token is, and tells the `TokenIndex`."""

    _log = Logger()

    def __init__(
        self,
        tokens: TokenIndex,
        key_sets: KeySets,
        rules: TokenRules,
        claims: JwtClaims,
        lookup: CallerLookup,
        throttle: AuthenticationThrottle,
        now: Callable[[], float],
    ) -> None:
        """Make it.

        Args:
            tokens: remembers what was found out.
            key_sets: the keys of the issuer.
            rules: what a token must be.
            claims: which claim says what.
            lookup: looks up users and teams.
            throttle: counts invalid credentials by address.
            now: the time in Unix seconds.
        """
        self._tokens = tokens
        self._key_sets = key_sets
        self._rules = rules
        self._claims = claims
        self._lookup = lookup
        self._throttle = throttle
        self._now = now
        self._pending: dict[str, list[tuple[Deferred[None], str | bytes]]] = {}
        self._places = WaitingPlaces()
        self._second, self._checked = 0.0, 0
        tokens.on_stale = self.refresh
        tokens.makes_users = claims.user_id_upsert

    def __repr__(self) -> str:
        return f"<TokenVerifier waiting={self._places.taken} tokens={self._tokens!r}>"

    def refresh(self) -> None:
        """Fetch the issuer's keys again, while the old ones are used."""
        if self._key_sets.fresh_seconds <= 0:
            waiting = self._key_sets.refresh()
            if waiting is not None:
                waiting.addCallback(lambda _: self._trust())
        self._trust()

    def find_out(self, token: str, token_hash: str, address: str) -> Deferred[None] | None:
        """Find out whose a token is.

        Args:
            token: the token.
            token_hash: its SHA-256.
            address: the client's address.

        Returns:
            A Deferred that fires, and never fails, when it should be looked up again; None if too many wait.
        """
        client = client_of(address)
        if not self._places.take(client):
            return None
        mine: Deferred[None] = Deferred()
        pending = self._pending.get(token_hash)
        if pending is not None:
            pending.append((mine, client))
            return mine
        self._pending[token_hash] = [(mine, client)]
        self._find_out(token, token_hash, address).addBoth(self._found_out, token_hash)
        return mine

    def _found_out(self, result: object, token_hash: str) -> None:
        if isinstance(result, Failure):
            error = result.value
            if not isinstance(error, GatewayError):
                self._log.failure("A token could not be verified", result)
                error = GatewayError("The gateway failed to verify this token; its log says why.")
            # not the failure: it holds the token
            self._tokens.refuse(token_hash, error.with_traceback(None), self._now() + REFUSED_SECONDS)
        waiting = self._pending.pop(token_hash)
        for _, client in waiting:
            self._places.leave(client)
        for each, _ in waiting:
            each.callback(None)

    @inlineCallbacks
    def _find_out(self, token: str, token_hash: str, address: str) -> Generator[Deferred[Any], Any, None]:
        caller = self._tokens.knows(token_hash)
        if caller is None:
            header = read_header(token, self._rules.algorithms)
            keys = fitting(self._key_sets.keys, header)
            if not keys:
                keys = yield self._key_sets.fetch_for(header)
            self._check_rate(address)
            verified = verify(token, header, keys, self._rules, self._now())
            caller = caller_of(verified.claims, self._claims)
            self._trust()
            self._tokens.keep(token_hash, caller, verified.key, verified.until)
        yield self._lookup.look_up(caller, makes_user=self._claims.user_id_upsert)

    def _check_rate(self, address: str) -> None:
        """Bound the time that signatures take which are sent by those who guess.

        Raises:
            TooManyFailures: in this second others were checked.
        """
        now = self._now()
        if not self._throttle.is_over(address, now):
            return
        if not 0 <= now - self._second < 1:
            self._second, self._checked = now, 0
        self._checked += 1
        if self._checked > MOST_FOR_GUESSERS:
            raise TooManyFailures(
                "Too many requests from this address came with tokens that are not valid. Try again.", retry_after=1
            )

    def _trust(self) -> None:
        """Tell until when principals may be kept."""
        self._tokens.trusted_until = self._now() + self._key_sets.fresh_seconds
