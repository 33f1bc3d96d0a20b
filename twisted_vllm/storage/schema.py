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
from twisted_vllm.storage.schema_steps import Step, number_of, pending, steps_of
from twisted_vllm.storage.tables import VERSION_TABLE
from twisted_vllm.storage.usage.partitions import create_rows_tables
from twisted_vllm.storage.usage.tables import metadata

if TYPE_CHECKING:
    from alembic.config import Config

#: the newest revision in ``migrations/versions``, whose tables are those of `metadata`
HEAD = "0012_drained_servers"
#: the oldest revision whose tables this version works with: what is behind it are steps that an operator asks for
NEEDED = HEAD
#: the oldest revision whose code works with the tables of `metadata`
WORKS_WITH = "0010_partitions"

#: Alembic's table of the schema's revision, as Alembic creates it
_version = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)

#: a column of that table: the oldest revision whose code works with the tables. The first step after which it is not
#: the table's revision adds it.
_WORKS_WITH = "works_with"

_MIGRATIONS = Path(__file__).parent / "migrations"

#: the first PostgreSQL with DETACH PARTITION CONCURRENTLY
_OLDEST_POSTGRESQL = (14,)

#: PostgreSQL's advisory lock of the process that migrates
_ADVISORY_LOCK = int.from_bytes(b"vllmpass", "big")

#: Seconds that a migration, or the wait for another process's, may take. Ten million rows of the ledger take minutes.
_MIGRATION_SECONDS = 6 * 3600.0

#: the free space in SQLite's file, in bytes, and as a share of it, that is given back after a migration
_FREE_BYTES, _FREE_SHARE = 16 * 1024 * 1024, 0.25

#: Seconds that a step waits for a table while gateways use it: until it has the table, they wait behind it.
_LOCK_SECONDS = 2
#: how often it tries, and the seconds between two attempts
_ATTEMPTS, _PAUSE = 30, 1.0
#: PostgreSQL's ``lock_not_available``
_LOCK_NOT_AVAILABLE = "55P03"

_log = Logger()

# Alembic keeps its environment in a module global: a process can run one migration at a time.
_alembic_lock = threading.Lock()


def migrate(engine: Engine, *, contract: bool = False) -> None:
    """Migrate the database in one transaction. Processes that start together migrate one after the other.

    Gateways of the release before may serve meanwhile. A schema that is newer than this version is left as it is if its
    last migration says that this version works with it.

    Args:
        engine: as `make_engine` returns it.
        contract: whether to run the steps too after which older gateways do not work.

    Raises:
        StoreError: the schema is newer than this version and does not work with it, or the server is too old, or a step
            must be asked for.
        SQLAlchemyError: the database failed.
    """
    if engine.dialect.name == "sqlite":
        _migrate_sqlite(engine, contract)
        return
    for _ in range(_ATTEMPTS):
        try:
            _migrate_postgresql(engine, contract)
            return
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", "") != _LOCK_NOT_AVAILABLE:
                raise
        _log.warn(
            "The migration waits for a table that is in use; nothing is changed yet, and what uses it goes on. "
            "A long report or a dump may be the reason."
        )
        time.sleep(_PAUSE)
    raise StoreError(
        f"The tables were in use for {_ATTEMPTS * (_LOCK_SECONDS + _PAUSE):g} s and could not be migrated; nothing was "
        "changed. End the reports and dumps that take so long (pg_stat_activity), and start again."
    )


def _migrate_postgresql(engine: Engine, contract: bool) -> None:
    with _alembic_lock, begin(engine, Deadline(_MIGRATION_SECONDS), writes=True) as connection:
        version = connection.dialect.server_version_info or ()
        if version < _OLDEST_POSTGRESQL:
            raise StoreError(
                f"The server is PostgreSQL {'.'.join(map(str, version))}. Upgrade it to "
                f"{_OLDEST_POSTGRESQL[0]} or newer: older ones cannot drop old rows without making requests wait."
            )
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        _upgrade(connection, contract)


def _migrate_sqlite(engine: Engine, contract: bool) -> None:
    _use_write_ahead_log(engine)
    with begin(engine, None, writes=False) as connection:
        current = _revision(connection)
    is_older = current is not None and not _works_as_it_is(current, contract)
    with _alembic_lock, _patient(engine) if is_older else nullcontext():
        with begin(engine, Deadline(_MIGRATION_SECONDS), writes=True) as connection:
            _upgrade(connection, contract)
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
    """Return the schema's revision if this version cannot work with it, such as a newer one's; else None."""
    current = _revision(connection)
    if current is None or _works_as_it_is(current) or _takes_older(connection, current):
        return None
    return None if current in {step.revision for step in _steps(_migrations(connection))} else current


def is_usable(connection: Connection) -> bool:
    """Return whether this version works with the tables as they are."""
    current = _revision(connection)
    return current is not None and (_works_as_it_is(current) or _takes_older(connection, current))


def _works_as_it_is(current: str, contract: bool = False) -> bool:
    return current == HEAD or (not contract and number_of(NEEDED) <= number_of(current) <= number_of(HEAD))


def _takes_older(connection: Connection, current: str) -> bool:
    """Return whether a newer schema works with this version."""
    if number_of(current) <= number_of(HEAD):
        return False
    return 0 <= number_of(_works_with(connection) or "") <= number_of(HEAD)


def _works_with(connection: Connection) -> str | None:
    """Return the oldest revision whose code works with the tables, if it is written down."""
    if _WORKS_WITH not in {column["name"] for column in inspect(connection).get_columns(VERSION_TABLE)}:
        return None
    found = connection.execute(text(f"SELECT {_WORKS_WITH} FROM {VERSION_TABLE}")).scalar()
    return None if found is None else str(found)


def state_of(engine: Engine) -> tuple[str, str]:
    """Return the revision of a database that has tables, and the oldest revision whose code works with it."""
    with begin(engine, None, writes=False) as connection:
        revision = _revision(connection) or ""
        return revision, _works_with(connection) or revision


def _upgrade(connection: Connection, contract: bool) -> None:
    current = _revision(connection)
    if current is None:
        _create_tables(connection)
    elif _takes_older(connection, current):
        _log.info(
            "The database has the schema {current}, which is newer than {head} of this version and works with it",
            current=current,
            head=HEAD,
        )
    elif not _works_as_it_is(current, contract):
        _run_migrations(connection, current, contract)


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
    _note_works_with(connection, HEAD, WORKS_WITH)


def _run_migrations(connection: Connection, current: str, contract: bool) -> None:
    config = _migrations(connection)
    steps = _steps(config)
    if current not in {step.revision for step in steps}:
        raise StoreError(
            f"The database has the schema {current!r}, which is newer than {HEAD!r}, the last one that this version "
            "knows, or from before the first release. Start the version that made it, or name another database."
        )
    following = pending(steps, current, contract=contract)
    last = following[-1] if following else next(step for step in steps if step.revision == current)
    if number_of(last.revision) < number_of(NEEDED):
        [refused, *_] = (step for step in steps if number_of(step.revision) > number_of(last.revision))
        raise StoreError(
            f"The schema {refused.revision!r} takes away what older gateways need. See that none older than the schema "
            f"{refused.works_with!r} runs, then run `twistd -n vllm-passthrough --migrate contract` once with the same "
            "configuration, and start again."
        )
    if connection.dialect.name == "postgresql" and all(step.is_declared for step in following):
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
    # Imported here: Alembic and Mako take 10 MB, and most starts do not need them.
    from alembic import command

    command.upgrade(config, last.revision)
    _note_works_with(connection, last.revision, last.works_with)


def _note_works_with(connection: Connection, revision: str, works_with: str) -> None:
    """Write down, for older versions, the oldest whose code works with the tables."""
    columns = {column["name"] for column in inspect(connection).get_columns(VERSION_TABLE)}
    if _WORKS_WITH not in columns:
        if works_with == revision:
            return
        connection.execute(text(f"ALTER TABLE {VERSION_TABLE} ADD COLUMN {_WORKS_WITH} VARCHAR(32)"))
    connection.execute(text(f"UPDATE {VERSION_TABLE} SET {_WORKS_WITH} = :works_with"), {"works_with": works_with})


def _migrations(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    # A `%` would be read as an interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _steps(config: Config) -> list[Step]:
    from alembic.script import ScriptDirectory

    return steps_of(script.module for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())))
