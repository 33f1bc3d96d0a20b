"""The store: transactions on a database, and their changes for the key index."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, select, text
from twisted.internet.defer import Deferred
from zope.interface import implementer

from twisted_vllm.auth.grants import NO_REVISION, Changes, Revision, Snapshot
from twisted_vllm.auth.records import Spend
from twisted_vllm.storage.counts import Counts
from twisted_vllm.storage.grants import read_changed, read_everything
from twisted_vllm.storage.interfaces import IDatabase, IStore
from twisted_vllm.storage.repository import all_spend
from twisted_vllm.storage.revisions import last_revision
from twisted_vllm.storage.tables import changes
from twisted_vllm.storage.transaction import Transaction

T = TypeVar("T")

#: seconds that a read of what other processes changed may take: it may have to read every key
FOLLOW_SECONDS = 60.0

#: PostgreSQL's advisory lock of transactions that change something; SQLite has one writer at a time anyway
_CHANGE_LOCK = int.from_bytes(b"vllmkeys", "big")

#: random bytes in the stamp of a change; a database's signed integer holds one more bit
_STAMP_BYTES = 7


def change_in(
    connection: Connection, work: Callable[[Transaction], T], randbytes: Callable[[int], bytes] = os.urandom
) -> tuple[T, Changes]:
    """Run work that changes something in the connection's transaction, one change at a time over all processes.

    Args:
        connection: it is in a transaction, which the caller commits.
        work: what to do.
        randbytes: returns that many random bytes, for the stamp of the changes.

    Returns:
        The result of the work, and what it changed.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CHANGE_LOCK})
    transaction = Transaction(connection, int.from_bytes(randbytes(_STAMP_BYTES), "big"))
    result = work(transaction)
    return result, transaction.finish()


@implementer(IStore)
class Store:
    """An :class:`IStore` on an open database."""

    def __init__(self, database: IDatabase, randbytes: Callable[[int], bytes] = os.urandom) -> None:
        """Use a database.

        Args:
            database: it is open already.
            randbytes: returns that many random bytes, for the stamps of changes; any thread may call it.
        """
        self._database = database
        self._randbytes = randbytes
        self._counts = Counts()

    def read(self, work: Callable[[Transaction], T]) -> Deferred[T]:
        """Run work that only reads."""
        counts = self._counts
        return self._database.run(lambda connection: work(Transaction(connection, counts=counts)), writes=False)

    def change(self, work: Callable[[Transaction], T]) -> Deferred[tuple[T, Changes]]:
        """Run work that changes something, one change at a time."""
        return self._database.run(lambda connection: change_in(connection, work, self._randbytes), writes=True)

    def load(self) -> Deferred[Snapshot]:
        """Return the content of the key index."""
        return self._database.run(read_everything, writes=False, seconds=FOLLOW_SECONDS)

    def load_now(self) -> Snapshot:
        """Return the same, blocking: for the start, before the reactor runs.

        Raises:
            StoreUnavailable: the database failed.
        """
        return self._database.run_now(read_everything)

    def spend(self) -> Deferred[list[Spend]]:
        """Return every spend record."""
        return self._database.run(all_spend, writes=False, seconds=FOLLOW_SECONDS)

    def spend_of_wanted(self, wanted: Callable[[str, str], bool]) -> Deferred[list[Spend]]:
        """Return the spend records of those who are wanted; `wanted` is called in another thread.

        Args:
            wanted: called with the kind and id of each.
        """
        return self._database.run(
            lambda connection: all_spend(connection, wanted), writes=False, seconds=FOLLOW_SECONDS
        )

    def spend_now(self, wanted: Callable[[str, str], bool]) -> list[Spend]:
        """Return the spend records of those who are wanted, blocking: for the start, before the reactor runs.

        Args:
            wanted: called with the kind and id of each.

        Raises:
            StoreUnavailable: the database failed.
        """
        return self._database.run_now(lambda connection: all_spend(connection, wanted))

    def changes_since(self, revision: Revision) -> Deferred[tuple[Revision, Changes | Snapshot | None]]:
        """Return the current revision, and what changed after `revision`."""

        def read(connection: Connection) -> tuple[Revision, Changes | Snapshot | None]:
            last = last_revision(connection)
            if last == revision:
                return revision, None
            since = select(changes).where(changes.c.revision >= revision.number).order_by(changes.c.revision)
            rows = connection.execute(since).all()
            known, later = (NO_REVISION, rows) if revision == NO_REVISION else (_first(rows), rows[1:])
            # Too old, or the change that is known is not in this history: the database was set back or restored.
            if known != revision or not later or later[0].revision != revision.number + 1:
                snapshot = read_everything(connection)
                return snapshot.revision, snapshot
            changed = dict.fromkeys((row.kind, row.name) for row in later)
            return Revision(later[-1].revision, later[-1].stamp), read_changed(connection, changed)

        return self._database.run(read, writes=False, seconds=FOLLOW_SECONDS)


def _first(rows: Sequence[Row[Any]]) -> Revision:
    return Revision(rows[0].revision, rows[0].stamp) if rows else NO_REVISION
