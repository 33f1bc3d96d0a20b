"""Runs Alembic's migrations, and compares what they make with the tables that the code knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect

import twisted_vllm.storage
from twisted_vllm.storage.tables import VERSION_TABLE, audit
from twisted_vllm.storage.usage.tables import metadata, rows_metadata

_MIGRATIONS = Path(twisted_vllm.storage.__file__).parent / "migrations"


def scripts() -> list[Script]:
    """Return all migrations, the oldest first."""
    return list(ScriptDirectory.from_config(_config(None)).walk_revisions())[::-1]


def newest_revision() -> str | None:
    """Return the revision of the newest migration."""
    return ScriptDirectory.from_config(_config(None)).get_current_head()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run all migrations up to a revision."""
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection) -> list[str]:
    """Undo all migrations; return the names of the tables that are left."""
    command.downgrade(_config(connection), "base")
    return inspect(connection).get_table_names()


def differences(connection: Connection) -> list[Any]:
    """Return how the database's schema differs from the tables that the code knows."""
    options = {
        "version_table": VERSION_TABLE,
        "compare_type": True,
        "compare_server_default": True,
        # months of the audit log
        "include_name": lambda name, kind, _parents: kind != "table" or not str(name).startswith(f"{audit.name}_"),
    }
    known: Any = [metadata]
    if connection.dialect.name == "postgresql":
        # SQLite's are in other files.
        rows = MetaData()
        for table in rows_metadata.tables.values():
            table.to_metadata(rows, schema=None)  # type: ignore[arg-type]  # None is for no schema
        known.append(rows)
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), known))


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
