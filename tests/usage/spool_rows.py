"""Rows for the tests of the ledger, and a store that keeps them in memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from zope.interface import implementer

from twisted_vllm.usage.interfaces import DatabaseAway, IUsageStore, RowsRefused, Spent
from twisted_vllm.usage.records import Payer, Target, UsageRow, refer
from twisted_vllm.usage.spool.lines import encode_rows

#: 25 November 2025, 12:00 UTC
NOON = 1_764_072_000


def make_row(number: int, **fields: Any) -> UsageRow:
    """Return a row that differs by its number, one each millisecond from noon on.

    Args:
        number: its number.
        fields: of the row, or of its payer or its target.
    """
    values: dict[str, Any] = {
        "id": f"{NOON + number // 1000:08x}{number:024x}",
        "request_id": f"request-{number}",
        "time": NOON * 1_000_000 + number * 1000,
        "kind": "key",
        "key_id": "k1",
        "model": "qwen",
        "status": 200,
        "outcome": "completed",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "cost": 7,
        "total_us": 1000,
    }
    values |= fields
    for name, structure in (("payer", Payer), ("target", Target)):
        said = structure(**{key: values.pop(key) for key in structure.__struct_fields__ if key in values})
        values.setdefault(name, refer(said))
    return UsageRow(**values)


def make_rows(count: int, start: int = 0, **fields: Any) -> list[UsageRow]:
    return [make_row(number, **fields) for number in range(start, start + count)]


def encode_line(row: UsageRow) -> bytes:
    return encode_rows([row])


def make_numbered(number: int) -> UsageRow:
    """Return a row of one of a few keys, end users and tags, which its number tells."""
    return make_row(number, key_id=f"k{number % 3}", end_user=f"e{number % 5}", tags=("t",) * (number % 2))


@implementer(IUsageStore)
class MemoryUsageStore:
    """Keeps rows in a dictionary; it can be away, and refuse rows."""

    has_one_lock = False

    def __init__(self) -> None:
        self.kept: dict[str, UsageRow] = {}
        self.away = False
        self.refused: set[str] = set()
        self.attempts = 0
        self.batches: list[tuple[int, bool]] = []
        self.deletions: list[int] = []
        self.closed = False
        self.changed = threading.Condition()

    def write(self, rows: Sequence[UsageRow], own: bool) -> list[Spent]:
        with self.changed:
            self.attempts += 1
            self.changed.notify_all()
            if self.away:
                raise DatabaseAway("it is away")
            if any(row.request_id in self.refused for row in rows):
                raise RowsRefused("out of range")
            self.kept |= {row.id: row for row in rows}
            self.batches.append((len(rows), own))
            cost = sum(row.cost for row in rows)
            return [Spent("key", "k1", cost if own else 0, sum(row.cost for row in self.kept.values()), 0)]

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
