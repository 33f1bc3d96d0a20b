"""The tokens that were verified, in memory: who their callers are, as long as they are valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import msgspec

from twisted_vllm.auth import steering_headers
from twisted_vllm.auth.grants import KeyGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import CLIP
from twisted_vllm.auth.records import PROXY_ADMIN, Principal
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.auth.tokens import TokenKey
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.errors import BlockedApiKey, ExpiredApiKey, GatewayError, TokenNotAllowed, UnverifiedToken
from twisted_vllm.ratelimit.allowance import ORGANIZATION, TEAM, USER

#: the header by which a caller chooses one of its teams, which LiteLLM reads as well
TEAM_HEADER = steering_headers.TEAM

#: tokens that are remembered: a valid one is verified anew when it comes back, a refused one is refused anew
MOST_TOKENS, MOST_REFUSED = 10_000, 1_024
#: users and teams that are known to exist, or not
MOST_NAMES = 20_000
_SIZE = 4_096
#: ids that a refusal repeats
_MOST_SHOWN = 5


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
        trusted_until: when the keys of the issuer are asked for again, in Unix seconds; until then principals are kept.
        on_stale: called when a token is used after that.
        makes_users: whether users that are not known are made.
    """

    def __init__(self, index: KeyIndex) -> None:
        """Make it.

        Args:
            index: the users and teams.
        """
        self._index = index
        self._tokens: BoundedCache[object, KnownToken] = BoundedCache(MOST_TOKENS, _SIZE)
        self._refused: BoundedCache[str, Refusal] = BoundedCache(MOST_REFUSED, _SIZE)
        self._exists: BoundedCache[tuple[str, str], bool] = BoundedCache(MOST_NAMES, _SIZE)
        self.trusted_until = 0.0
        self.on_stale: Callable[[], None] = lambda: None
        self.makes_users = False
        index.on_existence = self._learn

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token_hash: object) -> bool:
        return token_hash in self._tokens

    def __repr__(self) -> str:
        return f"<TokenIndex tokens={len(self._tokens)} refused={len(self._refused)} names={len(self._exists)}>"

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
            principal = self._join(known, team_id, now)
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
        self._exists.clear()

    def unknown_names(self, caller: TokenCaller) -> list[tuple[str, str]]:
        """Return the kind and id of the user and the teams of a caller of whom it is not known whether they exist."""
        names = [(TEAM, team_id) for team_id in caller.team_ids]
        if caller.user_id is not None:
            names.append((USER, caller.user_id))
        if caller.organization_id is not None:
            names.append((ORGANIZATION, caller.organization_id))
        return [name for name in names if name not in self._exists]

    def knows(self, token_hash: str) -> TokenCaller | None:
        """Return the caller of a token that was verified, if its key is trusted still."""
        known = self._tokens.get(token_hash)
        return None if known is None or not known.key.trusted else known.caller

    def set_existence(self, kind: str, name: str, exists: bool) -> None:
        """Remember whether a user or team exists; later changes are heard of."""
        self._exists.keep((kind, name), exists, len(name))

    def _learn(self, kind: str, name: str | None, exists: bool) -> None:
        """A user, team or organization changed; without a name, all may have changed."""
        if name is None:
            self._exists.clear()
        elif (kind, name) in self._exists:
            is_made_again = kind == USER and not exists and self.makes_users
            # what is too large is forgotten
            self._exists.keep((kind, name), exists, _SIZE + 1 if is_made_again else len(name))

    def _join(self, known: KnownToken, chosen: str | None, now: float) -> Principal:
        caller = known.caller
        if caller.user_id is not None and not self._is_there(USER, caller.user_id):
            raise _unknown("user", caller.user_id)
        if caller.organization_id is not None and not self._is_there(ORGANIZATION, caller.organization_id):
            raise _unknown("organization", caller.organization_id)
        team_id, blocked = self._team_of(caller, chosen)
        grant = KeyGrant(
            token=caller.key_id,
            key_id=caller.key_id,
            name=caller.name,
            # asked again when the issuer's keys are
            expires=min(known.until, max(self.trusted_until, now + 1.0)),
            models=caller.models,
            allowed_routes=caller.allowed_routes,
            user_id=caller.user_id,
            team_id=team_id,
            organization_id=caller.organization_id,
        )
        if blocked:
            raise BlockedApiKey("The team of this token was blocked. Ask an administrator to unblock the team.")
        principal = self._index.join(grant).principal
        administers = caller.administers and principal.may_administer
        if caller.end_user_id is not None or administers:
            role = PROXY_ADMIN if administers else principal.role
            principal = attrs.evolve(principal, end_user_id=caller.end_user_id, role=role)
        return principal

    def _team_of(self, caller: TokenCaller, chosen: str | None) -> tuple[str | None, bool]:
        """Return the team of a caller, and whether it is blocked."""
        teams = caller.team_ids
        if chosen is not None:
            if chosen not in teams:
                raise TokenNotAllowed(
                    f"The header x-litellm-team-id names a team that is none of this token's: {_listed(teams)}."
                )
            teams = (chosen,)
        there = [team_id for team_id in teams if self._is_there(TEAM, team_id)]
        for team_id in there:
            if not self._index.is_team_blocked(team_id):
                return team_id, False
        if there:
            return there[0], True
        if teams and not caller.administers:
            raise _unknown("team", *teams)
        if caller.needs_team:
            raise TokenNotAllowed("This token names no team, and it needs one. Ask an administrator for a team.")
        return None, False

    def _is_there(self, kind: str, name: str) -> bool:
        exists = self._exists.get((kind, name))
        if exists is None:
            raise UnverifiedToken("The user or team of this token could not be looked up now. Try again.")
        return exists


def again(error: GatewayError) -> GatewayError:
    """Return an error as it was made: one that is raised several times would keep all its callers."""
    return type(error)(error.message, retry_after=error.retry_after)


def _unknown(noun: str, *names: str) -> TokenNotAllowed:
    """Return the refusal of a token whose user, organization or teams do not exist."""
    if len(names) == 1:
        what = f"The {noun} of this token, {_listed(names)}, is not known here."
    else:
        what = f"None of the {noun}s of this token is known here: {_listed(names)}."
    return TokenNotAllowed(f"{what} Ask an administrator to make the {noun}.")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:CLIP]) for name in names[:_MOST_SHOWN])
    return (shown or "it is of no team") + (", …" if len(names) > _MOST_SHOWN else "")
