"""A new database gets its tables at once; an older one is migrated. Both have the same tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, text
from sqlalchemy.engine import Engine

from tests.storage.migrations import newest_revision, upgrade
from twisted_vllm.config.secret import Secret
from twisted_vllm.field_policy.rules import NO_RULES
from twisted_vllm.storage.engine import make_engine, parse_url
from twisted_vllm.storage.grants import read_everything
from twisted_vllm.storage.schema import HEAD, migrate
from twisted_vllm.storage.tables import VERSION_TABLE


def engine_for(path: Path) -> Engine:
    return make_engine(parse_url(Secret(f"sqlite:///{path}")))


def description_of(engine: Engine) -> dict[str, Any]:
    """Return what SQLite says of every table: columns, keys, indexes with their conditions, and how rows are kept."""
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            definition = connection.execute(
                text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :name"), {"name": table}
            ).scalar_one()
            columns = sorted(
                (each["name"], str(each["type"]), each["nullable"], str(each["default"]))
                for each in inspector.get_columns(table)
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
        upgrade(connection)
        # `migrate` adds it beside the steps
        connection.execute(text(f"ALTER TABLE {VERSION_TABLE} ADD COLUMN works_with VARCHAR(32)"))
    assert description_of(fresh) == description_of(migrated)
    for engine in (fresh, migrated):
        with engine.connect() as connection:
            assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).all() == [(HEAD,)]
        engine.dispose()


def test_keys_and_teams_of_an_older_database_say_nothing_of_fields(tmp_path: Path) -> None:
    engine = engine_for(tmp_path / "older.sqlite")
    made = {"at": "2026-03-01 12:00:00", "empty": "[]"}
    with engine.begin() as connection:
        upgrade(connection, "0001_schema")
        connection.execute(
            text(
                "INSERT INTO vllm_passthrough_keys (token, key_name, models, allowed_routes, blocked, metadata, tags, "
                "created_at, created_by, updated_at, aliases, granted_headers, updated_by, rotation_count, key_id) "
                "VALUES ('t', 'n', :empty, :empty, 0, '{}', :empty, :at, 'master', :at, '{}', :empty, 'master', 0, 'k')"
            ),
            made,
        )
        connection.execute(
            text(
                "INSERT INTO vllm_passthrough_teams (team_id, models, blocked, metadata, created_at, created_by, "
                """updated_at, updated_by, allowance) VALUES ('x', :empty, 0, '{}', :at, 'm', :at, 'm', '{"rpm": 1}')"""
            ),
            made,
        )
    migrate(engine)
    with engine.connect() as connection:
        everything = read_everything(connection)
    engine.dispose()
    [key] = everything.keys
    assert key.fields is everything.teams["x"].fields is NO_RULES


def test_the_changes_of_an_older_database_get_a_stamp(tmp_path: Path) -> None:
    """Without one, a backup of today could not be told from the database that went on."""
    engine = engine_for(tmp_path / "older.sqlite")
    with engine.begin() as connection:
        upgrade(connection, "0002_fields")
        for number in (1, 2):
            connection.execute(
                text("INSERT INTO vllm_passthrough_changes (revision, kind, name) VALUES (:number, 'key', 'x')"),
                {"number": number},
            )
    migrate(engine)
    with engine.connect() as connection:
        revision = read_everything(connection).revision
    engine.dispose()
    assert revision.number == 2
    assert revision.stamp


def test_the_code_knows_the_newest_migration() -> None:
    assert newest_revision() == HEAD


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
