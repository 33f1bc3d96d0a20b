"""Asks a database whether it answers."""

from __future__ import annotations

from sqlalchemy import Connection, select
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.errors import StoreUnavailable
from twisted_vllm.storage.database import Database


def answers(database: Database) -> Deferred[bool]:
    """Return whether a database answers."""

    def ask(connection: Connection) -> bool:
        return connection.execute(select(1)).scalar() == 1

    def refused(failure: Failure) -> bool:
        failure.trap(StoreUnavailable)
        return False

    return database.run(ask, writes=False).addErrback(refused)
