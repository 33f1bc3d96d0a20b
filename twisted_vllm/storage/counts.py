"""How many records a list has, counted again only after a change.

Every list says how many pages it has. The number changes with the administrative changes of any process, which are
counted without gaps in the table of changes: while their last number stays, so do the counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence

from sqlalchemy import ColumnElement, Connection, Table, func, select

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.storage.revisions import last_revision

#: counts that are kept, and the longest conditions, in characters, of one
MAX_COUNTS, MAX_CONDITIONS = 256, 2_000


class Counts:
    """The counts that the threads of a store share."""

    def __init__(self) -> None:
        """Begin without any."""
        self._lock = threading.Lock()
        self._version: Hashable = None
        self._kept: BoundedCache[str, int] = BoundedCache(MAX_COUNTS, MAX_CONDITIONS)

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
    compiled = statement.compile(dialect=connection.dialect)
    return counts.get(last_revision(connection), f"{compiled}\n{compiled.params!r}", count)
