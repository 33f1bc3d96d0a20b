"""Writes rows and look-ups into the partitions: files of SQLite, each with its own lock, or PostgreSQL's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from sqlalchemy import Connection, event, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.storage.deadline import Deadline
from twisted_vllm.storage.engine import begin, make_engine
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.repository import in_chunks
from twisted_vllm.storage.sqlite_file import DatabaseFileLost, check_file, watch_file
from twisted_vllm.storage.usage.accepted import is_rejection
from twisted_vllm.storage.usage.bulk_insert import BulkInsert, SparseInsert, Values
from twisted_vllm.storage.usage.known_partitions import KnownPartitions, Periods
from twisted_vllm.storage.usage.partition_files import make_file
from twisted_vllm.storage.usage.partitions import (
    UNQUALIFIED,
    Partition,
    PartitionLost,
    all_partitions,
    complete_file,
    file_of,
    main_file,
    make_missing_tables,
)
from twisted_vllm.storage.usage.references import References
from twisted_vllm.storage.usage.tables import RowKey, has_row_key, usage, usage_lookups

#: Every batch touches a few pages at the end of the file, and sums and look-ups come in the order of their tables: 4 MB
#: of pages stay in memory, for each of up to four files. 16 MB saved no CPU time at 100,000 active keys and 5 million
#: rows. The write-ahead log is copied into the file every 16 MB.
SQLITE_PRAGMAS = ("cache_size = -4000", "wal_autocheckpoint = 4000")

#: partitions whose files stay open
_OPEN_FILES = 3

#: PostgreSQL's state of an error for a row that belongs to no partition
_NO_PARTITION = "23514"

A = TypeVar("A")
R = TypeVar("R")

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

    def close(self) -> None:
        """Close the connections; the next use opens others."""

    def forget(self, names: Iterable[str]) -> None:
        """Close the files of partitions, and look anew for which there are."""

    def forget_dropped(self) -> None:
        """Close the files of partitions that another process dropped."""


class SqliteRows:
    """A :class:`RowStore` on files of SQLite."""

    def __init__(self, main: Engine, periods: Periods) -> None:
        """Set up.

        Args:
            main: of the main database.
            periods: which partitions are made.
        """
        self._main = main
        self._file = main_file(main)
        self._partitions = KnownPartitions(periods)
        self._engines: dict[str, Engine] = {}

    def write(self, columns: Columns, times: Sequence[int], references: References) -> None:
        """Store rows."""
        if references.has_new:
            with begin(self._main, None, writes=True) as connection:
                references.write(connection)
            check_file(self._main)
        for partition, some in self._split(times):
            chosen = columns if some is None else [[column[at] for at in some] for column in columns]
            self._in(partition, _insert_sqlite.run, chosen, writes=True)
        coming = self._partitions.coming(max(times))
        if coming is not None:
            self._partition(coming)

    def write_lookups(self, lookups: Sequence[Values]) -> None:
        """Store pairs of value and time."""
        for partition, some in self._split([time for _, time in lookups]):  # type: ignore[misc]
            chosen = lookups if some is None else [lookups[at] for at in some]
            self._in(partition, _insert_lookups.run, chosen, writes=True)

    def existing(self, keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the keys of rows that exist."""
        found: set[RowKey] = set()
        for partition, some in self._split([time for time, _ in keys]):
            chosen = keys if some is None else [keys[at] for at in some]
            found |= self._in(partition, _existing, chosen, writes=False) or set()
        return found

    def close(self) -> None:
        """Close the connections."""
        self.forget(self._engines)

    def forget(self, names: Iterable[str]) -> None:
        """Close the files of partitions, and look anew for which there are."""
        self._partitions.forget()
        for name in list(names):
            engine = self._engines.pop(name, None)
            if engine is not None:
                engine.dispose()

    def forget_dropped(self) -> None:
        """Close the files of partitions that another process dropped: their space is free then."""
        if self._engines:
            with begin(self._main, None, writes=False) as connection:
                known = {each.name for each in all_partitions(connection)}
            self.forget(set(self._engines) - known)

    def _in(self, partition: Partition, work: Callable[[Connection, A], R], values: A, *, writes: bool) -> R | None:
        """Work in a transaction of a partition's file; return None if the partition was dropped meanwhile."""
        try:
            engine = self._engine(partition)
            with begin(engine, None, writes=writes) as connection:
                result = work(connection.execution_options(**UNQUALIFIED), values)
            check_file(engine)
            return result
        except (DatabaseFileLost, FileNotFoundError) as error:
            self.forget([partition.name])
            with begin(self._main, None, writes=False) as connection:
                if partition not in all_partitions(connection):
                    return None
            what = f"{error.what} while the gateway runs" if isinstance(error, DatabaseFileLost) else "is missing"
            raise PartitionLost(file_of(self._file, partition), what) from None
        except DBAPIError as error:
            if is_rejection(error):
                raise
            # SQLite opens a file that may not be written for reading, and keeps it so when it may.
            self.forget([partition.name])
            # The driver does not say which of the files it means.
            problem = StoreError(f"{file_of(self._file, partition)}: {error.orig}")
        # Outside the except block, so that the driver's error is not the context.
        raise problem

    def _split(self, times: Sequence[int]) -> Iterator[tuple[Partition, list[int] | None]]:
        """Yield the partitions of rows and the rows' numbers in each; None for all of them.

        Those that are too old have no partition, and are not stored.
        """
        if not times:
            return
        oldest, newest = self._partition(min(times)), self._partition(max(times))
        if oldest == newest and newest is not None:
            yield newest, None
            return
        found: dict[Partition, list[int]] = {}
        for number, time in enumerate(times):
            partition = self._partition(time)
            if partition is not None:
                found.setdefault(partition, []).append(number)
        yield from sorted(found.items())

    def _partition(self, time: int) -> Partition | None:
        found = self._partitions.find(time)
        if found is not None:
            return found
        with begin(self._main, None, writes=True) as connection:
            found = self._partitions.ensure(connection, time, lambda new: make_file(self._main, new))
        check_file(self._main)
        return found

    def _engine(self, partition: Partition) -> Engine:
        engine = self._engines.pop(partition.name, None)
        if engine is None:
            while len(self._engines) >= _OPEN_FILES:
                self._engines.pop(next(iter(self._engines))).dispose()
            path = file_of(self._file, partition)
            complete_file(path)
            url = self._main.url.set(database=str(path))
            engine = make_engine(url, connections=1, must_exist=True)
            watch_file(engine)
            use_pragmas(engine)
        # the most recently used last
        self._engines[partition.name] = engine
        return engine


class PostgresqlRows:
    """A :class:`RowStore` on PostgreSQL's partitions."""

    _log = Logger()

    def __init__(self, engine: Engine, periods: Periods, seconds: float) -> None:
        """Set up.

        Args:
            engine: of the database.
            periods: which partitions are made.
            seconds: how long a transaction may take.
        """
        self._engine = engine
        self._partitions = KnownPartitions(periods)
        self._seconds = seconds

    def write(self, columns: Columns, times: Sequence[int], references: References) -> None:
        """Store rows."""

        def work(connection: Connection, kept: Sequence[int] | None) -> None:
            references.write(connection)
            rows = list(zip(*columns, strict=True))
            _insert_postgresql.run(connection, rows if kept is None else [rows[at] for at in kept])

        self._write(times, work, references.again)
        coming = self._partitions.coming(max(times))
        if coming is not None:
            with begin(self._engine, Deadline(self._seconds), writes=True) as connection:
                self._partitions.ensure(connection, coming, lambda _: None)

    def write_lookups(self, lookups: Sequence[Values]) -> None:
        """Store pairs of value and time."""

        def work(connection: Connection, kept: Sequence[int] | None) -> None:
            _insert_lookups.run(connection, lookups if kept is None else [lookups[at] for at in kept])

        self._write([time for _, time in lookups], work, lambda: None)  # type: ignore[misc]

    def existing(self, keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the keys of rows that exist."""
        with begin(self._engine, Deadline(self._seconds), writes=False) as connection:
            return _existing(connection.execution_options(**UNQUALIFIED), keys)

    def close(self) -> None:
        """Forget what is known of the database."""
        self._partitions.forget()

    def forget(self, _names: Iterable[str]) -> None:
        """Look anew for which partitions there are."""
        self._partitions.forget()

    def forget_dropped(self) -> None:
        """Look anew for which partitions there are."""
        self._partitions.forget()

    def _write(
        self,
        times: Sequence[int],
        work: Callable[[Connection, Sequence[int] | None], None],
        rolled_back: Callable[[], None],
    ) -> None:
        """Work in a transaction, and once more if another process dropped a partition; `rolled_back` prepares that."""
        try:
            self._write_once(times, work)
        except IntegrityError as error:
            if getattr(error.orig, "sqlstate", None) != _NO_PARTITION:
                raise
            rolled_back()
            # Another process dropped a partition, or an administrator a table of one.
            self._partitions.forget()
            self._make_missing(times)
            self._write_once(times, work)

    def _make_missing(self, times: Sequence[int]) -> None:
        """Make tables of partitions that the database's list has: rows would wait, or be set aside, for ever."""
        with begin(self._engine, Deadline(self._seconds), writes=True) as connection:
            known = [each for each in all_partitions(connection) if any(map(each.has, times))]
            made = [name for each in known for name in make_missing_tables(connection, each)]
        if made:
            self._log.critical(
                "Somebody dropped or detached tables of the ledger, which are made or attached again: {names}. Rows "
                "that were in a dropped one are lost, and their sums are not",
                names=", ".join(made),
                **LEDGER_ALERT,
            )

    def _write_once(self, times: Sequence[int], work: Callable[[Connection, Sequence[int] | None], None]) -> None:
        with begin(self._engine, Deadline(self._seconds), writes=True) as connection:
            work(connection, self._ensure(connection, times))

    def _ensure(self, connection: Connection, times: Sequence[int]) -> Sequence[int] | None:
        """Make the partitions of times; return the numbers of those that have one, or None if all have."""
        find = self._partitions.find
        if not times or ((oldest := find(min(times))) is not None and oldest == find(max(times))):
            return None
        lacking = set()
        for each in sorted(set(times)):
            if find(each) is None and self._partitions.ensure(connection, each, lambda _: None) is None:
                lacking.add(each)
        return [number for number, time in enumerate(times) if time not in lacking] if lacking else None


def make_row_store(engine: Engine, periods: Periods, seconds: float) -> RowStore:
    """Return the store of rows that belongs to a database; the arguments are those of `PostgresqlRows`."""
    if engine.dialect.name == "sqlite":
        return SqliteRows(engine, periods)
    return PostgresqlRows(engine, periods, seconds)


def use_pragmas(engine: Engine) -> None:
    """Have each connection of an engine of SQLite use `SQLITE_PRAGMAS`."""

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
