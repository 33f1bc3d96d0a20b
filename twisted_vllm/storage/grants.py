"""Reads the content of the key index. It bypasses the repositories: 100,000 keys must not delay the start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Column, Connection, Select, Table, Text, cast, func, or_, select
from sqlalchemy.sql.elements import Cast

from twisted_vllm.auth.grants import (
    DEFAULT_ROLE,
    NEVER,
    Changes,
    EndUser,
    FormerKey,
    KeyGrant,
    OrganizationGrant,
    Snapshot,
    TeamGrant,
    UserGrant,
)
from twisted_vllm.auth.records import Spend
from twisted_vllm.config.drained_servers import DrainedServer
from twisted_vllm.config.stored_models import StoredModel
from twisted_vllm.field_policy.rules import NO_RULES, FieldRules, rules_from
from twisted_vllm.ratelimit.allowance import (
    END_USER,
    KEY,
    MEMBER,
    ORGANIZATION,
    SEPARATOR,
    TEAM,
    UNLIMITED,
    USER,
    Allowance,
    Limited,
    member_id,
)
from twisted_vllm.storage.repository import in_chunks, spend_of
from twisted_vllm.storage.revisions import last_revision
from twisted_vllm.storage.tables import (
    BUDGET,
    DRAINED,
    FORMER_KEY,
    MODEL,
    SPEND,
    budgets,
    drained_servers,
    end_users,
    former_keys,
    keys,
    members,
    models,
    organizations,
    teams,
    users,
)

T = TypeVar("T")


def _text(column: Column[Any]) -> Cast[str]:
    # PostgreSQL's driver would decode every value. As text, equal values are decoded once, below.
    return cast(column, Text)


#: the limits of the budget that a row names
_SHARED = _text(budgets.c.allowance)


def _with_budget(statement: Select[Any], table: Table) -> Select[Any]:
    """Let a statement read `_SHARED` with each row of a table."""
    return statement.outerjoin_from(table, budgets, budgets.c.budget_id == table.c.budget_id)


_KEY_COLUMNS = (
    keys.c.token,
    keys.c.key_id,
    func.coalesce(keys.c.key_alias, keys.c.key_name),
    keys.c.expires,
    keys.c.blocked,
    _text(keys.c.models),
    _text(keys.c.allowed_routes),
    _text(keys.c.aliases),
    keys.c.priority,
    _text(keys.c.granted_headers),
    keys.c.user_id,
    keys.c.team_id,
    _text(keys.c.tags),
    _text(keys.c.allowance),
    keys.c.cache_salt,
    _text(keys.c.fields),
    keys.c.organization_id,
    keys.c.log_bodies,
    _SHARED,
)
_KEY = _with_budget(select(*_KEY_COLUMNS), keys)


@lru_cache(maxsize=4096)
def _labels(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


@lru_cache(maxsize=4096)
def _names(text: str) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])


@lru_cache(maxsize=4096)
def _limits(text: str | None) -> Allowance:
    return UNLIMITED if text is None else msgspec.json.decode(text, type=Allowance)


@lru_cache(maxsize=4096)
def _effective(own: str | None, shared: str | None) -> Allowance:
    """Return the limits of somebody, with those of the budget that it names."""
    return _limits(own) if shared is None else _limits(own).within(_limits(shared))


@lru_cache(maxsize=4096)
def _fields(text: str | None) -> FieldRules:
    return NO_RULES if text is None else rules_from(msgspec.json.decode(text, type=dict[str, Any]))


def _key_grant(row: Any, share: Callable[[str, str], str] | None = None) -> KeyGrant:
    """Return a key.

    Args:
        row: its row.
        share: returns the one string of equal ones, as ``setdefault`` of a dictionary; None for a single key.
    """
    token, key_id, name, expires, blocked, models, routes, aliases, priority, headers, *others = row
    user_id, team_id, tags, allowance, cache_salt, fields, organization_id, log_bodies, shared = others
    if share is not None:
        user_id = user_id and share(user_id, user_id)
        team_id = team_id and share(team_id, team_id)
        organization_id = organization_id and share(organization_id, organization_id)
    return KeyGrant(
        token,
        key_id,
        name,
        NEVER if expires is None else expires.timestamp(),
        blocked,
        _labels(models),
        _labels(routes),
        _names(aliases),
        priority,
        _labels(headers),
        user_id,
        team_id,
        _labels(tags),
        _effective(allowance, shared),
        cache_salt,
        _fields(fields),
        organization_id,
        log_bodies,
    )


_FORMER_KEY = select(former_keys.c.token, keys.c.token, former_keys.c.works_until).join(
    keys, keys.c.key_id == former_keys.c.key_id
)


def _former_key(row: Any) -> FormerKey:
    token, successor, works_until = row
    return FormerKey(token, successor, works_until.timestamp())


_NONE = "[]"
_USER = _with_budget(
    select(users.c.user_id, _text(users.c.models), _text(users.c.allowance), users.c.user_role, _SHARED), users
)
_TEAM = _with_budget(
    select(
        teams.c.team_id,
        _text(teams.c.models),
        teams.c.blocked,
        _text(teams.c.allowance),
        _text(teams.c.fields),
        teams.c.organization_id,
        _text(teams.c.aliases),
        teams.c.log_bodies,
        _SHARED,
    ),
    teams,
)
_ORGANIZATION = _with_budget(
    select(organizations.c.organization_id, _text(organizations.c.models), _text(organizations.c.allowance), _SHARED),
    organizations,
)
_MEMBER = _with_budget(select(members.c.team_id, members.c.user_id, _text(members.c.allowance), _SHARED), members)
_END_USER = _with_budget(
    select(end_users.c.user_id, end_users.c.blocked, _text(end_users.c.allowance), _SHARED), end_users
)
_BUDGET = select(budgets.c.budget_id, _text(budgets.c.allowance))

# Only those who restrict or grant something: the index does not need the others.
_RESTRICTING_USER = or_(
    _text(users.c.models) != _NONE,
    users.c.allowance.is_not(None),
    users.c.user_role != DEFAULT_ROLE,
    users.c.budget_id.is_not(None),
)
_RESTRICTING_TEAM = or_(
    _text(teams.c.models) != _NONE,
    teams.c.blocked,
    *(column.is_not(None) for column in (teams.c.allowance, teams.c.fields, teams.c.organization_id)),
    *(column.is_not(None) for column in (teams.c.aliases, teams.c.budget_id, teams.c.log_bodies)),
)
_LIMITED_MEMBER = or_(members.c.allowance.is_not(None), members.c.budget_id.is_not(None))
_RESTRICTING_END_USER = or_(end_users.c.blocked, end_users.c.allowance.is_not(None), end_users.c.budget_id.is_not(None))


def _user_grant(row: Any) -> UserGrant:
    _, models, allowance, role, shared = row
    return UserGrant(_labels(models), _effective(allowance, shared), role)


def _team_grant(row: Any) -> TeamGrant:
    _, models, blocked, allowance, fields, organization_id, aliases, log_bodies, shared = row
    return TeamGrant(
        _labels(models),
        blocked,
        _effective(allowance, shared),
        _fields(fields),
        organization_id,
        {} if aliases is None else _names(aliases),
        log_bodies,
    )


def _organization_grant(row: Any) -> OrganizationGrant:
    _, models, allowance, shared = row
    return OrganizationGrant(_labels(models), _effective(allowance, shared))


def _member_limits(row: Any) -> tuple[str, Allowance]:
    team_id, user_id, allowance, shared = row
    return member_id(team_id, user_id), _effective(allowance, shared)


def _end_user(row: Any) -> EndUser:
    user_id, blocked, allowance, shared = row
    return EndUser(Limited(END_USER, user_id, _effective(allowance, shared)), blocked)


_MODEL = select(
    models.c.model_id,
    models.c.model_name,
    models.c.litellm_params,
    models.c.model_info,
    models.c.api_key,
    models.c.created_at,
)


def _model(row: Any) -> StoredModel:
    model_id, model_name, params, info, api_key, created_at = row
    return StoredModel(model_id, model_name, params, info, api_key, created_at.timestamp())


_DRAINED = select(
    drained_servers.c.url, drained_servers.c.reason, drained_servers.c.drained_at, drained_servers.c.drained_by
)


def _drained_server(row: Any) -> DrainedServer:
    url, reason, drained_at, drained_by = row
    return DrainedServer(url, reason, drained_at.timestamp(), drained_by)


def read_everything(connection: Connection) -> Snapshot:
    """Return the content of the key index."""
    # Read the revision first: a change committed meanwhile is then applied twice instead of missed.
    revision = last_revision(connection)
    # many keys have the same user or team
    names: dict[str, str] = {}
    return Snapshot(
        revision=revision,
        keys=[_key_grant(row, names.setdefault) for row in connection.execute(_KEY)],
        former=[_former_key(row) for row in connection.execute(_FORMER_KEY)],
        users={row[0]: _user_grant(row) for row in connection.execute(_USER.where(_RESTRICTING_USER))},
        teams={row[0]: _team_grant(row) for row in connection.execute(_TEAM.where(_RESTRICTING_TEAM))},
        end_users={row[0]: _end_user(row) for row in connection.execute(_END_USER.where(_RESTRICTING_END_USER))},
        members=dict(map(_member_limits, connection.execute(_MEMBER.where(_LIMITED_MEMBER)))),
        organizations={row[0]: _organization_grant(row) for row in connection.execute(_ORGANIZATION)},
        shared={row[0]: _limits(row[1]) for row in connection.execute(_BUDGET)},
        models={row[0]: _model(row) for row in connection.execute(_MODEL)},
        drained={row[0]: _drained_server(row) for row in connection.execute(_DRAINED)},
    )


def read_changed(connection: Connection, changed: Iterable[tuple[str, str]]) -> Changes:
    """Return the current state of what changed, given by kind and name."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for kind, name in _with_holders(connection, changed):
        # A newer version on the same database may know more kinds.
        names[kind].append(name)

    def read(
        kind: str, statement: Select[Any], column: Column[Any], convert: Callable[[Any], T]
    ) -> dict[str, T | None]:
        found: dict[str, T | None] = dict.fromkeys(names[kind])
        for chunk in in_chunks(names[kind]):
            for row in connection.execute(statement.where(column.in_(chunk))):
                found[row[0]] = convert(row)
        return found

    found = Changes(
        keys=read(KEY, _KEY, keys.c.token, _key_grant),
        former=read(FORMER_KEY, _FORMER_KEY, former_keys.c.token, _former_key),
        users=read(USER, _USER, users.c.user_id, _user_grant),
        teams=read(TEAM, _TEAM, teams.c.team_id, _team_grant),
        end_users=read(END_USER, _END_USER, end_users.c.user_id, _end_user),
        members=_read_members(connection, names[MEMBER]),
        organizations=read(ORGANIZATION, _ORGANIZATION, organizations.c.organization_id, _organization_grant),
        shared=read(BUDGET, _BUDGET, budgets.c.budget_id, lambda row: _limits(row[1])),
        models=read(MODEL, _MODEL, models.c.model_id, _model),
        drained=read(DRAINED, _DRAINED, drained_servers.c.url, _drained_server),
        spend=tuple(_spend(connection, map(_spender, names[SPEND]))),
    )
    spent = _spend(connection, found.budgets_within())
    return msgspec.structs.replace(found, budgets=tuple(each for each in spent if each.total_spend or each.spend))


#: who may name a budget: the kind, and what its change is called
_HOLDERS = (
    (KEY, keys.c.token, keys.c.budget_id),
    (USER, users.c.user_id, users.c.budget_id),
    (TEAM, teams.c.team_id, teams.c.budget_id),
    (ORGANIZATION, organizations.c.organization_id, organizations.c.budget_id),
    (END_USER, end_users.c.user_id, end_users.c.budget_id),
)


def _with_holders(connection: Connection, changed: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Return what changed, and everybody who names a budget that changed."""
    found = dict.fromkeys(changed)
    changed_budgets = [name for kind, name in found if kind == BUDGET]
    for chunk in in_chunks(changed_budgets):
        for kind, column, budget_id in _HOLDERS:
            for row in connection.execute(select(column).where(budget_id.in_(chunk))):
                found[kind, row[0]] = None
        in_team = select(members.c.team_id, members.c.user_id).where(members.c.budget_id.in_(chunk))
        for team_id, user_id in connection.execute(in_team):
            found[MEMBER, member_id(team_id, user_id)] = None
    return found


def _read_members(connection: Connection, ids: Sequence[str]) -> dict[str, Allowance | None]:
    found: dict[str, Allowance | None] = dict.fromkeys(ids)
    teams_of_members = list(dict.fromkeys(id.partition(SEPARATOR)[0] for id in ids))
    for chunk in in_chunks(teams_of_members):
        for row in connection.execute(_MEMBER.where(members.c.team_id.in_(chunk), _LIMITED_MEMBER)):
            id, allowance = _member_limits(row)
            if id in found:
                found[id] = allowance
    return found


def spend_name(kind: str, identity: str) -> str:
    """Return the name of a change of spend."""
    return f"{kind}:{identity}"


def _spender(name: str) -> tuple[str, str]:
    """Return the kind and id in a name of `spend_name`."""
    kind, _, identity = name.partition(":")
    return kind, identity


def _spend(connection: Connection, spenders: Iterable[tuple[str, str]]) -> Iterator[Spend]:
    """Return the spend of each of these, given by kind and id."""
    ids: defaultdict[str, list[str]] = defaultdict(list)
    for kind, id in spenders:
        ids[kind].append(id)
    for kind, of_kind in ids.items():
        yield from spend_of(connection, kind, of_kind).values()
