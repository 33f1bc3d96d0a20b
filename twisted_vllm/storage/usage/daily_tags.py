"""Which tags of requests have sums of their own: a client may name a million, and sums are kept for ever."""

from __future__ import annotations

from collections import Counter
from datetime import date

from sqlalchemy import Connection, select

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.storage.usage.tables import DAY, TAG, usage_totals

#: the tags of requests that have sums of their own in a day, and the new ones of one key; more are added to `OTHER`.
#: Each process that writes knows those of the others when it meets the day.
MAX_TAGS, MAX_TAGS_OF_KEY = 10_000, 1_000
#: stands in the sums for all tags over the limit
OTHER = "(other)"
#: days that are remembered: after a fault, rows of former days are written too
_MAX_DAYS = 3


class _Day:
    """The tags with sums of a day, and the new ones by key."""

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.added: Counter[str] = Counter()


class DailyTags:
    """Decides which tags of requests have sums of their own."""

    def __init__(self, most: int = MAX_TAGS, most_of_key: int = MAX_TAGS_OF_KEY) -> None:
        """Know none yet.

        Args:
            most: the tags of a day.
            most_of_key: the new tags of a key in a day.
        """
        self._most, self._most_of_key = most, most_of_key
        self._days: BoundedCache[str, _Day] = BoundedCache(_MAX_DAYS, len("2026-03-01"))

    def forget(self) -> None:
        """Assume that nothing is stored."""
        self._days.clear()

    def name(self, connection: Connection, day: str, key_id: str, tag: str) -> str:
        """Return the name of a tag in the sums: itself, or `OTHER`.

        Args:
            connection: in the transaction that writes the sums.
            day: the day, in ISO 8601.
            key_id: who sent the request; empty for the master key.
            tag: the tag.
        """
        found = self._days.get(day)
        if found is None:
            found = _Day(self._stored(connection, day))
            self._days.keep(day, found, len(day))
        if tag in found.known:
            return tag
        if len(found.known) >= self._most or found.added[key_id] >= self._most_of_key:
            return OTHER
        found.added[key_id] += 1
        found.known.add(tag)
        return tag

    def _stored(self, connection: Connection, day: str) -> set[str]:
        totals = usage_totals.c
        of_day = (totals.dimension == TAG, totals.period == DAY, totals.start == date.fromisoformat(day))
        return set(connection.execute(select(totals.value).where(*of_day).distinct().limit(self._most)).scalars())
