"""What many batches of rows add up to, gathered in memory until it is written. No I/O.

With ten thousand active keys, nearly each row of a batch changes other rows of the sums, in other pages of the
database. Gathered over many batches, each of them is changed once for many rows, and in the order of the table.

Ids are hashes, so their first six bits divide them evenly into shards that are ranges of the tables' order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import add
from zlib import crc32

import attrs

from twisted_vllm.ratelimit.allowance import PROXY
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.tables import (
    END_USER,
    KEY,
    OF_END_USER,
    OF_FAILURE,
    OF_REQUEST,
    OF_RESPONSE,
    OF_TAG,
    ORGANIZATION,
    STORED_SUMS,
    TEAM,
    USER,
    lookup_id,
    name_id,
)
from twisted_vllm.usage.records import Payer

#: the shards of ids of 63 bits
SHARDS = 64
_SHIFT = 57

#: who spends: kind and id
Scope = tuple[str, str]
#: ``period_start(kind, id, time)`` returns when the budget period of a time began; both in Unix seconds
PeriodStart = Callable[[str, str, float], int]
#: ``also_pay(payers, model)`` returns whose budgets pay for a request of this model besides its payers
AlsoPay = Callable[[Iterable[Scope], str], Iterable[Scope]]

#: values in the order of `STORED_SUMS`
Sums = tuple[int, ...]

_MICROSECONDS = 1_000_000
_COST, _SUCCESSFUL, _REQUESTS = (STORED_SUMS.index(name) for name in ("cost", "successful", "requests"))
_FAILURE = lookup_id(OF_FAILURE, "")


def shard_of(id: int) -> int:
    """Return the shard of an id."""
    return id >> _SHIFT


def nobody_else(_payers: Iterable[Scope], _model: str) -> Iterable[Scope]:
    """Return nobody: the default of `AlsoPay`."""
    return ()


@attrs.define
class NamedSums:
    """Sums of an end user or a tag.

    Attributes:
        key_id: who named it first; empty for the master key.
        sums: its sums.
    """

    key_id: str
    sums: Sums


#: by day (in days since 1970), payer and the model's `name_id`
PayerSums = dict[tuple[int, int, int], Sums]
#: by day, name and the model's `name_id`
NameSums = dict[tuple[int, str, int], NamedSums]
#: times by `lookup_id`
Lookups = dict[int, list[int]]


class GatheredSums:
    """Sums and look-ups of rows.

    Attributes:
        rows: how many rows there are.
        entries: how many sums and look-ups there are, for a bound of the memory.
        payers: sums by shard of the payer.
        end_users: sums by shard of the end user.
        tags: sums by shard of the tag, of the tags that clients gave.
        lookups: look-ups by shard of the value.
        payer_of: the payers by id.
        models: the models' names by `name_id`.
        first: the time of the oldest row, in microseconds since 1970.
        last: that of the newest.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.rows = self.entries = 0
        self.payers: list[PayerSums] = [{} for _ in range(SHARDS)]
        self.end_users: list[NameSums] = [{} for _ in range(SHARDS)]
        self.tags: list[NameSums] = [{} for _ in range(SHARDS)]
        self.lookups: list[Lookups] = [{} for _ in range(SHARDS)]
        self.payer_of: dict[int, Payer] = {}
        self.models: dict[int, str] = {}
        self.first, self.last = 2**62, 0

    def add(self, batch: UsageBatch) -> None:
        """Add rows."""
        self.rows += len(batch.times)
        self.first, self.last = min(self.first, *batch.times), max(self.last, *batch.times)
        self.payer_of.update(batch.payer_of)
        model_ids: dict[int, int] = {}
        for id, target in batch.target_of.items():
            model_ids[id] = model = name_id(target.model)
            self.models[model] = target.model
        models = [model_ids[id] for id in batch.targets]
        self._add_payers(batch, models)
        if any(batch.end_users):
            self._add_end_users(batch, models)
        if any(batch.request_tags):
            self._add_tags(batch, models)
        self._add_lookups(batch)

    def _add_payers(self, batch: UsageBatch, models: Sequence[int]) -> None:
        first = (batch.days[0], batch.payers[0], models[0])
        values: Iterable[tuple[tuple[int, int, int], Sums]]
        if len(set(batch.days)) == len(batch.payer_of) == len(set(models)) == 1:
            # Where one key uses one model, this saves most of a row's time.
            values = [(first, tuple(map(sum, batch.measures)))]
        else:
            keys = zip(batch.days, batch.payers, models, strict=True)
            values = zip(keys, zip(*batch.measures, strict=True), strict=True)
        shards = self.payers
        for key, sums in values:
            shard = shards[key[1] >> _SHIFT]
            found = shard.get(key)
            if found is None:
                self.entries += 1
                shard[key] = sums
            else:
                shard[key] = tuple(map(add, found, sums))

    def _add_end_users(self, batch: UsageBatch, models: Sequence[int]) -> None:
        values = zip(*batch.measures, strict=True)
        for day, payer, name, model, sums in zip(
            batch.days, batch.payers, batch.end_users, models, values, strict=True
        ):
            if name:
                self._add_named(self.end_users, (day, name, model), batch.payer_of[payer].key_id, sums)

    def _add_tags(self, batch: UsageBatch, models: Sequence[int]) -> None:
        """Add the tags that the clients gave, but those that the payer has, whose sums follow from the payer's."""
        values = zip(*batch.measures, strict=True)
        for day, id, tags, model, sums in zip(
            batch.days, batch.payers, batch.request_tags, models, values, strict=True
        ):
            if tags:
                payer = batch.payer_of[id]
                for tag in dict.fromkeys(tags):
                    if tag not in payer.tags:
                        self._add_named(self.tags, (day, tag, model), payer.key_id, sums)

    def _add_named(self, shards: list[NameSums], key: tuple[int, str, int], key_id: str, sums: Sums) -> None:
        shard = shards[name_id(key[1]) >> _SHIFT]
        found = shard.get(key)
        if found is None:
            # A long name takes the memory of several.
            self.entries += 1 + (len(key[1]) >> 7)
            shard[key] = NamedSums(key_id, sums)
        else:
            found.sums = tuple(map(add, found.sums, sums))

    def _add_lookups(self, batch: UsageBatch) -> None:
        if len(batch.payer_of) == 1:
            self._look_up(batch.payers[0], batch.times)
        else:
            shards = self.lookups
            for payer, time in zip(batch.payers, batch.times, strict=True):
                shard = shards[payer >> _SHIFT]
                found = shard.get(payer)
                if found is None:
                    self.entries += 1
                    shard[payer] = [time]
                else:
                    found.append(time)
        requests, successful = batch.measures[_REQUESTS], batch.measures[_SUCCESSFUL]
        if requests != successful:
            failed = zip(batch.times, requests, successful, strict=True)
            self._look_up(_FAILURE, [time for time, all, good in failed if all != good])
        for what, column in (
            (OF_END_USER, batch.end_users),
            (OF_REQUEST, batch.request_ids),
            (OF_RESPONSE, batch.response_ids),
        ):
            if any(column):
                for text, time in zip(column, batch.times, strict=True):
                    if text:
                        self._look_up(lookup_id(what, text), (time,))
        if any(batch.request_tags):
            for tags, time in zip(batch.request_tags, batch.times, strict=True):
                for tag in dict.fromkeys(tags):
                    self._look_up(lookup_id(OF_TAG, tag), (time,))

    def _look_up(self, value: int, times: Sequence[int]) -> None:
        if not times:
            return
        shard = self.lookups[value >> _SHIFT]
        found = shard.get(value)
        if found is None:
            self.entries += 1
            shard[value] = list(times)
        else:
            found.extend(times)


@attrs.frozen
class Spent:
    """What a scope has to pay.

    Attributes:
        start: when the last budget period with rows began, in Unix seconds.
        amount: the cost of the rows of that period, in picodollars.
        cost: the cost of all its rows.
    """

    start: int
    amount: int
    cost: int

    def __add__(self, other: Spent) -> Spent:
        """Return both together: what was spent in an older period counts in the total alone."""
        late, early = (self, other) if self.start >= other.start else (other, self)
        amount = late.amount + (early.amount if early.start == late.start else 0)
        return Spent(late.start, amount, late.cost + early.cost)


class GatheredSpend:
    """What rows cost, by who pays.

    Attributes:
        rows: how many rows there are.
        entries: how many payers and end users there are, of each model.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.rows = 0
        #: the times and costs of the rows by payer and model, and by end user and model
        self._by_payer: dict[tuple[int, str], tuple[list[int], list[int]]] = {}
        self._by_end_user: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self._payer_of: dict[int, Payer] = {}

    @property
    def entries(self) -> int:
        return len(self._by_payer) + len(self._by_end_user)

    def add(self, batch: UsageBatch) -> None:
        """Add rows."""
        self.rows += len(batch.times)
        costs = batch.measures[_COST]
        if not any(costs):
            return
        self._payer_of.update(batch.payer_of)
        models = {id: target.model for id, target in batch.target_of.items()}
        if len(batch.payer_of) == len(batch.target_of) == 1 and not any(batch.end_users):
            key = (batch.payers[0], models[batch.targets[0]])
            times, spent = self._by_payer.setdefault(key, ([], []))
            times += batch.times
            spent += costs
            return
        for time, payer, target, end_user, cost in zip(
            batch.times, batch.payers, batch.targets, batch.end_users, costs, strict=True
        ):
            if cost:
                model = models[target]
                times, spent = self._by_payer.setdefault((payer, model), ([], []))
                times.append(time)
                spent.append(cost)
                if end_user:
                    times, spent = self._by_end_user.setdefault((end_user, model), ([], []))
                    times.append(time)
                    spent.append(cost)

    def by_scope(self, also_pay: AlsoPay, period_start: PeriodStart) -> list[dict[Scope, Spent]]:
        """Return what each scope has to pay, by shard of the scope."""
        found: list[dict[Scope, Spent]] = [{} for _ in range(SHARDS)]
        for scopes, times, costs in self._paid(also_pay):
            cost, first, last = sum(costs), min(times), max(times) / _MICROSECONDS
            for scope in scopes:
                start = period_start(*scope, last)
                start_us = start * _MICROSECONDS
                amount = cost
                if start_us > first:
                    amount = sum(each for each, began in zip(costs, times, strict=True) if began >= start_us)
                spent = Spent(start, amount, cost)
                shard = found[scope_shard(scope)]
                former = shard.get(scope)
                shard[scope] = spent if former is None else former + spent
        return found

    def _paid(self, also_pay: AlsoPay) -> Iterator[tuple[list[Scope], list[int], list[int]]]:
        for (id, model), (times, costs) in self._by_payer.items():
            payers = list(_payers(self._payer_of[id]))
            yield [*payers, *also_pay(payers, model)], times, costs
        for (end_user, model), (times, costs) in self._by_end_user.items():
            payers = [(END_USER, end_user)]
            yield [*payers, *(each for each in also_pay(payers, model) if each[0] != PROXY)], times, costs


def scope_shard(scope: Scope) -> int:
    """Return the shard of a scope, which is the same in all processes."""
    return crc32(f"{scope[0]}:{scope[1]}".encode("utf-8", "surrogatepass")) % SHARDS


def _payers(payer: Payer) -> Iterator[Scope]:
    if payer.key_id:
        yield KEY, payer.key_id
    if payer.user_id:
        yield USER, payer.user_id
    if payer.team_id:
        yield TEAM, payer.team_id
    if payer.organization_id:
        yield ORGANIZATION, payer.organization_id


@attrs.frozen
class DerivedSums:
    """Sums that follow from those of payers, by shard of the value.

    Attributes:
        all: by day and model, in one shard.
        users: by day, user and model; likewise `teams`, `organizations` and `tags`.
        no_end_user: by day and model, those of requests that name no end user.
    """

    all: dict[tuple[int, str, int], Sums]
    users: list[dict[tuple[int, str, int], Sums]]
    teams: list[dict[tuple[int, str, int], Sums]]
    organizations: list[dict[tuple[int, str, int], Sums]]
    tags: list[dict[tuple[int, str, int], Sums]]
    no_end_user: dict[tuple[int, str, int], Sums]


def derive(gathered: GatheredSums) -> DerivedSums:
    """Return the sums that follow from those of payers."""
    everything: dict[tuple[int, str, int], Sums] = {}
    users, teams, organizations, tags = _shards(), _shards(), _shards(), _shards()
    for shard in gathered.payers:
        for (day, id, model), sums in shard.items():
            payer = gathered.payer_of[id]
            _merge(everything, (day, "", model), sums)
            for shards, name in ((users, payer.user_id), (teams, payer.team_id)):
                _merge(shards[name_id(name or "") >> _SHIFT], (day, name or "", model), sums)
            if payer.organization_id:
                _merge(
                    organizations[name_id(payer.organization_id) >> _SHIFT], (day, payer.organization_id, model), sums
                )
            for tag in dict.fromkeys(payer.tags):
                _merge(tags[name_id(tag) >> _SHIFT], (day, tag, model), sums)
    named: defaultdict[tuple[int, str, int], list[Sums]] = defaultdict(list)
    for names in gathered.end_users:
        for (day, _, model), each in names.items():
            named[day, "", model].append(each.sums)
    nobody = {
        key: tuple(total - sum(each) for total, *each in zip(sums, *named.get(key, ()), strict=True))
        for key, sums in everything.items()
    }
    return DerivedSums(
        everything, users, teams, organizations, tags, {key: each for key, each in nobody.items() if any(each)}
    )


def _shards() -> list[dict[tuple[int, str, int], Sums]]:
    return [{} for _ in range(SHARDS)]


def _merge(sums: dict[tuple[int, str, int], Sums], key: tuple[int, str, int], more: Sums) -> None:
    found = sums.get(key)
    sums[key] = more if found is None else tuple(map(add, found, more))
