"""Caches whose entries and bytes are bounded, for what clients and servers can name.

A text of any length must never become a key: one request could keep a body's worth of memory. So an entry is kept only
if its texts are short, and the bound in bytes is the number of entries times the size of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A dictionary of at most so many entries; a new one replaces the oldest. ``len()`` is the number of entries.

    Attributes:
        max_entries: the most entries.
        max_size: the most bytes or characters of the texts in one entry; larger entries are not kept.
        get: ``dict.get``.
    """

    __slots__ = ("_entries", "get", "max_entries", "max_size")

    def __init__(self, max_entries: int, max_size: int) -> None:
        """Start empty.

        Args:
            max_entries: the most entries.
            max_size: the most bytes or characters of the texts in one entry.
        """
        self.max_entries = max_entries
        self.max_size = max_size
        self._entries: dict[K, V] = {}
        self.get = self._entries.get

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()

    def newest_first(self) -> Iterator[tuple[K, V]]:
        """Iterate over all entries."""
        return reversed(self._entries.items())

    def keep(self, key: K, value: V, size: int) -> None:
        """Keep an entry, in place of one with the same key; not if it is too large.

        Args:
            key: the key.
            value: the value.
            size: the bytes or characters of all texts in key and value that others choose.
        """
        entries = self._entries
        if size > self.max_size:
            entries.pop(key, None)
            return
        if len(entries) >= self.max_entries and key not in entries:
            del entries[next(iter(entries))]
        entries[key] = value
