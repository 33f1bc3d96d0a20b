"""A batch of ledger rows, as columns and as groups for the sums.

The writer's thread spends microseconds on a row, so work per row is done by column, in the interpreter's own loops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import Connection

from twisted_vllm.storage.usage.bulk_insert import BulkInsert, Values
from twisted_vllm.storage.usage.daily_tags import DailyTags
from twisted_vllm.storage.usage.tables import DAY_US, SUMS, usage_payer_tags, usage_payers, usage_targets
from twisted_vllm.usage.records import Payer, Target, UsageRow, payer_of, target_of

#: payers, and targets, to cache as stored, besides those of one batch, and the bytes of their JSON; callers choose the
#: names in it. As objects they take three times these bytes.
MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 20_000, 8_000_000

V = TypeVar("V", Payer, Target)
K = TypeVar("K")

_json = msgspec.json.Encoder().encode
_astuple = msgspec.structs.astuple

_insert_payers = BulkInsert(usage_payers, "ON CONFLICT DO NOTHING")
_insert_payer_tags = BulkInsert(usage_payer_tags, "ON CONFLICT DO NOTHING")
_insert_targets = BulkInsert(usage_targets, "ON CONFLICT DO NOTHING")


def reference_id(text: bytes) -> int:
    """Return the id of a payer or target: 63 bits of the hash of its JSON, so that no database assigns it."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


class _ReferenceIds(dict[bytes, int], Generic[V]):
    """The ids of payers or targets by their JSON: those that are stored, or will be with this transaction.

    Attributes:
        referents: the payers or targets by id.
        size: the bytes of their JSON.
    """

    def __init__(self, decode: Callable[[bytes], V]) -> None:
        super().__init__()
        self.size = 0
        self.referents: dict[int, V] = {}
        self._decode: Callable[[bytes], V] = decode
        self._new: dict[int, V] = {}

    def __missing__(self, text: bytes) -> int:
        id = self[text] = reference_id(text)
        self.size += len(text)
        self.referents[id] = self._new[id] = self._decode(text)
        return id

    def take_new(self) -> list[tuple[int, V]]:
        """Return those that may not be stored yet, sorted, so that all processes lock in the same order."""
        found, self._new = sorted(self._new.items()), {}
        return found

    def forget(self) -> None:
        self.clear()
        self.size = 0
        self.referents.clear()
        self._new.clear()


class References:
    """Gives payers and targets their ids, and stores each once.

    Call `forget` when a transaction fails and when the connection is replaced.

    Attributes:
        daily_tags: decides which tags of requests have sums of their own.
    """

    def __init__(self) -> None:
        self.payers: _ReferenceIds[Payer] = _ReferenceIds(payer_of)
        self.targets: _ReferenceIds[Target] = _ReferenceIds(target_of)
        self.daily_tags = DailyTags()

    def trim(self) -> None:
        """Bound the memory; for the beginning of a transaction."""
        for ids in (self.payers, self.targets):
            if len(ids) > MAX_REMEMBERED or ids.size > MAX_REMEMBERED_BYTES:
                ids.forget()

    def forget(self) -> None:
        """Assume that nothing is stored."""
        self.payers.forget()
        self.targets.forget()
        self.daily_tags.forget()

    def write(self, connection: Connection) -> None:
        """Store the payers and targets that are new since the last call.

        Raises:
            SQLAlchemyError, UnicodeError: as `BulkInsert.run`.
        """
        payers, targets = self.payers.take_new(), self.targets.take_new()
        _insert_payers.run(connection, [_payer_values(id, payer) for id, payer in payers])
        _insert_payer_tags.run(connection, sorted((tag, id) for id, payer in payers for tag in set(payer.tags)))
        _insert_targets.run(connection, [_target_values(id, target) for id, target in targets])


def _payer_values(id: int, payer: Payer) -> Values:
    *texts, tags, organization_id = _astuple(payer)
    return (id, *texts, _json(tags).decode(), organization_id)


def _target_values(id: int, target: Target) -> Values:
    *texts, prices = _astuple(target)
    return (id, *texts, _json(dict(prices)).decode())


#: in the order of `SUMS`
Sums = list[int]
#: the index of the cost among the measures of `Group`, and in `Sums`
_COST, _COST_SUM = SUMS.index("cost") - 3, SUMS.index("cost")


class Group:
    """Rows of one day that have something in common.

    Attributes:
        day: days since 1970 (UTC).
        sums: of the rows.
        cost: of the rows together, in picodollars.
    """

    def __init__(self, day: int, measures: Iterable[Sequence[int]]) -> None:
        """Add up.

        Args:
            day: days since 1970.
            measures: columns of the rows: their times, their requests, the successful ones of these, and the values to
                add up.
        """
        self.day = day
        times, requests, successes, *added = measures
        counted, successful = sum(requests), sum(successes)
        self.sums: Sums = [counted, successful, counted - successful, *map(sum, added)]
        self._times, self._costs = times, added[_COST]
        self.cost = self.sums[_COST_SUM]

    @cached_property
    def first(self) -> int:
        """When the first of the rows began, in microseconds since 1970."""
        return min(self._times)

    @cached_property
    def last(self) -> int:
        """When the last of the rows began."""
        return max(self._times)

    def cost_since(self, time: int) -> int:
        """Return the cost of the rows that began at `time`, in microseconds since 1970, or later."""
        if time <= self.first:
            return self.cost
        return sum(cost for cost, began in zip(self._costs, self._times, strict=True) if began >= time)


class UsageBatch:
    """Rows without duplicates.

    Attributes:
        columns: the values of each column of the table `usage`, in its order.
        by_payer: the rows of each day, payer and target.
        by_end_user: the rows of each day, end user and target; ``""`` stands for no end user.
        by_request_tag: the rows of each day, payer, tag of their client that the payer has not, and target.
        request_tags: each such tag, with the time and the id of its row.
    """

    def __init__(self, rows: Sequence[UsageRow], references: References) -> None:
        """Turn rows into columns and groups.

        Args:
            rows: at least one.
            references: assigns ids to payers and targets.
        """
        column: dict[str, Sequence[Any]] = dict(
            zip(UsageRow.__struct_fields__, zip(*map(_astuple, rows), strict=True), strict=True)
        )
        times, end_users = column["time"], column["end_user"]
        requests = column["requests"]
        successes = [
            count if outcome == "completed" and status < 400 else 0
            for outcome, status, count in zip(column["outcome"], column["status"], requests, strict=True)
        ]
        measures = [times, requests, successes, *(column[name] for name in SUMS[3:])]
        days = [time // DAY_US for time in times]
        column["payer"] = [references.payers[bytes(text)] for text in column["payer"]]
        column["target"] = [references.targets[bytes(text)] for text in column["target"]]
        payers, targets = references.payers.referents, references.targets.referents
        self.by_payer: list[tuple[Payer, Target, Group]] = [
            (payers[payer], targets[target], group)
            for payer, target, group in _groups(days, column["payer"], column["target"], measures)
        ]
        self.by_end_user: list[tuple[str, Target, Group]] = [("", target, group) for _, target, group in self.by_payer]
        if any(end_users):
            self.by_end_user = [
                (end_user or "", targets[target], group)
                for end_user, target, group in _groups(days, end_users, column["target"], measures)
            ]
        self.by_request_tag: list[tuple[Payer, str, Target, Group]] = []
        self.request_tags: list[tuple[str, int, str]] = []
        if any(column["request_tags"]):
            self._add_tagged(column, days, measures, references)
        column["request_tags"] = [_json(each).decode() if each else None for each in column["request_tags"]]
        column["spend_metadata"] = [each or None for each in column["spend_metadata"]]
        column["response_id"] = [each or None for each in column["response_id"]]
        column["request_id"] = [each or None for each in column["request_id"]]
        column["error"] = [each or None for each in column["error"]]
        column["headers"] = [_json(each).decode() if each else None for each in column["headers"]]
        column["attempts"] = [each or None for each in column["attempts"]]
        column["requests"] = [None if each == 1 else each for each in requests]
        self.columns = list(column.values())

    def _add_tagged(
        self,
        column: Mapping[str, Sequence[Any]],
        days: Sequence[int],
        measures: Sequence[Sequence[int]],
        references: References,
    ) -> None:
        """Add the rows whose clients gave them tags, once for each of these."""
        payers, targets = references.payers.referents, references.targets.referents
        found: list[tuple[int, tuple[int, str]]] = []
        for number, (payer, tags) in enumerate(zip(column["payer"], column["request_tags"], strict=True)):
            if tags:
                found += [(number, (payer, tag)) for tag in dict.fromkeys(tags) if tag not in payers[payer].tags]
        if not found:
            return
        numbers = [number for number, _ in found]
        self.request_tags = sorted((tag, column["time"][number], column["id"][number]) for number, (_, tag) in found)
        self.by_request_tag = [
            (payers[payer], tag, targets[target], group)
            for (payer, tag), target, group in _groups(
                [days[number] for number in numbers],
                [key for _, key in found],
                [column["target"][number] for number in numbers],
                [[values[number] for number in numbers] for values in measures],
            )
        ]


def _groups(
    days: Sequence[int], first: Sequence[K], second: Sequence[int], measures: Sequence[Sequence[int]]
) -> Iterator[tuple[K, int, Group]]:
    """Return the rows of each day that have two things in common."""
    if len(set(days)) == len(set(first)) == len(set(second)) == 1:
        # Where one key uses one model, this saves a tenth of a row's CPU time.
        yield first[0], second[0], Group(days[0], measures)
        return
    found: defaultdict[tuple[int, K, int], list[tuple[int, ...]]] = defaultdict(list)
    for key, measured in zip(zip(days, first, second, strict=True), zip(*measures, strict=True), strict=True):
        found[key].append(measured)
    for (day, one, other), members in found.items():
        yield one, other, Group(day, zip(*members, strict=True))
