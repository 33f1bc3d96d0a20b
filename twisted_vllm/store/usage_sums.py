"""What a batch of rows adds to the sums: plain dictionaries, so that a database row is touched once for all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from functools import lru_cache

from twisted_vllm.ledger.values import UsageRow
from twisted_vllm.store.bulk import Values
from twisted_vllm.store.usage_tables import ALL, DAY, END_USER, KEY, MONTH, TAG, TEAM, USER

DAY_US = 86_400_000_000
_EPOCH = date(1970, 1, 1)

#: the columns after the key, in the tables' order
Sums = list[int]


def is_successful(row: UsageRow) -> bool:
    """Whether the client got the whole of an answer that is no error."""
    return row.outcome == "completed" and row.status < 400


def _sums_of(rows: list[UsageRow]) -> Sums:
    successful = sum([is_successful(row) for row in rows])
    return [
        len(rows),
        successful,
        len(rows) - successful,
        sum([row.prompt_tokens for row in rows]),
        sum([row.cached_tokens for row in rows]),
        sum([row.completion_tokens for row in rows]),
        sum([row.reasoning_tokens for row in rows]),
        sum([row.total_tokens for row in rows]),
        sum([row.audio_ms for row in rows]),
        sum([row.cost for row in rows]),
        sum([row.total_us for row in rows]),
    ]


@lru_cache(maxsize=64)
def _days(number: int) -> tuple[str, str]:
    """Return a day and the first of its month, by its number since 1970."""
    day = _EPOCH + timedelta(days=number)
    return day.isoformat(), day.replace(day=1).isoformat()


class BatchSums:
    """The sums of some rows.

    Attributes:
        daily: rows of ``usage_daily``, sorted by their key.
        totals: rows of ``usage_totals``, likewise. Every process takes the locks in this order.
    """

    def __init__(self, rows: Sequence[UsageRow]) -> None:
        """Add up."""
        groups: dict[tuple[int, str, str | None, str | None, str | None, str, tuple[str, ...]], list[UsageRow]] = {}
        for row in rows:
            key = (row.time // DAY_US, row.key_id, row.user_id, row.team_id, row.end_user, row.model, row.tags)
            if key in groups:
                groups[key].append(row)
            else:
                groups[key] = [row]
        daily: dict[tuple[str, ...], Sums] = {}
        totals: dict[tuple[str, ...], Sums] = {}
        for (number, key_id, user_id, team_id, end_user, model, tags), members in groups.items():
            day, month = _days(number)
            sums = _sums_of(members)
            _add(daily, (day, key_id, user_id or "", team_id or "", model), sums)
            for dimension, value in ((END_USER, end_user or ""), *((TAG, tag) for tag in dict.fromkeys(tags))):
                _add(totals, (dimension, DAY, day, value, model), sums)
                _add(totals, (dimension, MONTH, month, value, model), sums)
        for (day, key_id, user, team, model), sums in daily.items():
            month = f"{day[:-2]}01"
            for dimension, value in ((ALL, ""), (KEY, key_id), (USER, user), (TEAM, team)):
                _add(totals, (dimension, DAY, day, value, model), sums)
                _add(totals, (dimension, MONTH, month, value, model), sums)
        self.daily: list[Values] = [(*key, *daily[key]) for key in sorted(daily)]
        self.totals: list[Values] = [(*key, *totals[key]) for key in sorted(totals)]


def _add(target: dict[tuple[str, ...], Sums], key: tuple[str, ...], sums: Sums) -> None:
    found = target.get(key)
    target[key] = sums if found is None else [a + b for a, b in zip(found, sums, strict=True)]
