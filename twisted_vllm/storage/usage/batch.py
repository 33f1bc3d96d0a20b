"""A batch of the ledger's rows as values, and in groups of rows that are alike.

A row costs the writer's thread microseconds, so what is done for each is done by the interpreter's own loops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import msgspec

from twisted_vllm.storage.usage.bulk_insert import Values
from twisted_vllm.storage.usage.references import Numbers
from twisted_vllm.storage.usage.tables import SUMS
from twisted_vllm.usage.records import Payer, Target, UsageRow

DAY_US = 86_400_000_000

_AT = {name: place for place, name in enumerate(UsageRow.__struct_fields__)}
_WIDTH = len(_AT)
#: where the cost stands among these, and in `Sums`
_COST, _COST_SUM = SUMS.index("cost") - 3, SUMS.index("cost")

K = TypeVar("K")

_json = msgspec.json.Encoder().encode
_astuple = msgspec.structs.astuple

#: in the order of `SUMS`
Sums = list[int]


class Group:
    """Rows of one day that have something in common.

    Attributes:
        day: the number of the day since 1970 (UTC).
        sums: of the rows.
        cost: of these, what the rows cost together, in picodollars.
    """

    def __init__(self, day: int, measures: Iterable[Sequence[int]]) -> None:
        """Add up.

        Args:
            day: which.
            measures: of the rows, a column of each: their times, whether they were successful, and what is added up.
        """
        self.day = day
        times, successes, *added = measures
        successful = sum(successes)
        self.sums: Sums = [len(times), successful, len(times) - successful, *map(sum, added)]
        self._times, self._costs = times, added[_COST]
        self.cost = self.sums[_COST_SUM]

    @cached_property
    def first(self) -> int:
        """When the first of the rows began, in microseconds since 1970."""
        return min(self._times)

    @cached_property
    def last(self) -> int:
        """When the last of them did."""
        return max(self._times)

    def cost_since(self, time: int) -> int:
        """Return what those rows cost that did not begin before a time in microseconds since 1970."""
        if time <= self.first:
            return self.cost
        return sum([cost for cost, began in zip(self._costs, self._times, strict=True) if began >= time])


class UsageBatch:
    """Rows of which none is there twice.

    Attributes:
        values: of the ledger's columns: those of the first row, then those of the second, and so on.
        paid: the rows of a day that have payer and target in common.
        asked: likewise those that have end user and target in common; ``""`` is none.
    """

    def __init__(self, rows: Sequence[UsageRow], numbers: Numbers) -> None:
        """Take rows apart.

        Args:
            rows: some, at least one.
            numbers: gives their payers and targets numbers.
        """
        self.values: list[Any] = list(chain.from_iterable(map(_astuple, rows)))
        times, end_users = self._column("time"), self._column("end_user")
        measures = [times, self._successes(), *map(self._column, SUMS[3:])]
        first, last = min(times) // DAY_US, max(times) // DAY_US
        days = [first] * len(rows) if first == last else [time // DAY_US for time in times]
        payers, payer_of = numbers.payers.of(self._column("payer"))
        targets, target_of = numbers.targets.of(self._column("target"))
        self.paid: list[tuple[Payer, Target, Group]] = [
            (payer_of[payer], target_of[target], Group(day, members))
            for (day, payer, target), members in _gather(days, payers, targets, measures)
        ]
        self.asked: list[tuple[str, Target, Group]] = [("", target, group) for _, target, group in self.paid]
        if any(end_users):
            self.asked = [
                (end_user or "", target_of[target], Group(day, members))
                for (day, end_user, target), members in _gather(days, end_users, targets, measures)
            ]
        self._put("payer", payers)
        self._put("target", targets)
        for name, change in (("request_id", str), ("error", str), ("headers", _json_text)):
            values = self._column(name)
            self._put(name, [change(each) if each else None for each in values] if any(values) else [None] * len(rows))

    def _successes(self) -> list[bool]:
        outcomes, statuses = self._column("outcome"), self._column("status")
        # which is said at once of equal objects
        if outcomes.count("completed") == statuses.count(200) == len(outcomes):
            return [True] * len(outcomes)
        return [outcome == "completed" and status < 400 for outcome, status in zip(outcomes, statuses, strict=True)]

    def _column(self, name: str) -> list[Any]:
        return self.values[_AT[name] :: _WIDTH]

    def _put(self, name: str, column: list[Any]) -> None:
        self.values[_AT[name] :: _WIDTH] = column

    def rows(self) -> list[Values]:
        """Return the values of the ledger's columns, those of a row together."""
        return [self.values[start : start + _WIDTH] for start in range(0, len(self.values), _WIDTH)]


def _gather(
    days: Sequence[int], whose: Sequence[K], targets: Sequence[int], measures: Sequence[Sequence[int]]
) -> Iterator[tuple[tuple[int, K, int], Iterable[Sequence[int]]]]:
    """Return the measures of the rows that have three things in common, for each such three."""
    found: defaultdict[tuple[int, K, int], list[tuple[int, ...]]] = defaultdict(list)
    if len(set(days)) == len(set(whose)) == len(set(targets)) == 1:
        yield (days[0], whose[0], targets[0]), measures
        return
    for key, measured in zip(zip(days, whose, targets, strict=True), zip(*measures, strict=True), strict=True):
        found[key].append(measured)
    for key, members in found.items():
        yield key, zip(*members, strict=True)


def _json_text(value: object) -> str:
    return _json(value).decode()
