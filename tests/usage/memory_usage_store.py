"""A usage store that keeps rows in memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from zope.interface import implementer

from twisted_vllm.usage.interfaces import (
    BEGINNING,
    DatabaseUnavailable,
    HistoryChanged,
    IJointAccounts,
    ISpoolAccounts,
    IUsageStore,
    Position,
    RowsRejected,
    SpendUpdate,
    Waiting,
)
from twisted_vllm.usage.records import UsageRow


class MemoryAccounts(ISpoolAccounts):
    """Accounts whose rows are paid for by one key, and that keep every mark."""

    def __init__(self, store: MemoryUsageStore, name: str, own: bool) -> None:
        self.name = name
        self._own = own
        self._store = store
        self._end = store.marks.get(name, BEGINNING)
        self._gathered: list[UsageRow] = []

    @property
    def kept_from(self) -> Position:
        return self._store.marks.get(self.name, BEGINNING)

    @property
    def told_to(self) -> Position:
        return self.kept_from

    @property
    def boundaries(self) -> list[Position]:
        return [self.kept_from]

    @property
    def waiting(self) -> Waiting:
        return Waiting(len(self._gathered), 0.0 if self._gathered else None)

    def add(self, written: Sequence[Any], end: Position | None) -> None:
        if end is not None:
            if end <= self.kept_from:
                return
            self._end = end
        for rows in written:
            self._gathered += rows

    def flush(self, *, force: bool = False) -> tuple[bool, list[SpendUpdate]]:
        store = self._store
        with store.changed:
            if self._end <= self.kept_from and not self._gathered:
                return False, []
            if not (force or store.flushes):
                return False, []
            if store.was_restored:
                store.was_restored = False
                raise HistoryChanged("it was restored")
            if store.unavailable or store.sums_unavailable:
                raise DatabaseUnavailable("it is unavailable")
            store.marks[self.name] = self._end
            return True, store.count(self._gathered, own=self._own)

    def close(self) -> None:
        self._store.marks.pop(self.name, None)


class MemoryJointAccounts(IJointAccounts):
    """Accounts of several spools, of whose rows the same key pays."""

    def __init__(self, store: MemoryUsageStore) -> None:
        self.name = "all"
        self._store = store
        self._ends: dict[str, Position] = {}
        self._gathered: list[UsageRow] = []

    @property
    def waiting(self) -> Waiting:
        return Waiting(len(self._gathered), 0.0 if self._gathered else None)

    def join(self, name: str) -> Position | None:
        self._store.check()
        if name in self._store.uneven:
            self._store.uneven.discard(name)
            return None
        self._ends[name] = self._store.marks.get(name, BEGINNING)
        return self._ends[name]

    def kept_from(self, name: str) -> Position:
        return self._store.marks.get(name, BEGINNING)

    def add(self, written: Sequence[Any], ends: Mapping[str, Position]) -> None:
        for name, end in ends.items():
            assert end > self._ends[name], "rows were added twice"
            self._ends[name] = end
        for rows in written:
            self._gathered += rows

    def flush(self, *, force: bool = False) -> tuple[bool, list[SpendUpdate]]:
        store = self._store
        with store.changed:
            moved = {name: end for name, end in self._ends.items() if end > self.kept_from(name)}
            if not moved or not (force or store.flushes):
                return False, []
            if store.was_restored:
                store.was_restored = False
                raise HistoryChanged("it was restored")
            if store.unavailable or store.sums_unavailable:
                raise DatabaseUnavailable("it is unavailable")
            store.marks |= moved
            return True, store.count(self._gathered, own=True)

    def leave(self, name: str) -> None:
        self._store.check()
        self._store.marks.pop(name, None)
        del self._ends[name]


@implementer(IUsageStore)
class MemoryUsageStore:
    """An :class:`IUsageStore` that a test can make unavailable, and have reject rows.

    Attributes:
        kept: the rows by id.
        counted: the rows that were added up, each time.
        marks: how far the rows of each spool were added up.
        flushes: whether what is gathered is due at once.
        sums_unavailable: whether the database takes rows alone.
        rows_unavailable: whether it takes all but rows.
        was_restored: whether the next sums find another database.
        uneven: spools that cannot join others at first.
    """

    single_writer = False

    def __init__(self) -> None:
        self.kept: dict[str, UsageRow] = {}
        self.counted: list[UsageRow] = []
        self.marks: dict[str, Position] = {}
        self.flushes = True
        self.unavailable = self.sums_unavailable = self.rows_unavailable = self.was_restored = False
        self.rejected: set[str] = set()
        self.uneven: set[str] = set()
        self.attempts = 0
        self.batches: list[int] = []
        self.deletions: list[int] = []
        self.closed = False
        self.changed = threading.Condition()

    def count(self, gathered: list[UsageRow], *, own: bool) -> list[SpendUpdate]:
        """Add rows up that were gathered, which are none then."""
        self.counted += gathered
        cost = sum(row.cost for row in gathered)
        gathered.clear()
        if not cost:
            return []
        return [SpendUpdate("key", "k1", cost if own else 0, sum(row.cost for row in self.counted), 0)]

    def check(self) -> None:
        """Fail if the database is unavailable."""
        if self.unavailable:
            raise DatabaseUnavailable("it is unavailable")

    def open_joint_accounts(self) -> MemoryJointAccounts:
        return MemoryJointAccounts(self)

    def spend_of(self, scopes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
        with self.changed:
            self.check()
            spent = sum(row.cost for row in self.counted)
            return {scope: (0, spent) for scope in scopes if scope == ("key", "k1") and spent}

    def write(self, rows: Sequence[UsageRow]) -> list[UsageRow]:
        with self.changed:
            self.attempts += 1
            self.changed.notify_all()
            if self.unavailable or self.rows_unavailable:
                raise DatabaseUnavailable("it is unavailable")
            if any(row.request_id in self.rejected for row in rows):
                raise RowsRejected("out of range")
            self.kept |= {row.id: row for row in rows}
            self.batches.append(len(rows))
            return list(rows)

    def missing(self, rows: Sequence[UsageRow]) -> list[UsageRow]:
        with self.changed:
            if self.unavailable:
                raise DatabaseUnavailable("it is unavailable")
            return list({row.id: row for row in rows if row.id not in self.kept}.values())

    def open_accounts(self, name: str, *, own: bool, told_to: Position = BEGINNING) -> MemoryAccounts:
        with self.changed:
            if self.unavailable:
                self.attempts += 1
                self.changed.notify_all()
                raise DatabaseUnavailable("it is unavailable")
            return MemoryAccounts(self, name, own)

    def drop_before(self, time: int) -> int:
        with self.changed:
            self.deletions.append(time)
            old = [row.id for row in self.kept.values() if row.time < time]
            for name in old:
                del self.kept[name]
            self.changed.notify_all()
            return len(old)

    def close(self) -> None:
        self.closed = True
