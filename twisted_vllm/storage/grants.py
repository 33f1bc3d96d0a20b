"""Reads the content of the key index. It bypasses the repositories: 100,000 keys must not delay the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Column, Connection, Select, Text, cast, func, select
from sqlalchemy.sql.elements import Cast

from twisted_vllm.auth.grants import (
    NO_REVISION,
    Changes,
    EndUser,
    FormerKey,
    KeyGrant,
    Revision,
    Snapshot,
    TeamGrant,
    UserGrant,
)
from twisted_vllm.auth.records import Spend
from twisted_vllm.config.stored_models import StoredModel
from twisted_vllm.field_policy.rules import NO_RULES, FieldRules, rules_from
from twisted_vllm.ratelimit.allowance import UNLIMITED, Allowance, Limited
from twisted_vllm.storage.repository import in_chunks, spend_of
from twisted_vllm.storage.tables import (
    END_USER,
    FORMER_KEY,
    KEY,
    MODEL,
    SPEND,
    TEAM,
    USER,
    changes,
    end_users,
    former_keys,
    keys,
    models,
    teams,
    users,
)

T = TypeVar("T")


def _text(column: Column[Any]) -> Cast[str]:
    # PostgreSQL's driver would decode every value. As text, equal values are decoded once, below.
    return cast(column, Text)


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
)


@lru_cache(maxsize=4096)
def _labels(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


@lru_cache(maxsize=4096)
def _names(text: str) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])


@lru_cache(maxsize=4096)
def _limits(text: str) -> Allowance:
    return msgspec.json.decode(text, type=Allowance)


@lru_cache(maxsize=4096)
def _fields(text: str | None) -> FieldRules:
    return NO_RULES if text is None else rules_from(msgspec.json.decode(text, type=dict[str, Any]))


def _key_grant(row: Any) -> KeyGrant:
    token, key_id, name, expires, blocked, models, routes, aliases, priority, headers, *others = row
    user_id, team_id, tags, allowance, cache_salt, fields = others
    return KeyGrant(
        token,
        key_id,
        name,
        float("inf") if expires is None else expires.timestamp(),
        blocked,
        _labels(models),
        _labels(routes),
        _names(aliases),
        priority,
        _labels(headers),
        user_id,
        team_id,
        _labels(tags),
        UNLIMITED if allowance is None else _limits(allowance),
        cache_salt,
        _fields(fields),
    )


_FORMER_KEY = select(former_keys.c.token, keys.c.token, former_keys.c.works_until).join(
    keys, keys.c.key_id == former_keys.c.key_id
)


def _former_key(row: Any) -> FormerKey:
    token, successor, works_until = row
    return FormerKey(token, successor, works_until.timestamp())


_NONE = "[]"
_USER = select(users.c.user_id, _text(users.c.models), _text(users.c.allowance))
_TEAM = select(teams.c.team_id, _text(teams.c.models), teams.c.blocked, _text(teams.c.allowance), _text(teams.c.fields))
_END_USER = select(end_users.c.user_id, end_users.c.blocked, _text(end_users.c.allowance))


def _user_grant(row: Any) -> UserGrant:
    _, models, allowance = row
    return UserGrant(_labels(models), UNLIMITED if allowance is None else _limits(allowance))


def _team_grant(row: Any) -> TeamGrant:
    _, models, blocked, allowance, fields = row
    return TeamGrant(_labels(models), blocked, UNLIMITED if allowance is None else _limits(allowance), _fields(fields))


def _end_user(row: Any) -> EndUser:
    user_id, blocked, allowance = row
    return EndUser(Limited(END_USER, user_id, UNLIMITED if allowance is None else _limits(allowance)), blocked)


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


_LAST_REVISION = select(changes.c.revision, changes.c.stamp).order_by(changes.c.revision.desc()).limit(1)


def last_revision(connection: Connection) -> Revision:
    """Return the last change."""
    found = connection.execute(_LAST_REVISION).one_or_none()
    return NO_REVISION if found is None else Revision(*found)


def read_everything(connection: Connection) -> Snapshot:
    """Return the content of the key index."""
    # Read the revision first: a change committed meanwhile is then applied twice instead of missed.
    revision = last_revision(connection)
    return Snapshot(
        revision=revision,
        keys=[_key_grant(row) for row in connection.execute(select(*_KEY_COLUMNS))],
        former=[_former_key(row) for row in connection.execute(_FORMER_KEY)],
        # Only those with a restriction: the index does not need the others.
        users={row[0]: _user_grant(row) for row in connection.execute(_USER) if row[1] != _NONE or row[2]},
        teams={
            row[0]: _team_grant(row)
            for row in connection.execute(_TEAM)
            if row[1] != _NONE or row[2] or row[3] or row[4]
        },
        end_users={row[0]: _end_user(row) for row in connection.execute(_END_USER) if row[1] or row[2]},
        models={row[0]: _model(row) for row in connection.execute(_MODEL)},
    )


def read_changed(connection: Connection, changed: Iterable[tuple[str, str]]) -> Changes:
    """Return the current state of what changed, given by kind and name."""
    names: dict[str, list[str]] = {KEY: [], FORMER_KEY: [], USER: [], TEAM: [], END_USER: [], SPEND: [], MODEL: []}
    for kind, name in changed:
        # A newer version on the same database may know more kinds.
        names.setdefault(kind, []).append(name)

    def read(
        kind: str, statement: Select[Any], column: Column[Any], convert: Callable[[Any], T]
    ) -> dict[str, T | None]:
        found: dict[str, T | None] = dict.fromkeys(names[kind])
        for chunk in in_chunks(names[kind]):
            for row in connection.execute(statement.where(column.in_(chunk))):
                found[row[0]] = convert(row)
        return found

    found = Changes(
        keys=read(KEY, select(*_KEY_COLUMNS), keys.c.token, _key_grant),
        former=read(FORMER_KEY, _FORMER_KEY, former_keys.c.token, _former_key),
        users=read(USER, _USER, users.c.user_id, _user_grant),
        teams=read(TEAM, _TEAM, teams.c.team_id, _team_grant),
        end_users=read(END_USER, _END_USER, end_users.c.user_id, _end_user),
        models=read(MODEL, _MODEL, models.c.model_id, _model),
        spend=tuple(_spend(connection, names[SPEND])),
    )
    return msgspec.structs.replace(found, budgets=tuple(_budgets(connection, found)))


def spend_name(kind: str, identity: str) -> str:
    """Return the name of a change of spend."""
    return f"{kind}:{identity}"


def _budgets(connection: Connection, found: Changes) -> Iterator[Spend]:
    """Return the spend of those that have a budget after the changes and have spent anything."""
    ids: dict[str, list[str]] = {KEY: [], USER: [], TEAM: [], END_USER: []}
    for kind, id in found.budgets_within():
        ids[kind].append(id)
    for kind, names in ids.items():
        yield from (each for each in spend_of(connection, kind, names).values() if each.total_spend or each.spend)


def _spend(connection: Connection, names: Iterable[str]) -> Iterator[Spend]:
    for name in names:
        kind, _, identity = name.partition(":")
        yield spend_of(connection, kind, [identity])[identity]
