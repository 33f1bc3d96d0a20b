"""Tells what an administrator did from its echo: the housekeeper finds it in the database, and tells it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

#: seconds within which the housekeeper has found in the database what a worker did
ECHO_SECONDS = 5.0
#: acts to remember; about 200 bytes each
MOST_ACTS = 10_000


class Echoes:
    """Remembers for a while about whom a process of this gateway did something.

    What the housekeeper tells of those meanwhile is left out: it may be older than what was counted since.
    """

    def __init__(self, seconds: float = ECHO_SECONDS, most: int = MOST_ACTS) -> None:
        """Begin without acts.

        Args:
            seconds: how long an act is remembered.
            most: acts that are remembered.
        """
        self._seconds = seconds
        self._most = most
        self._acts: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many acts are remembered."""
        return len(self._acts)

    def done(self, whom: Hashable, now: float) -> None:
        """Note that a process did something about somebody; `now` is in seconds."""
        self._acts.pop(whom, None)
        self._acts[whom] = now
        if len(self._acts) > self._most:
            self._acts.popitem(last=False)

    def may_be_echo(self, whom: Hashable, now: float) -> bool:
        """Return whether what was found in the database about somebody may be what a process did."""
        return 0 <= now - self._acts.get(whom, -self._seconds - 1.0) < self._seconds
