"""Creates the tables of a new database, and migrates an older one to the schema of this version."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    event,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from twisted.logger import Logger

from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import LOCK_SECONDS, begin
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.tables import VERSION_TABLE
from twisted_vllm.storage.usage.partitions import create_rows_tables
from twisted_vllm.storage.usage.tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

#: the newest revision in ``migrations/versions``, whose tables are those of `metadata`
HEAD = "0010_partitions"

#: Alembic's table of the schema's revision, as Alembic creates it
_version = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)

_MIGRATIONS = Path(__file__).parent / "migrations"

#: the first PostgreSQL with DETACH PARTITION CONCURRENTLY
_OLDEST_POSTGRESQL = (14,)

#: PostgreSQL's advisory lock of the process that migrates
_ADVISORY_LOCK = int.from_bytes(b"vllmpass", "big")

#: Seconds that a migration, or the wait for another process's, may take. Ten million rows of the ledger take minutes.
_MIGRATION_SECONDS = 6 * 3600.0

#: the free space in SQLite's file, in bytes, and as a share of it, that is given back after a migration
_FREE_BYTES, _FREE_SHARE = 16 * 1024 * 1024, 0.25

_log = Logger()

# Alembic keeps its environment in a module global: a process can run one migration at a time.
_alembic_lock = threading.Lock()


def migrate(engine: Engine) -> None:
    """Migrate the database in one transaction. Processes that start together migrate one after the other.

    Raises:
        StoreError: the schema is newer than this version, or the server is too old.
        SQLAlchemyError: the database failed.
    """
    sqlite = engine.dialect.name == "sqlite"
    if not sqlite:
        with _alembic_lock, begin(engine, Deadline(_MIGRATION_SECONDS), writes=True) as connection:
            version = connection.dialect.server_version_info or ()
            if version < _OLDEST_POSTGRESQL:
                raise StoreError(
                    f"The server is PostgreSQL {'.'.join(map(str, version))}. Upgrade it to "
                    f"{_OLDEST_POSTGRESQL[0]} or newer: older ones cannot drop old rows without making requests wait."
                )
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            _upgrade(connection)
        return
    _use_write_ahead_log(engine)
    with begin(engine, None, writes=False) as connection:
        is_older = _revision(connection) not in (None, HEAD)
    with _alembic_lock, _patient(engine) if is_older else nullcontext():
        with begin(engine, Deadline(_MIGRATION_SECONDS), writes=True) as connection:
            _upgrade(connection)
        if is_older:
            _give_space_back(engine)


@contextmanager
def _patient(engine: Engine) -> Iterator[None]:
    """Have SQLite wait for another process's migration, and sort in files what may be larger than the memory."""

    def prepare(connection: Any, _record: object) -> None:
        connection.execute(f"PRAGMA busy_timeout = {int(_MIGRATION_SECONDS * 1000)}").fetchall()
        connection.execute("PRAGMA temp_store = FILE")

    engine.dispose()
    event.listen(engine, "connect", prepare)
    try:
        yield
    finally:
        event.remove(engine, "connect", prepare)
        engine.dispose()


def _give_space_back(engine: Engine) -> None:
    """Make SQLite's file smaller by what a migration freed. Without it the file would only be too large."""
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        (free,), (pages,), (size,) = (
            cursor.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count", "page_size")
        )
        if free * size < _FREE_BYTES or free < pages * _FREE_SHARE:
            return
        _log.info("The database's file has {free} bytes of free space, which are given back", free=free * size)
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except Exception as error:
        _log.warn(
            "The free space in the database's file stays in it: {reason}. The gateway uses it up by and by; "
            "`VACUUM` in the sqlite3 shell gives it back while no gateway runs.",
            reason=str(error),
        )
    finally:
        connection.close()


def _use_write_ahead_log(engine: Engine) -> None:
    """Set SQLite's journal mode, which is stored in the file: readers and the writer no longer wait for each other."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            connection = engine.raw_connection()
            try:
                # Only an empty file takes this: its unused pages can then go back to the file system.
                connection.cursor().execute("PRAGMA auto_vacuum = INCREMENTAL").close()
                connection.cursor().execute("PRAGMA journal_mode = WAL").close()
            finally:
                connection.close()
            return
        except Exception as error:
            # SQLite's timeout does not apply here: two processes that start together collide.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise OperationalError("PRAGMA journal_mode = WAL", None, error) from None
        time.sleep(0.02)


def unknown_revision(connection: Connection) -> str | None:
    """Return the schema's revision if this version does not know it, such as a newer one's; else None."""
    current = _revision(connection)
    return None if current in (None, HEAD) or current in _known(_migrations(connection)) else current


def is_current(connection: Connection) -> bool:
    """Return whether the database has the tables of this version."""
    return _revision(connection) == HEAD


def _upgrade(connection: Connection) -> None:
    current = _revision(connection)
    if current is None:
        _create_tables(connection)
    elif current != HEAD:
        _run_migrations(connection, current)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(_version.c.version_num)).scalar()


def _create_tables(connection: Connection) -> None:
    """Create the newest tables in an empty database."""
    if connection.dialect.name == "postgresql":
        # The tables name the conditions of partial indexes for SQLite alone, and partitions for none: to name something
        # for PostgreSQL loads its dialect. See `usage.tables`.
        for table in metadata.tables.values():
            table.dialect_options["postgresql"]["partition_by"] = table.info.get("partition_by")
            for index in table.indexes:
                index.dialect_options["postgresql"]["where"] = index.dialect_options["sqlite"]["where"]
    metadata.create_all(connection, checkfirst=False)
    if connection.dialect.name != "sqlite":
        # SQLite's are in the files of the partitions.
        create_rows_tables(connection)
    _version.create(connection, checkfirst=True)
    connection.execute(insert(_version).values(version_num=HEAD))


def _run_migrations(connection: Connection, current: str) -> None:
    config = _migrations(connection)
    if current not in _known(config):
        raise StoreError(
            f"The database has the schema {current!r}, which is newer than {HEAD!r}, the last one that this version "
            "knows, or from before the first release. Start the version that made it, or name another database."
        )
    # Imported here: Alembic and Mako take 10 MB, and most starts do not need them.
    from alembic import command

    command.upgrade(config, "head")


def _migrations(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    # A `%` would be read as an interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _known(config: Config) -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
