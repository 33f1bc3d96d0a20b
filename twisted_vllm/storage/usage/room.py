"""Measures what takes room in the database: tables, indexes, partitions, logs and the spool.

It only reads, and never a whole table: it asks the databases for what they know, looks at a part of SQLite's pages,
and takes the numbers of requests from the sums.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import OperationalError

from twisted_vllm.storage.tables import audit
from twisted_vllm.storage.usage.partitions import (
    Partition,
    all_partitions,
    directory_of,
    file_of,
    files_beside,
    main_file,
    partition_named,
)
from twisted_vllm.storage.usage.retention import next_to_drop
from twisted_vllm.storage.usage.tables import ALL, DAY, DAY_US, KINDS, MONTH, rows_metadata, usage_sums

#: Pages of a table that SQLite looks at, and the seconds for all tables, after which it looks at few. The rest is
#: estimated.
_PAGES, _FEWEST, _SECONDS = 600, 20, 0.1


class TableRoom(msgspec.Struct, frozen=True, kw_only=True):
    """The room of a table.

    Attributes:
        name: the table's name.
        rows: about how many rows it has; None if that is unknown.
        bytes: the bytes of its rows.
        index_bytes: the bytes of its other indexes.
        estimated: whether the bytes are an estimate.
    """

    name: str
    rows: int | None
    bytes: int
    index_bytes: int
    estimated: bool = False


class PartitionRoom(msgspec.Struct, frozen=True, kw_only=True):
    """The room of a partition of the ledger's rows.

    Attributes:
        name: the month or day.
        start: when it begins, in Unix seconds.
        end: when it ends, in Unix seconds, exclusive.
        requests: how many requests its time has, by the sums.
        bytes: the bytes of rows, look-ups and logs.
        missing: whether its file is missing.
    """

    name: str
    start: int
    end: int
    requests: int
    bytes: int
    missing: bool = False


class NextDrop(msgspec.Struct, frozen=True, kw_only=True):
    """What `usage_retention` drops next.

    Attributes:
        partition: the name of the partition.
        at: when, in Unix seconds.
        bytes: what it gives back.
    """

    partition: str
    at: int
    bytes: int


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What takes room.

    Attributes:
        database: ``sqlite`` or ``postgresql``.
        bytes: the database with all partitions and logs, without the spool.
        free_bytes: free space in SQLite's main file, which new rows use.
        log_bytes: SQLite's write-ahead logs of the main file; PostgreSQL's is the server's.
        spool_bytes: rows that wait for the database.
        requests: the requests that have rows, by the sums.
        bytes_per_request: the bytes of partitions for each of them.
        sum_bytes_per_request: the bytes of sums and names for each request that there ever was.
        tables: those outside of the partitions, the largest first.
        partitions: the newest first.
        next_drop: None if rows are kept for ever, or there are none.
    """

    database: str
    bytes: int
    free_bytes: int
    log_bytes: int
    spool_bytes: int
    requests: int
    bytes_per_request: float | None
    sum_bytes_per_request: float | None
    tables: tuple[TableRoom, ...]
    partitions: tuple[PartitionRoom, ...]
    next_drop: NextDrop | None


def measure(connection: Connection, retention: float | None, spool: Path | None) -> Room:
    """Return what takes room.

    Args:
        connection: to the main database; it is only read.
        retention: how long rows are kept, in seconds; None for ever.
        spool: the spool's directory; None if there is none.

    Raises:
        SQLAlchemyError: the database failed.
    """
    known = all_partitions(connection)
    requests, ever = _requests(connection, known)
    free = logs = 0
    sizes: Mapping[str, int | None] = {}
    if connection.dialect.name == "postgresql":
        tables, sizes, total = _tables_of_postgresql(connection)
    else:
        tables, free = _tables_of_sqlite(connection)
        total = sum(each.bytes + each.index_bytes for each in tables) + free
        if connection.engine.url.database:
            # not one in memory
            file = main_file(connection.engine)
            logs = sum(map(_size, files_beside(Path(os.path.realpath(file)))))
            sizes = {each.name: _size_of_file(file_of(file, each)) for each in known}
            total = _size(file) + logs + sum(map(_size, _files_in(directory_of(file))))
    partitions = tuple(
        PartitionRoom(
            name=each.name,
            start=each.start // 1_000_000,
            end=each.end // 1_000_000,
            requests=requests[each],
            bytes=sizes.get(each.name) or 0,
            missing=sizes.get(each.name) is None,
        )
        for each in known
    )
    held = sum(each.requests for each in partitions)
    of_sums = sum(each.bytes + each.index_bytes for each in tables if each.name.endswith(("usage_sums", "usage_names")))
    coming = None if retention is None else next_to_drop(known, retention)
    return Room(
        database=connection.dialect.name,
        bytes=total,
        free_bytes=free,
        log_bytes=logs,
        spool_bytes=0 if spool is None else sum(map(_size, _files_in(spool))),
        requests=held,
        bytes_per_request=round(sum(each.bytes for each in partitions) / held, 1) if held else None,
        sum_bytes_per_request=round(of_sums / ever, 1) if ever else None,
        tables=tuple(sorted(tables, key=lambda each: each.bytes + each.index_bytes, reverse=True)),
        partitions=partitions,
        next_drop=coming
        and NextDrop(partition=coming[0].name, at=coming[1] // 1_000_000, bytes=sizes.get(coming[0].name) or 0),
    )


def _requests(connection: Connection, known: Sequence[Partition]) -> tuple[dict[Partition, int], int]:
    """Return how many requests each partition has, and how many there ever were."""
    days = {
        start: int(count)
        for start, count in connection.execute(
            select(usage_sums.c.start, func.sum(usage_sums.c.requests))
            .where(usage_sums.c.kind == KINDS[ALL, DAY])
            .group_by(usage_sums.c.start)
        )
    }
    found = {each: sum(days.get(day, 0) for day in range(each.start // DAY_US, each.end // DAY_US)) for each in known}
    ever = connection.execute(
        select(func.sum(usage_sums.c.requests)).where(usage_sums.c.kind == KINDS[ALL, MONTH])
    ).scalar()
    return found, int(ever or 0)


# SQLite


def _tables_of_sqlite(connection: Connection) -> tuple[list[TableRoom], int]:
    """Return the room of the tables in the main file, and its free bytes."""
    pages, free, size = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_count", "freelist_count", "page_size")
    )
    statement = text("SELECT name, tbl_name, type FROM sqlite_master WHERE rootpage > 0")
    trees = [(str(name), str(table), kind == "table") for name, table, kind in connection.execute(statement)]
    try:
        looks = list(_look_at(connection, [name for name, _, _ in trees]))
    except OperationalError as error:
        if "dbstat" not in str(error):
            raise
        # a SQLite without it knows only the whole
        return [TableRoom(name="(all tables)", rows=None, bytes=(pages - free) * size, index_bytes=0)], free * size
    left = max(pages - free - sum(each.pages for each in looks if each.is_whole), 0)
    estimates = sum(each.pages for each in looks if not each.is_whole)
    tables: dict[str, list[int]] = {}
    rows: dict[str, int] = {}
    for (_, table, is_table), each in zip(trees, looks, strict=True):
        # The sum of all is known, so the estimates are made to fit it.
        share = 1.0 if each.is_whole else left / estimates
        sizes = tables.setdefault(table, [0, 0, 0])
        sizes[0 if is_table else 1] += int(each.pages * share) * size
        sizes[2] |= not each.is_whole
        if is_table:
            rows[table] = int(each.rows * share)
    return [
        TableRoom(name=name, rows=rows.get(name), bytes=each[0], index_bytes=each[1], estimated=bool(each[2]))
        for name, each in tables.items()
    ], free * size


class _Look(msgspec.Struct, frozen=True):
    pages: float
    rows: float
    is_whole: bool


def _look_at(connection: Connection, names: Sequence[str]) -> Iterator[_Look]:
    """Look at the first pages of each tree, from the root on; estimate the rest by the children that pages have.

    Rows are in leaves, and where a table is clustered in inner pages as well.
    """
    end = time.monotonic() + _SECONDS
    driver: Any = connection.connection.driver_connection
    for name in names:
        cursor = driver.execute("SELECT path, pagetype, ncell FROM dbstat WHERE name = ?", (name,))
        clustered = _is_clustered(driver, name)
        # by level: the pages that were seen, and their cells
        inner: dict[int, list[int]] = {}
        leaves: list[int] = []
        overflow = 0
        is_whole = True
        for path, kind, cells in cursor:
            seen = len(leaves) + overflow
            if seen >= _PAGES or (seen >= _FEWEST and time.monotonic() > end):
                is_whole = False
                break
            if kind == "overflow":
                overflow += 1
            elif kind == "leaf":
                leaves.append(cells)
            else:
                inner.setdefault(path.count("/"), []).append(cells)
        cursor.close()
        if is_whole:
            pages: float = len(leaves) + overflow + sum(map(len, inner.values()))
            rows: float = sum(leaves) + (sum(map(sum, inner.values())) if clustered else 0)
            yield _Look(pages, rows, True)
            continue
        at_level, pages, rows = 1.0, 0.0, 0.0
        for _, cells_of in sorted(inner.items()):
            pages += at_level
            average = sum(cells_of) / len(cells_of)
            rows += at_level * average if clustered else 0
            at_level *= average + 1
        rows += at_level * sum(leaves) / len(leaves) if leaves else 0
        pages += at_level * (1 + overflow / max(len(leaves), 1))
        yield _Look(pages, rows, False)


def _is_clustered(driver: Any, name: str) -> bool:
    (definition,) = driver.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    return definition is not None and "WITHOUT ROWID" in definition.upper()


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _size_of_file(path: Path) -> int | None:
    """Return the bytes of a partition's file and its log; None if the file is missing."""
    if not path.exists():
        return None
    real = path.resolve()
    return sum(map(_size, (real, *files_beside(real))))


def _files_in(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.is_file()]
    except OSError:
        return []


# PostgreSQL


def _tables_of_postgresql(connection: Connection) -> tuple[list[TableRoom], dict[str, int], int]:
    """Return the room of the tables outside of partitions, the bytes of partitions by name, and the database's."""
    statement = text(
        "SELECT relname, CAST(GREATEST(reltuples, 0) AS BIGINT), pg_table_size(oid), pg_indexes_size(oid) "
        "FROM pg_class WHERE relkind = 'r' AND pg_table_is_visible(oid) "
        "AND relname LIKE 'vllm\\_passthrough\\_%'"
    )
    names = sorted((table.name for table in rows_metadata.tables.values()), key=len, reverse=True)
    parents = "|".join(map(re.escape, names))
    tables: list[TableRoom] = []
    sizes: dict[str, int] = {}
    total = 0
    months: list[tuple[int, int, int]] = []
    for name, *room in connection.execute(statement):
        rows, size, indexes = room
        total += size + indexes
        match = re.fullmatch(rf"(?:{parents})_(\d[\d_]+)", name)
        partition = partition_named(match[1].replace("_", "-")) if match else None
        if partition is not None:
            sizes[partition.name] = sizes.get(partition.name, 0) + size + indexes
        elif name.startswith(f"{audit.name}_"):
            months.append((rows, size, indexes))
        else:
            tables.append(TableRoom(name=name, rows=rows, bytes=size, index_bytes=indexes, estimated=True))
    # It has no room of its own.
    rows, size, indexes = (sum(month[column] for month in months) for column in range(3))
    tables.append(TableRoom(name=str(audit.name), rows=rows, bytes=size, index_bytes=indexes, estimated=True))
    return tables, sizes, total
