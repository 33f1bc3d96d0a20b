"""vLLM's KV events, as vLLM 0.32 encodes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

CLEARED: dict[str, Any] = {"type": "AllBlocksCleared"}


def stored(hashes: Sequence[int | bytes], tokens: Sequence[int], **more: Any) -> dict[str, Any]:
    """A BlockStored; all its members stand in each of vLLM's."""
    event: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": None,
        "token_ids": list(tokens),
        "block_size": len(tokens) // len(hashes),
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
    }
    return event | more


def removed(hashes: Sequence[int | bytes], **more: Any) -> dict[str, Any]:
    """A BlockRemoved."""
    event: dict[str, Any] = {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": 0}
    return event | more


def batch(*events: dict[str, Any]) -> bytes:
    """The payload of a message."""
    return msgspec.msgpack.encode([1234.5, list(events), 0])
