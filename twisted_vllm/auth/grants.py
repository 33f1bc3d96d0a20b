"""The part of keys, users, teams and end users that requests need: plain values, read from the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from twisted_vllm.auth.records import KeyRecord, Spend
from twisted_vllm.auth.roles import INTERNAL_USER
from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.config.stored_models import StoredModel
from twisted_vllm.field_policy.rules import NO_RULES, FieldRules
from twisted_vllm.ratelimit.allowance import (
    END_USER,
    KEY,
    MEMBER,
    ORGANIZATION,
    TEAM,
    UNLIMITED,
    USER,
    Allowance,
    Limited,
    budgets_of,
)

NEVER = float("inf")

#: the role of a user without another one
DEFAULT_ROLE = INTERNAL_USER


class KeyGrant(msgspec.Struct, frozen=True, gc=False):
    """The part of a key that requests need. It is small, because there may be a hundred thousand keys.

    Attributes:
        token: the SHA-256 of the key.
        key_id: the key's permanent id.
        name: its alias, or ``sk-...abcd``.
        expires: when it stops working, in Unix seconds; infinity means never.
        blocked: whether it was blocked.
        allowance: its limits, with those of the budget that it names.

    The others are as in `KeyRecord`.
    """

    token: str
    key_id: str
    name: str
    expires: float = NEVER
    blocked: bool = False
    models: tuple[str, ...] = ()
    allowed_routes: tuple[str, ...] = ()
    aliases: dict[str, str] = {}
    priority: int | None = None
    granted_headers: tuple[str, ...] = ()
    user_id: str | None = None
    team_id: str | None = None
    tags: tuple[str, ...] = ()
    allowance: Allowance = UNLIMITED
    cache_salt: str | None = None
    fields: FieldRules = NO_RULES
    organization_id: str | None = None
    log_bodies: str | None = None

    @classmethod
    def of(cls, record: KeyRecord) -> KeyGrant:
        """Return the grant of a record."""
        return cls(
            token=record.token,
            key_id=record.key_id,
            name=record.key_alias or record.key_name,
            expires=NEVER if record.expires is None else record.expires.timestamp(),
            blocked=record.blocked,
            models=record.models,
            allowed_routes=record.allowed_routes,
            aliases=record.aliases,
            priority=record.priority,
            granted_headers=record.granted_headers,
            user_id=record.user_id,
            team_id=record.team_id,
            tags=record.tags,
            allowance=record.allowance,
            cache_salt=record.cache_salt,
            fields=record.fields,
            organization_id=record.organization_id,
            log_bodies=record.log_bodies,
        )


class FormerKey(msgspec.Struct, frozen=True, gc=False):
    """The former value of a key that was regenerated. It works for a grace period.

    Attributes:
        token: its SHA-256.
        successor: the token of the key's current value.
        works_until: when it stops working, in Unix seconds.
    """

    token: str
    successor: str
    works_until: float


class UserGrant(msgspec.Struct, frozen=True, gc=False):
    """The part of a user that requests need: its models, its limits and its role."""

    models: tuple[str, ...] = ()
    allowance: Allowance = UNLIMITED
    role: str = DEFAULT_ROLE


class TeamGrant(msgspec.Struct, frozen=True, gc=False):
    """The part of a team that requests need, as in its record."""

    models: tuple[str, ...] = ()
    blocked: bool = False
    allowance: Allowance = UNLIMITED
    fields: FieldRules = NO_RULES
    organization_id: str | None = None
    aliases: Mapping[str, str] = {}
    log_bodies: str | None = None


class OrganizationGrant(msgspec.Struct, frozen=True, gc=False):
    """The part of an organization that requests need: its models and its limits."""

    models: tuple[str, ...] = ()
    allowance: Allowance = UNLIMITED


class EndUser(msgspec.Struct, frozen=True, gc=False):
    """An end user that the callers of keys name in their requests.

    Attributes:
        limited: its limits, which may be empty.
        blocked: whether an administrator blocked it.
    """

    limited: Limited
    blocked: bool = False

    @property
    def allowance(self) -> Allowance:
        """Its limits."""
        return self.limited.allowance


class Changes(msgspec.Struct, frozen=True):
    """What changed, by token or id; ``None`` means deleted, and in `members` without limits.

    Attributes:
        members: the limits of users in teams, by `member_id`.
        drained: the servers that get no new requests, by their URL.
        shared: the limits of budgets that several may name. They are included in the limits of those who do.
        spend: the spend that an administrator set.
        budgets: the known spend of those that have a budget after the changes.
    """

    keys: Mapping[str, KeyGrant | None] = {}
    former: Mapping[str, FormerKey | None] = {}
    users: Mapping[str, UserGrant | None] = {}
    teams: Mapping[str, TeamGrant | None] = {}
    end_users: Mapping[str, EndUser | None] = {}
    members: Mapping[str, Allowance | None] = {}
    organizations: Mapping[str, OrganizationGrant | None] = {}
    shared: Mapping[str, Allowance | None] = {}
    models: Mapping[str, StoredModel | None] = {}
    drained: Mapping[str, DrainedServer | None] = {}
    spend: tuple[Spend, ...] = ()
    budgets: tuple[Spend, ...] = ()

    def budgets_within(self) -> set[tuple[str, str]]:
        """Return the kind and id of each subject that has a budget after the changes."""
        found: set[tuple[str, str]] = set()
        for key in self.keys.values():
            if key is not None and key.allowance is not UNLIMITED:
                found.update(budgets_of(KEY, key.key_id, key.allowance))
        tables: Iterable[tuple[str, Mapping[str, UserGrant | TeamGrant | OrganizationGrant | EndUser | None]]] = (
            (USER, self.users),
            (TEAM, self.teams),
            (ORGANIZATION, self.organizations),
            (END_USER, self.end_users),
        )
        for kind, table in tables:
            for id, each in table.items():
                if each is not None:
                    found.update(budgets_of(kind, id, each.allowance))
        for id, allowance in self.members.items():
            if allowance is not None:
                found.update(budgets_of(MEMBER, id, allowance))
        return found

    @property
    def concerns_keys(self) -> bool:
        """Whether the changes may affect the permissions or limits of a key."""
        return bool(self.keys or self.former or self.users or self.teams or self.members or self.organizations)


class Revision(msgspec.Struct, frozen=True):
    """The last change that somebody knows of.

    Attributes:
        number: its number; 0 before the first change.
        stamp: the random number of the transaction that made it. Two histories with the same numbers have different
            stamps: a database that was restored, and the one that went on. None for a change that has none.
    """

    number: int = 0
    stamp: int | None = None


#: nothing has changed yet
NO_REVISION = Revision()


class Snapshot(msgspec.Struct, frozen=True):
    """Everything that requests depend on, as in `Changes`.

    Attributes:
        revision: the last change that is included.
    """

    revision: Revision = NO_REVISION
    keys: Iterable[KeyGrant] = ()
    former: Iterable[FormerKey] = ()
    users: Mapping[str, UserGrant] = {}
    teams: Mapping[str, TeamGrant] = {}
    end_users: Mapping[str, EndUser] = {}
    members: Mapping[str, Allowance] = {}
    organizations: Mapping[str, OrganizationGrant] = {}
    shared: Mapping[str, Allowance] = {}
    models: Mapping[str, StoredModel] = {}
    drained: Mapping[str, DrainedServer] = {}
