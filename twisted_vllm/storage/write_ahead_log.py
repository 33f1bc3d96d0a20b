"""Keeps SQLite's write-ahead log small, which readers that follow each other without a gap would let grow for ever.

A checkpoint copies the log into the database. The log begins anew only when no reader looks at its end
(sqlite.org/wal.html, "Checkpoint starvation"). So reports pause now and then.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from sqlalchemy.engine import Engine

#: the size in bytes above which the log is emptied
WAL_LIMIT = 64 * 1024 * 1024
#: seconds between two attempts: another process may hold the log
WAL_INTERVAL = 5.0
#: milliseconds that changes may wait for another process that reads from the log
PATIENCE = 20


class WriteAheadLog:
    """The log of a SQLite database."""

    def __init__(self, engine: Engine, seconds: Callable[[], float]) -> None:
        """Look at the log of an engine's database.

        Args:
            engine: SQLite's.
            seconds: the time, from any start.
        """
        self._engine = engine
        self._path = f"{engine.url.database}-wal"
        self._seconds = seconds
        self._next = float("-inf")

    def is_too_large(self) -> bool:
        """Return whether to empty it now."""
        now = self._seconds()
        if now < self._next:
            return False
        try:
            size = os.stat(self._path).st_size
        except OSError:
            return False
        if size <= WAL_LIMIT:
            return False
        self._next = now + WAL_INTERVAL
        return True

    def empty(self) -> None:
        """Empty it in the calling thread, or give up after a moment: the next attempt is soon."""
        empty_log(self._engine, patience=PATIENCE)


def empty_log(engine: Engine, *, patience: int) -> bool:
    """Copy SQLite's write-ahead log into the database, and cut it to nothing, in the calling thread.

    Nearly all is copied while others write. Only what came meanwhile is copied under the lock of changes.

    Args:
        engine: SQLite's.
        patience: milliseconds to wait for connections that read from the log; changes wait as long.

    Returns:
        Whether the log is empty. It is not while another connection reads from it or writes.

    Raises:
        SQLAlchemyError: there is no connection to the database.
        sqlite3.Error: the log cannot be copied.
    """
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        (usual,) = cursor.execute("PRAGMA busy_timeout").fetchone()
        cursor.execute(f"PRAGMA busy_timeout = {patience}").fetchall()
        try:
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            (is_busy, _, _) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {usual}").fetchall()
        return not is_busy
    finally:
        connection.close()
