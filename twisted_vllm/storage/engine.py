"""SQLAlchemy engines that behave alike on SQLite and PostgreSQL, and their errors without secrets."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.errors import StoreError

#: seconds that a SQLite connection waits for a lock before it fails, unless it is told another time
LOCK_SECONDS = 10.0
#: seconds that a connection waits for PostgreSQL
CONNECT_SECONDS = 3
#: seconds of work that names no `DEADLINE`
DEFAULT_SECONDS = 30.0

#: seconds until the kernel gives up a silent PostgreSQL; its own default is about 15 minutes
_TCP_SECONDS = 5

#: the execution option with which a SQLite transaction takes the write lock when it begins
WRITES = "vllm_passthrough_writes"
#: the execution option that holds the `Deadline` of a transaction
DEADLINE = "vllm_passthrough_deadline"

#: SQLite looks at the deadline after so many of its instructions, which take about a millisecond
_SQLITE_STEPS = 20_000

#: options in DATABASE_URL that Prisma, and so LiteLLM, reads and libpq refuses
_PRISMA_OPTIONS = frozenset(
    {"connection_limit", "pool_timeout", "socket_timeout", "pgbouncer", "statement_cache_size", "schema"}
)
_REASON_LENGTH = 200


def parse_url(url: Secret) -> URL:
    """Return the parts of a database URL.

    Raises:
        StoreError: it is not one, or names a database that the gateway cannot use.
    """
    try:
        parsed = make_url(url.reveal())
    except (ArgumentError, ValueError):
        # The parser's message may quote a part of the password.
        raise StoreError(
            "The database URL cannot be read. Write postgresql://USER:PASSWORD@HOST:PORT/NAME, with the special "
            "characters of the password percent-encoded, or sqlite:///FILE."
        ) from None
    backend = parsed.drivername.partition("+")[0]
    if backend == "sqlite":
        return _sqlite_url(parsed)
    if backend in ("postgresql", "postgres"):
        return _postgresql_url(parsed)
    raise StoreError("The database URL names a database that is not supported: write postgresql://… or sqlite:///FILE.")


def _sqlite_url(url: URL) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StoreError(
            "The database URL must name a file, as in sqlite:///keys.sqlite: keys have to outlast a restart."
        )
    return url.set(drivername="sqlite+pysqlite")


def _postgresql_url(url: URL) -> URL:
    if url.host is not None and "@" in url.host:
        raise StoreError("The password in the database URL holds an `@`: write it as %40.")
    options = {name: value for name, value in url.query.items() if name not in _PRISMA_OPTIONS}
    schema = url.query.get("schema")
    if schema is not None:
        if not isinstance(schema, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", schema):
            raise StoreError("The `schema` in the database URL must be one plain name.")
        options.setdefault("options", f'-c search_path="{schema}"')
    return url.set(drivername="postgresql+psycopg", query=options)


def make_engine(
    url: URL,
    *,
    connections: int = 4,
    read_only: bool = False,
    lock_seconds: float | None = None,
    must_exist: bool = False,
) -> Engine:
    """Return an engine, which connects on first use.

    Args:
        url: as `parse_url` returns it.
        connections: how many may be open at a time.
        read_only: whether the database refuses changes on these connections.
        lock_seconds: how long SQLite waits for a lock; None for `LOCK_SECONDS`.
        must_exist: whether SQLite's file is not made if there is none; see `watch_file`.

    Raises:
        StoreError: the database's file cannot be created.
    """
    engine: Engine
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        if not must_exist:
            _make_private_file(Path(url.database))
        timeout = LOCK_SECONDS if lock_seconds is None else lock_seconds
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            # `uri` lets ATTACH name files by URI; `parse_url` refuses such a main file.
            connect_args={"timeout": timeout, "uri": True},
        )
        event.listen(engine, "connect", _prepare_sqlite_reader if read_only else _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        event.listen(engine, "reset", _forget_sqlite_deadline)
    else:
        engine = _make_postgresql_engine(url, connections, read_only)
    event.listen(engine, "before_cursor_execute", _check_deadline)
    return engine


def _make_postgresql_engine(url: URL, connections: int, read_only: bool) -> Engine:
    # Imported here: only a gateway with PostgreSQL needs its driver, which takes 4 MB.
    from twisted_vllm.storage.postgresql import BoundedConnection

    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": "vllm-passthrough",
        "tcp_user_timeout": _TCP_SECONDS * 1000,
        "keepalives_idle": _TCP_SECONDS,
        "keepalives_interval": 2,
        "keepalives_count": 2,
    }
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=connections,
        max_overflow=0,
        connect_args={name: value for name, value in defaults.items() if name not in url.query},
    )

    def connect(_dialect: object, _record: object, arguments: Any, parameters: Any) -> BoundedConnection:
        connection = BoundedConnection.connect(*arguments, **parameters)
        # Not a startup option, which PgBouncer and other poolers refuse.
        connection.read_only = read_only
        return connection

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "begin", _begin_postgresql)
    event.listen(engine, "reset", _forget_postgresql_deadline)
    return engine


@contextmanager
def begin(engine: Engine, deadline: Deadline | None, *, writes: bool) -> Iterator[Connection]:
    """Begin a transaction, which is committed at the end of the block and rolled back if that fails.

    Args:
        engine: as `make_engine` returns it.
        deadline: when it must end; None for SQLite's time for locks, or PostgreSQL's `DEFAULT_SECONDS`.
        writes: whether it changes anything.

    Raises:
        WorkStopped: the deadline is over.
        SQLAlchemyError: the database failed.
    """
    with engine.connect() as connection, connection.execution_options(**{WRITES: writes, DEADLINE: deadline}).begin():
        yield connection


def _check_deadline(connection: Connection, *_arguments: object) -> None:
    deadline = connection.get_execution_options().get(DEADLINE)
    if deadline is not None:
        deadline.check()


def _make_private_file(path: Path) -> None:
    """Create the database's file with mode 0600. SQLite's other files take over its mode."""
    if not path.parent.is_dir():
        raise StoreError(
            f"The directory of the database, {path.parent}, does not exist: make it, or name another file."
        )
    # The path may be a symbolic link whose target does not exist yet.
    real = os.path.realpath(path)
    if os.path.exists(f"{real}.restoring"):
        # Imported here: few starts come after a restore that was killed.
        from twisted_vllm.storage.backup.journal import complete, journal_of

        complete(journal_of(path))
    reason = ""
    try:
        os.close(os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        # Do not open it: closing any descriptor of the file drops all of the process's POSIX locks on it, including
        # those of SQLite's connections (sqlite.org/howtocorrupt.html, 2.2).
        if os.path.isdir(real):
            reason = os.strerror(errno.EISDIR)
        elif not os.access(real, os.R_OK | os.W_OK):
            reason = os.strerror(errno.EACCES)
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise StoreError(f"The database file {os.path.abspath(path)} cannot be opened for writing: {reason}.")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # `_begin_sqlite` begins transactions: sqlite3 itself would begin none for DDL.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # Spool files are deleted after a commit, so a commit must survive a power failure. Some builds default to NORMAL.
    connection.execute("PRAGMA synchronous = FULL")
    # Statement journals in memory and not in files.
    connection.execute("PRAGMA temp_store = MEMORY")


def _prepare_sqlite_reader(connection: Any, record: object) -> None:
    _prepare_sqlite(connection, record)
    connection.execute("PRAGMA query_only = ON")
    # What a report sorts may be larger than the memory for it.
    connection.execute("PRAGMA temp_store = FILE")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    deadline = options.get(DEADLINE)
    if deadline is not None:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: deadline.is_over, _SQLITE_STEPS)
    # A transaction that upgrades from reading to writing can fail at once with SQLITE_BUSY, despite the timeout.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(WRITES, False) else "BEGIN")


def _forget_sqlite_deadline(connection: Any, _record: object, _state: object) -> None:
    connection.set_progress_handler(None, 0)


def _begin_postgresql(connection: Connection) -> None:
    deadline = connection.get_execution_options().get(DEADLINE) or Deadline(DEFAULT_SECONDS)
    driver: Any = connection.connection.driver_connection
    driver.deadline = deadline
    # SET LOCAL and not a startup option, which PgBouncer and other poolers refuse.
    milliseconds = max(int(min(deadline.remaining, deadline.answer) * 1000), 1)
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")


def _forget_postgresql_deadline(connection: Any, _record: object, _state: object) -> None:
    connection.deadline = None


def reason_of(error: SQLAlchemyError, url: Secret) -> str:
    """Return why the database failed, for the log.

    It is the first line of the driver's message, as later lines quote values. URL and password are masked.
    """
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(original).strip().splitlines()
    text = lines[0] if lines else ""
    for secret in sorted(_secrets_of(url), key=len, reverse=True):
        text = text.replace(secret, "***")
    return f"{type(original).__name__}: {text[:_REASON_LENGTH]}"


def _secrets_of(url: Secret) -> set[str]:
    found = {url.reveal()}
    try:
        password = make_url(url.reveal()).password
    except (ArgumentError, ValueError):
        password = None
    if password:
        found |= {str(password), quote(str(password), safe=""), quote_plus(str(password))}
    return found
