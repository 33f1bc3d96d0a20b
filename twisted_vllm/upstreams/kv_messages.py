"""vLLM's KV events, as its ZMQ publisher sends them (vLLM 0.32, ``vllm/distributed/kv_events.py``).

A message has three frames: the topic, a sequence number (8 bytes, big-endian), and a batch in MessagePack, which is a
list of a time, the events, and the data-parallel rank. An event is a map whose ``type`` is the name of its class.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

#: the sequence number that ends a replay
END_OF_REPLAY = b"\xff" * 8
#: bytes of a sequence number
SEQUENCE_SIZE = 8

_Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class UnreadableEvents(Exception):
    """A batch that is not what vLLM 0.32 sends."""


class BlockStored(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Blocks that are in the cache now, one after the other.

    Attributes:
        block_hashes: vLLM's names of the blocks.
        parent_block_hash: the block before the first; None if that is the first of a prompt.
        token_ids: the tokens of all blocks.
        block_size: tokens in a block.
        medium: where they are; blocks in several places are reported for each.
        lora_name: the LoRA adapter that they were computed with.
        extra_keys: for each block, what distinguishes it beside its tokens: the adapter's name, images, ``cache_salt``.
        group_idx: the group of layers whose cache this is.
        kv_cache_spec_kind: how these layers attend.
    """

    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[_Token]
    block_size: Annotated[int, msgspec.Meta(ge=1)]
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, gc=False, tag=True):
    """Blocks that are no longer in the cache.

    Attributes:
        block_hashes: vLLM's names of the blocks.
        medium: where they were.
        group_idx: the group of layers whose cache this was.
    """

    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The cache is empty."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class _Batch(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: list[msgspec.Raw]


class _AnyEvent(msgspec.Struct, gc=False):
    type: str


_KNOWN = frozenset(each.__name__ for each in (BlockStored, BlockRemoved, AllBlocksCleared))
_decode_batch = msgspec.msgpack.Decoder(_Batch).decode
_decode_type = msgspec.msgpack.Decoder(_AnyEvent).decode
_decode_event = msgspec.msgpack.Decoder(KvEvent).decode


def read_batch(payload: bytes) -> list[KvEvent]:
    """Return the events of a batch, without those of kinds that vLLM 0.32 does not have.

    Args:
        payload: the third frame of a message.

    Raises:
        UnreadableEvents: it is no such batch.
    """
    try:
        return [event for raw in _decode_batch(payload).events if (event := _read_event(raw)) is not None]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableEvents(str(error)[:200]) from None


def _read_event(raw: msgspec.Raw) -> KvEvent | None:
    """Return an event; None for one of another kind."""
    try:
        return _decode_event(raw)
    except msgspec.ValidationError:
        if _decode_type(raw).type in _KNOWN:
            raise
        return None
