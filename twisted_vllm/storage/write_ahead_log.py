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
        """As `write_back`, in the calling thread; in vain while another connection reads: the next attempt is soon."""
        write_back(self._engine, patient=True)


def write_back(engine: Engine, *, patient: bool) -> bool:
    """Copy the write-ahead log into the file that is open, and empty it.

    Args:
        engine: SQLite's.
        patient: whether to wait for other connections, as long as for any lock.

    Returns:
        Whether it is empty now. It cannot be emptied while another connection reads or writes.

    Raises:
        SQLAlchemyError: there is no open connection.
        sqlite3.Error: the log cannot be copied.
    """
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        (milliseconds,) = cursor.execute("PRAGMA busy_timeout").fetchone()
        if not patient:
            cursor.execute("PRAGMA busy_timeout = 0").fetchall()
        try:
            (is_busy, _, _) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {milliseconds}").fetchall()
        return not is_busy
    finally:
        connection.close()
