"""The databases that are measured: made empty, filled, copied, weighed and removed, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol

import psycopg
from sqlalchemy.engine import make_url

from benchmarks.growth.ledger import purpose_of
from benchmarks.measure import ProcessTree
from benchmarks.postgresql import PostgresqlServer, find_binaries
from benchmarks.processes import CannotStart

#: what the names of databases begin with, so that they can be told from others on the same server
_PREFIX = "growth_"
#: the kinds
SQLITE, POSTGRESQL = "sqlite", "postgresql"
#: of a PostgreSQL server of the benchmark's own
_SETTINGS = ("fsync=off", "max_connections=60", "shared_buffers=256MB", "max_wal_size=4GB")


class Databases(Protocol):
    """Where databases of one kind are.

    Attributes:
        name: the kind, as the report calls it.
    """

    name: str

    def make(self, name: str) -> str:
        """Make an empty database; return its URL."""

    def copy(self, url: str, name: str) -> str:
        """Copy a database that nobody uses; return the copy's URL."""

    def weigh(self, url: str) -> Mapping[str, int]:
        """Return the bytes of the ledger's tables in a database, by purpose."""

    def server_cpu(self) -> float | None:
        """Return the CPU seconds of the server's processes; None without a server, or where they are not known."""

    def remove(self) -> None:
        """Remove the databases that were made here."""


class SqliteDatabases:
    """SQLite files in a directory.

    Args:
        directory: where they are.
    """

    name = "SQLite"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self, name: str) -> str:
        """Return the URL of a file that does not exist yet."""
        place = self._directory / f"{_PREFIX}{name}"
        place.mkdir()
        return f"sqlite:///{place}/gateway.sqlite"

    def copy(self, url: str, name: str) -> str:
        """Copy the file, and what lies beside it and is named after it."""
        copied = self.make(name)
        source, target = _file_of(url), _file_of(copied)
        for path in source.parent.glob(f"{source.name}*"):
            beside = target.with_name(target.name + path.name.removeprefix(source.name))
            if path.is_dir():
                shutil.copytree(path, beside)
            else:
                shutil.copyfile(path, beside)
        return copied

    def weigh(self, url: str) -> Mapping[str, int]:
        """Add up the pages of tables and indexes, also of the files of partitions."""
        file = _file_of(url)
        weights: Counter[str] = Counter()
        for path in (file, *file.parent.glob(f"{file.name}-*/*.db")):
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                tables = dict(connection.execute("SELECT name, tbl_name FROM sqlite_master").fetchall())
                pages = connection.execute("SELECT name, pgsize FROM dbstat WHERE aggregate = TRUE").fetchall()
            for name, size in pages:
                table = tables.get(name, "")
                purpose = purpose_of(table, "" if name == table else name)
                if purpose is not None:
                    weights[purpose] += size
        return weights

    def server_cpu(self) -> float | None:
        """There is no server."""
        return None

    def remove(self) -> None:
        """Remove the files."""
        for place in self._directory.glob(f"{_PREFIX}*"):
            shutil.rmtree(place)


class PostgresqlDatabases:
    """Databases on a PostgreSQL server of this machine, whose user may create databases.

    Args:
        url: of one of its databases.

    Raises:
        CannotStart: the server cannot be used.
    """

    name = "PostgreSQL"

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql")
        self._made: list[str] = []
        try:
            directory = self._ask("postgres", "SHOW data_directory")[0][0]
        except psycopg.Error as error:
            raise CannotStart(f"PostgreSQL cannot be used: {error}") from None
        try:
            self._server = ProcessTree(int((Path(directory) / "postmaster.pid").read_text().split("\n")[0]))
        except (OSError, ValueError):
            raise CannotStart(
                "the PostgreSQL server must run on this machine, and this user must see its files"
            ) from None

    def _ask(self, database: str, statement: str) -> list[tuple[str, ...]]:
        url = self._url.set(database=database)
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def make(self, name: str) -> str:
        """Create an empty database."""
        return self._create(name, "template0")

    def copy(self, url: str, name: str) -> str:
        """Create a database with the files of another one."""
        return self._create(name, str(make_url(url).database))

    def _create(self, name: str, template: str) -> str:
        database = f"{_PREFIX}{name}"
        self._ask("postgres", f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        self._ask("postgres", f'CREATE DATABASE "{database}" TEMPLATE "{template}" STRATEGY file_copy')
        self._made.append(database)
        return self._url.set(database=database).render_as_string(hide_password=False)

    def weigh(self, url: str) -> Mapping[str, int]:
        """Add up tables and indexes, with what is kept beside them."""
        statement = (
            "SELECT c.relname, '', pg_table_size(c.oid) FROM pg_class c WHERE c.relkind = 'r' "
            "UNION ALL SELECT t.relname, i.relname, pg_relation_size(i.oid) FROM pg_index x "
            "JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid WHERE i.relkind = 'i'"
        )
        weights: Counter[str] = Counter()
        for table, index, size in self._ask(str(make_url(url).database), statement):
            purpose = purpose_of(table, index)
            if purpose is not None:
                weights[purpose] += int(size)
        return weights

    def server_cpu(self) -> float | None:
        """CPU seconds of the server's processes, those that ended included."""
        return self._server.cpu_seconds(ended=True)

    def remove(self) -> None:
        """Drop the databases."""
        while self._made:
            self._ask("postgres", f'DROP DATABASE IF EXISTS "{self._made.pop()}" WITH (FORCE)')


@contextmanager
def opened_databases(kind: str, url: str | None, directory: Path) -> Iterator[Databases | None]:
    """Give databases of a kind during a block; None where PostgreSQL is not installed.

    Args:
        kind: `SQLITE` or `POSTGRESQL`.
        url: of a database on a PostgreSQL server that runs; None starts one.
        directory: where SQLite's files are.

    Raises:
        CannotStart: PostgreSQL does not start, or cannot be used.
    """
    if kind == SQLITE:
        yield SqliteDatabases(directory)
        return
    if url is not None:
        databases = PostgresqlDatabases(url)
        try:
            yield databases
        finally:
            databases.remove()
        return
    binaries = find_binaries()
    if binaries is None:
        yield None
        return
    # the server's own user must reach it, and a socket's path must be short
    place = Path(mkdtemp(prefix="growth-"))
    try:
        server = PostgresqlServer(binaries, place, "of-the-benchmark-alone", _SETTINGS)
        server.initialise()
        server.start()
        try:
            yield PostgresqlDatabases(server.url("postgres"))
        finally:
            server.stop()
    except (LookupError, RuntimeError) as error:
        raise CannotStart(str(error)) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _file_of(url: str) -> Path:
    return Path(str(make_url(url).database))
