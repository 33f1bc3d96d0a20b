"""Creates the tables of a new database, and migrates an older one to the schema of this version."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import LOCK_SECONDS, begin
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.tables import VERSION_TABLE
from twisted_vllm.storage.usage.tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

#: the newest revision in ``migrations/versions``, whose tables are those of `metadata`
HEAD = "0010_exports"

#: Alembic's table of the schema's revision, as Alembic creates it
_version = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)

_MIGRATIONS = Path(__file__).parent / "migrations"

#: PostgreSQL's advisory lock of the process that migrates
_ADVISORY_LOCK = int.from_bytes(b"vllmpass", "big")

#: seconds that a process waits for another one's migration
_MIGRATION_SECONDS = 300

# Alembic keeps its environment in a module global: a process can run one migration at a time.
_alembic_lock = threading.Lock()


def migrate(engine: Engine) -> None:
    """Migrate the database in one transaction. Processes that start together migrate one after the other.

    Raises:
        StoreError: the schema is newer than this version.
        SQLAlchemyError: the database failed.
    """
    sqlite = engine.dialect.name == "sqlite"
    if sqlite:
        _use_write_ahead_log(engine)
    with _alembic_lock, begin(engine, Deadline(_MIGRATION_SECONDS), writes=True) as connection:
        if not sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        _upgrade(connection)


def _use_write_ahead_log(engine: Engine) -> None:
    """Set SQLite's journal mode, which is stored in the file: readers and the writer no longer wait for each other."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            connection = engine.raw_connection()
            try:
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
        # The tables name the conditions of partial indexes for SQLite alone: see `usage.tables`.
        for table in metadata.tables.values():
            for index in table.indexes:
                index.dialect_options["postgresql"]["where"] = index.dialect_options["sqlite"]["where"]
    metadata.create_all(connection, checkfirst=False)
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
