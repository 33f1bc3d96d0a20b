"""A usage store that keeps rows in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from zope.interface import implementer

from twisted_vllm.usage.interfaces import DatabaseUnavailable, IUsageStore, RowsRejected, SpendUpdate
from twisted_vllm.usage.records import UsageRow


@implementer(IUsageStore)
class MemoryUsageStore:
    """An :class:`IUsageStore` that a test can make unavailable, and have reject rows."""

    single_writer = False

    def __init__(self) -> None:
        self.kept: dict[str, UsageRow] = {}
        self.unavailable = False
        self.rejected: set[str] = set()
        self.attempts = 0
        self.batches: list[tuple[int, bool]] = []
        self.deletions: list[int] = []
        self.closed = False
        self.changed = threading.Condition()

    def write(self, rows: Sequence[UsageRow], own: bool) -> list[SpendUpdate]:
        with self.changed:
            self.attempts += 1
            self.changed.notify_all()
            if self.unavailable:
                raise DatabaseUnavailable("it is unavailable")
            if any(row.request_id in self.rejected for row in rows):
                raise RowsRejected("out of range")
            self.kept |= {row.id: row for row in rows}
            self.batches.append((len(rows), own))
            cost = sum(row.cost for row in rows)
            return [SpendUpdate("key", "k1", cost if own else 0, sum(row.cost for row in self.kept.values()), 0)]

    def delete_before(self, time: int, limit: int) -> int:
        with self.changed:
            self.deletions.append(time)
            old = [row.id for row in self.kept.values() if row.time < time][:limit]
            for name in old:
                del self.kept[name]
            self.changed.notify_all()
            return len(old)

    def close(self) -> None:
        self.closed = True
