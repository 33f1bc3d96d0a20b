"""Drops partitions of PostgreSQL's tables, those of the ledger and of the audit log, while others read and write.

Whatever ends a process in between, the next call goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from twisted.logger import Logger

from twisted_vllm.storage.deadline import Deadline

_log = Logger()

#: seconds for one statement that waits for others
_PATIENCE = 0.5


@attrs.frozen
class PartitionTable:
    """A table that is a partition, or was one.

    Attributes:
        name: its name.
        parent: whose partition it is; None if it is detached.
        pending: whether something ended its detaching in the middle. There can be one of a parent, and none other is
            detached before it.
    """

    name: str
    parent: str | None
    pending: bool


def tables_named(driver: Any, prefix: str) -> list[PartitionTable]:
    """Return the tables whose names begin with a text.

    Args:
        driver: psycopg's connection.
        prefix: the text.
    """
    found = driver.execute(
        "SELECT c.relname, p.relname, COALESCE(i.inhdetachpending, FALSE) FROM pg_class c "
        "LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent "
        "WHERE c.relkind = 'r' AND pg_table_is_visible(c.oid) AND starts_with(c.relname, %s)",
        (prefix,),
    )
    return [PartitionTable(*row) for row in found]


def drop_tables(
    connection: Connection, what: str, lock: bytes, find: Callable[[Any], Iterable[PartitionTable]]
) -> list[str]:
    """Detach and drop partitions, each in transactions of its own; return the names of those that went.

    What others use is dropped by a later call.

    Args:
        connection: of a transaction that has done nothing. It is over afterwards.
        what: what they hold, for the log.
        lock: the name of the lock of the process that does it, 8 bytes.
        find: returns the tables to drop, from psycopg's connection.

    Raises:
        OperationalError: the connection is lost.
    """
    # Imported here: only a gateway with PostgreSQL needs its driver.
    from psycopg import Error

    driver: Any = connection.connection.driver_connection
    # A partition cannot be detached beside others' work in a transaction.
    driver.commit()
    driver.autocommit = True
    deadline, key, held = driver.deadline, (int.from_bytes(lock, "big"),), False
    dropped: list[str] = []
    try:
        # The server ends a statement by itself: a client that gives up leaves it waiting there, with the lock.
        _execute(driver, f"SET statement_timeout = {int(_PATIENCE * 1000)}")
        held = _execute(driver, "SELECT pg_try_advisory_lock(%s)", key).fetchone()[0]
        if held:
            for table in sorted(find(driver), key=lambda each: (not each.pending, each.name)):
                _drop(driver, table)
                dropped.append(table.name)
    except Error as error:
        if driver.closed:
            raise OperationalError("DETACH PARTITION", None, error) from None
        reason = str(error).splitlines()
        _log.info(
            "Old {what} are in use, and are dropped a little later: {reason}",
            what=what,
            reason=f"{type(error).__name__}: {reason[0] if reason else ''}",
        )
    finally:
        if not driver.closed:
            if held:
                _execute(driver, "SELECT pg_advisory_unlock(%s)", key)
            _execute(driver, "RESET statement_timeout")
            driver.autocommit, driver.deadline = False, deadline
    return dropped


def _execute(driver: Any, statement: str, values: tuple[Any, ...] = ()) -> Any:
    driver.deadline = Deadline(_PATIENCE)
    return driver.execute(statement, values)


def _drop(driver: Any, table: PartitionTable) -> None:
    if table.parent is not None:
        # It waits for those who read, and nobody waits for it.
        how = "FINALIZE" if table.pending else "CONCURRENTLY"
        _execute(driver, f'ALTER TABLE "{table.parent}" DETACH PARTITION "{table.name}" {how}')
    with driver.transaction():
        _execute(driver, "SET LOCAL lock_timeout = 100")
        _execute(driver, f'DROP TABLE "{table.name}"')


def ahead_of_server(connection: Connection, now: float) -> float:
    """Return by how many seconds this machine's clock is ahead of the server's; 0 if it is not.

    A machine whose clock is wrong would drop everything.

    Args:
        connection: to the server.
        now: this machine's time, in Unix seconds.
    """
    server = connection.execute(text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"))
    return max(now - float(server.scalar_one()), 0.0)
