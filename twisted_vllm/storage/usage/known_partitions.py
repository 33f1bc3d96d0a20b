"""Decides which partitions there are to be, and remembers those that exist."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from twisted_vllm.storage.usage.partitions import (
    MAX_PARTITIONS,
    Partition,
    add_partition,
    all_partitions,
    new_partition,
)

#: Partitions have a month where rows are kept for so many seconds. Else a row could outlive its time by half of it.
MONTHS_FROM = 60 * 86_400.0
#: how long before it begins a partition is made, in microseconds: the first row of a month does not wait for it
AHEAD = 3 * 3_600_000_000


class Periods:
    """Which partitions are made.

    Attributes:
        now: Unix seconds.
    """

    def __init__(self, retention: float | None = None, now: Callable[[], float] = time.time) -> None:
        """Set up.

        Args:
            retention: how long rows are kept, in seconds; None for ever.
            now: Unix seconds.
        """
        self.now = now
        self.reconfigure(retention)

    def reconfigure(self, retention: float | None) -> None:
        """Keep rows for another time; from the next partition on they have the length that it asks for."""
        self._retention = retention

    @property
    def by_day(self) -> bool:
        """Whether new partitions have a day and not a month."""
        return self._retention is not None and self._retention < MONTHS_FROM

    def kept_from(self) -> int | None:
        """Return from when on rows are kept, in microseconds since 1970; None for ever."""
        return None if self._retention is None else int((self.now() - self._retention) * 1e6)

    def is_too_old(self, time: int) -> bool:
        """Return whether no partition is made for a time: it would be dropped at once."""
        oldest = self.kept_from()
        return oldest is not None and time < oldest


class TooManyPartitions(OverflowError):
    """Rows of so many times are in the database that no partition is made for another."""


class KnownPartitions:
    """The known partitions. A time's partition is made when it is first needed, or a little before."""

    def __init__(self, periods: Periods) -> None:
        self._periods = periods
        self._known: list[Partition] = []
        self._next_at = 0

    @property
    def known(self) -> Sequence[Partition]:
        return self._known

    def forget(self) -> None:
        self._known = []

    def find(self, time: int) -> Partition | None:
        return next((each for each in self._known if each.has(time)), None)

    def ensure(self, connection: Connection, time: int, prepare: Callable[[Partition], None]) -> Partition | None:
        """Return the partition of a time, made if there is none; None if the time is too old for one.

        Args:
            connection: to the main database.
            time: in microseconds since 1970.
            prepare: called with a new one before the database knows it.

        Raises:
            TooManyPartitions: there are.
        """
        # Another process may have made it, or dropped another.
        self._known = all_partitions(connection)
        found = self.find(time)
        if found is None and not self._periods.is_too_old(time):
            if len(self._known) >= MAX_PARTITIONS:
                raise TooManyPartitions
            found = new_partition(time, self._known, by_day=self._periods.by_day)
            prepare(found)
            add_partition(connection, found)
            self._known = all_partitions(connection)
            found = self.find(time) or found
        return found

    def coming(self, time: int) -> int | None:
        """Return a time in the partition after the one of a time, if that one is about to begin and unknown.

        It is returned once, so that nobody tries for ever.
        """
        current = self.find(time)
        if current is None or current.end - time > AHEAD or current.end == self._next_at or self.find(current.end):
            return None
        self._next_at = current.end
        return current.end
