"""Puts backups of PostgreSQL back: the tables in one transaction, and then the files of the spool."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from twisted_vllm.storage.backup import journal
from twisted_vllm.storage.backup.checking import read_header
from twisted_vllm.storage.backup.manifest import DUMP, POSTGRESQL, SPOOL, BackupError, Manifest
from twisted_vllm.storage.backup.place import Place, owner_of
from twisted_vllm.storage.backup.postgresql import PREFIX, Programs, connect, count, started
from twisted_vllm.storage.backup.restoring import (
    Wish,
    check_free,
    check_header,
    kept,
    placements,
    prepared,
    put_directories,
    staged,
    unpack,
)
from twisted_vllm.storage.backup.writing import Progress
from twisted_vllm.storage.tables import VERSION_TABLE

#: begins the comment that a restore leaves at the table of the schema's revision
_TOKEN = "restored "
#: the name of the gateway's connections
_APPLICATION = "vllm-passthrough"
#: bytes that go from one program to another at once
_PIECE = 1 << 20


def restore_postgresql(
    backup: Path, url: URL, place: Place, wish: Wish, progress: Progress
) -> tuple[Manifest, list[str]]:
    """Put a backup of PostgreSQL in place; return its manifest, and what was moved aside.

    Raises:
        BackupError: that is not possible; all is as it was.
        OSError: likewise, unless the transaction was committed: then the next start or restore places the spool.
    """
    header = read_header(backup)
    check_header(header, POSTGRESQL, wish)
    if place.spool is None and header.count_of(SPOOL):
        raise BackupError("it has rows of the ledger's spool, and the ledger of this configuration is switched off")
    check_free(place, wish)
    with connect(url) as connection, prepared(place, wish, header) as stages:
        _check_database(connection, header, force=wish.force)
        programs = _Restoring(url, connection)
        manifest = unpack(backup, stages, progress)
        check_free(place, wish)
        moved = [] if not wish.force else kept(place.asides(wish.now()), place, wish)
        moves = [*moved, *placements(manifest, place, stages, wish, {source for source, _ in moved})]
        put_directories(place, moves)
        aside = f"vllm_passthrough_before_{wish.now():%Y%m%dt%H%M%Sz}"
        token = secrets.token_hex(16)
        spool_stages = [str(each) for prefix, each in stages.items() if prefix != DUMP]
        if place.journal is not None:
            journal.begin(place.journal, moves, spool_stages, owner_of(place.journal.parent), token=token)
        try:
            tables = programs.put(staged(DUMP, stages), manifest.namespace, aside, token)
        except BaseException:
            # The connection of the other program may have ended while it committed.
            if _comment(connection) != _TOKEN + token:
                if place.journal is not None:
                    place.journal.unlink(missing_ok=True)
                raise
            tables = []
        if place.journal is not None:
            journal.complete_at_once(place.journal)
        shutil.rmtree(stages[DUMP], ignore_errors=True)
    return manifest, [*(f"{len(tables)} tables into the schema {aside}" for _ in tables[:1]), *(to for _, to in moved)]


class _Restoring:
    """pg_restore and psql, which write a dump into a database."""

    def __init__(self, url: URL, connection: psycopg.Connection[Any]) -> None:
        """Find the programs.

        Raises:
            BackupError: one is missing.
        """
        self._programs = Programs(url)
        self._connection = connection
        server = connection.info.server_version // 10_000
        self._pg_restore = self._programs.path_of("pg_restore", server)
        self._psql = self._programs.path_of("psql", server)

    def put(self, dump: Path, namespace: str, aside: str, token: str) -> list[str]:
        """Write a dump and a token in one transaction; return the tables that it moved into the schema `aside`.

        Raises:
            BackupError: the database is as it was, or the connection was lost at the very end.
        """
        present = tables_of(self._connection, namespace)
        table = sql.Identifier(namespace, VERSION_TABLE)
        before: list[sql.Composable] = [sql.SQL("BEGIN;")]
        if present:
            schema = sql.Identifier(aside)
            before.append(sql.SQL("CREATE SCHEMA {};").format(schema))
            for name in present:
                moved = sql.Identifier(namespace, name)
                before.append(sql.SQL("ALTER TABLE {} SET SCHEMA {};").format(moved, schema))
        comment = sql.SQL("COMMENT ON TABLE {} IS {};").format(table, sql.Literal(_TOKEN + token))
        after: list[sql.Composable] = [comment, sql.SQL("COMMIT;")]
        read = [self._pg_restore, "--file=-", "--no-owner", "--no-privileges", "--exit-on-error", str(dump)]
        write = [self._psql, "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--file=-"]
        with started(self._programs, write, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as writer:
            assert writer.stdin is not None and writer.stderr is not None
            # psql ends at the first error, and says it
            with contextlib.suppress(BrokenPipeError):
                self._say(writer.stdin, before)
                with started(self._programs, read, stdout=subprocess.PIPE) as reader:
                    assert reader.stdout is not None and reader.stderr is not None
                    shutil.copyfileobj(reader.stdout, writer.stdin, _PIECE)
                    told = reader.stderr.read()
                    if reader.wait() != 0:
                        raise self._programs.problem(self._pg_restore, told)
                self._say(writer.stdin, after)
            with contextlib.suppress(BrokenPipeError):
                writer.stdin.close()
            told = writer.stderr.read()
            if writer.wait() != 0:
                raise self._programs.problem(self._psql, told)
        return present

    def _say(self, to: Any, statements: Sequence[sql.Composable]) -> None:
        to.write("\n".join(each.as_string(self._connection) for each in statements).encode() + b"\n")
        to.flush()


def finish_interrupted(place: Place, read_comment: Callable[[], str | None]) -> bool:
    """Complete a restore that was interrupted, if the database has it, else forget it; return whether it has.

    Args:
        place: the spool's.
        read_comment: returns what `comment_of` does.

    Raises:
        OSError: a file cannot be moved.
    """
    path = place.journal
    if path is None:
        return False
    try:
        token = str(json.loads(path.read_bytes())["token"])
    except FileNotFoundError:
        return False
    if read_comment() == _TOKEN + token:
        return journal.complete(path)
    path.unlink(missing_ok=True)
    return False


def finish_at_start(spool: Path, connection: Connection) -> None:
    """Do what `finish_interrupted` does, for a gateway that starts.

    Args:
        spool: the directory of its spool.
        connection: to its database.

    Raises:
        OSError: a file cannot be moved.
    """
    found = connection.execute(
        text("SELECT obj_description(to_regclass(:name), 'pg_class')"), {"name": VERSION_TABLE}
    ).scalar()
    finish_interrupted(Place.of(None, spool), lambda: None if found is None else str(found))


def finish_before_restore(place: Place, url: URL) -> bool:
    """Do what `finish_interrupted` does, for a restore that begins.

    Raises:
        BackupError: the database cannot be reached.
        OSError: a file cannot be moved.
    """
    if place.journal is None or not os.path.exists(place.journal):
        return False
    with connect(url) as connection:
        return finish_interrupted(place, lambda: _comment(connection))


def tables_of(connection: psycopg.Connection[Any], namespace: str) -> list[str]:
    """Return the names of the gateway's tables in a schema, partitions too."""
    found = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE nspname = %s AND relkind IN ('r', 'p') AND starts_with(relname, %s) ORDER BY relname",
        (namespace, PREFIX),
    )
    return [str(name) for (name,) in found.fetchall()]


def _comment(connection: psycopg.Connection[Any]) -> str | None:
    statement = "SELECT obj_description(to_regclass(%s), 'pg_class')"
    [(found,)] = connection.execute(statement, (VERSION_TABLE,)).fetchall()
    return None if found is None else str(found)


def _check_database(connection: psycopg.Connection[Any], header: Manifest, *, force: bool) -> None:
    """Check that no gateway uses the database, and that it is empty or may be cleared.

    Raises:
        BackupError: it is not.
    """
    used = count(
        connection,
        f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{_APPLICATION}' "
        "AND datname = current_database()",
    )
    if used:
        raise BackupError(f"gateways have {used} connections to the database: stop them first")
    [(namespace,)] = connection.execute("SELECT current_schema()").fetchall()
    if namespace != header.namespace:
        raise BackupError(
            f"its tables are in the schema {header.namespace}, and those of the configuration's URL are in {namespace}"
        )
    found = tables_of(connection, namespace)
    if found and not force:
        raise BackupError(
            f"the database has {len(found)} tables of a gateway already: name an empty one, or add --force, which "
            "moves them into a schema of their own and deletes nothing"
        )
