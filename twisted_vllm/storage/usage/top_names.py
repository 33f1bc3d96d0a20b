"""Which end users and tags have sums of their own: clients may name a million, and sums are kept for ever.

In each period, at most so many names have sums of their own; those of all others are added to `OTHER`. A name gets a
free place when it is first used. When there is none left, it takes the place of the name with the fewest requests, once
it has more than that in one write; what was added up under the former name goes to `OTHER` too, so no sum is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from heapq import nsmallest

from sqlalchemy import Connection, delete, func, select

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.storage.usage.bulk_insert import BulkInsert
from twisted_vllm.storage.usage.tables import OTHER, STORED_SUMS, name_id, usage_sums

#: names with sums of their own in a period, and the new ones of one key. Each process that writes knows those of the
#: others when it meets the period.
MAX_NAMES, MAX_NAMES_OF_KEY = 10_000, 1_000

#: periods that are remembered: days and months of end users and tags, and after a fault those of former days
_MAX_PERIODS = 8
#: candidates for removal to find at once
_SMALLEST = 64

_OTHER_ID = name_id(OTHER)


class _Period:
    """The names with sums in a period, by their requests, and the new ones by key."""

    def __init__(self, known: dict[int, int]) -> None:
        self.known = known
        self.added: Counter[str] = Counter()
        self.smallest: list[tuple[int, int]] = []

    def take_smallest(self, below: int) -> int | None:
        """Remove the name with the fewest requests, and return it; None if none has fewer than `below`."""
        for _ in range(2):
            while self.smallest:
                requests, value = self.smallest[-1]
                if self.known.get(value) == requests:
                    if requests >= below:
                        return None
                    self.smallest.pop()
                    del self.known[value]
                    return value
                # It has more meanwhile.
                self.smallest.pop()
            found = nsmallest(_SMALLEST, ((requests, value) for value, requests in self.known.items()))
            self.smallest = found[::-1]
        return None


class TopNames:
    """Decides which names have sums of their own."""

    def __init__(self, most: int = MAX_NAMES, most_of_key: int = MAX_NAMES_OF_KEY) -> None:
        """Know none yet.

        Args:
            most: the names of a period.
            most_of_key: the new names of a key in a period, for each process.
        """
        self.most, self._most_of_key = most, most_of_key
        self._periods: BoundedCache[tuple[int, int], _Period] = BoundedCache(_MAX_PERIODS, 0)

    def forget(self) -> None:
        """Assume that nothing is stored."""
        self._periods.clear()

    def own(
        self, connection: Connection, kind: int, start: int, names: Mapping[str, tuple[str, int]], add: BulkInsert
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
            period = _Period(self._stored(connection, kind, start))
            self._periods.keep((kind, start), period, 0)
        known = period.known
        found: set[str] = set()
        for name, (key_id, requests) in names.items():
            value = name_id(name)
            if value not in known:
                if period.added[key_id] >= self._most_of_key:
                    continue
                if len(known) >= self.most:
                    removed = period.take_smallest(requests)
                    if removed is None:
                        continue
                    _merge_into_other(connection, kind, start, removed, add)
                period.added[key_id] += 1
            known[value] = known.get(value, 0) + requests
            found.add(name)
        return found

    def _stored(self, connection: Connection, kind: int, start: int) -> dict[int, int]:
        sums = usage_sums.c
        requests = func.sum(sums.requests)
        statement = select(sums.value, requests).where(
            sums.kind == kind, sums.start == start, sums.value.not_in((0, _OTHER_ID))
        )
        found = connection.execute(statement.group_by(sums.value).order_by(requests.desc()).limit(self.most))
        return {value: int(count) for value, count in found}


def _merge_into_other(connection: Connection, kind: int, start: int, value: int, add: BulkInsert) -> None:
    sums = usage_sums.c
    removed = connection.execute(
        delete(usage_sums)
        .where(sums.kind == kind, sums.start == start, sums.value == value)
        .returning(sums.model, *(sums[name] for name in STORED_SUMS))
    ).all()
    add.run(connection, sorted((kind, start, _OTHER_ID, model, *values) for model, *values in removed))
