"""A new database gets its tables at once; an older one is migrated. Both have the same tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import Engine

import twisted_vllm.storage as store_package
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import HEAD, migrate
from twisted_vllm.storage.tables import VERSION_TABLE

MIGRATIONS = Path(store_package.__file__).parent / "migrations"


def engine_for(path: Path) -> Engine:
    return make_engine(parse_url(Secret(f"sqlite:///{path}")))


def alembic_config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def description_of(engine: Engine) -> dict[str, object]:
    """Return what SQLite says of every table: columns, keys, indexes with their conditions, and how rows are kept.

    Defaults are left out: SQLite needs one to add a column, and the code always gives a value.
    """
    found: dict[str, object] = {}
    with engine.connect() as connection:
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            definition = connection.execute(
                text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :name"), {"name": table}
            ).scalar_one()
            columns = sorted(
                (each["name"], str(each["type"]), each["nullable"]) for each in inspector.get_columns(table)
            )
            indexes = sorted(
                (
                    *(str(each["name"]), str(each["column_names"]), str(each["unique"])),
                    str(each.get("dialect_options", {}).get("sqlite_where")),
                )
                for each in inspector.get_indexes(table)
            )
            found[table] = {
                "columns": columns,
                "primary key": inspector.get_pk_constraint(table)["constrained_columns"],
                "unique": sorted(str(each) for each in inspector.get_unique_constraints(table)),
                "foreign keys": inspector.get_foreign_keys(table),
                "checks": inspector.get_check_constraints(table),
                "indexes": indexes,
                "row ids": [word in definition for word in ("WITHOUT ROWID", "AUTOINCREMENT")],
            }
    return found


def test_a_new_database_is_like_one_that_was_migrated_step_by_step(tmp_path: Path) -> None:
    fresh, migrated = engine_for(tmp_path / "fresh.sqlite"), engine_for(tmp_path / "migrated.sqlite")
    migrate(fresh)
    with migrated.begin() as connection:
        command.upgrade(alembic_config(connection), "head")
    assert description_of(fresh) == description_of(migrated)
    for engine in (fresh, migrated):
        with engine.connect() as connection:
            assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).all() == [(HEAD,)]
        engine.dispose()


def test_the_code_knows_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == HEAD


def test_a_database_that_is_up_to_date_needs_no_alembic(tmp_path: Path) -> None:
    """Alembic and Mako take 10 MB, which the gateway would hold for as long as it runs."""
    script = f"""
import sys
from twisted_vllm.config.secret import Secret
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.schema import migrate
for _ in range(2):
    engine = make_engine(parse_url(Secret("sqlite:///{tmp_path}/keys.sqlite")))
    migrate(engine)
    engine.dispose()
print([name for name in ("alembic", "mako", "sqlalchemy.dialects.postgresql") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
