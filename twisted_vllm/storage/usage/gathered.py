"""What many batches of rows add up to, gathered in memory until it is written. No I/O.

With ten thousand active keys, nearly each row of a batch changes other rows of the sums, in other pages of the
database. Gathered over many batches, each of them is changed once for many rows, and in the order of the table.

Ids are hashes, so their first six bits divide them evenly into shards that are ranges of the tables' order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import add

import attrs

from twisted_vllm.ratelimit.allowance import PROXY
from twisted_vllm.storage.usage.batch import UsageBatch
from twisted_vllm.storage.usage.tables import (
    ALL,
    END_USER,
    KEY,
    OF_END_USER,
    OF_FAILURE,
    OF_REQUEST,
    OF_RESPONSE,
    OF_TAG,
    ORGANIZATION,
    STORED_SUMS,
    TAG,
    TEAM,
    USER,
    failure_texts,
    lookup_id,
    name_id,
)
from twisted_vllm.usage.records import payer_of

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


#: by day (in days since 1970), payer or another value, and the model's `name_id`
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
        payer_texts: the payers' JSON by id.
        models: the models' names by `name_id`.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.rows = self.entries = 0
        self.payers: list[PayerSums] = [{} for _ in range(SHARDS)]
        self.end_users: list[NameSums] = [{} for _ in range(SHARDS)]
        self.tags: list[NameSums] = [{} for _ in range(SHARDS)]
        self.lookups: list[Lookups] = [{} for _ in range(SHARDS)]
        self.payer_texts: dict[int, bytes] = {}
        self.models: dict[int, str] = {}

    def add(self, batch: UsageBatch) -> None:
        """Add rows."""
        self.rows += len(batch.times)
        self.payer_texts.update(batch.payer_texts)
        model_ids: dict[int, int] = {}
        for id, name in batch.models.items():
            model_ids[id] = model = name_id(name)
            self.models[model] = name
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
        if len(set(batch.days)) == len(batch.payer_texts) == len(set(models)) == 1:
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
                self._add_named(self.end_users, (day, name, model), payer_of(batch.payer_texts[payer]).key_id, sums)

    def _add_tags(self, batch: UsageBatch, models: Sequence[int]) -> None:
        """Add the tags that the clients gave, but those that the payer has, whose sums follow from the payer's."""
        values = zip(*batch.measures, strict=True)
        for day, id, tags, model, sums in zip(
            batch.days, batch.payers, batch.request_tags, models, values, strict=True
        ):
            if tags:
                payer = payer_of(batch.payer_texts[id])
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
        if len(batch.payer_texts) == 1:
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
            failures: dict[str, list[int]] = {}
            columns = (batch.times, requests, successful, batch.statuses, batch.errors)
            for time, all, good, status, error in zip(*columns, strict=True):
                if all != good:
                    for reason in failure_texts(status, error):
                        failures.setdefault(reason, []).append(time)
            for reason, times in failures.items():
                self._look_up(lookup_id(OF_FAILURE, reason), times)
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


#: What a scope has to pay: when the last budget period with rows began, in Unix seconds; the cost of the rows of that
#: period, in picodollars; and the cost of all its rows.
Spent = tuple[int, int, int]


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
        self._payer_texts: dict[int, bytes] = {}

    @property
    def entries(self) -> int:
        return len(self._by_payer) + len(self._by_end_user)

    def add(self, batch: UsageBatch) -> None:
        """Add rows."""
        self.rows += len(batch.times)
        costs = batch.measures[_COST]
        if not any(costs):
            return
        self._payer_texts.update(batch.payer_texts)
        models = batch.models
        if len(batch.payer_texts) == len(batch.models) == 1 and not any(batch.end_users):
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

    def by_scope(self, also_pay: AlsoPay, period_start: PeriodStart) -> dict[Scope, Spent]:
        """Return what each scope has to pay."""
        costs: dict[Scope, int] = {}
        first, last_us = 2**62, 0
        for scopes, times, spent in self._paid(also_pay):
            cost = sum(spent)
            first, last_us = min(first, min(times)), max(last_us, max(times))
            for scope in scopes:
                costs[scope] = costs.get(scope, 0) + cost
        found: dict[Scope, Spent] = {}
        last = last_us / _MICROSECONDS
        changing: dict[Scope, None] = {}
        for scope, cost in costs.items():
            start = period_start(*scope, last)
            if start * _MICROSECONDS <= first:
                # all rows began in one period, as nearly always
                found[scope] = (start, cost, cost)
            else:
                changing[scope] = None
        if changing:
            found |= _by_period(self._paid(also_pay), changing, period_start)
        return found

    def forget(self) -> None:
        """Free the memory of what `by_scope` returned."""
        self._by_payer, self._by_end_user, self._payer_texts = {}, {}, {}

    def _paid(self, also_pay: AlsoPay) -> Iterator[tuple[list[Scope], list[int], list[int]]]:
        for (id, model), (times, costs) in self._by_payer.items():
            payer = payer_of(self._payer_texts[id])
            payers: list[Scope] = []
            if payer.key_id:
                payers.append((KEY, payer.key_id))
            if payer.user_id:
                payers.append((USER, payer.user_id))
            if payer.team_id:
                payers.append((TEAM, payer.team_id))
            if payer.organization_id:
                payers.append((ORGANIZATION, payer.organization_id))
            payers.extend(also_pay(payers.copy(), model))
            yield payers, times, costs
        for (end_user, model), (times, costs) in self._by_end_user.items():
            payers = [(END_USER, end_user)]
            payers.extend([each for each in also_pay(payers.copy(), model) if each[0] != PROXY])
            yield payers, times, costs


def _by_period(
    paid: Iterable[tuple[list[Scope], list[int], list[int]]], among: Mapping[Scope, object], period_start: PeriodStart
) -> dict[Scope, Spent]:
    """Return what some scopes have to pay, whose rows began in several periods."""
    found: dict[Scope, Spent] = {}
    for scopes, times, costs in paid:
        cost, first, last = sum(costs), min(times), max(times) / _MICROSECONDS
        for scope in scopes:
            if scope in among:
                start = period_start(*scope, last)
                start_us = start * _MICROSECONDS
                amount = cost
                if start_us > first:
                    amount = sum(each for each, began in zip(costs, times, strict=True) if began >= start_us)
                found[scope] = _together(found.get(scope), (start, amount, cost))
    return found


def _together(one: Spent | None, other: Spent) -> Spent:
    """Return what was spent twice together: what was spent in an older period counts in the total alone."""
    if one is None:
        return other
    late, early = (one, other) if one[0] >= other[0] else (other, one)
    return late[0], late[1] + (early[1] if early[0] == late[0] else 0), late[2] + early[2]


class DerivedSums:
    """Sums that follow from those of payers.

    Attributes:
        sums: by dimension, those of each shard of the value; of end users, those of requests that name none.
        names: the values' names by `name_id`.
    """

    def __init__(self, gathered: GatheredSums) -> None:
        """Derive them."""
        self.sums: dict[str, list[PayerSums]] = {
            dimension: [{} for _ in range(SHARDS)] for dimension in (ALL, USER, TEAM, ORGANIZATION, END_USER, TAG)
        }
        self.names: dict[int, str] = {}
        for shard in gathered.payers:
            for (day, id, model), sums in shard.items():
                payer = payer_of(gathered.payer_texts[id])
                self._add(ALL, "", day, model, sums)
                self._add(USER, payer.user_id or "", day, model, sums)
                self._add(TEAM, payer.team_id or "", day, model, sums)
                if payer.organization_id:
                    self._add(ORGANIZATION, payer.organization_id, day, model, sums)
                for tag in dict.fromkeys(payer.tags):
                    self._add(TAG, tag, day, model, sums)
        named: defaultdict[tuple[int, int, int], list[Sums]] = defaultdict(list)
        for names in gathered.end_users:
            for (day, _, model), each in names.items():
                named[day, 0, model].append(each.sums)
        for key, sums in self.sums[ALL][0].items():
            rest = tuple(total - sum(each) for total, *each in zip(sums, *named.get(key, ()), strict=True))
            if any(rest):
                self.sums[END_USER][0][key] = rest

    def _add(self, dimension: str, name: str, day: int, model: int, sums: Sums) -> None:
        value = name_id(name)
        self.names[value] = name
        shard, key = self.sums[dimension][shard_of(value)], (day, value, model)
        found = shard.get(key)
        shard[key] = sums if found is None else tuple(map(add, found, sums))
