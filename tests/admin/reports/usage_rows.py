"""Rows of usage, written as the ledger writes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tests.admin.admin_harness import Gateway, value_of
from tests.builders import usage_row
from tests.storage import ledger_filler
from twisted_vllm.usage.records import UsageRow


def at(text: str) -> int:
    """Return a moment in microseconds since 1970."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


def row_at(number: int, time: str, **fields: Any) -> UsageRow:
    """Return a row of a request that cost 0.000123456789 dollars unless the fields say otherwise."""
    values: dict[str, Any] = {
        "request_id": f"request-{number}",
        "kind": "key",
        "key_id": "",
        "key_hash": "abcdef01",
        "key_name": "alias",
        "model": "qwen",
        "server": "gpu-1",
        "route": "/v1/chat/completions",
        "method": "POST",
        "status": 200,
        "outcome": "completed",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "cost": 123_456_789,
        "first_byte_us": 20_000,
        "total_us": 1_500_000,
    }
    return usage_row(number, time=at(time), **values | fields)


def keep(gateway: Gateway, rows: Sequence[UsageRow]) -> None:
    """Write rows into the gateway's database."""
    value_of(gateway.store.read(lambda transaction: ledger_filler.keep(transaction.connection, rows)))


def id_of(gateway: Gateway, made: dict[str, Any]) -> str:
    """Return the lasting id of a key that was made."""
    [record] = [record for record in gateway.records() if record.token == made["token"]]
    return record.key_id
