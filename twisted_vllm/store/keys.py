"""The virtual keys in a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select
from sqlalchemy.exc import IntegrityError
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_vllm.access.records import KeyRecord
from twisted_vllm.store.database import Database
from twisted_vllm.store.interfaces import AliasExists, IKeyStore, KeyExists
from twisted_vllm.store.tables import keys


@implementer(IKeyStore)
class DatabaseKeyStore:
    """An :class:`IKeyStore` on a started :class:`Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Deferred[list[KeyRecord]]:
        """Return every key, the oldest first."""
        return self._database.run(_read_all, writes=False)

    def load_now(self) -> list[KeyRecord]:
        """Return every key likewise, blocking: for the start, before the reactor runs.

        Raises:
            StoreUnavailable: the database failed.
        """
        return self._database.run_now(_read_all)

    def insert(self, record: KeyRecord) -> Deferred[None]:
        """Keep a new key."""

        def work(connection: Connection) -> None:
            try:
                # A savepoint: PostgreSQL answers no more questions in a transaction that had an error.
                with connection.begin_nested():
                    connection.execute(insert(keys).values(_values(record)))
            except IntegrityError:
                taken = connection.execute(select(keys.c.token).where(keys.c.token == record.token)).first()
                problem = KeyExists() if taken is not None else AliasExists()
            else:
                return
            raise problem

        return self._database.run(work, writes=True)

    def delete(self, tokens: Sequence[str]) -> Deferred[list[str]]:
        """Forget keys; return the tokens that were there."""
        wanted = list(dict.fromkeys(tokens))

        def work(connection: Connection) -> list[str]:
            gone = connection.execute(delete(keys).where(keys.c.token.in_(wanted)).returning(keys.c.token))
            found = set(gone.scalars())
            return [token for token in wanted if token in found]

        return self._database.run(work, writes=True)


def _read_all(connection: Connection) -> list[KeyRecord]:
    rows = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.token))
    return [_record(row) for row in rows]


def _values(record: KeyRecord) -> dict[str, Any]:
    return {
        "token": record.token,
        "key_name": record.key_name,
        "key_alias": record.key_alias,
        "models": list(record.models),
        "allowed_routes": list(record.allowed_routes),
        "blocked": record.blocked,
        "expires": record.expires,
        "metadata": record.metadata,
        "tags": list(record.tags),
        "user_id": record.user_id,
        "team_id": record.team_id,
        "created_at": record.created_at,
        "created_by": record.created_by,
        "updated_at": record.updated_at,
    }


def _record(row: Row[Any]) -> KeyRecord:
    values = dict(row._mapping)
    for name in ("models", "allowed_routes", "tags"):
        values[name] = tuple(values[name])
    return KeyRecord(**values)
