"""Which servers were sent which beginnings of prompts: what their prefix caches probably hold.

The blocks of a prompt are chained hashes (`twisted_vllm.bodies.prompt_prefix`), so a server that has a block has had
all blocks before it. One entry is one block and the servers that have it, as the bits of a number.

What was not used for long is dropped, by two generations: what is used goes into the young one; when that is full, it
becomes the old one, and the old one is dropped. So no order among entries is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

#: blocks that a table holds. A full table has about 7 MiB: an entry takes up to `ENTRY_SIZE` bytes
MAX_BLOCKS = 65_536
#: bytes of an entry: the hash (48), its part of a dictionary (up to 40), and the servers (32; none for few servers, as
#: Python shares small numbers)
ENTRY_SIZE = 120
#: servers that left and still have bits, before all entries are looked through for them
MAX_GONE = 32

#: the bit of a block that was the last one of some prompt
_END = 1


class CacheTable(Protocol):
    """What a policy keeps of the servers' prefix caches: `PrefixTable`, or what corrects it."""

    def knows(self, block: int) -> bool:
        """Return whether any server has a block."""

    def matched(self, prefix: Sequence[int], servers: Sequence[str]) -> tuple[list[int], bool]:
        """Return how many blocks of a prompt each server has, and whether an earlier prompt ended there."""

    def learn(self, prefix: Sequence[int], server: str) -> None:
        """Note that a prompt was sent to a server."""

    def forget(self, server: str) -> None:
        """Note that a server's cache is empty, or that the server left."""


class PrefixTable:
    """The table of one model group. ``len()`` is the number of its entries."""

    __slots__ = ("_bits", "_gone", "_live", "_max_young", "_old", "_young")

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        """Start empty.

        Args:
            max_blocks: the most entries.
        """
        self._max_young = max_blocks // 2
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        # the bits of servers that are known, and of those that left
        self._live = self._gone = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def knows(self, block: int) -> bool:
        """Return whether any server has a block."""
        found = self._young.get(block) or self._old.get(block, 0)
        return found & self._live != 0

    def matched(self, prefix: Sequence[int], servers: Sequence[str]) -> tuple[list[int], bool]:
        """Return how many blocks of a prompt each server has, and whether an earlier prompt ended there.

        Args:
            prefix: the hashes of the prompt's blocks.
            servers: their names.

        Returns:
            The number for each server, and whether the last block that any server has was the last of a prompt: this
            prompt then continues or repeats it. Otherwise it has only its beginning in common with others.
        """
        young, old = self._young.get, self._old.get
        # which servers have a block, and at which block that changes
        having: list[int] = []
        changes: list[int] = []
        last = depth = 0
        for block in prefix:
            found = young(block) or old(block)
            if found is None:
                break
            if found != last:
                having.append(found)
                changes.append(depth)
                last = found
            depth += 1
        if not depth:
            return [0] * len(servers), False
        changes.append(depth)
        bits = self._bits.get
        counts: list[int] = []
        for name in servers:
            bit = bits(name, 0)
            count = 0
            for index, found in enumerate(having, 1):
                if not found & bit:
                    break
                count = changes[index]
            counts.append(count)
        return counts, last & _END != 0

    def learn(self, prefix: Sequence[int], server: str) -> None:
        """Note that a prompt was sent to a server.

        Args:
            prefix: the hashes of the prompt's blocks.
            server: the server's name.
        """
        prefix = prefix[: self._max_young]
        if not prefix:
            return
        if len(self._young) + len(prefix) > self._max_young:
            self._old, self._young = self._young, {}
        young, old = self._young, self._old.get
        find = young.get
        bit = self._bits.get(server) or self._new_bit(server)
        for block in prefix:
            young[block] = (find(block) or old(block, 0)) | bit
        young[prefix[-1]] |= _END

    def forget(self, server: str) -> None:
        """Note that a server's cache is empty, or that the server left."""
        bit = self._bits.pop(server, 0)
        self._live &= ~bit
        self._gone |= bit
        if self._gone.bit_count() > MAX_GONE:
            self._sweep()

    def _new_bit(self, server: str) -> int:
        taken = self._live | self._gone | _END
        # the lowest that is free
        bit = ~taken & (taken + 1)
        self._bits[server] = bit
        self._live |= bit
        return bit

    def _sweep(self) -> None:
        """Free the bits of servers that left."""
        live, kept = self._live, self._live | _END
        self._young = {block: found & kept for block, found in self._young.items() if found & live}
        self._old = {block: found & kept for block, found in self._old.items() if found & live}
        self._gone = 0
