"""The tokens that were verified, in memory: who their callers are, as long as they are valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from twisted_vllm.auth import steering_headers
from twisted_vllm.auth.named_callers import NamedCallers
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.auth.tokens import TokenKey
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.errors import ExpiredApiKey, GatewayError, UnverifiedToken

#: the header by which a caller chooses one of its teams, which LiteLLM reads as well
TEAM_HEADER = steering_headers.TEAM

#: tokens that are remembered: a valid one is verified anew when it comes back, a refused one is refused anew
MOST_TOKENS, MOST_REFUSED = 10_000, 1_024
_SIZE = 4_096


class KnownToken:
    """A token that is valid.

    Attributes:
        caller: whose it is.
        key: the key that signed it.
        until: when it stops being valid, in Unix seconds.
        principals: its principals by team, with the number of changes at that time.
    """

    __slots__ = ("caller", "key", "principals", "until")

    def __init__(self, caller: TokenCaller, key: TokenKey, until: float) -> None:
        self.caller = caller
        self.key = key
        self.until = until
        self.principals: dict[str | None, tuple[int, Principal]] = {}


class Refusal(msgspec.Struct, frozen=True):
    """A token that is refused for a moment."""

    error: GatewayError
    until: float


class TokenIndex:
    """Finds the principal of a token that was verified.

    Attributes:
        callers: makes their principals.
        trusted_until: when the keys of the issuer are asked for again, in Unix seconds; until then principals are kept.
        on_stale: called when a token is used after that.
        makes_users: whether users that are not known are made.
    """

    def __init__(self, callers: NamedCallers) -> None:
        """Make it.

        Args:
            callers: makes the principals of their callers.
        """
        self.callers = callers
        self._index = callers.index
        self._tokens: BoundedCache[object, KnownToken] = BoundedCache(MOST_TOKENS, _SIZE)
        self._refused: BoundedCache[str, Refusal] = BoundedCache(MOST_REFUSED, _SIZE)
        self.trusted_until = 0.0
        self.on_stale: Callable[[], None] = lambda: None
        self.makes_users = False

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token_hash: object) -> bool:
        return token_hash in self._tokens

    def __repr__(self) -> str:
        return f"<TokenIndex tokens={len(self._tokens)} refused={len(self._refused)} names={len(self.callers)}>"

    def authenticate(self, token_hash: str, headers: Mapping[bytes, bytes], now: float) -> Principal:
        """Return the principal of a token.

        Args:
            token_hash: the SHA-256 of the token.
            headers: the first value of each header, by lower-case name.
            now: the time in Unix seconds.

        Raises:
            UnverifiedToken: it is not known, or something about it must be found out first.
            InvalidToken, TooManyFailures, IssuerUnavailable: it was refused a moment ago.
            ExpiredApiKey: it has expired.
            BlockedApiKey: its team is blocked.
            TokenNotAllowed: its user or team is not known.
        """
        known = self._tokens.get(token_hash)
        if known is None or not known.key.trusted:
            raise self._refusal(token_hash, now)
        if now >= known.until:
            raise ExpiredApiKey("This token has expired. Get a new one from its issuer.")
        chosen = headers.get(TEAM_HEADER)
        team_id = None if chosen is None else chosen.strip().decode("utf-8", "replace")
        found = known.principals.get(team_id)
        if found is not None and found[0] == self._index.changes and now < found[1].expires:
            return found[1]
        try:
            # asked again when the issuer's keys are
            expires = min(known.until, max(self.trusted_until, now + 1.0))
            principal = self.callers.principal_of(known.caller, expires, team_id, makes_user=self.makes_users)
        except UnverifiedToken:
            raise self._refusal(token_hash, now) from None
        if now >= self.trusted_until:
            self.on_stale()
        if team_id is None or team_id in known.caller.team_ids:
            known.principals[team_id] = self._index.changes, principal
        return principal

    def _refusal(self, token_hash: str, now: float) -> GatewayError:
        """Return why a token is refused: what was found out a moment ago, or that nothing was."""
        refused = self._refused.get(token_hash)
        if refused is not None and now < refused.until:
            return again(refused.error)
        return UnverifiedToken("This token could not be verified now. Try again.")

    def keep(self, token_hash: str, caller: TokenCaller, key: TokenKey, until: float) -> None:
        """Remember a token that is valid."""
        size = sum(map(len, (caller.name, caller.user_id or "", caller.user_email or "", *caller.team_ids)))
        self._tokens.keep(token_hash, KnownToken(caller, key, until), min(size, _SIZE))

    def refuse(self, token_hash: str, error: GatewayError, until: float) -> None:
        """Remember for a moment that a token is refused."""
        self._refused.keep(token_hash, Refusal(error, until), 0)

    def forget(self) -> None:
        """Forget all tokens: other settings decide about them now."""
        self._tokens.clear()
        self._refused.clear()
        self.callers.forget()

    def knows(self, token_hash: str) -> TokenCaller | None:
        """Return the caller of a token that was verified, if its key is trusted still."""
        known = self._tokens.get(token_hash)
        return None if known is None or not known.key.trusted else known.caller


def again(error: GatewayError) -> GatewayError:
    """Return an error as it was made: one that is raised several times would keep all its callers."""
    return type(error)(error.message, retry_after=error.retry_after)
