"""Inserts what a database accepts of some rows, and leaves out the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.storage.usage.bulk_insert import BulkInsert, Values

#: PostgreSQL's class of errors for what exceeds the size of an index entry or a row
_PROGRAM_LIMIT_EXCEEDED = "54"
#: PostgreSQL ended a transaction because of another's locks
_BROKEN = ("40P01", "40001")

#: characters of a key in a log message
_KEY_LENGTH = 200

#: inserts rows, and returns what ``RETURNING`` gives
Insert = Callable[[BulkInsert, Connection, Sequence[Values]], list[Any]]

_log = Logger()


def is_rejection(error: Exception) -> bool:
    """Return whether the database, or its driver, refuses a value."""
    if isinstance(error, (OverflowError, UnicodeError)):
        # the driver's own error, before the database got a value
        return True
    return isinstance(error, (DataError, IntegrityError)) or _state(error).startswith(_PROGRAM_LIMIT_EXCEEDED)


def is_broken_deadlock(error: Exception) -> bool:
    """Return whether PostgreSQL rolled a transaction back that only need be tried again."""
    return _state(error) in _BROKEN


def insert_all(insert: BulkInsert, connection: Connection, rows: Sequence[Values]) -> list[Any]:
    """Insert all rows, or fail."""
    return insert.run(connection, rows)


def insert_accepted(insert: BulkInsert, connection: Connection, rows: Sequence[Values]) -> list[Any]:
    """Insert the rows that the database accepts; log the others and leave them out.

    Raises:
        SQLAlchemyError: the database failed.
    """
    if not rows:
        return []
    try:
        with connection.begin_nested():
            return insert.run(connection, rows)
    except (SQLAlchemyError, OverflowError, UnicodeError) as error:
        if not is_rejection(error):
            raise
        if len(rows) == 1:
            # Its first columns are its key.
            _log.critical(
                "The database refuses an amount of the ledger ({reason}), which is left out: {key}",
                reason=type(error).__name__,
                key=str(tuple(rows[0][:4]))[:_KEY_LENGTH],
                **LEDGER_ALERT,
            )
            return []
    half = len(rows) // 2
    first = insert_accepted(insert, connection, rows[:half])
    return first + insert_accepted(insert, connection, rows[half:])


def _state(error: Exception) -> str:
    return str(getattr(error.orig, "sqlstate", None)) if isinstance(error, DBAPIError) else ""
