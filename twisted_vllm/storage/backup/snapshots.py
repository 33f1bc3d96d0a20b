"""SQLite's files as they were at one moment, while others write to them.

A reading transaction of SQLite sees the file as it was when it began, whatever is committed meanwhile: with the
write-ahead log, nobody waits for it. So all files are held at nearly one moment, and then copied one by one with
SQLite's online backup, which reads within that transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from twisted_vllm.storage.backup.manifest import BackupError

#: pages that are copied at once: about a megabyte
_PAGES = 256
#: seconds to wait for a lock
_LOCK_SECONDS = 30.0


class Snapshot:
    """A file of SQLite at the moment at which this was made.

    Attributes:
        path: the file.
        bytes: its size in the copy.
        is_busy: whether others wrote to it lately: until it is copied, its write-ahead log cannot be emptied.
    """

    def __init__(self, path: Path) -> None:
        """Hold the file as it is now.

        Raises:
            FileNotFoundError: there is none.
            BackupError: it cannot be read.
        """
        self.path = path
        os.stat(path)
        try:
            self._connection = sqlite3.connect(
                f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None, timeout=_LOCK_SECONDS
            )
        except sqlite3.Error as error:
            raise self._problem(error) from None
        try:
            self._connection.execute("PRAGMA query_only = ON")
            self._connection.execute("BEGIN")
            # SQLite begins to read with the first statement that needs the file
            self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            pages, size = (int(str(self.one(f"PRAGMA {name}"))) for name in ("page_count", "page_size"))
        except sqlite3.Error as error:
            self.close()
            raise self._problem(error) from None
        self.bytes = pages * size
        try:
            self.is_busy = os.stat(f"{path}-wal").st_size > 0
        except FileNotFoundError:
            self.is_busy = False

    def one(self, statement: str) -> object:
        """Return the first value that a statement finds; None for none.

        Raises:
            sqlite3.Error: it failed.
        """
        found = self._connection.execute(statement).fetchone()
        return None if found is None else found[0]

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """Return what a statement finds.

        Raises:
            sqlite3.Error: it failed.
        """
        return self._connection.execute(statement).fetchall()

    def has_table(self, name: str) -> bool:
        """Return whether the file has a table of this name."""
        return self.one(f"SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '{name}'") is not None

    def columns(self, table: str) -> set[object]:
        """Return the names of a table's columns."""
        return {row[1] for row in self.rows(f'PRAGMA table_info("{table}")')}

    def copy(self, target: Path, progress: Callable[[int], None]) -> None:
        """Write a copy, check that it is whole, and let the file go.

        Args:
            target: where; there is nothing yet.
            progress: called with the bytes that were copied since the last call.

        Raises:
            BackupError: the file is damaged.
            OSError: the copy cannot be written.
        """
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        last = 0

        def copied(_status: int, remaining: int, total: int) -> None:
            nonlocal last
            done = (total - remaining) * self.bytes // max(total, 1)
            progress(done - last)
            last = done

        try:
            with closing(sqlite3.connect(target, isolation_level=None)) as copy:
                # A copy that is interrupted is thrown away, so nothing needs to survive a crash.
                copy.execute("PRAGMA journal_mode = OFF").fetchall()
                copy.execute("PRAGMA synchronous = OFF")
                self._connection.backup(copy, pages=_PAGES, progress=copied)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                # only the copy is written
                raise OSError(f"{error} while {self.path.name} was copied") from None
            raise self._problem(error) from None
        finally:
            self.close()
        fault = fault_of(target)
        if fault:
            raise BackupError(f"{self.path} is damaged ({fault}): repair it first; see docs/operations.md")

    def close(self) -> None:
        """Let the file go; idempotent."""
        self._connection.close()

    def _problem(self, error: sqlite3.Error) -> BackupError:
        return BackupError(f"{self.path} cannot be read: {error} (the gateway's user can)")


def fault_of(path: Path) -> str:
    """Return what SQLite finds wrong with a file that nobody uses; empty if it is whole."""
    try:
        # immutable: SQLite makes no files beside it
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as file:
            file.execute("PRAGMA trusted_schema = OFF")
            [(found,)] = file.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.Error as error:
        return str(error)
    return "" if found == "ok" else " ".join(str(found).split())[:200]
