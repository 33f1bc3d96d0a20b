"""Where the rows of the audit log lie, and how old ones go.

PostgreSQL: a partition for each month (UTC), so that a month goes in an instant and gives its space back. SQLite: one
table in the order of its ids, which is that of time. Old rows are deleted a few at a time, and their pages go back to
the file system a few at a time, so that no transaction waits for more than some 20 ms.

An entry is written in the transaction of the change that it tells of, so the audit log stays in the main database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, select, text

from twisted_vllm.storage.partition_tables import PartitionTable, ahead_of_server, drop_tables, tables_named
from twisted_vllm.storage.tables import audit

#: rows that one transaction deletes on SQLite, and pages that one gives back
DELETED_AT_ONCE, RELEASED_AT_ONCE = 100, 200

#: a month's partition, or the table of all entries from before there were months, until the month that it does not have
_NAME = re.compile(re.escape(audit.name) + r"_(until_)?(\d{4})_(\d\d)")

_PARTITIONS = text(
    "SELECT child.relname FROM pg_inherits AS found JOIN pg_class AS child ON child.oid = found.inhrelid "
    "WHERE found.inhparent = to_regclass(:parent)"
)


def month_of(moment: datetime) -> datetime:
    """Return when a moment's month began, in UTC."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def after_month(start: datetime) -> datetime:
    """Return when the month after the one that begins then begins."""
    return month_of(start + timedelta(days=32))


def partition_of(start: datetime, *, until: bool = False) -> str:
    """Return the name of a month's partition, or with `until` of that of everything before the month."""
    return f"{audit.name}_{'until_' if until else ''}{start:%Y_%m}"


def make_month(connection: Connection, moment: datetime) -> None:
    """Make the partition of a moment's month, if there is none; on SQLite there is nothing to make.

    The parent stays open for reading and writing (PostgreSQL's manual, ALTER TABLE ATTACH PARTITION).
    """
    if connection.dialect.name != "postgresql":
        return
    start = month_of(moment)
    end = after_month(start)
    for name in _months(connection):
        if name == partition_of(start) or ("_until_" in name and _end_of(name) > start):
            return
    name = partition_of(start)
    connection.execute(text(f"CREATE TABLE {name} (LIKE {audit.name} INCLUDING DEFAULTS INCLUDING INDEXES)"))
    attach(connection, name, f"'{start:%Y-%m-%d} 00:00:00+00'", end)


def attach(connection: Connection, name: str, start: str, end: datetime) -> None:
    """Make a table a partition.

    Args:
        connection: on PostgreSQL.
        name: the table.
        start: its first moment, as SQL.
        end: the moment at which it ends.
    """
    bounds = f"FROM ({start}) TO ('{end:%Y-%m-%d} 00:00:00+00')"
    connection.execute(text(f"ALTER TABLE {audit.name} ATTACH PARTITION {name} FOR VALUES {bounds}"))


def drop_months(connection: Connection, retention: timedelta, now: datetime) -> int:
    """Drop the months that are over for longer than entries are kept, outside of any transaction; return how many went.

    Only on PostgreSQL.

    Args:
        connection: of a transaction that has done nothing. It is over afterwards.
        retention: how long entries are kept.
        now: this machine's time.
    """
    if connection.dialect.name != "postgresql":
        return 0
    before = now - retention - timedelta(seconds=ahead_of_server(connection, now.timestamp()))

    def find(driver: Any) -> list[PartitionTable]:
        found = tables_named(driver, f"{audit.name}_")
        return [each for each in found if _NAME.fullmatch(each.name) and _end_of(each.name) <= before]

    return len(drop_tables(connection, "entries of the audit log", b"vllmaudi", find))


def _months(connection: Connection) -> Iterator[str]:
    """Yield the names of the partitions."""
    found = connection.execute(_PARTITIONS, {"parent": audit.name}).scalars()
    yield from (name for name in found if _NAME.fullmatch(name))


def _end_of(name: str) -> datetime:
    found = _NAME.fullmatch(name)
    assert found is not None
    start = datetime(int(found[2]), int(found[3]), 1, tzinfo=UTC)
    return start if found[1] else after_month(start)


def delete_some(connection: Connection, before: datetime) -> bool:
    """Delete some entries from before a moment; return whether there may be more.

    Only on SQLite; PostgreSQL drops months.
    """
    if connection.dialect.name != "sqlite":
        return False
    old = select(audit.c.id).where(audit.c.at < before).order_by(audit.c.at, audit.c.id).limit(DELETED_AT_ONCE)
    return connection.execute(delete(audit).where(audit.c.id.in_(old))).rowcount == DELETED_AT_ONCE


def release_some(connection: Connection) -> bool:
    """Give some of SQLite's unused pages back to the file system; return whether there are more.

    Only a file that was made for it can (docs/operations.md says how to change another); others use the pages again.
    """
    if connection.dialect.name != "sqlite":
        return False
    incremental = 2
    if connection.exec_driver_sql("PRAGMA auto_vacuum").scalar() != incremental:
        return False
    # It gives back one page for each row that it returns, and sqlite3 fetches no rows without columns; a script is run
    # to its end, in a transaction of its own.
    driver: Any = connection.connection.driver_connection
    driver.executescript(f"PRAGMA incremental_vacuum({RELEASED_AT_ONCE})")
    left: int = connection.exec_driver_sql("PRAGMA freelist_count").scalar_one()
    return left > 0
