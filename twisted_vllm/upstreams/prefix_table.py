"""Which servers were sent which beginnings of prompts: what their prefix caches probably hold.

The blocks of a prompt are chained hashes (`twisted_vllm.bodies.prompt_prefix`), so a server that has a block has
had all blocks before it. One entry is one block and the servers that have it, as bits of a number.

The least recently used entries are dropped as in a cache with two generations: what is used goes into the young one;
when that is full, it becomes the old one, and the old one is dropped. That needs no order among entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

#: blocks that a table holds. An entry takes at most `ENTRY_SIZE` bytes, so a full table takes 8 MiB.
MAX_BLOCKS = 65_536
#: bytes of an entry: the hash (48), the servers (32 up to 30 of them), and its part of a dictionary (48)
ENTRY_SIZE = 128
#: servers that left and still have bits in the table, before all entries are looked through for them
MAX_GONE = 32

#: the bit of a block that was the last whole one of some prompt
_END = 1


class CacheTable(Protocol):
    """What a policy keeps of the servers' prefix caches."""

    def matched(self, prefix: Sequence[int], servers: Sequence[str]) -> list[int]:
        """Return how many blocks of a prompt each server has, as far as is known."""

    def learn(self, prefix: Sequence[int], server: str) -> None:
        """Note that a prompt was sent to a server."""

    def forget(self, server: str) -> None:
        """Note that a server's cache is empty."""


class PrefixTable:
    """The table of one model group. ``len()`` is the number of its entries."""

    __slots__ = ("_bits", "_gone", "_max_young", "_old", "_young")

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        """Start empty.

        Args:
            max_blocks: the most entries, at least 2.
        """
        self._max_young = max(1, max_blocks // 2)
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._gone = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def matched(self, prefix: Sequence[int], servers: Sequence[str]) -> list[int]:
        """Return how many blocks of a prompt each server probably has.

        Args:
            prefix: the hashes of the prompt's blocks.
            servers: their names.
        """
        young, old = self._young.get, self._old.get
        # the servers that have the blocks up to a depth, where that changes
        depths: list[int] = []
        having: list[int] = []
        last = depth = 0
        for block in prefix:
            found = young(block) or old(block)
            if found is None:
                break
            if found != last:
                depths.append(depth)
                having.append(found)
                last = found
            depth += 1
        if not depth:
            return [0] * len(servers)
        depths.append(depth)
        bits = self._bits.get
        counts = []
        for name in servers:
            bit = bits(name, 0)
            count = 0
            for index, found in enumerate(having, 1):
                if not found & bit:
                    break
                count = depths[index]
            counts.append(count)
        return counts

    def learn(self, prefix: Sequence[int], server: str) -> None:
        """Note that a prompt was sent to a server.

        Args:
            prefix: the hashes of the prompt's blocks.
            server: the server's name.
        """
        bit = self._bits.get(server) or self._new_bit(server)
        young, old = self._young, self._old
        for block in prefix:
            young[block] = (young.get(block) or old.get(block, 0)) | bit
        if len(young) >= self._max_young:
            self._old, self._young = young, {}

    def forget(self, server: str) -> None:
        """Note that a server's cache is empty."""
        bit = self._bits.pop(server, 0)
        self._gone |= bit
        if self._gone.bit_count() > MAX_GONE:
            self._sweep()

    def _new_bit(self, server: str) -> int:
        taken = self._gone
        for bit in self._bits.values():
            taken |= bit
        # the lowest that is free
        bit = ~taken & (taken + 1)
        self._bits[server] = bit
        return bit

    def _sweep(self) -> None:
        """Free the bits of servers that left."""
        kept = ~self._gone
        for generation in (self._young, self._old):
            for block, found in list(generation.items()):
                if found & kept:
                    generation[block] = found & kept
                else:
                    del generation[block]
        self._gone = 0
