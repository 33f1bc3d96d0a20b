"""Writes rows and look-ups into the partitions: files of SQLite, each with its own lock, or PostgreSQL's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, select
from sqlalchemy.engine import Engine

from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import begin, make_engine
from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.sqlite_file import check_file, watch_file
from twisted_vllm.storage.usage.bulk_insert import BulkInsert, SparseInsert, Values
from twisted_vllm.storage.usage.partitions import (
    UNQUALIFIED,
    Partition,
    add_partition,
    all_partitions,
    create_rows_tables,
    file_of,
    make_directory,
    new_partition,
)
from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.tables import RowKey, has_row_key, usage, usage_lookups

#: Every batch touches a few pages at the end of the file, and look-ups many: 16 MB of pages stay in memory, and the
#: write-ahead log is copied into the file every 16 MB.
SQLITE_PRAGMAS = ("cache_size = -16000", "wal_autocheckpoint = 4000")

#: partitions whose files stay open
_OPEN_FILES = 3

#: rows of a statement's columns, as `SparseInsert.run` and `BulkInsert.run` take them
Columns = Sequence[Sequence[object]]

# OR IGNORE and not ON CONFLICT: no error can end the statement half done, so SQLite need not save the pages it changes.
_insert_sqlite = SparseInsert(usage)
_insert_postgresql = BulkInsert(usage, postgresql_tail="ON CONFLICT (time, id) DO NOTHING")
_insert_lookups = BulkInsert(usage_lookups, "ON CONFLICT DO NOTHING")


class RowStore(Protocol):
    """Where rows and look-ups go. Each call is one transaction or several, all of them idempotent."""

    def write(self, columns: Columns, times: Sequence[int], references: References) -> None:
        """Store rows, and before them what they refer to.

        Args:
            columns: the values of each column of `usage`.
            times: when the requests began, in microseconds since 1970.
            references: has what is not stored yet.
        """

    def write_lookups(self, lookups: Sequence[Values]) -> None:
        """Store pairs of value and time."""

    def existing(self, keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the keys of rows that exist."""

    def forget(self) -> None:
        """Assume nothing of the database: a transaction failed, which may have made a partition, or it was restored."""

    def close(self) -> None:
        """Close the connections; the next use opens others."""


class _Partitions:
    """The known partitions. A time's partition is made when it is first needed."""

    def __init__(self, by_day: Callable[[], bool]) -> None:
        self._by_day = by_day
        self._known: list[Partition] = []

    def forget(self) -> None:
        self._known = []

    def find(self, time: int) -> Partition | None:
        return next((each for each in self._known if each.has(time)), None)

    def ensure(self, connection: Connection, time: int, prepare: Callable[[Partition], None]) -> Partition:
        """Return the partition of a time, made if there is none.

        Args:
            connection: to the main database.
            time: in microseconds since 1970.
            prepare: called with a new one before the database knows it.
        """
        # Another process may have made it, or dropped another.
        self._known = all_partitions(connection)
        found = self.find(time)
        if found is None:
            found = new_partition(time, self._known, by_day=self._by_day())
            prepare(found)
            add_partition(connection, found)
            self._known = all_partitions(connection)
        return self.find(time) or found


class SqliteRows:
    """A :class:`RowStore` on files of SQLite."""

    def __init__(self, main: Engine, by_day: Callable[[], bool]) -> None:
        """Set up.

        Args:
            main: of the main database.
            by_day: whether new partitions have a day and not a month.
        """
        self._main = main
        assert main.url.database is not None
        self._file = Path(main.url.database)
        self._partitions = _Partitions(by_day)
        self._engines: dict[str, Engine] = {}

    def write(self, columns: Columns, times: Sequence[int], references: References) -> None:
        """Store rows."""
        if references.has_new:
            with begin(self._main, None, writes=True) as connection:
                references.write(connection)
            check_file(self._main)
        for partition, some in self._split(times):
            chosen = columns if some is None else [[column[at] for at in some] for column in columns]
            engine = self._engine(partition)
            with begin(engine, None, writes=True) as connection:
                _insert_sqlite.run(connection, chosen)
            check_file(engine)

    def write_lookups(self, lookups: Sequence[Values]) -> None:
        """Store pairs of value and time."""
        for partition, some in self._split([time for _, time in lookups]):  # type: ignore[misc]
            chosen = lookups if some is None else [lookups[at] for at in some]
            engine = self._engine(partition)
            with begin(engine, None, writes=True) as connection:
                _insert_lookups.run(connection, chosen)
            check_file(engine)

    def existing(self, keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the keys of rows that exist."""
        found: set[RowKey] = set()
        for partition, some in self._split([time for time, _ in keys]):
            with begin(self._engine(partition), None, writes=False) as connection:
                connection.execution_options(**UNQUALIFIED)
                found |= _existing(connection, keys if some is None else [keys[at] for at in some])
        return found

    def forget(self) -> None:
        """Assume that no partition exists."""
        self._partitions.forget()

    def close(self) -> None:
        """Close the connections."""
        self._partitions.forget()
        while self._engines:
            self._engines.popitem()[1].dispose()

    def _split(self, times: Sequence[int]) -> Iterator[tuple[Partition, list[int] | None]]:
        """Yield the partitions of rows and the rows' numbers in each; None for all of them."""
        if not times:
            return
        oldest, newest = self._partition(min(times)), self._partition(max(times))
        if oldest == newest:
            yield newest, None
            return
        found: dict[Partition, list[int]] = {}
        for number, time in enumerate(times):
            found.setdefault(self._partition(time), []).append(number)
        yield from sorted(found.items())

    def _partition(self, time: int) -> Partition:
        found = self._partitions.find(time)
        if found is not None:
            return found
        with begin(self._main, None, writes=True) as connection:
            found = self._partitions.ensure(connection, time, self._make_file)
        check_file(self._main)
        return found

    def _make_file(self, partition: Partition) -> None:
        make_directory(self._file)
        engine = make_engine(self._main.url.set(database=str(file_of(self._file, partition))), connections=1)
        with engine.connect() as connection:
            connection.connection.cursor().execute("PRAGMA journal_mode = WAL").close()
        with begin(engine, None, writes=True) as connection:
            create_rows_tables(connection)
        engine.dispose()

    def _engine(self, partition: Partition) -> Engine:
        engine = self._engines.pop(partition.name, None)
        if engine is None:
            while len(self._engines) >= _OPEN_FILES:
                self._engines.pop(next(iter(self._engines))).dispose()
            engine = make_engine(self._main.url.set(database=str(file_of(self._file, partition))), connections=1)
            watch_file(engine)
            use_pragmas(engine)
        # the most recently used last
        self._engines[partition.name] = engine
        return engine


class PostgresqlRows:
    """A :class:`RowStore` on PostgreSQL's partitions."""

    def __init__(self, engine: Engine, by_day: Callable[[], bool], seconds: float) -> None:
        """Set up.

        Args:
            engine: of the database.
            by_day: whether new partitions have a day and not a month.
            seconds: how long a transaction may take.
        """
        self._engine = engine
        self._partitions = _Partitions(by_day)
        self._seconds = seconds

    def write(self, columns: Columns, times: Sequence[int], references: References) -> None:
        """Store rows."""
        with begin(self._engine, Deadline(self._seconds), writes=True) as connection:
            self._ensure(connection, times)
            references.write(connection)
            _insert_postgresql.run(connection, list(zip(*columns, strict=True)))

    def write_lookups(self, lookups: Sequence[Values]) -> None:
        """Store pairs of value and time."""
        with begin(self._engine, Deadline(self._seconds), writes=True) as connection:
            self._ensure(connection, [time for _, time in lookups])  # type: ignore[misc]
            _insert_lookups.run(connection, lookups)

    def existing(self, keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the keys of rows that exist."""
        with begin(self._engine, Deadline(self._seconds), writes=False) as connection:
            return _existing(connection.execution_options(**UNQUALIFIED), keys)

    def forget(self) -> None:
        """Assume that no partition exists."""
        self._partitions.forget()

    def close(self) -> None:
        """Forget what is known of the database."""
        self._partitions.forget()

    def _ensure(self, connection: Connection, times: Sequence[int]) -> None:
        for time in (min(times), max(times)) if times else ():
            if self._partitions.find(time) is None:
                for each in sorted(set(times)):
                    if self._partitions.find(each) is None:
                        self._partitions.ensure(connection, each, lambda _: None)


def make_row_store(engine: Engine, by_day: Callable[[], bool], seconds: float) -> RowStore:
    """Return the store of rows that belongs to a database; the arguments are those of `PostgresqlRows`."""
    if engine.dialect.name == "sqlite":
        return SqliteRows(engine, by_day)
    return PostgresqlRows(engine, by_day, seconds)


def use_pragmas(engine: Engine) -> None:
    """Have each connection of an engine of SQLite use `SQLITE_PRAGMAS`."""
    from sqlalchemy import event

    def prepare(connection: object, _record: object) -> None:
        for pragma in SQLITE_PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    event.listen(engine, "connect", prepare)


def _existing(connection: Connection, keys: Sequence[RowKey]) -> set[RowKey]:
    found: set[RowKey] = set()
    for chunk in in_chunks(keys):
        statement = select(usage.c.time, usage.c.id).where(*has_row_key(chunk))
        found.update((time, id) for time, id in connection.execute(statement))
    return found
