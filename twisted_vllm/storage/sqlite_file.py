"""Notices that SQLite's file was removed or replaced while it is open.

SQLite goes on to read and write the file that it opened, also when no name leads to it any more: what it commits is
then lost with the process. So the file's identity is compared with that of the path, at every transaction.

The gateway never opens a file that took the place of its own. SQLite finds the write-ahead log by the file's name, and
would apply the former file's log to the new one (sqlite.org/howtocorrupt.html, 1.4). A restart opens the new file.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

#: the execution option with which an engine carries its file
_FILE = "vllm_passthrough_file"


class DatabaseFileLost(SQLAlchemyError):
    """The path of the database does not lead to the file that is open. The message is for the operator.

    Attributes:
        what: what happened to the file.
        moved: whether the file that is open has lost its name, and is whole.
    """

    def __init__(self, path: Path, what: str, moved: bool) -> None:
        super().__init__(
            f"{path} {what} while the gateway runs. Put the former file back, or restart the gateway to use what "
            "is there now. Until then keys work as they were, and nothing is stored."
        )
        self.what = what
        self.moved = moved


class SqliteFile:
    """The file of a SQLite database, as it is at the start."""

    def __init__(self, path: Path) -> None:
        """Remember the file that is at a path; its directory may not change with the working directory.

        Raises:
            OSError: there is none.
        """
        self._path = path.absolute()
        status = os.stat(self._path)
        self._identity = (status.st_dev, status.st_ino)
        self._emptied = False

    def check(self) -> None:
        """Check that the path leads to the file. It takes a few µs.

        It opens nothing: to close any descriptor of the file would drop SQLite's locks.

        Raises:
            DatabaseFileLost: it does not, or the file is empty, or the path cannot be followed.
        """
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            raise self._lost("was removed", moved=True) from None
        except OSError as error:
            raise self._lost(f"cannot be found ({error.strerror})") from None
        if (status.st_dev, status.st_ino) != self._identity:
            raise self._lost("was replaced by another file", moved=True)
        # What is written into an emptied file later does not belong to what SQLite holds in memory and in its log.
        self._emptied = self._emptied or not status.st_size
        if self._emptied:
            raise self._lost("was emptied")

    def _lost(self, what: str, moved: bool = False) -> DatabaseFileLost:
        return DatabaseFileLost(self._path, what, moved)


def watch_file(engine: Engine) -> None:
    """Have an engine refuse connections and transactions once its file is lost; nothing for another database.

    Args:
        engine: the engine of a database that has its tables already.

    Raises:
        OSError: the file is not there.
    """
    if engine.dialect.name != "sqlite":
        return
    assert engine.url.database is not None
    file = SqliteFile(Path(engine.url.database))

    def check(*_: object) -> None:
        file.check()

    engine.update_execution_options(**{_FILE: file})
    # SQLite would make an empty file where there is none.
    event.listen(engine, "do_connect", check)
    event.listen(engine, "begin", check, insert=True)
    event.listen(engine, "commit", check)


def check_file(engine: Engine) -> None:
    """Check the file of an engine after a commit: only then is what was committed known to be kept.

    Raises:
        DatabaseFileLost: see `SqliteFile.check`.
    """
    file: SqliteFile | None = engine.get_execution_options().get(_FILE)
    if file is not None:
        file.check()
