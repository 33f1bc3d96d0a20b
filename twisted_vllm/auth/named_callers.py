"""Callers whom others name, by a token or at a sign-in: their users and teams, and their principals."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from twisted_vllm.auth.grants import KeyGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.auth.policy import CLIP
from twisted_vllm.auth.records import PROXY_ADMIN, Principal
from twisted_vllm.auth.token_claims import TokenCaller
from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.errors import BlockedApiKey, CallerNotLookedUp, TokenNotAllowed
from twisted_vllm.ratelimit.allowance import ORGANIZATION, TEAM, USER

#: users and teams that are known to exist, or not
MOST_NAMES = 20_000
_SIZE = 4_096
#: ids that a refusal repeats
_MOST_SHOWN = 5


class NamedCallers:
    """Makes principals of callers, of what is in memory about their users and teams.

    Attributes:
        index: the users and teams, with the number of changes that principals depend on.
    """

    def __init__(self, index: KeyIndex) -> None:
        """Make it.

        Args:
            index: the users and teams.
        """
        self.index = index
        self._exists: BoundedCache[tuple[str, str], bool] = BoundedCache(MOST_NAMES, _SIZE)
        index.on_existence = self._learn

    def __len__(self) -> int:
        return len(self._exists)

    def forget(self) -> None:
        """Forget who exists."""
        self._exists.clear()

    def unknown_names(self, caller: TokenCaller, *, makes_user: bool = False) -> list[tuple[str, str]]:
        """Return the kind and id of the user and the teams of a caller of whom it is not known whether they exist.

        Args:
            caller: the caller.
            makes_user: whether its user is made if there is none: then it is among them.
        """
        names = [(TEAM, team_id) for team_id in caller.team_ids]
        if caller.user_id is not None:
            names.append((USER, caller.user_id))
        if caller.organization_id is not None:
            names.append((ORGANIZATION, caller.organization_id))
        return [
            (kind, name)
            for kind, name in names
            if (kind, name) not in self._exists or (makes_user and kind == USER and not self._exists.get((kind, name)))
        ]

    def set_existence(self, kind: str, name: str, exists: bool) -> None:
        """Remember whether a user or team exists; later changes are heard of."""
        self._exists.keep((kind, name), exists, len(name))

    def _learn(self, kind: str, name: str | None, exists: bool) -> None:
        """A user, team or organization changed; without a name, all may have changed."""
        if name is None:
            self._exists.clear()
        elif (kind, name) in self._exists:
            self._exists.keep((kind, name), exists, len(name))

    def known_teams(self, caller: TokenCaller) -> tuple[str, ...]:
        """Return those teams of a caller that are known to exist."""
        return tuple(team_id for team_id in caller.team_ids if self._exists.get((TEAM, team_id)))

    def principal_of(
        self,
        caller: TokenCaller,
        expires: float,
        chosen: str | None = None,
        *,
        noun: str = "token",
        makes_user: bool = False,
    ) -> Principal:
        """Return what a caller acts as.

        Args:
            caller: the caller.
            expires: when it is to be asked for again, in Unix seconds.
            chosen: the team that it chooses of its own; None takes the first that is known and not blocked.
            noun: what named it, for refusals.
            makes_user: whether its user is made if there is none.

        Raises:
            CallerNotLookedUp: it must be looked up first whether its user and teams exist, or its user be made.
            TokenNotAllowed: its user, team or organization is not known.
            BlockedApiKey: its team is blocked.
        """
        if caller.user_id is not None and not self._is_there(caller, USER, caller.user_id):
            if makes_user:
                raise CallerNotLookedUp(caller)
            raise _unknown("user", noun, caller.user_id)
        if caller.organization_id is not None and not self._is_there(caller, ORGANIZATION, caller.organization_id):
            raise _unknown("organization", noun, caller.organization_id)
        team_id, blocked = self._team_of(caller, chosen, noun)
        grant = KeyGrant(
            token=caller.key_id,
            key_id=caller.key_id,
            name=caller.name,
            expires=expires,
            models=caller.models,
            allowed_routes=caller.allowed_routes,
            user_id=caller.user_id,
            team_id=team_id,
            organization_id=caller.organization_id,
        )
        if blocked:
            raise BlockedApiKey(f"The team of this {noun} was blocked. Ask an administrator to unblock the team.")
        principal = self.index.join(grant).principal
        administers = caller.administers and principal.may_administer
        if caller.end_user_id is not None or administers:
            role = PROXY_ADMIN if administers else principal.role
            principal = attrs.evolve(principal, end_user_id=caller.end_user_id, role=role)
        return principal

    def _team_of(self, caller: TokenCaller, chosen: str | None, noun: str) -> tuple[str | None, bool]:
        """Return the team of a caller, and whether it is blocked."""
        teams = caller.team_ids
        if chosen is not None:
            if chosen not in teams:
                raise TokenNotAllowed(
                    f"The header x-litellm-team-id names a team that is none of this {noun}'s: {_listed(teams)}."
                )
            teams = (chosen,)
        there = [team_id for team_id in teams if self._is_there(caller, TEAM, team_id)]
        for team_id in there:
            if not self.index.is_team_blocked(team_id):
                return team_id, False
        if there:
            return there[0], True
        if teams and not caller.administers:
            raise _unknown("team", noun, *teams)
        if caller.needs_team:
            raise TokenNotAllowed(f"This {noun} names no team, and it needs one. Ask an administrator for a team.")
        return None, False

    def _is_there(self, caller: TokenCaller, kind: str, name: str) -> bool:
        exists = self._exists.get((kind, name))
        if exists is None:
            raise CallerNotLookedUp(caller)
        return exists


def _unknown(kind: str, noun: str, *names: str) -> TokenNotAllowed:
    """Return the refusal of a caller whose user, organization or teams do not exist."""
    if len(names) == 1:
        what = f"The {kind} of this {noun}, {_listed(names)}, is not known here."
    else:
        what = f"None of the {kind}s of this {noun} is known here: {_listed(names)}."
    return TokenNotAllowed(f"{what} Ask an administrator to make the {kind}.")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:CLIP]) for name in names[:_MOST_SHOWN])
    return (shown or "it is of no team") + (", …" if len(names) > _MOST_SHOWN else "")
