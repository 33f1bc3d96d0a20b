"""Moves the ledger's rows between the table of revision 0009 and the partitions of 0010.

On PostgreSQL all of it is one transaction. The rows are copied by month, and the former table does not become a
partition: its months would have to go together, when the last is too old.

On SQLite each month's file is complete and on the disk before the main database knows of it: SQLite's commit of several
files is not atomic. If the migration is interrupted, the former table is as it was, and the next one begins anew.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text
from twisted.logger import Logger

from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.usage.partitions import Partition, directory_of, file_of, make_directory, new_partition
from twisted_vllm.storage.usage.tables import OF_END_USER, OF_FAILURE, OF_REQUEST, OF_RESPONSE, OF_TAG, lookup_id

_log = Logger()

_USAGE, _LOOKUPS = "vllm_passthrough_usage", "vllm_passthrough_usage_lookups"
_PARTITIONS = "vllm_passthrough_usage_partitions"
#: PostgreSQL's former table while its rows are moved
_FORMER = f"{_USAGE}_former"
_STAGE = "vllm_passthrough_moved_lookups"
#: rows that are read at once, and that one transaction of a partition's file adds
_CHUNK, _TRANSACTION = 2_000, 200_000

#: What the migration takes beside the former tables, as a share of them: 0.3 for 5 GB of SQLite with 100,000 keys, and
#: what is sorted. And how many bytes of them it moves in a minute, on two busy cores.
_EXTRA_SHARE, _BYTES_A_MINUTE, _MB = 0.5, 10**9, 10**6

_FAILED = "NOT (outcome = 'completed' AND status < 400) AND COALESCE(requests, 1) <> 0"
#: the columns that rows are looked up by, and what that is called
_BY_COLUMN = (("end_user", OF_END_USER), ("request_id", OF_REQUEST), ("response_id", OF_RESPONSE))

_COLUMNS = (
    *("id", "time", "payer", "target", "request_id", "end_user", "headers", "status", "outcome", "error", "stream"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "total_tokens", "audio_ms"),
    *("estimated", "cost", "first_byte_us", "total_us", "bytes_in", "bytes_out", "requests", "attempts"),
    *("request_tags", "spend_metadata", "response_id"),
)


def _columns() -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("id", sa.String(32), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("time", "payer", "target")),
        sa.Column("request_id", sa.Text),
        sa.Column("end_user", sa.Text),
        sa.Column("headers", sa.JSON),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("stream", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COLUMNS[11:17]),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
        sa.Column("first_byte_us", sa.BigInteger),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("total_us", "bytes_in", "bytes_out")),
        sa.Column("requests", sa.BigInteger),
        sa.Column("attempts", sa.Text),
        sa.Column("request_tags", sa.JSON),
        sa.Column("spend_metadata", sa.Text),
        sa.Column("response_id", sa.Text),
        sa.PrimaryKeyConstraint("time", "id"),
    ]


#: the tables of a partition as this revision has them, and PostgreSQL's parents of them
rows_tables = sa.MetaData()
sa.Table(_USAGE, rows_tables, *_columns(), sqlite_with_rowid=False, postgresql_partition_by="RANGE (time)")
sa.Table(
    _LOOKUPS,
    rows_tables,
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.Column("time", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("value", "time"),
    sqlite_with_rowid=False,
    postgresql_partition_by="RANGE (time)",
)


def move_rows(connection: Connection) -> None:
    """Move all rows into partitions, with their look-ups, and drop the former table.

    Raises:
        StoreError: a partition's file cannot be written.
        SQLAlchemyError: the database failed.
    """
    sqlite = connection.dialect.name == "sqlite"
    former = _USAGE if sqlite else _FORMER
    move = _move_to_file if sqlite else _move_to_table
    months = list(_months(connection, former))
    if months:
        _announce(connection, former)
    for number, partition in enumerate(months, 1):
        _log.info(
            "Migrating the ledger's rows of {month}, {number} of {count} months",
            month=partition.name,
            number=number,
            count=len(months),
        )
        move(connection, partition)
        connection.execute(
            text(f'INSERT INTO {_PARTITIONS} (start, "end", name) VALUES (:start, :end, :name)'),
            {"start": partition.start, "end": partition.end, "name": partition.name},
        )
    if sqlite:
        # The file is made anew afterwards. Until then it need not be overwritten with zeros.
        connection.execute(text("PRAGMA secure_delete = OFF"))
    connection.execute(text(f"DROP TABLE {former}"))


def _announce(connection: Connection, former: str) -> None:
    """Say what comes, and what it needs."""
    if connection.dialect.name == "sqlite":
        assert connection.engine.url.database is not None
        size = os.stat(connection.engine.url.database).st_size
        found = os.statvfs(os.path.dirname(os.path.realpath(connection.engine.url.database)))
        free = found.f_bavail * found.f_frsize
        needed = int(size * _EXTRA_SHARE)
        where = f"{needed // _MB:,} MB of disk, of which {free // _MB:,} MB are free"
    else:
        tables = [former, *(f"vllm_passthrough_usage_{name}" for name in ("totals", "daily", "monthly"))]
        sizes = [connection.execute(text(f"SELECT pg_total_relation_size('{each}')")).scalar_one() for each in tables]
        size = sum(sizes)
        free = needed = int(size * _EXTRA_SHARE)
        where = f"{needed // _MB:,} MB of the server's disk"
    level = _log.warn if free < needed else _log.info
    level(
        "The ledger's rows and sums ({size} MB) are moved to new tables before requests are served: {minutes} min or "
        "so, and up to {where}. If it is interrupted or the disk is full, nothing is lost: the next start begins anew",
        size=f"{size // _MB:,}",
        minutes=1 + size // _BYTES_A_MINUTE,
        where=where,
    )


def _months(connection: Connection, table: str) -> Iterator[Partition]:
    """Yield the months that have rows."""
    statement = text(f"SELECT MIN(time) FROM {table} WHERE time >= :start")
    start = -(2**62)
    while (time := connection.execute(statement, {"start": start}).scalar()) is not None:
        month = new_partition(time, [], by_day=False)
        yield month
        start = month.end


def _lookups(values: tuple[Any, ...]) -> Iterator[tuple[int, int]]:
    """Yield the look-ups of a row besides its payer: of its time, the `_BY_COLUMN`, its tags, and as a failure."""
    time, *texts, tags, failed, status, error = values
    for (_, what), each in zip(_BY_COLUMN, texts, strict=True):
        if each:
            yield lookup_id(what, each), time
    # the database's JSON: a text in SQLite
    for tag in (json.loads(tags) if isinstance(tags, str) else tags) or ():
        yield lookup_id(OF_TAG, tag), time
    for reason in _failure_texts(status, error) if failed else ():
        yield lookup_id(OF_FAILURE, reason), time


def _failure_texts(status: int, error: str | None) -> list[str]:
    """Return the texts by which a failed row is looked up: "" for any, the status of an error, the code of an error."""
    return ["", *([str(status)] if status >= 400 else []), *([error] if error else [])]


_WITH_LOOKUPS = (
    f"SELECT time, {', '.join(column for column, _ in _BY_COLUMN)}, request_tags, {_FAILED}, status, error "
    f"FROM {{table}} WHERE {' OR '.join(f'{column} IS NOT NULL' for column, _ in _BY_COLUMN)} "
    f"OR request_tags IS NOT NULL OR ({_FAILED})"
)


# PostgreSQL


def _move_to_table(connection: Connection, partition: Partition) -> None:
    rows, lookups = (f'"{table}_{partition.name.replace("-", "_")}"' for table in (_USAGE, _LOOKUPS))
    for parent, child in ((_USAGE, rows), (_LOOKUPS, lookups)):
        connection.exec_driver_sql(f"CREATE TABLE {child} (LIKE {parent} INCLUDING ALL)")
        connection.exec_driver_sql(
            f"ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES FROM ({partition.start}) TO ({partition.end})"
        )
    columns = ", ".join(_COLUMNS)
    connection.exec_driver_sql(
        f"INSERT INTO {rows} ({columns}) SELECT {columns} FROM {_FORMER} "
        f"WHERE time >= {partition.start} AND time < {partition.end} ORDER BY time, id"
    )
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {_STAGE} (value BIGINT, time BIGINT) ON COMMIT DROP")
    found = connection.execute(
        text(_WITH_LOOKUPS.format(table=rows)), execution_options={"stream_results": True, "yield_per": _CHUNK}
    )
    driver: Any = connection.connection.driver_connection
    for some in found.partitions(_CHUNK):
        lines = "".join(f"{value}\t{time}\n" for row in some for value, time in _lookups(tuple(row)))
        with driver.cursor() as cursor, cursor.copy(f"COPY {_STAGE} (value, time) FROM STDIN") as copy:
            copy.write(lines)
    connection.exec_driver_sql(
        f"INSERT INTO {lookups} (value, time) SELECT DISTINCT value, time FROM ("
        f"SELECT payer AS value, time FROM {rows} UNION ALL "
        f"SELECT value, time FROM {_STAGE}) AS found ORDER BY value, time"
    )
    connection.exec_driver_sql(f"DROP TABLE {_STAGE}")


# SQLite


def _move_to_file(connection: Connection, partition: Partition) -> None:
    assert connection.engine.url.database is not None
    main = Path(connection.engine.url.database)
    path = file_of(main, partition)
    try:
        make_directory(main)
        if path.exists():
            # A migration that was interrupted left it, or one before a downgrade: it may have more rows than the table.
            _add_to_file(connection, partition, path, exists=True)
            return
        unfinished = path.with_name(f"{path.name}.new")
        for leftover in (unfinished, *(Path(f"{unfinished}-{end}") for end in ("wal", "shm", "journal"))):
            leftover.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _add_to_file(connection, partition, unfinished, exists=False)
        os.rename(unfinished, path)
        _sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreError(
            f"The ledger's rows cannot be moved to {path}: {reason}. Nothing is lost: mend the cause, such as a full "
            "disk, and start again."
        ) from None


def _add_to_file(connection: Connection, partition: Partition, path: Path, *, exists: bool) -> None:
    """Add the rows of a month to a file that has them all afterwards, on the disk."""
    source: Any = connection.connection.driver_connection
    with closing(sqlite3.connect(path, isolation_level=None)) as target:
        # A new file is worthless until it is complete, so it needs no journal.
        for pragma in (
            f"journal_mode = {'WAL' if exists else 'OFF'}",
            f"synchronous = {'FULL' if exists else 'OFF'}",
            "temp_store = FILE",
            "cache_size = -64000",
        ):
            target.execute(f"PRAGMA {pragma}").fetchall()
        _create_tables(target)
        marks = ", ".join("?" * len(_COLUMNS))
        names = ", ".join(f'"{name}"' for name in _COLUMNS)
        found = source.cursor().execute(
            f"SELECT {names} FROM {_USAGE} WHERE time >= ? AND time < ? ORDER BY time, id",
            (partition.start, partition.end),
        )
        insert = f"INSERT OR IGNORE INTO {_USAGE} ({names}) VALUES ({marks})"
        _add_all(target, insert, iter(lambda: found.fetchmany(_CHUNK), []))
        _add_lookups(target)
        if exists:
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        else:
            target.execute("PRAGMA journal_mode = WAL").fetchall()
    _sync(path)


def _create_tables(target: sqlite3.Connection) -> None:
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateTable

    for table in rows_tables.sorted_tables:
        statement = CreateTable(table, if_not_exists=True).compile(dialect=sqlite.dialect())
        target.execute(str(statement))


def _add_all(target: sqlite3.Connection, statement: str, chunks: Iterable[list[Any]]) -> None:
    """Insert all rows in transactions of bounded size."""
    pending = 0
    target.execute("BEGIN IMMEDIATE")
    for some in chunks:
        target.executemany(statement, some)
        pending += len(some)
        if pending >= _TRANSACTION:
            target.execute("COMMIT")
            target.execute("BEGIN IMMEDIATE")
            pending = 0
    target.execute("COMMIT")


def _add_lookups(target: sqlite3.Connection) -> None:
    for column, what in _BY_COLUMN:
        target.create_function(f"lookup_{column}", 1, lambda each, what=what: lookup_id(what, each), deterministic=True)
    insert = f"INSERT OR IGNORE INTO {_LOOKUPS} (value, time)"
    by_column = " UNION ALL ".join(
        f"SELECT lookup_{column}({column}), time FROM {_USAGE} WHERE {column} <> ''" for column, _ in _BY_COLUMN
    )
    # In the order of the table: each page is written once.
    target.execute(f"{insert} SELECT payer, time FROM {_USAGE} UNION ALL {by_column} ORDER BY 1, 2")
    # What few rows have.
    found = target.execute(
        f"SELECT time, request_tags, {_FAILED}, status, error FROM {_USAGE} "
        f"WHERE request_tags IS NOT NULL OR ({_FAILED})"
    )
    pairs = (
        [pair for time, *others in some for pair in _lookups((time, None, None, None, *others))]
        for some in iter(lambda: found.fetchmany(_CHUNK), [])
    )
    _add_all(target, f"{insert} VALUES (?, ?)", pairs)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# and back


def move_rows_back(connection: Connection) -> None:
    """Move the rows of all partitions into one table, with its indexes and the table of tags.

    Raises:
        SQLAlchemyError: the database failed.
        sqlite3.Error: a partition's file cannot be read.
    """
    sqlite = connection.dialect.name == "sqlite"
    if sqlite:
        _create_former(connection)
        for (name,) in connection.execute(text(f"SELECT name FROM {_PARTITIONS} ORDER BY start")).all():
            _move_from_file(connection, name)
    else:
        connection.exec_driver_sql(f"ALTER TABLE {_USAGE} RENAME TO {_FORMER}")
        connection.exec_driver_sql(f"ALTER INDEX {_USAGE}_pkey RENAME TO {_FORMER}_pkey")
        _create_former(connection)
        columns = ", ".join(_COLUMNS)
        connection.exec_driver_sql(
            f"INSERT INTO {_USAGE} ({columns}) SELECT {columns} FROM {_FORMER} ORDER BY time, id"
        )
        connection.exec_driver_sql(f"DROP TABLE {_FORMER}, {_LOOKUPS}")
    _add_tags(connection)
    for name, columns in (("payer", "payer, time"), ("end_user", "end_user, time"), ("request", "request_id")):
        where = "" if name == "payer" else f" WHERE {columns.partition(',')[0]} IS NOT NULL"
        connection.exec_driver_sql(f"CREATE INDEX {_USAGE}_{name} ON {_USAGE} ({columns}){where}")
    connection.exec_driver_sql(
        f"CREATE INDEX {_USAGE}_response ON {_USAGE} (response_id) WHERE response_id IS NOT NULL"
    )


def _create_former(connection: Connection) -> None:
    former = sa.MetaData()
    sa.Table(_USAGE, former, *_columns(), sqlite_with_rowid=False)
    sa.Table(
        f"{_USAGE}_request_tags",
        former,
        sa.Column("tag", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("tag", "time", "id"),
        sqlite_with_rowid=False,
    )
    former.create_all(connection, checkfirst=False)


def _move_from_file(connection: Connection, name: str) -> None:
    target: Any = connection.connection.driver_connection
    assert connection.engine.url.database is not None
    path = directory_of(Path(connection.engine.url.database)) / f"{name}.db"
    names = ", ".join(f'"{column}"' for column in _COLUMNS)
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as source:
        found = source.execute(f"SELECT {names} FROM {_USAGE} ORDER BY time, id")
        while some := found.fetchmany(_CHUNK):
            marks = ", ".join("?" * len(_COLUMNS))
            target.cursor().executemany(f"INSERT INTO {_USAGE} ({names}) VALUES ({marks})", some)


def _add_tags(connection: Connection) -> None:
    """Fill the table of the tags that clients gave."""
    statement = text(f"SELECT time, id, request_tags FROM {_USAGE} WHERE request_tags IS NOT NULL")
    insert = text(f"INSERT INTO {_USAGE}_request_tags (tag, time, id) VALUES (:tag, :time, :id) ON CONFLICT DO NOTHING")
    found = connection.execute(statement, execution_options={"stream_results": True, "yield_per": _CHUNK})
    for some in found.partitions(_CHUNK):
        rows = [
            {"tag": tag, "time": row.time, "id": row.id}
            for row in some
            for tag in (json.loads(row.request_tags) if isinstance(row.request_tags, str) else row.request_tags) or ()
        ]
        if rows:
            connection.execute(insert, rows)
