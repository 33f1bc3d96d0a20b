"""What a batch of rows adds to the sums: plain dictionaries, so that a database row is touched once for all."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from functools import lru_cache
from typing import TypeVar

from twisted_vllm.ledger.values import UsageRow
from twisted_vllm.store.bulk import Values
from twisted_vllm.store.usage_tables import ALL, DAY, END_USER, KEY, MONTH, TAG, TEAM, USER

DAY_US = 86_400_000_000
_EPOCH = date(1970, 1, 1)

#: the columns after the key, in the tables' order
Sums = list[int]
K = TypeVar("K")


def is_successful(row: UsageRow) -> bool:
    """Whether the client got the whole of an answer that is no error."""
    return row.outcome == "completed" and row.status < 400


def _sums_of(rows: list[UsageRow]) -> Sums:
    if len(rows) == 1:
        [row] = rows
        successful = int(is_successful(row))
        return [
            *(1, successful, 1 - successful),
            *(row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.reasoning_tokens, row.total_tokens),
            *(row.audio_ms, row.cost, row.total_us),
        ]
    successful = sum([is_successful(row) for row in rows])
    return [
        *(len(rows), successful, len(rows) - successful),
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
def _day(number: int) -> str:
    """Return a day by its number since 1970."""
    return (_EPOCH + timedelta(days=number)).isoformat()


class BatchSums:
    """The sums of some rows.

    Attributes:
        daily: rows of ``usage_daily``, sorted by their key.
        totals: rows of ``usage_totals``, likewise. Every process takes the locks in this order.
    """

    def __init__(self, rows: Sequence[UsageRow]) -> None:
        """Add up."""
        whole: dict[tuple[int, str, str | None, str | None, str], list[UsageRow]] = {}
        parts: dict[tuple[str, int, str, str], list[UsageRow]] = {}
        for row in rows:
            number, model = row.time // DAY_US, row.model
            _gather(whole, (number, row.key_id, row.user_id, row.team_id, model), row)
            _gather(parts, (END_USER, number, row.end_user or "", model), row)
            for tag in dict.fromkeys(row.tags):
                _gather(parts, (TAG, number, tag, model), row)
        daily: dict[tuple[str, ...], Sums] = {}
        totals: dict[tuple[str, ...], Sums] = {}
        for (number, key_id, user_id, team_id, model), members in whole.items():
            day, sums = _day(number), _sums_of(members)
            _add(daily, (day, key_id, user_id or "", team_id or "", model), sums)
            for dimension, value in ((ALL, ""), (KEY, key_id), (USER, user_id or ""), (TEAM, team_id or "")):
                _add(totals, (dimension, DAY, day, value, model), sums)
        for (dimension, number, value, model), members in parts.items():
            _add(totals, (dimension, DAY, _day(number), value, model), _sums_of(members))
        for (dimension, _, day, value, model), sums in list(totals.items()):
            _add(totals, (dimension, MONTH, f"{day[:-2]}01", value, model), sums)
        self.daily: list[Values] = [(*key, *daily[key]) for key in sorted(daily)]
        self.totals: list[Values] = [(*key, *totals[key]) for key in sorted(totals)]


def _gather(groups: dict[K, list[UsageRow]], key: K, row: UsageRow) -> None:
    members = groups.get(key)
    if members is None:
        groups[key] = [row]
    else:
        members.append(row)


def _add(target: dict[tuple[str, ...], Sums], key: tuple[str, ...], sums: Sums) -> None:
    found = target.get(key)
    target[key] = sums if found is None else [a + b for a, b in zip(found, sums, strict=True)]
