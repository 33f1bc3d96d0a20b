"""What the index keeps, read without detours: a hundred thousand keys must not delay the start."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Column, Connection, Text, cast, func, select
from sqlalchemy.sql.elements import Cast

from twisted_vllm.access.index import Changes, Everything, FormerKey, KeyGrant
from twisted_vllm.store.tables import changes, former_keys, keys

KEY, FORMER = "key", "former"


def _text(column: Column[Any]) -> Cast[str]:
    # PostgreSQL's driver would decode each value by itself: most are the same few.
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
)


@lru_cache(maxsize=4096)
def _labels(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


@lru_cache(maxsize=4096)
def _names(text: str) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])


def _key_grant(row: Any) -> KeyGrant:
    token, key_id, name, expires, blocked, models, routes, aliases, priority, headers, user_id, team_id = row
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
    )


_FORMER = select(former_keys.c.token, keys.c.token, former_keys.c.works_until).join(
    keys, keys.c.key_id == former_keys.c.key_id
)


def _former_key(row: Any) -> FormerKey:
    token, successor, works_until = row
    return FormerKey(token, successor, works_until.timestamp())


def last_revision(connection: Connection) -> int:
    """Return the number of the last change."""
    found: int = connection.execute(select(func.coalesce(func.max(changes.c.revision), 0))).scalar_one()
    return found


def read_everything(connection: Connection) -> Everything:
    """Return all that the index keeps."""
    # The number first: a change that is committed in between is then taken twice, and not missed.
    revision = last_revision(connection)
    return Everything(
        revision=revision,
        keys=[_key_grant(row) for row in connection.execute(select(*_KEY_COLUMNS))],
        former=[_former_key(row) for row in connection.execute(_FORMER)],
    )


def read_changed(connection: Connection, touched: Iterable[tuple[str, str]]) -> Changes:
    """Return what the named keys, users and teams are now."""
    names: dict[str, list[str]] = {KEY: [], FORMER: []}
    for kind, name in touched:
        names.setdefault(kind, []).append(name)
    changed_keys: dict[str, KeyGrant | None] = dict.fromkeys(names[KEY])
    changed_former: dict[str, FormerKey | None] = dict.fromkeys(names[FORMER])
    for some in _chunks(names[KEY]):
        for row in connection.execute(select(*_KEY_COLUMNS).where(keys.c.token.in_(some))):
            changed_keys[row[0]] = _key_grant(row)
    for some in _chunks(names[FORMER]):
        for row in connection.execute(_FORMER.where(former_keys.c.token.in_(some))):
            changed_former[row[0]] = _former_key(row)
    return Changes(keys=changed_keys, former=changed_former)


def _chunks(names: list[str]) -> Iterable[list[str]]:
    return (names[start : start + 1000] for start in range(0, len(names), 1000))
