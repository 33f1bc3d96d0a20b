"""The partitions of the ledger's rows: by month, or by day where rows are kept for a short time.

A partition has the tables of `rows_metadata`. On PostgreSQL it is a range partition of each. On SQLite it is a file
beside the main one, ``FILE-usage/2026-11.db``. So rows and admin changes do not wait for each other's locks, and what
is too old is dropped as a whole: at once, and the space is free.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError

from twisted_vllm.storage.usage.queries.plan import microseconds, moment_of, month_start
from twisted_vllm.storage.usage.tables import DAY_US, ROWS, rows_metadata, usage, usage_partitions

#: files that a connection attaches at most; SQLite's own limit is 10
MAX_ATTACHED = 8

#: the execution option of a connection to SQLite or PostgreSQL on which the tables of the rows have no schema
UNQUALIFIED = {"schema_translate_map": {ROWS: None}}

#: Partitions that there may be. A machine's clock that jumps about makes one for each month that it is in.
MAX_PARTITIONS = 1_000

#: the execution option of a connection with a function that returns from when on rows are shown
SHOWN_FROM = "vllm_passthrough_shown_from"

#: columns of the rows that older gateways do not know: they may be missing in a file that one of them made
_ADDED = ("details",)
#: the files that have them; no more than there are partitions
_complete: set[str] = set()
#: seconds that a file may be in use meanwhile
_LOCK_SECONDS = 5.0

#: before and after all rows
_NO_START, _NO_END = -(2**62), 2**62


@attrs.frozen(order=True)
class Partition:
    """A part of the time.

    Attributes:
        start: where it begins, in microseconds since 1970.
        end: where it ends, exclusive.
        name: ``2026-11`` or ``2026-11-30``.
    """

    start: int
    end: int
    name: str

    def has(self, time: int) -> bool:
        """Return whether a time belongs to it."""
        return self.start <= time < self.end


class PartitionGone(Exception):
    """A partition was dropped meanwhile: it has no rows."""


class PartitionLost(SQLAlchemyError):
    """A file that the database knows is missing or damaged. The message is for the operator."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path}, which has rows of the ledger, {what}. Put the former file or its backup there. Or take what is "
            "there away and restart the gateway, to go on without its rows: sums are in the main file. Until then new "
            "rows of that time wait in the spool."
        )


#: stands for all partitions of PostgreSQL, which finds the right ones by itself
EVERYTHING = Partition(_NO_START, _NO_END, "")


def new_partition(time: int, existing: Sequence[Partition], *, by_day: bool) -> Partition:
    """Return a partition for a time that belongs to none of the existing ones.

    Args:
        time: in microseconds since 1970.
        existing: those that exist.
        by_day: whether it has a day and not a month.
    """
    moment = moment_of(time)
    start, end = month_start(time), month_start(time, 1)
    # A month of which some days exist already goes on by day.
    if not by_day and not any(each.start < end and start < each.end for each in existing):
        return Partition(start, end, f"{moment:%Y-%m}")
    start = time // DAY_US * DAY_US
    return Partition(start, start + DAY_US, f"{moment:%Y-%m-%d}")


def partition_named(name: str) -> Partition | None:
    """Return the partition with a name; None if no partition is called so."""
    for pattern, by_day in (("%Y-%m-%d", True), ("%Y-%m", False)):
        try:
            moment = datetime.strptime(name, pattern).replace(tzinfo=UTC)
        except ValueError:
            continue
        found = new_partition(microseconds(moment), [], by_day=by_day)
        return found if found.name == name else None
    return None


def all_partitions(connection: Connection) -> list[Partition]:
    """Return the partitions that exist, newest first."""
    columns = (usage_partitions.c.start, usage_partitions.c.end, usage_partitions.c.name)
    found = connection.execute(select(*columns).order_by(usage_partitions.c.start.desc()))
    return [Partition(*row) for row in found]


# reading


def partitions_of(connection: Connection) -> list[Partition]:
    """Return the partitions to read one by one, newest first; on PostgreSQL one that stands for all.

    The oldest one begins where rows are shown: those that are older go with their partition.
    """
    oldest = shown_from(connection)
    found = all_partitions(connection) if connection.dialect.name == "sqlite" else [EVERYTHING]
    return [attrs.evolve(each, start=max(each.start, oldest)) for each in found if each.end > oldest]


def shown_from(connection: Connection) -> int:
    """Return the time from which on rows are shown on a connection, in microseconds since 1970."""
    found: Callable[[], int | None] | None = connection.get_execution_options().get(SHOWN_FROM)
    time = None if found is None else found()
    return _NO_START if time is None else time


def rows_in(connection: Connection, partition: Partition) -> Connection:
    """Have `usage` and `usage_lookups` mean those of a partition on a connection; return the connection.

    On SQLite it attaches the partition's file. If too many are attached, it ends the reading transaction, detaches the
    oldest, and begins another. Call `detach_all` when the connection is given back.

    Raises:
        PartitionGone: it was dropped meanwhile.
        PartitionLost: somebody else removed its file, or it is damaged.
    """
    if connection.dialect.name != "sqlite":
        return connection.execution_options(**UNQUALIFIED)
    attached: dict[str, None] = connection.info.setdefault("attached", {})
    schema = f"p{partition.name.replace('-', '_')}"
    if schema not in attached:
        if len(attached) >= MAX_ATTACHED:
            connection.exec_driver_sql("COMMIT")
            _detach(connection.connection.driver_connection, attached)
            connection.exec_driver_sql("BEGIN")
        path = file_of(main_file(connection.engine), partition)
        complete_file(path)
        try:
            # The mode: SQLite would make an empty file where there is none.
            connection.exec_driver_sql(f'ATTACH ? AS "{schema}"', (f"file:{quote(str(path))}?mode=rw",))
        except DatabaseError as error:
            if path.exists():
                if isinstance(error, OperationalError):
                    raise
                raise PartitionLost(path, f"cannot be opened ({error.orig})") from None
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("BEGIN")
            if partition.name not in {each.name for each in all_partitions(connection)}:
                raise PartitionGone(partition.name) from None
            raise PartitionLost(path, "is missing") from None
        attached[schema] = None
    return connection.execution_options(schema_translate_map={ROWS: schema})


def detach_all(driver_connection: Any, info: dict[str, Any]) -> None:
    """Detach all files of partitions from a SQLite connection that is in no transaction: they may be dropped."""
    attached: dict[str, None] = info.get("attached", {})
    _detach(driver_connection, attached)


def _detach(driver_connection: Any, attached: dict[str, None]) -> None:
    while attached:
        schema, _ = attached.popitem()
        driver_connection.execute(f'DETACH "{schema}"')


# files of SQLite


def directory_of(main: Path) -> Path:
    """Return the directory with the files of partitions that belong to a main file."""
    # Whoever opens the file by a link, or from another directory, means the same files.
    real = Path(os.path.realpath(main))
    return real.with_name(f"{real.name}-usage")


def file_of(main: Path, partition: Partition) -> Path:
    """Return the file of a partition."""
    return directory_of(main) / f"{partition.name}.db"


def complete_file(path: Path) -> None:
    """Add the columns to a partition's file that an older gateway left out. What is no such file is left as it is.

    Gateways of the release before may share the database, and make files, while this one runs.
    """
    if str(path) in _complete:
        return
    with suppress(sqlite3.Error):
        # Not the caller's connection, which may only read.
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=_LOCK_SECONDS)) as file:
            present = {name for _, name, *_ in file.execute(f'PRAGMA table_info("{usage.name}")')}
            for name in _ADDED if present else ():
                if name not in present:
                    # Another process may do the same.
                    with suppress(sqlite3.OperationalError):
                        file.execute(f'ALTER TABLE "{usage.name}" ADD COLUMN "{name}" {usage.columns[name].type}')
        if present:
            _complete.add(str(path))


def files_beside(path: Path) -> tuple[Path, Path]:
    """Return the files that SQLite keeps beside a file: its write-ahead log, and the log's index."""
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def main_file(engine: Engine) -> Path:
    """Return the main file of an engine of SQLite."""
    assert engine.url.database is not None
    return Path(engine.url.database)


# making them


def create_rows_tables(connection: Connection) -> None:
    """Create the tables of the rows: in a partition's file, or PostgreSQL's parents of all partitions."""
    if connection.dialect.name == "postgresql":
        # Not where the tables are declared: it would load PostgreSQL's dialect, 2 MB, into every process.
        for table in rows_metadata.tables.values():
            table.dialect_options["postgresql"]["partition_by"] = "RANGE (time)"
    rows_metadata.create_all(connection.execution_options(**UNQUALIFIED), checkfirst=True)


def add_partition(connection: Connection, partition: Partition) -> None:
    """Add a partition to the database's list, and on PostgreSQL make its tables. Another process may have done it."""
    sqlite = connection.dialect.name == "sqlite"
    values = insert(usage_partitions).values(start=partition.start, end=partition.end, name=partition.name)
    if sqlite:
        connection.execute(values.prefix_with("OR IGNORE"))
        return
    from sqlalchemy.dialects.postgresql import insert as insert_postgresql

    added = (
        insert_postgresql(usage_partitions)
        .values(start=partition.start, end=partition.end, name=partition.name)
        .on_conflict_do_nothing()
        .returning(usage_partitions.c.name)
    )
    # Whoever comes second waits here for the first one's commit. The count of an insert's rows is not reliable.
    if connection.execute(added).first() is not None:
        make_missing_tables(connection, partition)


def make_missing_tables(connection: Connection, partition: Partition) -> list[str]:
    """Make PostgreSQL's tables of a partition, where they are missing or detached; return their names."""
    statement = text(
        "SELECT to_regclass(:name), EXISTS (SELECT 1 FROM pg_inherits WHERE inhrelid = to_regclass(:name))"
    )
    made = []
    for table in rows_metadata.sorted_tables:
        child = f"{table.name}_{partition.name.replace('-', '_')}"
        exists, is_attached = connection.execute(statement, {"name": child}).one()
        if is_attached:
            continue
        # ATTACH takes a weaker lock on the parent than CREATE TABLE … PARTITION OF.
        if exists is None:
            connection.exec_driver_sql(f'CREATE TABLE "{child}" (LIKE "{table.name}" INCLUDING ALL)')
        elif table is usage:
            # Whoever detached it may have done so before it got them.
            for name in _ADDED:
                column = f'"{name}" {usage.columns[name].type}'
                connection.exec_driver_sql(f'ALTER TABLE "{child}" ADD COLUMN IF NOT EXISTS {column}')
        connection.exec_driver_sql(
            f'ALTER TABLE "{table.name}" ATTACH PARTITION "{child}" '
            f"FOR VALUES FROM ({partition.start}) TO ({partition.end})"
        )
        made.append(child)
    return made


def make_directory(main: Path) -> None:
    """Make the directory of the partitions' files.

    Raises:
        OSError: it cannot be made.
    """
    os.makedirs(directory_of(main), mode=0o700, exist_ok=True)
