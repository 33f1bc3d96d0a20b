"""What is in the prefix cache of a vLLM server, by its KV events.

vLLM's names of blocks depend on the server (its hash function and seed), so a block gets a key of our own: a hash of
its tokens, of what else distinguishes it (LoRA adapter, ``cache_salt``, images), and of the key before it. Equal
beginnings of prompts have equal keys on all servers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec

from twisted_vllm.upstreams.kv_messages import BlockRemoved, BlockStored, KvEvent, UnreadableEvents

#: blocks of a server that are known: two million tokens in blocks of 16. A block takes up to `BLOCK_SIZE` bytes.
MAX_BLOCKS = 131_072
BLOCK_SIZE = 300
#: the longest name of a block that is kept; vLLM's have 8 or 32 bytes
MAX_HASH_BYTES = 64
#: the LoRA adapters of a server that are known, and the length of a name
_MAX_ADAPTERS, MAX_NAME = 1_024, 256
#: places of a block (medium and group of layers) that are told apart
_MAX_PLACES = 30
#: blocks that are expected at a time
_MAX_EXPECTED = 65_536
#: kinds of attention that read a prompt from its beginning; others keep only its end
_WHOLE_PROMPT = frozenset({None, "unknown", "full_attention", "mla_attention", "sink_full_attention"})

_ROOT = bytes(8)
_pack = msgspec.msgpack.Encoder().encode


def chain(tokens: Sequence[int], block_size: int, first: tuple[str, ...] = (), rest: tuple[str, ...] = ()) -> list[int]:
    """Return the keys of the whole blocks of a prompt.

    Args:
        tokens: the tokens of the prompt, each below 2**32.
        block_size: tokens in a block.
        first: what distinguishes the first block beside its tokens: the LoRA adapter's name, then the ``cache_salt``.
        rest: the same of the other blocks: the adapter's name.
    """
    data, width = array("I", tokens).tobytes(), 4 * block_size
    extra, other = _extra(first), _extra(rest)
    keys, key = [], _ROOT
    for at in range(0, len(data) - width + 1, width):
        key = blake2b(key + extra + data[at : at + width], digest_size=8).digest()
        keys.append(int.from_bytes(key, "big"))
        extra = other
    return keys


def _extra(keys: object) -> bytes:
    return _pack(keys) if keys else b""


class CacheIndex:
    """The blocks of one server. ``len()`` is their number.

    Attributes:
        block_size: tokens in a block; 0 until the first event.
        adapters: the LoRA adapters of its blocks, at most `_MAX_ADAPTERS`.
        trusted: whether most of what was expected came. If not, the tokens of prompts are other than the server's, for
            instance because its chat template reads what ``/tokenize`` does not take.
        orphans: blocks that came after one that is not known, and were passed over.
    """

    __slots__ = (
        "_blocks",
        "_expected",
        "_held",
        "_max_blocks",
        "_places",
        "_soon",
        "adapters",
        "block_size",
        "orphans",
        "trusted",
    )

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        """Start with an empty cache.

        Args:
            max_blocks: the most blocks; the one that was longest not reported is forgotten for a new one.
        """
        self.block_size = 0
        self.adapters: set[str] = set()
        self.orphans = 0
        self.trusted = True
        self._max_blocks = max_blocks
        #: by vLLM's name: our key, and a bit for each place that has the block
        self._blocks: dict[int | bytes, tuple[int, int]] = {}
        #: how many of these names have a key
        self._held: dict[int, int] = {}
        self._places: dict[tuple[str | None, int | None], int] = {}
        self._soon: set[int] = set()
        self._expected: set[int] = set()

    def __len__(self) -> int:
        return len(self._blocks)

    def leading(self, keys: Sequence[int]) -> int:
        """Return how many of the first blocks of a prompt are in the cache, or are expected there.

        Args:
            keys: from `chain`, with this server's block size.
        """
        held, soon, expected = self._held, self._soon, self._expected
        for count, key in enumerate(keys):
            if key not in held and key not in soon and key not in expected:
                return count
        return len(keys)

    def expect(self, keys: Iterable[int]) -> None:
        """Expect the blocks of a prompt that was sent, until `age` was called twice.

        The server reports them when it begins to work on the prompt; until then, requests that begin alike would be
        placed as if no server had their beginning.
        """
        if len(self._soon) < _MAX_EXPECTED:
            self._soon.update(keys)

    def age(self) -> None:
        """Let time pass for what is expected."""
        if self._expected:
            self.trusted = 2 * len(self._held.keys() & self._expected) >= len(self._expected)
        if self._soon or self._expected:
            self._expected, self._soon = self._soon, set()

    def apply(self, event: KvEvent) -> None:
        """Take note of an event.

        Raises:
            UnreadableEvents: the event contradicts itself.
        """
        if isinstance(event, BlockStored):
            self._stored(event)
        elif isinstance(event, BlockRemoved):
            self._removed(event)
        else:
            self.clear()

    def clear(self) -> None:
        """Take note that the cache is empty, or that nothing is known of it.

        What is expected stays: vLLM tells it with the events of the next prompt, which was sent before.
        """
        self._blocks.clear()
        self._held.clear()

    def _stored(self, event: BlockStored) -> None:
        size, hashes, extras = event.block_size, event.block_hashes, event.extra_keys
        if len(event.token_ids) != size * len(hashes) or (extras is not None and len(extras) != len(hashes)):
            raise UnreadableEvents(
                "a BlockStored has other numbers of tokens, keys and blocks than its block_size says"
            )
        if event.kv_cache_spec_kind not in _WHOLE_PROMPT:
            return
        place = self._place(event.medium, event.group_idx)
        key = _ROOT
        if event.parent_block_hash is not None:
            parent = self._blocks.get(event.parent_block_hash)
            if parent is None:
                self.orphans += len(hashes)
                return
            key = parent[0].to_bytes(8, "big")
        self.block_size = max(self.block_size, size)
        adapter: tuple[str, ...] = ()
        if event.lora_name is not None:
            adapter = (event.lora_name,)
            if len(self.adapters) < _MAX_ADAPTERS and len(event.lora_name) <= MAX_NAME:
                self.adapters.add(event.lora_name)
        data, width = array("I", event.token_ids).tobytes(), 4 * size
        blocks = self._blocks
        for number, name in enumerate(hashes):
            known = blocks.get(name)
            if known is not None and known[1] & place:
                # vLLM reports a block again whenever it is used; now it is the last to be forgotten
                del blocks[name]
                blocks[name] = known
                key = known[0].to_bytes(8, "big")
                continue
            extra = _extra(adapter if extras is None else extras[number])
            key = blake2b(key + extra + data[number * width : (number + 1) * width], digest_size=8).digest()
            self._keep(name, int.from_bytes(key, "big"), place)

    def _keep(self, name: int | bytes, key: int, place: int) -> None:
        if isinstance(name, bytes) and len(name) > MAX_HASH_BYTES:
            raise UnreadableEvents(f"a block's hash has {len(name)} bytes")
        known = self._blocks.pop(name, None)
        if known is not None and known[0] == key:
            # the last to be forgotten
            self._blocks[name] = (key, known[1] | place)
            return
        if known is not None:
            self._let_go(known[0])
        elif len(self._blocks) >= self._max_blocks:
            self._let_go(self._blocks.pop(next(iter(self._blocks)))[0])
        self._blocks[name] = (key, place)
        self._held[key] = self._held.get(key, 0) + 1

    def _removed(self, event: BlockRemoved) -> None:
        place = self._places.get((event.medium, event.group_idx), 0)
        for name in event.block_hashes:
            known = self._blocks.get(name)
            if known is None:
                continue
            if known[1] & ~place:
                self._blocks[name] = (known[0], known[1] & ~place)
            else:
                del self._blocks[name]
                self._let_go(known[0])

    def _let_go(self, key: int) -> None:
        left = self._held[key] - 1
        if left:
            self._held[key] = left
        else:
            del self._held[key]

    def _place(self, medium: str | None, group: int | None) -> int:
        known = self._places.get((medium, group))
        if known is None:
            if len(self._places) >= _MAX_PLACES:
                raise UnreadableEvents(f"blocks are in more than {_MAX_PLACES} places")
            known = self._places[(medium, group)] = 1 << len(self._places)
        return known
