"""Drops partitions whose rows are all too old: at once, without waiting for anybody, and with their space.

The database's list forgets a partition first, so that nobody begins to use it. What is left of one, after a crash in
between, has a name and no entry in the list: the next call drops it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.engine import Engine
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.storage.engine import begin
from twisted_vllm.storage.partition_tables import PartitionTable, ahead_of_server, drop_tables, tables_named
from twisted_vllm.storage.sqlite_file import check_file
from twisted_vllm.storage.usage.partitions import (
    Partition,
    all_partitions,
    directory_of,
    files_beside,
    main_file,
    partition_named,
)
from twisted_vllm.storage.usage.tables import usage, usage_lookups, usage_partitions

_log = Logger()

#: from when on rows must be kept, in microseconds since 1970; None for no time
HeldFrom = Callable[[Connection], int | None]

#: of a file that nobody opens any more
_DROPPED = ".dropped"


def nothing_held(_connection: Connection) -> int | None:
    """Return that no row must be kept."""
    return None


def drop_partitions(engine: Engine, time: int, held_from: HeldFrom, now: int) -> list[str]:
    """Drop partitions in which all rows are of requests that began before a time; return their names.

    What cannot be dropped without waiting is dropped by a later call.

    Args:
        engine: of the main database.
        time: in microseconds since 1970.
        held_from: from when on rows must be kept, however old they are.
        now: this machine's time, in microseconds since 1970.

    Raises:
        SQLAlchemyError: the database failed.
        OSError: a file cannot be removed.
    """
    sqlite = engine.dialect.name == "sqlite"
    with begin(engine, None, writes=False) as connection:
        known = all_partitions(connection)
        if not sqlite:
            time -= int(ahead_of_server(connection, now / 1e6) * 1e6)
        held = held_from(connection)
    if held is not None and held < time:
        _warn_of_held([each for each in known if held < each.end <= time])
        time = held
    return _drop_files(engine, time, known) if sqlite else _drop_tables(engine, time)


def _warn_of_held(partitions: Iterable[Partition]) -> None:
    names = sorted(each.name for each in partitions)
    if names:
        _log.warn(
            "Rows of the ledger of {names} are older than usage_retention and are kept: they are not exported yet",
            names=", ".join(names),
            **LEDGER_ALERT,
        )


def _forget(connection: Connection, time: int) -> list[str]:
    """Take the partitions before a time from the database's list; return their names."""
    old = usage_partitions.c.end <= time
    names = list(connection.execute(select(usage_partitions.c.name).where(old)).scalars())
    if names:
        connection.execute(delete(usage_partitions).where(old))
    return sorted(names)


# SQLite


def _drop_files(engine: Engine, time: int, known: Iterable[Partition]) -> list[str]:
    file = main_file(engine)
    old = {each.name for each in known if each.end <= time}
    left = _names_of_files(file, time)
    if old:
        with begin(engine, None, writes=True) as connection:
            _forget(connection, time)
        check_file(engine)
    if old or left:
        # Under the lock, so that nobody makes one of them meanwhile. To rename is quick, whatever the size.
        with begin(engine, None, writes=True) as connection:
            listed = {each.name for each in all_partitions(connection)}
            for name in sorted((old | left) - listed):
                _set_aside(directory_of(file) / f"{name}.db")
    with suppress(FileNotFoundError):
        for path in directory_of(file).iterdir():
            if path.name.endswith(_DROPPED):
                path.unlink(missing_ok=True)
    return sorted(old | left)


def _names_of_files(main: Path, time: int) -> set[str]:
    """Return the names of partitions before a time that have a file, or the rest of one."""
    found: set[str] = set()
    try:
        paths = list(directory_of(main).iterdir())
    except FileNotFoundError:
        return found
    for path in paths:
        name, end, _ = path.name.partition(".db")
        partition = partition_named(name) if end else None
        if partition is not None and partition.end <= time and not path.name.endswith(_DROPPED):
            found.add(name)
    return found


def _set_aside(path: Path) -> None:
    """Rename the files of a partition. The main one comes last: a log without it would be taken for the next one's."""
    # where an operator moved it to another disk and left a link
    real = path.resolve()
    for each in (*files_beside(real), real):
        with suppress(FileNotFoundError):
            each.rename(each.with_name(f"{each.name}{_DROPPED}"))
    if real != path:
        real.with_name(f"{real.name}{_DROPPED}").unlink(missing_ok=True)
        for each in files_beside(real):
            each.with_name(f"{each.name}{_DROPPED}").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


# PostgreSQL


def _drop_tables(engine: Engine, time: int) -> list[str]:
    with begin(engine, None, writes=True) as connection:
        names = _forget(connection, time)
    with begin(engine, None, writes=False) as connection:
        drop_tables(connection, "rows of the ledger", b"vllmdrop", lambda driver: _tables_before(driver, time))
    return names


def _tables_before(driver: Any, time: int) -> Iterator[PartitionTable]:
    """Yield the tables of partitions before a time that are not in the list."""
    listed = {name for (name,) in driver.execute(f"SELECT name FROM {usage_partitions.name}")}
    for table in tables_named(driver, f"{usage.name}_"):
        match = re.fullmatch(rf"(?:{usage.name}|{usage_lookups.name})_(\d[\d_]+)", table.name)
        partition = partition_named(match[1].replace("_", "-")) if match else None
        if partition is not None and partition.end <= time and partition.name not in listed:
            yield table


# what comes next


def next_to_drop(partitions: Iterable[Partition], retention: float) -> tuple[Partition, int] | None:
    """Return the partition that is dropped next, and when, in microseconds since 1970; None if there is none.

    Args:
        partitions: that exist.
        retention: how long rows are kept, in seconds.
    """
    oldest = min(partitions, default=None)
    return None if oldest is None else (oldest, oldest.end + int(retention * 1e6))
