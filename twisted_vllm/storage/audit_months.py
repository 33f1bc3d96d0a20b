"""Where the rows of the audit log lie, and how old ones go.

PostgreSQL: a partition for each month (UTC), so that a month goes in an instant and gives its space back. SQLite: one
table in the order of its ids, which is that of time. Old rows are deleted a few at a time, and their pages go back to
the file system a few at a time, so that no transaction waits for more than some milliseconds.

An entry is written in the transaction of the change that it tells of, so the audit log stays in the main database.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, select, text

from twisted_vllm.storage.tables import audit

#: rows that one transaction deletes on SQLite, and pages that one gives back
DELETED_AT_ONCE, RELEASED_AT_ONCE = 500, 500

#: PostgreSQL's version from which a partition is detached without a lock that readers and writers notice
_DETACHES_BESIDE = (14,)

#: a month's partition, or the table of all entries from before there were months, until the month that it does not have
_NAME = re.compile(re.escape(audit.name) + r"_(until_)?(\d{4})_(\d\d)")

_PARTITIONS = text(
    "SELECT child.relname, coalesce((to_jsonb(found) ->> 'inhdetachpending')::boolean, false) "
    "FROM pg_inherits AS found JOIN pg_class AS child ON child.oid = found.inhrelid "
    "WHERE found.inhparent = to_regclass(:parent)"
)
#: tables that were detached and, because the process ended, not dropped
_DETACHED = text(
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND pg_table_is_visible(oid) AND starts_with(relname, :start) "
    "AND NOT EXISTS (SELECT 1 FROM pg_inherits WHERE inhrelid = pg_class.oid)"
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
    for name, _ in _partitions(connection):
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


def drop_months(connection: Connection, before: datetime) -> int:
    """Drop the months that were over before a moment, outside of any transaction; return how many went.

    Only on PostgreSQL. A month goes in three steps, and whatever ends the process between them, the next call goes on.

    Args:
        connection: of a transaction that has done nothing. It is over afterwards.
        before: the moment.
    """
    if connection.dialect.name != "postgresql":
        return 0
    attached = {name: pending for name, pending in _partitions(connection) if _end_of(name) <= before}
    left = connection.execute(_DETACHED, {"start": f"{audit.name}_"}).scalars()
    gone = [name for name in left if _NAME.fullmatch(name) and _end_of(name) <= before]
    driver: Any = connection.connection.driver_connection
    # A partition cannot be detached beside others' work in a transaction.
    driver.commit()
    driver.autocommit = True
    try:
        for name, pending in attached.items():
            _detach(connection, name, pending)
        for name in (*gone, *attached):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
    finally:
        if not driver.closed:
            driver.autocommit = False
    return len(gone) + len(attached)


def _detach(connection: Connection, name: str, pending: bool) -> None:
    beside = tuple(connection.dialect.server_version_info or ()) >= _DETACHES_BESIDE
    how = "FINALIZE" if pending else "CONCURRENTLY" if beside else ""
    connection.exec_driver_sql(f"ALTER TABLE {audit.name} DETACH PARTITION {name} {how}")


def _partitions(connection: Connection) -> list[tuple[str, bool]]:
    """Return the names of the partitions, and whether each was about to be detached when something ended that."""
    found = connection.execute(_PARTITIONS, {"parent": audit.name})
    return [(name, pending) for name, pending in found if _NAME.fullmatch(name)]


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
