"""A database in memory that answers at once."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from sqlalchemy import Connection, StaticPool, create_engine
from twisted.internet.defer import Deferred, execute
from zope.interface import implementer

from twisted_vllm.storage.interfaces import IDatabase
from twisted_vllm.storage.usage.tables import metadata

T = TypeVar("T")


@cache
def _empty() -> bytes:
    """Return a database with all tables: to make them takes longer than most tests."""
    engine = create_engine("sqlite+pysqlite://", poolclass=StaticPool)
    metadata.create_all(engine)
    with engine.connect() as connection:
        made = connection.connection.dbapi_connection
        assert isinstance(made, sqlite3.Connection)
        content = made.serialize()
    engine.dispose()
    return content


def _with_tables() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.deserialize(_empty())
    return connection


@implementer(IDatabase)
class MemoryDatabase:
    """An :class:`IDatabase` on SQLite in memory, without threads: its Deferreds have already fired."""

    def __init__(self) -> None:
        self._engine = create_engine("sqlite+pysqlite://", poolclass=StaticPool, creator=_with_tables)
        # Python 3.13 warns of a connection that is only forgotten
        weakref.finalize(self, self._engine.dispose)

    def run(self, work: Callable[[Connection], T], *, writes: bool, seconds: float | None = None) -> Deferred[T]:
        """Do work in one transaction."""
        return execute(self.run_now, work)

    def run_now(self, work: Callable[[Connection], T]) -> T:
        """Do work in one transaction, and return its result."""
        with self._engine.begin() as connection:
            return work(connection)
