"""What a batch of rows adds to the sums: plain dictionaries, so that a database row is touched once for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta
from functools import lru_cache
from operator import itemgetter

from twisted_vllm.storage.usage.batch import Sums, UsageBatch
from twisted_vllm.storage.usage.bulk_insert import Values
from twisted_vllm.storage.usage.tables import ALL, DAY, END_USER, MONTH, TAG, TEAM, USER

_EPOCH = date(1970, 1, 1)

#: what is added up, by what its row in the table is known by
_Parts = defaultdict[tuple[str, ...], list[Sums]]
_key = itemgetter(0)


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    """Return a day by its number since 1970."""
    return (_EPOCH + timedelta(days=number)).isoformat()


@lru_cache(maxsize=64)
def _month(day: str) -> str:
    """Return the first day of a day's month."""
    return f"{day[:-2]}01"


class BatchSums:
    """The sums of some rows, each list in the order of its key: every process takes the locks in this order.

    Attributes:
        daily: rows of ``usage_daily``.
        monthly: rows of ``usage_monthly``.
        totals: rows of ``usage_totals``.
    """

    def __init__(self, batch: UsageBatch) -> None:
        """Add up."""
        daily: _Parts = defaultdict(list)
        totals: _Parts = defaultdict(list)
        for payer, target, group in batch.paid:
            day, model, sums = _day(group.day), target.model, group.sums
            daily[day, payer.key_id, payer.user_id or "", payer.team_id or "", model].append(sums)
            for tag in dict.fromkeys(payer.tags):
                totals[TAG, DAY, day, tag, model].append(sums)
        for end_user, target, group in batch.asked:
            totals[END_USER, DAY, _day(group.day), end_user, target.model].append(group.sums)
        monthly: _Parts = defaultdict(list)
        # in the order in which the months are sorted as well, which then costs next to nothing
        in_order = sorted(daily.items(), key=_key)
        for (day, key_id, user_id, team_id, model), added in in_order:
            monthly[_month(day), key_id, user_id, team_id, model] += added
            totals[ALL, DAY, day, "", model] += added
            totals[USER, DAY, day, user_id, model] += added
            totals[TEAM, DAY, day, team_id, model] += added
        for (dimension, _, day, value, model), added in list(totals.items()):
            totals[dimension, MONTH, _month(day), value, model] += added
        self.daily = _rows(in_order)
        self.monthly = _rows(sorted(monthly.items(), key=_key))
        self.totals = _rows(sorted(totals.items(), key=_key))


def _rows(parts: Iterable[tuple[tuple[str, ...], list[Sums]]]) -> list[Values]:
    return [(*key, *(added[0] if len(added) == 1 else map(sum, zip(*added, strict=True)))) for key, added in parts]
