"""SQLAlchemy engines that behave alike on SQLite and PostgreSQL, and the safe words for their errors."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.interfaces import StoreError

#: seconds that a statement waits for another's lock before it fails, and a connection for its server
LOCK_SECONDS = 10
CONNECT_SECONDS = 5

#: connections to PostgreSQL, and threads that use them; SQLite takes one writer at a time and gets one thread
POSTGRESQL_CONNECTIONS = 4

#: the execution option that makes SQLite take its write lock when a transaction begins
WRITES = "vllm_passthrough_writes"

#: what Prisma, and so LiteLLM, reads from DATABASE_URL and PostgreSQL's own library refuses
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
        # The parser's own message may quote a piece of the URL, and with it a piece of the password.
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


def make_engine(url: URL) -> Engine:
    """Return an engine for a parsed URL; it connects when it is first used.

    Raises:
        StoreError: the database's file cannot be made.
    """
    engine: Engine
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        _make_private_file(Path(url.database))
        engine = create_engine(url, hide_parameters=True, connect_args={"timeout": LOCK_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": "vllm-passthrough",
        # A server that vanished without a word is given up, in milliseconds; the kernel's own patience is 15 minutes.
        "tcp_user_timeout": LOCK_SECONDS * 1000,
    }
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=POSTGRESQL_CONNECTIONS,
        max_overflow=0,
        connect_args={name: value for name, value in defaults.items() if name not in url.query},
    )
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _make_private_file(path: Path) -> None:
    """Make the database's file so that only its owner may read it; SQLite's side files take over its mode."""
    if not path.parent.is_dir():
        raise StoreError(
            f"The directory of the database, {path.parent}, does not exist: make it, or name another file."
        )
    # a link may lead to where there is nothing yet
    real = os.path.realpath(path)
    reason = ""
    try:
        os.close(os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        # It is not opened: to close any descriptor of a file ends all locks that the process has on it, those of
        # SQLite's connections too. Then another program that reads it takes itself for the only one, and removes the
        # log of what is not in it yet (sqlite.org/howtocorrupt.html, 2.2).
        if os.path.isdir(real):
            reason = os.strerror(errno.EISDIR)
        elif not os.access(real, os.R_OK | os.W_OK):
            reason = os.strerror(errno.EACCES)
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise StoreError(f"The database file {path} cannot be opened for writing: {reason}.")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # sqlite3 would begin transactions by rules of its own, and none for DDL: `_begin_sqlite` begins them instead.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # The ledger's spool is deleted after a commit, which must outlast a loss of power; some builds have NORMAL.
    connection.execute("PRAGMA synchronous = FULL")
    # what a statement needs for going back: no file for it
    connection.execute("PRAGMA temp_store = MEMORY")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail at once with SQLITE_BUSY, whatever the timeout.
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    # SET LOCAL, and not a startup option: poolers such as PgBouncer refuse those.
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{LOCK_SECONDS}s'")


def reason_of(error: SQLAlchemyError, url: Secret) -> str:
    """Return why the database failed, for the operator's log.

    It is the first line of the driver's message: the following ones quote values. The URL and the password in it are
    struck out.
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
