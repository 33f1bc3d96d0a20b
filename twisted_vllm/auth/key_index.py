"""Virtual keys in memory, by the SHA-256 of the key: what a request needs to know of its key, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import attrs

from twisted_vllm.auth.grants import Changes, EndUser, Everything, KeyGrant, TeamGrant, UserGrant
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH, KeyRecord, Principal
from twisted_vllm.auth.steering_headers import ADAPTER_HEADERS
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited

T = TypeVar("T")


@attrs.frozen
class IndexedKey:
    """A key as requests meet it, with what its user and team decide.

    Attributes:
        token: the key's token; that of the present key for one that was replaced.
        principal: whom its requests act as.
        blocked: whether it was blocked.
        team_blocked: whether its team was blocked.
        replaced: whether the key was regenerated since, and this is the former value.
    """

    token: str
    principal: Principal
    blocked: bool
    team_blocked: bool = False
    replaced: bool = False


class KeyIndex:
    """Every virtual key, by its token, with the users, teams and end users. It belongs to the reactor's thread.

    What a request meets is made when the key is first used, and forgotten with any change: a change of a team concerns
    keys that nobody counted.

    Attributes:
        changes: how often keys, users or teams were changed: what was decided before a change may not hold after it.
    """

    def __init__(self, records: Iterable[KeyRecord] = ()) -> None:
        self.changes = 0
        self._ready: dict[str, IndexedKey] = {}
        self.replace_all(Everything(keys=(KeyGrant.of(record) for record in records)))

    def __len__(self) -> int:
        return len(self._grants)

    def __contains__(self, token: object) -> bool:
        return token in self._grants

    def replace_all(self, everything: Everything) -> None:
        """Forget what was known and take this."""
        self._grants = {grant.token: grant for grant in everything.keys}
        self._by_key_id = {
            grant.key_id: grant.allowance for grant in self._grants.values() if grant.allowance is not UNLIMITED
        }
        self._former = {former.token: former for former in everything.former}
        self._users = dict(everything.users)
        self._teams = dict(everything.teams)
        self._end_users = dict(everything.end_users)
        self._ready.clear()
        self.changes += 1

    def apply(self, changes: Changes) -> None:
        """Take what changed."""
        for token in changes.keys:
            old = self._grants.get(token)
            if old is not None:
                self._by_key_id.pop(old.key_id, None)
        for grant in changes.keys.values():
            if grant is not None and grant.allowance is not UNLIMITED:
                self._by_key_id[grant.key_id] = grant.allowance
        _apply(self._grants, changes.keys)
        _apply(self._former, changes.former)
        _apply(self._users, changes.users)
        _apply(self._teams, changes.teams)
        _apply(self._end_users, changes.end_users)
        if changes.concerns_keys:
            self._ready.clear()
            self.changes += 1

    def add(self, record: KeyRecord) -> None:
        """Take a record; one of the same token is replaced."""
        self.apply(Changes(keys={record.token: KeyGrant.of(record)}))

    def find(self, token: str) -> IndexedKey | None:
        """Return a key in the form that requests meet."""
        found = self._ready.get(token)
        return self._prepare(token) if found is None else found

    def allowance_of(self, kind: str, identity: str) -> Allowance:
        """Return the limits of somebody as a ledger row names it; of one that is not known there are none.

        It may be asked in any thread.

        Args:
            kind: ``key``, ``user``, ``team`` or ``end_user``.
            identity: the key's lasting id, or the id of the others.
        """
        if kind == "key":
            return self._by_key_id.get(identity, UNLIMITED)
        if kind == "end_user":
            end_user = self._end_users.get(identity)
            return UNLIMITED if end_user is None else end_user.allowance
        grant = (self._users if kind == "user" else self._teams).get(identity)
        return UNLIMITED if grant is None else grant.allowance

    @property
    def knows_end_users(self) -> bool:
        """Whether anything is known of any end user: then it matters whom a request is made for."""
        return bool(self._end_users)

    def end_user(self, user_id: str) -> EndUser | None:
        """Return an end user with its limits; ``None`` where there is nothing to know of it."""
        return self._end_users.get(user_id)

    def known_of(self, changes: Changes) -> Changes:
        """Return what is known at present of those that changes concern."""
        return Changes(
            keys={token: self._grants.get(token) for token in changes.keys},
            users={id: self._users.get(id) for id in changes.users},
            teams={id: self._teams.get(id) for id in changes.teams},
            end_users={id: self._end_users.get(id) for id in changes.end_users},
        )

    def _prepare(self, token: str) -> IndexedKey | None:
        grant = self._grants.get(token)
        former = None
        if grant is None:
            former = self._former.get(token)
            grant = None if former is None else self._grants.get(former.successor)
            if grant is None:
                return None
        user = self._users.get(grant.user_id) if grant.user_id is not None else None
        team = self._teams.get(grant.team_id) if grant.team_id is not None else None
        granted = frozenset(name.encode() for name in grant.granted_headers)
        if granted and (grant.models or (user and user.models) or (team and team.models)):
            # who may use certain models only must not put another in the place of the body's
            granted -= ADAPTER_HEADERS
        expires = grant.expires if former is None else min(grant.expires, former.works_until)
        principal = Principal(
            kind="key",
            name=grant.name,
            hash_prefix=grant.token[:HASH_PREFIX_LENGTH],
            models=grant.models,
            allowed_routes=grant.allowed_routes,
            key_id=grant.key_id,
            user_id=grant.user_id,
            team_id=grant.team_id,
            user_models=() if user is None else user.models,
            team_models=() if team is None else team.models,
            aliases=grant.aliases,
            priority=grant.priority,
            granted_headers=granted,
            expires=expires,
            limited=_limited(grant, user, team),
            tags=grant.tags,
            cache_salt=grant.cache_salt or "",
        )
        made = self._ready[token] = IndexedKey(
            token=grant.token,
            principal=principal,
            blocked=grant.blocked,
            team_blocked=team is not None and team.blocked,
            replaced=former is not None,
        )
        return made


def _limited(grant: KeyGrant, user: UserGrant | None, team: TeamGrant | None) -> tuple[Limited, ...]:
    found = []
    if grant.allowance is not UNLIMITED:
        found.append(Limited("key", grant.key_id, grant.allowance))
    if user is not None and grant.user_id is not None and user.allowance is not UNLIMITED:
        found.append(Limited("user", grant.user_id, user.allowance))
    if team is not None and grant.team_id is not None and team.allowance is not UNLIMITED:
        found.append(Limited("team", grant.team_id, team.allowance))
    return tuple(each for each in found if not each.allowance.is_unlimited)


def _apply(known: dict[str, T], changed: Mapping[str, T | None]) -> None:
    for name, value in changed.items():
        if value is None:
            known.pop(name, None)
        else:
            known[name] = value
