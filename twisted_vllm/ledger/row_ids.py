"""The ids of the ledger's rows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count


class RowIds:
    """Makes ids that no other process makes, in the order of time.

    The order is for the database: rows that come together stand together in the index of the primary key. At random
    places, each would cost a page.
    """

    def __init__(self, randbytes: Callable[[int], bytes]) -> None:
        """Begin with a number of the process's own."""
        self._process = randbytes(5).hex()
        self._next = count(int.from_bytes(randbytes(3), "big")).__next__

    def __call__(self, time: int) -> str:
        """Return 32 hex digits for a request that began at a time in microseconds since 1970."""
        return f"{time:016x}{self._process}{self._next() & 0xFFFFFF:06x}"
