"""Which end users and tags have sums of their own: clients may name a million, and sums are kept for ever.

In each period, at most so many names have sums of their own; those of all others are added to `OTHER`. A name gets a
free place when it is first used. When there is none left, it takes the place of the name with the fewest requests, once
it has more than that in one write; what was added up under the former name goes to `OTHER` too, so no sum is lost. A
key whose requests name so many that few places are left takes only those of its own names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from heapq import nsmallest
from itertools import islice

from sqlalchemy import Connection, delete, func, select

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.storage.usage.bulk_insert import Values
from twisted_vllm.storage.usage.tables import OTHER, STORED_SUMS, name_id, usage_sums

#: names with sums of their own in a period
MAX_NAMES = 10_000

#: periods that are remembered: days and months of end users and tags, and after a fault those of former days
_MAX_PERIODS = 8
#: candidates for removal to find at once
_SMALLEST = 64

_OTHER_ID = name_id(OTHER)

#: adds to the sums
Add = Callable[[Sequence[Values]], object]
#: returns the ids of names that always have sums of their own
Pinned = Callable[[Connection], Set[int]]


def no_names(_connection: Connection) -> Set[int]:
    """Return no names: the default of `Pinned`."""
    return frozenset()


class _Period:
    """The names with sums in a period, by their requests, and those that each key brought."""

    def __init__(self, known: dict[int, int], pinned: Set[int]) -> None:
        self.known = known
        self.pinned = pinned
        #: which key brought a name, as far as this process saw it, and how many of them each key has
        self._key_of: dict[int, str] = {}
        self.held: Counter[str] = Counter()
        #: the names with the fewest requests, of a key or of all
        self._smallest: dict[str | None, list[tuple[int, int]]] = {}

    def add(self, value: int, key_id: str) -> None:
        self._key_of[value] = key_id
        self.held[key_id] += 1

    def take_smallest(self, below: int, key_id: str | None) -> int | None:
        """Remove the name with the fewest requests, and return it; None if none has fewer than `below`.

        Args:
            below: the requests.
            key_id: the key whose names to choose from; None for all.
        """
        known, key_of = self.known, self._key_of
        smallest = self._smallest.setdefault(key_id, [])
        for _ in range(2):
            while smallest:
                requests, value = smallest[-1]
                if known.get(value) == requests:
                    if requests >= below:
                        return None
                    smallest.pop()
                    del known[value]
                    self.held[key_of.pop(value, "")] -= 1
                    return value
                # It has more meanwhile.
                smallest.pop()
            candidates = (
                (requests, value) for value, requests in known.items() if key_id is None or key_of.get(value) == key_id
            )
            smallest += nsmallest(_SMALLEST, candidates)[::-1]
        return None


class TopNames:
    """Decides which names have sums of their own.

    Attributes:
        most: the names of a period. Each process that writes knows those of the others when it meets the period.
    """

    def __init__(self, most: int = MAX_NAMES, pinned: Pinned = no_names) -> None:
        """Know none yet.

        Args:
            most: the names of a period.
            pinned: which names have sums of their own besides these.
        """
        self.most = most
        self._pinned = pinned
        self._periods: BoundedCache[tuple[int, int], _Period] = BoundedCache(_MAX_PERIODS, 0)

    def forget(self) -> None:
        """Assume that nothing is stored."""
        self._periods.clear()

    def own(
        self, connection: Connection, kind: int, start: int, names: Mapping[str, tuple[str, int]], add: Add
    ) -> set[str]:
        """Return the names that have sums of their own.

        Args:
            connection: in the transaction that writes the sums.
            kind: as in `usage_sums`.
            start: likewise.
            names: the key that used each name, and the requests to add.
            add: adds to the sums.
        """
        period = self._periods.get((kind, start))
        if period is None:
            pinned = self._pinned(connection)
            period = _Period(self._stored(connection, kind, start, pinned), pinned)
            self._periods.keep((kind, start), period, 0)
        known = period.known
        # Some places are for others than the key that takes most.
        most_of_key = max(self.most - self.most // 10, 1)
        found: dict[int, str] = {}
        for name, (key_id, requests) in sorted(names.items(), key=_by_requests):
            value = name_id(name)
            if value == _OTHER_ID:
                continue
            if value in period.pinned:
                found[value] = name
                continue
            if value not in known:
                is_limited = period.held[key_id] >= most_of_key
                if is_limited or len(known) >= self.most:
                    removed = period.take_smallest(requests, key_id if is_limited else None)
                    if removed is None:
                        continue
                    found.pop(removed, None)
                    _merge_into_other(connection, kind, start, removed, add)
                period.add(value, key_id)
            known[value] = known.get(value, 0) + requests
            found[value] = name
        return set(found.values())

    def _stored(self, connection: Connection, kind: int, start: int, pinned: Set[int]) -> dict[int, int]:
        sums = usage_sums.c
        requests = func.sum(sums.requests)
        statement = select(sums.value, requests).where(
            sums.kind == kind, sums.start == start, sums.value.not_in((0, _OTHER_ID))
        )
        most = self.most + len(pinned)
        found = connection.execute(statement.group_by(sums.value).order_by(requests.desc()).limit(most))
        known = ((value, int(count)) for value, count in found if value not in pinned)
        return dict(islice(known, self.most))


def _by_requests(named: tuple[str, tuple[str, int]]) -> int:
    return -named[1][1]


def _merge_into_other(connection: Connection, kind: int, start: int, value: int, add: Add) -> None:
    sums = usage_sums.c
    removed = connection.execute(
        delete(usage_sums)
        .where(sums.kind == kind, sums.start == start, sums.value == value)
        .returning(sums.model, *(sums[name] for name in STORED_SUMS))
    ).all()
    add(sorted((kind, start, _OTHER_ID, model, *values) for model, *values in removed))
