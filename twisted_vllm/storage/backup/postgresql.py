"""Backups of PostgreSQL: what its own program dumps, and the ledger's spool beside it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import URL

from twisted_vllm.storage.backup import seals
from twisted_vllm.storage.backup.manifest import (
    DUMP,
    FORMAT,
    POSTGRESQL,
    BackupError,
    File,
    Manifest,
)
from twisted_vllm.storage.backup.spool_copy import HeldSpool, SpoolFile
from twisted_vllm.storage.backup.writing import Source, check_revision, in_utc, read_pieces
from twisted_vllm.storage.tables import VERSION_TABLE, models

#: begins the names of all tables
PREFIX = "vllm_passthrough_"
#: seconds to wait for the server
_CONNECT_SECONDS = 10
#: bytes of an error message that are told
_TOLD = 300
#: what libpq calls the parameters of a URL in the environment (postgresql.org: libpq-envars)
_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "options": "PGOPTIONS",
    "sslmode": "PGSSLMODE",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "gssencmode": "PGGSSENCMODE",
    "channel_binding": "PGCHANNELBINDING",
}
#: parameters that matter to the gateway's connections alone
_IGNORED = {
    *("application_name", "tcp_user_timeout", "keepalives", "keepalives_idle", "keepalives_interval"),
    "keepalives_count",
}
#: what a program says of itself
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


class Programs:
    """PostgreSQL's own programs, which connect as the gateway does."""

    def __init__(self, url: URL) -> None:
        """Set up.

        Args:
            url: of the database, as `parse_url` returns it.

        Raises:
            BackupError: it has a parameter that the programs cannot be told.
        """
        self._environment = {**os.environ, **variables_of(url)}
        self._secrets = [url.password] if isinstance(url.password, str) and url.password else []
        # Debian's names lead to a wrapper, which finds a server of its own choice.
        self._places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_number, reverse=True)

    def path_of(self, name: str, server: int) -> str:
        """Return the path of a program that is as new as the server.

        Args:
            name: of the program.
            server: the server's main version.

        Raises:
            BackupError: there is none.
        """
        places = [str(each / name) for each in self._places if (each / name).exists()]
        found = shutil.which(name)
        for each in [*([found] if found else []), *places]:
            told = subprocess.run([each, "--version"], capture_output=True, text=True, check=False).stdout
            match = _VERSION.search(told)
            if match is not None and int(match[1]) >= server:
                return each
        raise BackupError(
            f"{name} of PostgreSQL {server} or newer is not installed: install PostgreSQL's client programs "
            f"(Debian and Ubuntu: apt-get install postgresql-client-{server}; Red Hat: dnf install postgresql{server})"
        )

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program; no secret is in its arguments."""
        return subprocess.Popen(command, env=self._environment, stderr=subprocess.PIPE, **options)

    def problem(self, command: str, told: bytes) -> BackupError:
        """Return the error for what a program said."""
        lines = [line.strip() for line in told.decode("utf-8", "replace").splitlines() if line.strip()]
        message = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it says nothing")
        for secret in self._secrets:
            message = message.replace(secret, "***")
        return BackupError(f"{Path(command).name} failed: {message[:_TOLD]}")


def variables_of(url: URL) -> Mapping[str, str]:
    """Return the environment variables with which PostgreSQL's programs connect as a URL says.

    Raises:
        BackupError: a parameter has no variable.
    """
    found = {
        "PGHOST": url.host,
        "PGPORT": None if url.port is None else str(url.port),
        "PGUSER": url.username,
        "PGDATABASE": url.database,
        "PGPASSWORD": url.password if isinstance(url.password, str) else None,
        "PGAPPNAME": "vllm-passthrough-backup",
        "PGCONNECT_TIMEOUT": str(_CONNECT_SECONDS),
    }
    for name, value in url.query.items():
        if name in _IGNORED:
            continue
        if name not in _VARIABLES or not isinstance(value, str):
            raise BackupError(f"The database URL has the parameter {name}, which pg_dump cannot be told")
        found[_VARIABLES[name]] = value
    return {name: value for name, value in found.items() if value is not None}


def connect(url: URL) -> psycopg.Connection[Any]:
    """Connect as the gateway does.

    Raises:
        BackupError: the server cannot be reached.
    """
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        return psycopg.connect(
            plain, application_name="vllm-passthrough-backup", connect_timeout=_CONNECT_SECONDS, autocommit=True
        )
    except psycopg.Error as error:
        message = " ".join(str(error).split())
        if isinstance(url.password, str) and url.password:
            message = message.replace(url.password, "***")
        problem = BackupError(f"The database cannot be reached: {message[:_TOLD]}")
    # outside the except block, so that the driver's error, which may show secrets, is not the context
    raise problem


class PostgresqlParts:
    """A dump of PostgreSQL's tables and the files of the spool, as of one moment; a context manager."""

    def __init__(self, url: URL, source: Source, place: Path) -> None:
        """Set up.

        Args:
            url: of the database.
            source: what is backed up.
            place: a directory for the dump.
        """
        self._url = url
        self._source = source
        self._dump = place / "postgresql.dump"
        self._stack = ExitStack()
        self._spool: Sequence[SpoolFile] = ()
        self.header: Manifest

    def __enter__(self) -> PostgresqlParts:
        try:
            self._hold()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def room(self) -> int:
        """Nothing more: the dump is written already."""
        return 0

    def copied(self, directory: Path, progress: Callable[[int], None]) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Yield the name, the size and the content of each file."""
        yield DUMP, self.header.files[0].bytes, read_pieces(self._dump, progress)
        self._dump.unlink()
        for file in self._spool:
            yield file.name, file.size, file.pieces()

    def _hold(self) -> None:
        """Dump a snapshot: the spool is held before, and read to its end after it; see `SqliteParts`."""
        programs = Programs(self._url)
        held = HeldSpool(self._source.spool)
        self._stack.callback(held.close)
        connection = self._stack.enter_context(connect(self._url))
        pg_dump = programs.path_of("pg_dump", connection.info.server_version // 10_000)
        held.hold()
        try:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            [(snapshot,)] = connection.execute("SELECT pg_export_snapshot()").fetchall()
            namespace = namespace_of(connection)
            if namespace is None:
                raise BackupError(f"The database is not one of vllm-passthrough: it has no table {VERSION_TABLE}")
            schema, works_with = _schema(connection)
            check_revision(schema, works_with)
            sealed = count(connection, f"SELECT count(*) FROM {models.name} WHERE api_key IS NOT NULL")
        except psycopg.Error as error:
            raise BackupError(f"The database cannot be read: {_first_line(error)}") from None
        self._spool = held.freeze()
        taken_at = in_utc(self._source.now())
        self._write_dump(programs, pg_dump, namespace, str(snapshot))
        connection.execute("ROLLBACK")
        self.header = Manifest(
            format=FORMAT,
            version=self._source.version,
            database=POSTGRESQL,
            schema=schema,
            works_with=works_with,
            taken_at=taken_at,
            files=(
                File(DUMP, self._dump.stat().st_size),
                *(File(each.name, each.size) for each in self._spool),
            ),
            namespace=namespace,
            sealed=sealed,
            seal=seals.seal(self._source.secret) if sealed else "",
        )

    def _write_dump(self, programs: Programs, pg_dump: str, namespace: str, snapshot: str) -> None:
        tables = f'"{namespace}".{PREFIX}*'
        command = [pg_dump, "--format=custom", "--no-password", f"--snapshot={snapshot}", f"--table={tables}"]
        with self._dump.open("xb") as file, started(programs, command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while piece := process.stdout.read(1 << 20):
                file.write(piece)
            told = process.stderr.read() if process.stderr is not None else b""
            if process.wait() != 0:
                raise programs.problem(pg_dump, told)


@contextlib.contextmanager
def started(programs: Programs, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, and end it with the block if it still runs then."""
    with programs.start(command, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def namespace_of(connection: psycopg.Connection[Any]) -> str | None:
    """Return the schema in which the gateway's tables are; None if there are none."""
    found = connection.execute(
        "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        f"WHERE pg_class.oid = to_regclass('{VERSION_TABLE}')"
    ).fetchone()
    return None if found is None else str(found[0])


def count(connection: psycopg.Connection[Any], statement: str) -> int:
    """Return the number that a statement finds."""
    [(found,)] = connection.execute(statement.encode()).fetchall()
    return int(found)


def _schema(connection: psycopg.Connection[Any]) -> tuple[str, str]:
    [row] = connection.execute(f"SELECT to_jsonb(v) FROM {VERSION_TABLE} v").fetchall()
    revision = str(row[0]["version_num"])
    return revision, str(row[0].get("works_with") or revision)


def _first_line(error: psycopg.Error) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:_TOLD]


def _number(directory: Path) -> int:
    return int(directory.parent.name) if directory.parent.name.isdigit() else 0
