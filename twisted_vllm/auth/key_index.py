"""All virtual keys in memory, by the SHA-256 of the key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import TypeVar

import attrs

from twisted_vllm.auth.grants import Changes, EndUser, KeyGrant, Snapshot, TeamGrant, UserGrant
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH, KeyRecord, Principal
from twisted_vllm.auth.steering_headers import ADAPTER_HEADERS
from twisted_vllm.field_policy.rules import NO_RULES
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited

T = TypeVar("T")


@attrs.frozen
class IndexedKey:
    """A key, joined with its user and team.

    Attributes:
        token: the key's token; for a former value, the token of the current one.
        principal: the principal of its requests.
        blocked: whether the key is blocked.
        team_blocked: whether its team is blocked.
        replaced: whether this is the former value of a key that was regenerated.
    """

    token: str
    principal: Principal
    blocked: bool
    team_blocked: bool = False
    replaced: bool = False


class KeyIndex:
    """All keys, users, teams and end users. Only the reactor's thread may change it.

    A key is joined with its user and team at its first use. Every change drops all joined keys, because a team's change
    may affect any key.

    Attributes:
        changes: the number of changes of keys, users, teams and settings; a change may invalidate earlier decisions.
    """

    def __init__(self, records: Iterable[KeyRecord] = ()) -> None:
        self.changes = 0
        self._joined: dict[str, IndexedKey] = {}
        self.replace_all(Snapshot(keys=(KeyGrant.of(record) for record in records)))

    def __len__(self) -> int:
        return len(self._grants)

    def __contains__(self, token: object) -> bool:
        return token in self._grants

    def __repr__(self) -> str:
        tables: dict[str, Sized] = {
            "keys": self._grants,
            "joined": self._joined,
            "limited": self._by_key_id,
            "former": self._former,
            "users": self._users,
            "teams": self._teams,
            "end_users": self._end_users,
        }
        return f"<KeyIndex {' '.join(f'{name}={len(each)}' for name, each in tables.items())}>"

    def replace_all(self, snapshot: Snapshot) -> None:
        """Replace the whole content."""
        self._grants = {grant.token: grant for grant in snapshot.keys}
        self._by_key_id = {
            grant.key_id: grant.allowance for grant in self._grants.values() if grant.allowance is not UNLIMITED
        }
        self._former = {former.token: former for former in snapshot.former}
        self._users = dict(snapshot.users)
        self._teams = dict(snapshot.teams)
        self._end_users = dict(snapshot.end_users)
        self._joined.clear()
        self.changes += 1

    def apply(self, changes: Changes) -> None:
        """Apply changes."""
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
            self._joined.clear()
            self.changes += 1

    def settings_changed(self) -> None:
        """Invalidate earlier decisions: they depend on settings that changed."""
        self.changes += 1

    def add(self, record: KeyRecord) -> None:
        """Add a key, or replace the one with its token."""
        self.apply(Changes(keys={record.token: KeyGrant.of(record)}))

    def find(self, token: str) -> IndexedKey | None:
        """Return a key, joined with its user and team; ``None`` if it is unknown."""
        return self._joined.get(token) or self._join(token)

    def allowance_of(self, kind: str, identity: str) -> Allowance:
        """Return the limits of a key, user, team or end user, by the id in a usage row; `UNLIMITED` if it is unknown.

        Any thread may call it.

        Args:
            kind: ``key``, ``user``, ``team`` or ``end_user``.
            identity: the key's permanent id, or the id of the others.
        """
        if kind == "key":
            return self._by_key_id.get(identity, UNLIMITED)
        if kind == "end_user":
            end_user = self._end_users.get(identity)
            return UNLIMITED if end_user is None else end_user.allowance
        grant = (self._users if kind == "user" else self._teams).get(identity)
        return UNLIMITED if grant is None else grant.allowance

    @property
    def has_end_users(self) -> bool:
        """Whether any end user has limits or is blocked, so that requests must be read for their end user."""
        return bool(self._end_users)

    def end_user(self, user_id: str) -> EndUser | None:
        """Return an end user; ``None`` if it has no limits and is not blocked."""
        return self._end_users.get(user_id)

    def budgets(self) -> set[tuple[str, str]]:
        """Return the kind and id of everybody who has a budget."""
        everybody = Changes(keys=self._grants, users=self._users, teams=self._teams, end_users=self._end_users)
        return everybody.budgets_within()

    def before(self, changes: Changes) -> Changes:
        """Return the current state of everything that `changes` would change."""
        return Changes(
            keys={token: self._grants.get(token) for token in changes.keys},
            users={id: self._users.get(id) for id in changes.users},
            teams={id: self._teams.get(id) for id in changes.teams},
            end_users={id: self._end_users.get(id) for id in changes.end_users},
        )

    def _join(self, token: str) -> IndexedKey | None:
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
            # These headers replace the body's model, which would evade the restriction.
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
            key_fields=grant.fields,
            team_fields=NO_RULES if team is None else team.fields,
        )
        joined = self._joined[token] = IndexedKey(
            token=grant.token,
            principal=principal,
            blocked=grant.blocked,
            team_blocked=team is not None and team.blocked,
            replaced=former is not None,
        )
        return joined


def _limited(grant: KeyGrant, user: UserGrant | None, team: TeamGrant | None) -> tuple[Limited, ...]:
    found = []
    if grant.allowance is not UNLIMITED:
        found.append(Limited("key", grant.key_id, grant.allowance))
    if user is not None and grant.user_id is not None and user.allowance is not UNLIMITED:
        found.append(Limited("user", grant.user_id, user.allowance))
    if team is not None and grant.team_id is not None and team.allowance is not UNLIMITED:
        found.append(Limited("team", grant.team_id, team.allowance))
    return tuple(each for each in found if not each.allowance.is_unlimited)


def _apply(table: dict[str, T], changes: Mapping[str, T | None]) -> None:
    for name, value in changes.items():
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value
