"""The top N keys, users or teams by recent use have labels of their own; the others are counted together.

A caller that uses the gateway more than the least used
one of them takes its place, at the next review; so the labels do not change with every request. All sums stay true: a
request is counted once, for its caller or for the others, and stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import nlargest
from typing import Generic, Protocol, TypeVar

#: seconds between reviews
REVIEW_INTERVAL = 60.0
#: how much of the use of the past a review keeps: half of it after ten minutes
KEPT = 0.5 ** (REVIEW_INTERVAL / 600)
#: how many times the use of another a caller must have to take its place
LEAD = 1.5
#: seconds after which a caller that is not used loses its place
IDLE = 3_600.0
#: callers without a place whose use is counted, for each place, and at least
CANDIDATES, LEAST_CANDIDATES = 4, 256


class Caller(Protocol):
    """Who is counted alone.

    Attributes:
        uses: its requests since it has its place.
    """

    uses: int


C = TypeVar("C", bound=Caller)


class _Place(Generic[C]):
    """A caller's place, with its use lately: what it was at the last review."""

    __slots__ = ("caller", "seen", "use", "used_at")

    def __init__(self, caller: C, use: float, now: float) -> None:
        self.caller = caller
        self.use = use
        self.used_at = now
        self.seen = 0


class TopCallers(Generic[C]):
    """The callers with a place.

    Attributes:
        others: stands for all others together.
        on_left: called with each caller that lost its place. It does nothing by default.
    """

    def __init__(self, most: int, make: Callable[[], C]) -> None:
        """Give no place yet.

        Args:
            most: the most places.
            make: makes what is counted for a caller.
        """
        self.others = make()
        self.on_left: Callable[[C], None] = lambda caller: None
        self._most = most
        self._make = make
        self._places: dict[str, _Place[C]] = {}
        self._candidates: dict[str, float] = {}
        self._review_at = 0.0

    def __len__(self) -> int:
        """Return how many have a place."""
        return len(self._places)

    def __iter__(self) -> Iterator[C]:
        """Iterate over those who have a place."""
        return (place.caller for place in self._places.values())

    @property
    def candidates(self) -> int:
        """How many callers without a place are known."""
        return len(self._candidates)

    def reconfigure(self, most: int) -> None:
        """Give so many places at most; those who were used least lately lose theirs."""
        self._most = most
        if len(self._places) > most:
            kept = nlargest(most, self._places, key=lambda id: self._places[id].use)
            for id in self._places.keys() - kept:
                self._leave(id)

    def of(self, id: str, now: float) -> C:
        """Return what counts a request of a caller: its own, or that of all others.

        Args:
            id: the caller's id.
            now: the time in Unix seconds.
        """
        if now >= self._review_at:
            self._review(now)
        place = self._places.get(id)
        if place is None:
            if len(self._places) >= self._most:
                self._note(id)
                self.others.uses += 1
                return self.others
            place = self._places[id] = _Place(self._make(), 0.0, now)
        place.caller.uses += 1
        return place.caller

    def _note(self, id: str) -> None:
        """Count the use of a caller without a place."""
        candidates = self._candidates
        use = candidates.get(id)
        if use is not None:
            candidates[id] = use + 1.0
        elif len(candidates) < max(CANDIDATES * self._most, LEAST_CANDIDATES):
            candidates[id] = 1.0

    def _leave(self, id: str) -> None:
        self.on_left(self._places.pop(id).caller)

    def _review(self, now: float) -> None:
        """Give the places to those who were used most lately."""
        self._review_at = now + REVIEW_INTERVAL
        for id, place in list(self._places.items()):
            uses = place.caller.uses
            if uses != place.seen:
                place.used_at = now
            elif now - place.used_at >= IDLE:
                self._leave(id)
                continue
            place.use = place.use * KEPT + uses - place.seen
            place.seen = uses
        wanting = sorted(self._candidates.items(), key=lambda each: each[1], reverse=True)
        least = sorted(self._places, key=lambda id: self._places[id].use)
        for (id, use), weakest in zip(wanting, least, strict=False):
            if use <= self._places[weakest].use * LEAD:
                break
            self._leave(weakest)
            del self._candidates[id]
            self._places[id] = _Place(self._make(), use, now)
        # those that are used again come back; room for new ones
        half = max(CANDIDATES * self._most, LEAST_CANDIDATES) // 2
        left = nlargest(half, self._candidates.items(), key=lambda each: each[1])
        self._candidates = {id: use * KEPT for id, use in left if use * KEPT >= 0.5}
