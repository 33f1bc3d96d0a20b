"""All virtual keys in memory, by the SHA-256 of the key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, TypeVar

import attrs
import msgspec

from twisted_vllm.auth.grants import (
    DEFAULT_ROLE,
    Changes,
    EndUser,
    FormerKey,
    KeyGrant,
    OrganizationGrant,
    Snapshot,
    TeamGrant,
    UserGrant,
)
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH, KeyRecord, Principal
from twisted_vllm.auth.steering_headers import ADAPTER_HEADERS
from twisted_vllm.field_policy.rules import NO_RULES
from twisted_vllm.ratelimit.allowance import (
    END_USER,
    KEY,
    MEMBER,
    MODEL_BUDGET,
    ORGANIZATION,
    PROXY,
    SEPARATOR,
    TEAM,
    UNLIMITED,
    USER,
    Allowance,
    Limited,
    member_id,
    members_budget_id,
    model_budget_id,
)

T = TypeVar("T")


@attrs.frozen
class GatewayLimits:
    """Limits that the settings give, and no record.

    Attributes:
        proxy: those of the gateway as a whole.
        end_user: those of each end user without limits of its own.
        end_user_budget: the id of the budget whose limits hold where `end_user` sets none; None for none.
        model_aliases: further names of models: a budget for one of them is a budget for its model.
    """

    proxy: Allowance = UNLIMITED
    end_user: Allowance = UNLIMITED
    end_user_budget: str | None = None
    model_aliases: Mapping[str, str] = attrs.field(factory=dict)


NO_GATEWAY_LIMITS = GatewayLimits()

#: shared by all principals that have none: an empty set for each key would take a fifth of what is kept for it
_NO_ALIASES: Mapping[str, str] = {}
_NO_HEADERS: frozenset[bytes] = frozenset()


class Sources(msgspec.Struct, frozen=True, gc=False):
    """The records that a key is joined from; None for each that is not there.

    Attributes:
        grant: the key.
        former: its former value, if that was presented.
        user: its user.
        team: its team.
        member: the limits of the user in the team.
        organization: its organization, or that of its team.
    """

    grant: KeyGrant
    former: FormerKey | None
    user: UserGrant | None
    team: TeamGrant | None
    member: Allowance | None
    organization: OrganizationGrant | None

    @property
    def team_blocked(self) -> bool:
        """Whether its team is blocked."""
        return self.team is not None and self.team.blocked

    @property
    def expires(self) -> float:
        """When what was presented stops working, in Unix seconds; infinity means never."""
        expires = self.grant.expires
        return expires if self.former is None else min(expires, self.former.works_until)


class IndexedKey(msgspec.Struct, gc=False, eq=False):
    """A key, joined with its user and team. It is small, because a hundred thousand may be in use.

    Attributes:
        principal: the principal of its requests.
        sources: the records that it was joined from.
        changes: the state of the index for which it holds; see `KeyIndex.is_current`.
        epoch: likewise.
        used: whether it was used since somebody last set this to False.
        caller: what the data path keeps with it; None before it was used there.
    """

    principal: Principal
    sources: Sources
    changes: int
    epoch: int
    used: bool = False
    caller: Any = None

    def __repr__(self) -> str:
        return f"<IndexedKey {self.principal.hash_prefix}>"

    @property
    def token(self) -> str:
        """The key's token; for a former value, the token of the current one."""
        return self.sources.grant.token

    @property
    def presented(self) -> str:
        """The token by which it was found."""
        former = self.sources.former
        return self.sources.grant.token if former is None else former.token

    @property
    def blocked(self) -> bool:
        """Whether the key is blocked."""
        return self.sources.grant.blocked

    @property
    def team_blocked(self) -> bool:
        """Whether its team is blocked."""
        return self.sources.team_blocked

    @property
    def replaced(self) -> bool:
        """Whether this is the former value of a key that was regenerated."""
        return self.sources.former is not None


class KeyIndex:
    """All keys, users, teams, organizations and end users. Only the reactor's thread may change it.

    A key is joined with its user, team and organization when it is looked up. Whoever keeps the result asks
    `is_current` before each use: it holds as long as the records are the same that it was joined from, whatever else
    changes.

    Attributes:
        changes: the number of changes of keys, users, teams and settings; a change may invalidate earlier decisions.
        epoch: the number of those changes that concern all keys: of the settings, and of everything at once.
        limits_strangers: whether end users without limits of their own have some.
        on_existence: called for each user, team and organization that changes, with its kind, its id and whether it
            exists; with no id when all may have changed. None by default.
    """

    def __init__(self, records: Iterable[KeyRecord] = ()) -> None:
        self.changes = self.epoch = 0
        self._shared: dict[str, Allowance] = {}
        self._gateway = NO_GATEWAY_LIMITS
        self.on_existence: Callable[[str, str | None, bool], None] | None = None
        self.replace_all(Snapshot(keys=(KeyGrant.of(record) for record in records)))

    def __len__(self) -> int:
        return len(self._grants)

    def __contains__(self, token: object) -> bool:
        return token in self._grants

    def __repr__(self) -> str:
        tables: dict[str, Sized] = {
            "keys": self._grants,
            "limited": self._by_key_id,
            "former": self._former,
            "users": self._users,
            "teams": self._teams,
            "end_users": self._end_users,
            "members": self._members,
            "organizations": self._organizations,
            "budgets": self._shared,
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
        self._end_users = {id: each for id, each in snapshot.end_users.items() if _restricts(each)}
        self._members = dict(snapshot.members)
        self._organizations = dict(snapshot.organizations)
        self._shared = dict(snapshot.shared)
        self._limit_strangers()
        self.settings_changed()
        if self.on_existence is not None:
            self.on_existence("", None, False)

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
        _apply(self._end_users, {id: each if _restricts(each) else None for id, each in changes.end_users.items()})
        _apply(self._members, changes.members)
        _apply(self._organizations, changes.organizations)
        _apply(self._shared, changes.shared)
        self._limit_strangers()
        if changes.concerns_keys:
            self.changes += 1
        if self.on_existence is not None:
            named: tuple[tuple[str, Mapping[str, object | None]], ...] = (
                (USER, changes.users),
                (TEAM, changes.teams),
                (ORGANIZATION, changes.organizations),
            )
            for kind, records in named:
                for name, record in records.items():
                    self.on_existence(kind, name, record is not None)

    def reconfigure(self, limits: GatewayLimits) -> None:
        """Use other limits of the settings from now on."""
        self._gateway = limits
        self._limit_strangers()
        self.settings_changed()

    def _limit_strangers(self) -> None:
        """Set the limits of end users without limits of their own."""
        shared = self._shared.get(self._gateway.end_user_budget or "", UNLIMITED)
        self._stranger = self._gateway.end_user.within(shared)
        self.limits_strangers = not self._stranger.is_unlimited

    @property
    def of_everybody(self) -> tuple[Limited, ...]:
        """The limits of the gateway as a whole, which hold for the master key too; empty without any."""
        proxy = self._gateway.proxy
        return () if proxy.is_unlimited else (Limited(PROXY, PROXY, proxy),)

    def settings_changed(self) -> None:
        """Invalidate all earlier decisions: they depend on settings that changed."""
        self.changes += 1
        self.epoch += 1

    def add(self, record: KeyRecord) -> None:
        """Add a key, or replace the one with its token."""
        self.apply(Changes(keys={record.token: KeyGrant.of(record)}))

    def find(self, token: str) -> IndexedKey | None:
        """Return a key, joined with its user and team; ``None`` if it is unknown."""
        sources = self.sources_of(token)
        return None if sources is None else self.joined(sources)

    def is_current(self, key: IndexedKey) -> bool:
        """Return whether a key that `find` returned would be found again just so."""
        if key.changes == self.changes:
            return True
        if key.epoch != self.epoch or self.sources_of(key.presented) != key.sources:
            return False
        key.changes = self.changes
        return True

    def grants(self) -> list[KeyGrant]:
        """Return all keys. A hundred thousand take milliseconds to look through: do it in steps."""
        return list(self._grants.values())

    def is_team_blocked(self, team_id: str) -> bool:
        """Return whether a team is blocked."""
        team = self._teams.get(team_id)
        return team is not None and team.blocked

    def allowance_of(self, kind: str, identity: str) -> Allowance:
        """Return somebody's limits; `UNLIMITED` if it is unknown.

        Any thread may call it.

        Args:
            kind: as in `Limited`.
            identity: likewise.
        """
        if kind == KEY:
            return self._by_key_id.get(identity, UNLIMITED)
        if kind == MEMBER:
            found = self._members.get(identity)
            # who left a team may come back: what it spent until then is counted still
            return self._shared.get(_budget_of_members(identity), UNLIMITED) if found is None else found
        if kind == MODEL_BUDGET:
            return self._model_budget(identity)
        if kind == PROXY:
            return self._gateway.proxy
        if kind == END_USER:
            end_user = self._end_users.get(identity)
            return self._stranger if end_user is None else end_user.allowance
        grant: UserGrant | TeamGrant | OrganizationGrant | None = None
        if kind == USER:
            grant = self._users.get(identity)
        elif kind == TEAM:
            grant = self._teams.get(identity)
        elif kind == ORGANIZATION:
            grant = self._organizations.get(identity)
        return UNLIMITED if grant is None else grant.allowance

    def _model_budget(self, identity: str) -> Allowance:
        kind, _, rest = identity.partition(SEPARATOR)
        owner, _, model = rest.rpartition(SEPARATOR)
        budget = self.allowance_of(kind, owner).model_budgets.get(model)
        return UNLIMITED if budget is None else budget.allowance

    def model_budgets(self, limited: Iterable[Limited], model: str) -> list[Limited]:
        """Return the budgets for one model of these subjects, each as a subject of its own.

        Any thread may call it.

        Args:
            limited: the subjects.
            model: the model's name in the ledger. A budget for an alias of it (``model_group_alias``) counts too.
        """
        aliases = self._gateway.model_aliases
        return [
            Limited(MODEL_BUDGET, model_budget_id(each.kind, each.id, name), budget.allowance)
            for each in limited
            for name, budget in each.allowance.model_budgets.items()
            if name == model or aliases.get(name) == model
        ]

    def also_pay(self, payers: Iterable[tuple[str, str]], model: str) -> list[tuple[str, str]]:
        """Return whose budgets pay for a request besides those of its payers: kind and id.

        These are the gateway as a whole, the membership of a user in a team, and budgets for one model. Any thread may
        call it.

        Args:
            payers: its key, user, team, organization and end user.
            model: the model.
        """
        found = [(PROXY, PROXY)] if self._gateway.proxy.has_budget else []
        ids = dict(payers)
        if (self._members or self._shared) and USER in ids and TEAM in ids:
            ids[MEMBER] = id = member_id(ids[TEAM], ids[USER])
            if self.allowance_of(MEMBER, id).has_budget:
                found.append((MEMBER, id))
        for kind, id in ids.items():
            allowance = self.allowance_of(kind, id)
            if allowance.model_budgets:
                budgets = self.model_budgets([Limited(kind, id, allowance)], model)
                found += [(budget.kind, budget.id) for budget in budgets]
        return found

    @property
    def has_end_users(self) -> bool:
        """Whether any end user has limits or is blocked, so that requests must be read for their end user."""
        return self.limits_strangers or bool(self._end_users)

    def end_user(self, user_id: str) -> EndUser | None:
        """Return an end user; ``None`` if it has no limits and is not blocked."""
        found = self._end_users.get(user_id)
        if found is None and self.limits_strangers:
            return EndUser(Limited(END_USER, user_id, self._stranger))
        return found

    def has_record(self, user_id: str) -> bool:
        """Return whether an end user has a record that limits or blocks it."""
        return user_id in self._end_users

    def budgets(self) -> set[tuple[str, str]]:
        """Return the kind and id of everybody who has a budget."""
        everybody = Changes(
            keys=self._grants,
            users=self._users,
            teams=self._teams,
            end_users=self._end_users,
            members=self._members,
            organizations=self._organizations,
        )
        return everybody.budgets_within()

    def before(self, changes: Changes) -> Changes:
        """Return the current state of everything that `changes` would change."""
        return Changes(
            keys={token: self._grants.get(token) for token in changes.keys},
            users={id: self._users.get(id) for id in changes.users},
            teams={id: self._teams.get(id) for id in changes.teams},
            end_users={id: self._end_users.get(id) for id in changes.end_users},
            members={id: self._members.get(id) for id in changes.members},
            organizations={id: self._organizations.get(id) for id in changes.organizations},
        )

    def sources_of(self, token: str) -> Sources | None:
        """Return the records that a key would be joined from; ``None`` if it is unknown."""
        former = None
        grant = self._grants.get(token)
        if grant is None:
            former = self._former.get(token)
            grant = None if former is None else self._grants.get(former.successor)
            if grant is None:
                return None
        return self._records_of(grant, former)

    def _records_of(self, grant: KeyGrant, former: FormerKey | None = None) -> Sources:
        user_id, team_id = grant.user_id, grant.team_id
        user = None if user_id is None else self._users.get(user_id)
        team = None if team_id is None else self._teams.get(team_id)
        member = None
        if self._members and user_id is not None and team_id is not None:
            member = self._members.get(member_id(team_id, user_id))
        organization_id = grant.organization_id or (None if team is None else team.organization_id)
        organization = None if organization_id is None else self._organizations.get(organization_id)
        return Sources(grant, former, user, team, member, organization)

    def join(self, grant: KeyGrant) -> IndexedKey:
        """Join a key that the index need not know with its user, its team and its organization."""
        return self.joined(self._records_of(grant))

    def joined(self, sources: Sources) -> IndexedKey:
        """Return a key joined from the records that `sources_of` returned."""
        grant, user, team, organization = sources.grant, sources.user, sources.team, sources.organization
        organization_id = grant.organization_id or (None if team is None else team.organization_id)
        granted = _NO_HEADERS
        if grant.granted_headers:
            granted = frozenset(name.encode() for name in grant.granted_headers)
        if granted and any(each is not None and each.models for each in (grant, user, team, organization)):
            # These headers replace the body's model, which would evade the restriction.
            granted -= ADAPTER_HEADERS
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
            aliases={**team.aliases, **grant.aliases} if team is not None and team.aliases else grant.aliases,
            priority=grant.priority,
            granted_headers=granted,
            expires=sources.expires,
            limited=self._limited(sources, organization_id),
            tags=grant.tags,
            cache_salt=grant.cache_salt or "",
            key_fields=grant.fields,
            team_fields=NO_RULES if team is None else team.fields,
            organization_id=organization_id,
            organization_models=() if organization is None else organization.models,
            role=_role(grant, user),
            team_aliases=_NO_ALIASES if team is None else team.aliases,
            log_bodies=grant.log_bodies,
            team_log_bodies=None if team is None else team.log_bodies,
        )
        return IndexedKey(principal, sources, self.changes, self.epoch)

    def _limited(self, sources: Sources, organization_id: str | None) -> tuple[Limited, ...]:
        grant, user, team = sources.grant, sources.user, sources.team
        member, organization = sources.member, sources.organization
        found = [(KEY, grant.key_id, grant.allowance)]
        if user is not None and grant.user_id is not None:
            found.append((USER, grant.user_id, user.allowance))
        if team is not None and grant.team_id is not None:
            found.append((TEAM, grant.team_id, team.allowance))
        if member is not None and grant.user_id is not None and grant.team_id is not None:
            found.append((MEMBER, member_id(grant.team_id, grant.user_id), member))
        if organization is not None and organization_id is not None:
            found.append((ORGANIZATION, organization_id, organization.allowance))
        limited = (Limited(*each) for each in found if not each[2].is_unlimited)
        return (*limited, *self.of_everybody)


def _budget_of_members(member: str) -> str:
    return members_budget_id(member.partition(SEPARATOR)[0])


def _role(grant: KeyGrant, user: UserGrant | None) -> str:
    if user is not None:
        return user.role
    return "" if grant.user_id is None else DEFAULT_ROLE


def _restricts(end_user: EndUser | None) -> bool:
    return end_user is not None and (end_user.blocked or not end_user.allowance.is_unlimited)


def _apply(table: dict[str, T], changes: Mapping[str, T | None]) -> None:
    for name, value in changes.items():
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value
