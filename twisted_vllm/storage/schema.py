"""Migrates a database to the schema of this version."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from twisted_vllm.storage.engine import LOCK_SECONDS, WRITES
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.tables import VERSION_TABLE

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
    with _alembic_lock, engine.execution_options(**{WRITES: True}).begin() as connection:
        if not sqlite:
            connection.execute(text(f"SET LOCAL statement_timeout = '{_MIGRATION_SECONDS}s'"))
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


def _upgrade(connection: Connection) -> None:
    config = Config()
    # A `%` would be read as an interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    current = context.get_current_revision()
    if current is not None and current not in known:
        raise StoreError(
            f"The database has the schema {current!r}, which is newer than {scripts.get_current_head()!r}, the last "
            "one that this version knows. Start the newer version again, or name another database."
        )
    if current != scripts.get_current_head():
        command.upgrade(config, "head")
