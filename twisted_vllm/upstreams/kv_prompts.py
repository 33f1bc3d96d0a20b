"""How much of a prompt each server has in its prefix cache, exactly as far as its tokens are known.

KV events have tokens, requests have text. The tokens of a prompt are known once a server was asked for them
(`twisted_vllm.upstreams.tokenizing`), and hold for every prompt that begins with the same text: the next turn of a
conversation needs no question. What follows the known part is judged by what was sent where.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.upstreams.kv_index import CacheIndex, chain
from twisted_vllm.upstreams.prefix_table import CacheTable

#: prompts whose tokens are known, and the blocks of each: 32,768 tokens in blocks of 16
MAX_PROMPTS, MAX_KNOWN_BLOCKS = 4_096, 2_048
#: a prompt is asked for if the tokens of a smaller share of its text are known
ENOUGH = 0.5

_KEY_BYTES = 8
_NO_KEYS = array("Q")


class KnownPrompts:
    """The keys of the blocks of prompts whose tokens are known, for all models."""

    def __init__(self) -> None:
        """Know no prompt."""
        self._known: BoundedCache[tuple[int, int], array[int]] = BoundedCache(
            MAX_PROMPTS, MAX_KNOWN_BLOCKS * _KEY_BYTES
        )

    def learn(
        self,
        prefix: Sequence[int],
        tokens: Sequence[int],
        block_size: int,
        *,
        adapter: str | None = None,
        salt: str | None = None,
    ) -> None:
        """Remember the tokens of a prompt.

        Args:
            prefix: the hashes of the blocks of its text.
            tokens: its tokens, each below 2**32.
            block_size: tokens in a block of the servers' caches.
            adapter: the LoRA adapter that serves it.
            salt: its ``cache_salt``.
        """
        if not prefix:
            return
        rest = () if adapter is None else (adapter,)
        first = rest if not salt else (*rest, salt)
        keys = array("Q", chain(tokens[: MAX_KNOWN_BLOCKS * block_size], block_size, first, rest))
        self._known.keep((prefix[-1], block_size), keys, len(keys) * _KEY_BYTES)

    def find(self, prefix: Sequence[int], block_size: int) -> tuple[int, array[int]]:
        """Return what is known of a prompt: of how many blocks of its text, and the keys of their tokens."""
        known = self._known.get
        for depth in range(len(prefix), 0, -1):
            keys = known((prefix[depth - 1], block_size))
            if keys is not None:
                return depth, keys
        return 0, _NO_KEYS

    def knows_enough(self, prefix: Sequence[int], block_size: int) -> bool:
        """Return whether so much of a prompt is known that it need not be asked for."""
        return self.find(prefix, block_size)[0] >= ENOUGH * len(prefix)


class ExactPrefixTable:
    """A table of what was sent where that is corrected by what is known of the servers' caches.

    Args:
        table: what was sent where.
        prompts: the prompts whose tokens are known.
        index_of: the index of a server, by its name; None while it has none or is not current.
        sources: the names of all servers that may have an index: while there are none, nothing is corrected.
    """

    __slots__ = ("_index_of", "_prompts", "_sources", "_table")

    def __init__(
        self,
        table: CacheTable,
        prompts: KnownPrompts,
        index_of: Callable[[str], CacheIndex | None],
        sources: Collection[str],
    ) -> None:
        self._table = table
        self._prompts = prompts
        self._index_of = index_of
        self._sources = sources

    def knows(self, block: int) -> bool:
        """Return whether any server has a block; see `CacheTable`."""
        return self._table.knows(block)

    def matched(self, prefix: Sequence[int], servers: Sequence[str]) -> tuple[list[int], bool]:
        """Return how many blocks of a prompt each server has; see `CacheTable`."""
        matched, continues = self._table.matched(prefix, servers)
        if not self._sources:
            return matched, continues
        size = block_size_of(servers, self._index_of)
        depth, keys = self._prompts.find(prefix, size) if size else (0, _NO_KEYS)
        if keys:
            for number, server in enumerate(servers):
                index = self._index_of(server)
                if index is not None and index.trusted and index.block_size == size:
                    cached = index.leading(keys)
                    whole = cached == len(keys)
                    # what follows the part whose tokens are known was sent there, or not
                    matched[number] = max(depth, matched[number]) if whole else depth * cached // len(keys)
        return matched, continues

    def learn(self, prefix: Sequence[int], server: str) -> None:
        """Note that a prompt was sent to a server."""
        self._table.learn(prefix, server)
        index = self._index_of(server) if self._sources else None
        if index is not None and index.block_size:
            index.expect(self._prompts.find(prefix, index.block_size)[1])

    def forget(self, server: str) -> None:
        """Note that a server's cache is empty. Its index is told so by the server."""
        self._table.forget(server)


def block_size_of(servers: Sequence[str], index_of: Callable[[str], CacheIndex | None]) -> int:
    """Return the tokens in a block of the first of these servers that has reported one; 0 for none."""
    for server in servers:
        index = index_of(server)
        if index is not None and index.block_size:
            return index.block_size
    return 0
