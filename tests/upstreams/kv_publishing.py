"""vLLM's KV events, as vLLM 0.32 encodes and publishes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

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


class Publisher:
    """Publishes as vLLM does, on ports that stay the same when it is started again."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._sent: list[bytes] = []
        self.endpoint = self.replay = "tcp://127.0.0.1:*"
        self.replays = 0
        self.start()

    def start(self) -> None:
        self._sent.clear()
        self._events, self._replays = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        for socket in (self._events, self._replays):
            socket.setsockopt(zmq.LINGER, 0)
        self._events.bind(self.endpoint)
        self._replays.bind(self.replay)
        self.endpoint = self._events.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay = self._replays.getsockopt_string(zmq.LAST_ENDPOINT)

    def stop(self) -> None:
        self._events.close()
        self._replays.close()

    def publish(self, *events: dict[str, Any], lost: bool = False) -> None:
        self.publish_bytes(batch(*events), lost=lost)

    def publish_bytes(self, payload: bytes, *, lost: bool = False) -> None:
        if not lost:
            self._events.send_multipart((b"", len(self._sent).to_bytes(8, "big"), payload))
        self._sent.append(payload)

    def serve(self) -> None:
        """Answer requests for a replay."""
        while self._replays.poll(0):
            client, empty, start = self._replays.recv_multipart()
            self.replays += 1
            for number in range(int.from_bytes(start, "big"), len(self._sent)):
                self._replays.send_multipart((client, empty, b"", number.to_bytes(8, "big"), self._sent[number]))
            self._replays.send_multipart((client, empty, b"", b"\xff" * 8, b""))
