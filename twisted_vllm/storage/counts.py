"""How many records a list has, counted again only after a change.

Every list says how many pages it has. The number changes with the administrative changes of any process, which are
counted without gaps in the table of changes: while their last number stays, so do the counts. The audit log grows at
one end and shrinks at the other: what is new is added to its counts, and they begin anew once its oldest entry is gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime, timedelta

import attrs
from sqlalchemy import ClauseElement, ColumnElement, Connection, Table, func, select

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.storage.revisions import last_revision
from twisted_vllm.storage.tables import audit

#: counts that are kept, and the longest conditions, in characters, of one
MAX_COUNTS, MAX_CONDITIONS = 256, 2_000


#: how much earlier than the entry before it an entry may say that it was made: longer than any request takes
_SLACK = timedelta(days=1)


@attrs.frozen
class _Counted:
    """How many entries of the log were counted, and the last number and time among them."""

    number: int = 0
    last: int | None = None
    at: datetime | None = None


_NOTHING = _Counted()


class Counts:
    """The counts that the threads of a store share."""

    def __init__(self) -> None:
        """Begin without any."""
        self._lock = threading.Lock()
        self._version: Hashable = None
        self._kept: BoundedCache[str, int] = BoundedCache(MAX_COUNTS, MAX_CONDITIONS)
        self._oldest: Hashable = None
        self._of_log: BoundedCache[str, _Counted] = BoundedCache(MAX_COUNTS, MAX_CONDITIONS)

    def get(self, version: Hashable, name: str, count: Callable[[], int]) -> int:
        """Return a count.

        Args:
            version: what a count depends on: those of another version are dropped.
            name: what is counted.
            count: counts it.
        """
        with self._lock:
            if version != self._version:
                self._version = version
                self._kept.clear()
            found = self._kept.get(name)
        if found is None:
            found = count()
            with self._lock:
                if version == self._version:
                    self._kept.keep(name, found, len(name))
        return found

    def get_of(self, connection: Connection, statement: ClauseElement, count: Callable[[], int]) -> int:
        """Return what a statement counts, until an administrative change.

        Args:
            connection: the transaction's.
            statement: names the count, with its parameters.
            count: counts it.
        """
        return self.get(last_revision(connection), _name_of(connection, statement), count)

    def of_log(self, connection: Connection, conditions: Sequence[ColumnElement[bool]]) -> int:
        """Return how many entries of the audit log meet some conditions.

        Args:
            connection: the transaction's.
            conditions: on columns of the log.
        """
        columns = audit.c
        oldest = connection.execute(select(columns.at, columns.id).order_by(columns.at, columns.id).limit(1)).first()
        statement = select(func.count(), func.max(columns.id), func.max(columns.at)).where(*conditions)
        name = _name_of(connection, statement)
        with self._lock:
            if oldest != self._oldest:
                self._oldest = oldest
                self._of_log.clear()
            known = self._of_log.get(name, _NOTHING)
        if known.last is not None and known.at is not None:
            # Entries get their numbers in the order of their commits, and their times a little before.
            statement = statement.where(columns.at >= known.at - _SLACK, columns.id > known.last)
        number, last, at = connection.execute(statement).one()
        found = _Counted(known.number + number, known.last if last is None else last, known.at if at is None else at)
        if number:
            with self._lock:
                if oldest == self._oldest:
                    self._of_log.keep(name, found, len(name))
        return found.number


def _name_of(connection: Connection, statement: ClauseElement) -> str:
    compiled = statement.compile(dialect=connection.dialect)
    return f"{compiled}\n{compiled.params!r}"


def count_of(
    connection: Connection, table: Table, conditions: Sequence[ColumnElement[bool]], counts: Counts | None
) -> int:
    """Return how many records meet some conditions.

    Args:
        connection: the transaction's.
        table: where they are.
        conditions: on columns of the table alone, if `counts` is given.
        counts: those that are known; None to count.
    """
    statement = select(func.count()).select_from(table).where(*conditions)

    def count() -> int:
        return connection.execute(statement).scalar_one()

    if counts is None:
        return count()
    return counts.get_of(connection, statement, count)
