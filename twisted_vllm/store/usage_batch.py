"""A batch of the ledger's rows as columns, and in groups of rows that are alike.

A row costs the writer's thread microseconds, so what is done for each is done by the interpreter's own loops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from twisted_vllm.ledger.values import Payer, Target, UsageRow
from twisted_vllm.store.bulk import Values
from twisted_vllm.store.usage_numbers import Numbers
from twisted_vllm.store.usage_tables import SUMS

DAY_US = 86_400_000_000

_FIELDS = UsageRow.__struct_fields__
_AT = {name: place for place, name in enumerate(_FIELDS)}
#: what is added up beside the number of requests
_ADDED_AT = tuple(_AT[name] for name in SUMS[3:])
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
        first: when the first of the rows began, in microseconds since 1970.
        last: when the last of them did.
    """

    __slots__ = ("_costs", "_times", "cost", "day", "first", "last", "sums")

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
        self.first, self.last = min(times), max(times)

    def cost_since(self, time: int) -> int:
        """Return what those rows cost that did not begin before a time in microseconds since 1970."""
        if time <= self.first:
            return self.cost
        return sum([cost for cost, began in zip(self._costs, self._times, strict=True) if began >= time])


class UsageBatch:
    """Rows of which none is there twice.

    Attributes:
        columns: the values of the ledger's columns, those of a column together.
        paid: the rows of a day that have payer and target in common.
        asked: likewise those that have end user and target in common; ``""`` is none.
    """

    def __init__(self, rows: Sequence[UsageRow], numbers: Numbers) -> None:
        """Take rows apart.

        Args:
            rows: some, at least one.
            numbers: gives their payers and targets numbers.

        Raises:
            UnicodeError: there is text that no database keeps.
        """
        self.columns: list[Sequence[Any]] = list(zip(*map(_astuple, rows), strict=True))
        columns, at = self.columns, _AT
        times, end_users = columns[at["time"]], columns[at["end_user"]]
        successes = [
            outcome == "completed" and status < 400
            for outcome, status in zip(columns[at["outcome"]], columns[at["status"]], strict=True)
        ]
        measures = [times, successes, *(columns[place] for place in _ADDED_AT)]
        first, last = min(times) // DAY_US, max(times) // DAY_US
        days = [first] * len(rows) if first == last else [time // DAY_US for time in times]
        payers = list(map(numbers.payers.__getitem__, columns[at["payer"]]))
        targets = list(map(numbers.targets.__getitem__, columns[at["target"]]))
        payer_of = dict(zip(payers, columns[at["payer"]], strict=True))
        target_of = dict(zip(targets, columns[at["target"]], strict=True))
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
        columns[at["payer"]], columns[at["target"]] = payers, targets
        for name, change in (("request_id", str), ("error", str), ("headers", _json_text)):
            values = columns[at[name]]
            columns[at[name]] = (
                [change(value) if value else None for value in values] if any(values) else [None] * len(rows)
            )
        # an integer is what SQLite keeps, and its driver looks for no adapter
        for name in ("stream", "estimated"):
            columns[at[name]] = list(map(int, columns[at[name]]))

    def rows(self) -> list[Values]:
        """Return the values of the ledger's columns, those of a row together."""
        return list(zip(*self.columns, strict=True))


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
