"""Builds records for tests."""

from __future__ import annotations

from typing import Any

from twisted_vllm.observability.request_record import RequestRecord
from twisted_vllm.usage.records import Payer, Target, UsageRow, refer

#: 25 November 2025, 12:00 UTC, in Unix seconds
NOON = 1_764_072_000


def usage_row(number: int, **fields: Any) -> UsageRow:
    """Return a row of the ledger. Rows differ by their number, and begin a millisecond apart from noon on.

    Args:
        number: the row's number.
        fields: of the row, its payer or its target, in place of the defaults.
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
    for name, kind in (("payer", Payer), ("target", Target)):
        parts = {key: values.pop(key) for key in kind.__struct_fields__ if key in values}
        values.setdefault(name, refer(kind(**parts)))
    return UsageRow(**values)


def usage_rows(count: int, start: int = 0, **fields: Any) -> list[UsageRow]:
    """Return rows numbered from `start` on."""
    return [usage_row(number, **fields) for number in range(start, start + count)]


#: what a chat completion leaves in the log
RECORD = RequestRecord(
    time="2026-11-24T12:00:01.123Z",
    request_id="5f0e",
    client="10.0.0.7",
    key_name="team-a",
    key_hash="0123abcd",
    method="POST",
    route="/v1/chat/completions",
    model="qwen",
    server="host:8000",
    status=200,
    outcome="completed",
    error="",
    bytes_in=310,
    bytes_out=1234,
    first_byte_ms=4.0,
    total_ms=12.34,
)
