"""Counts by name, each in its own minute or other period, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")

#: how long a count lasts by default, in seconds from the first one
MINUTE = 60.0
#: the names to count by default; 4,096 take about 1 MB
MOST_NAMES = 4_096

#: a count, and the seconds until it begins anew
Counted = tuple[int, float]


class Later(Protocol[T_co]):
    """A result that is not there yet, such as Twisted's ``Deferred``."""

    def addCallback(self, callback: Callable[[T_co], R]) -> Later[R]:
        """Return the result of a function of this one."""

    def __await__(self) -> Generator[Any, Any, T_co]:
        """Wait."""


class Counts(Protocol):
    """Counts by name: `MinuteCounts`, or what several processes share."""

    def __len__(self) -> int:
        """Return how many names are counted, as far as is known here."""

    def count(self, name: Hashable, now: float) -> int:
        """As `MinuteCounts.count`, as far as is known here."""

    def add(self, name: Hashable, now: float) -> Counted | Later[Counted]:
        """As `MinuteCounts.add`, perhaps later."""


class MinuteCounts:
    """Counts by name. Beyond `most` names, the one that was counted longest ago is dropped.

    Args:
        most: the names to count.
        period: how long a count lasts, in seconds from the first one.

    These counts slow down abuse. They are coarser than the windows of limits: a period begins with its first count.
    """

    def __init__(self, most: int = MOST_NAMES, period: float = MINUTE) -> None:
        """Begin with no name."""
        self._most = most
        self._period = period
        self._counts: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, name: Hashable, now: float) -> int:
        """Return the count of a name's period, without counting."""
        start, count = self._counts.get(name, (now, 0))
        return count if 0 <= now - start < self._period else 0

    def add(self, name: Hashable, now: float) -> Counted:
        """Count one; return the count of this name's period, and the seconds until that period ends.

        Args:
            name: of bounded size.
            now: the time in seconds. It may go backwards.
        """
        start, count = self._counts.pop(name, (now, 0))
        if not 0 <= now - start < self._period:
            start, count = now, 0
        self._counts[name] = (start, count + 1)
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)
        return count + 1, start + self._period - now

    def know(self, name: Hashable, count: int, left: float, now: float) -> None:
        """Take the count of a name from somebody who counts for several.

        Args:
            name: as in `add`.
            count: the count.
            left: the seconds until its period ends.
            now: the time in seconds.
        """
        self._counts.pop(name, None)
        self._counts[name] = (min(now + left - self._period, now), count)
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)
