"""Watches how much of their budgets keys, users, teams and the others have used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heappush, heappushpop
from itertools import islice
from math import inf
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twisted_vllm.auth.grants import KeyGrant
from twisted_vllm.auth.key_index import KeyIndex
from twisted_vllm.http.net.bounded_turns import Cooperate
from twisted_vllm.ratelimit.allowance import KEY, MODEL_BUDGET, SEPARATOR
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.periods import period_of
from twisted_vllm.ratelimit.used_budget import UsedBudget
from twisted_vllm.ratelimit.watched_budgets import WatchedBudgets

#: the shares of a budget that are told, in percent, in ascending order
SHARES = (80, 90, 100)

#: seconds between two looks
INTERVAL = 30.0

#: percent of the budget that the spend must fall below a share before reaching that share is told again
HYSTERESIS = 5

#: soft budgets that were reached, and wait for the next look
MOST_SOFT = 10_000

#: budgets of a kind that are known by name: those that are used most
MOST_SHOWN = 20

#: budgets, or keys, that are looked at in one step
STEP = 250


class Crossing(msgspec.Struct, frozen=True, gc=False):
    """Somebody has used a share of a budget. Amounts are in picodollars, times in Unix seconds.

    Attributes:
        kind: as in `Limited`.
        id: likewise.
        share: the highest share that was reached: 80, 90 or 100 percent; 0 if it is the soft budget.
        spent: what was spent in the period.
        max_budget: the budget; 0 if there is only a soft one.
        began: when the period began; 0 without periods.
        ends: when it ends; infinity without periods.
        key: the key that has the budget, or the budget for one model, if it still exists; None for the others.
        soft_budget: the soft budget, if that was reached.
    """

    kind: str
    id: str
    share: int
    spent: int
    max_budget: int
    began: int
    ends: float
    key: KeyGrant | None = None
    soft_budget: int | None = None


#: the budgets of a kind that are used most: their shares and ids, the least used first
_Heap = list[tuple[float, str, UsedBudget]]


class BudgetWatch:
    """Looks through all budgets, twice a minute and in steps.

    A share is told once per period. What the database had already when the process first knew of a budget is not told:
    it was told before a restart. If several processes count in Redis, each looks at what the database has, which is
    behind by the rows that are not written yet.

    Attributes:
        on_crossing: called for each crossing, once a look has ended.
        most_used: the budgets that are used most, as the last look found, at most `MOST_SHOWN` of a kind.
    """

    _log = Logger()

    def __init__(self, budgets: WatchedBudgets, index: KeyIndex, cooperate: Cooperate, clock: Any) -> None:
        """Set up; nothing is watched yet.

        Args:
            budgets: the budgets.
            index: knows who has which budget.
            cooperate: runs an iterator in steps.
            clock: the reactor's clock (``IReactorTime``).
        """
        self.on_crossing: list[Callable[[Crossing], None]] = []
        self._budgets = budgets
        self._index = index
        self._cooperate = cooperate
        self._clock = clock
        self._soft: list[Crossing] = []
        self._counts: Mapping[tuple[str, int], int] = {}
        self.most_used: Sequence[UsedBudget] = ()
        self._loop = LoopingCall(self.look)
        self._loop.clock = clock

    def start(self) -> None:
        """Look at once, and again and again."""
        self._loop.start(INTERVAL)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._loop.running:
            self._loop.stop()

    def soft_budget_crossed(self, kind: str, id: str, spent: int, soft: int) -> None:
        """Tell with the next look that a soft budget was reached."""
        if self.on_crossing and len(self._soft) < MOST_SOFT:
            allowance = self._index.allowance_of(kind, id)
            began, ends = period_of(allowance.budget_duration, self._clock.seconds())
            crossing = Crossing(
                kind, id, 0, spent, allowance.max_budget or 0, began, inf if ends is None else ends, soft_budget=soft
            )
            self._soft.append(crossing)

    def counts(self) -> Mapping[tuple[str, int], int]:
        """Return how many budgets of a kind have at least a share used, by kind and share, as the last look found.

        A kind of which none has used 80 percent is missing. A budget of 0 is not counted: nothing can be spent of it.
        """
        return self._counts

    def look(self) -> Deferred[Any]:
        """Look through all budgets; the Deferred fires when that is done, and never fails."""
        return self._cooperate(self._steps()).whenDone().addErrback(self._failed)

    def _failed(self, failure: Any) -> None:
        self._log.failure("The budgets could not be looked through", failure)

    def _steps(self) -> Iterator[Deferred[Any] | None]:
        counts: dict[tuple[str, int], int] = {}
        crossings, self._soft = self._soft, []
        wanted = {_key_of(each.kind, each.id) for each in crossings}
        most_used: dict[str, _Heap] = {}
        for step in self._budgets.steps(STEP):
            if isinstance(step, Deferred):
                page: list[Budget] = []
                yield step.addCallback(page.extend)
                step = page
            told = [(budget, budget.told) for budget in step]
            now = self._clock.seconds()
            for budget in step:
                crossing = self._look_at(budget, now, counts, most_used)
                if crossing is not None and self.on_crossing:
                    crossings.append(crossing)
                    wanted.add(_key_of(crossing.kind, crossing.id))
            self._budgets.told([budget for budget, before in told if budget.told != before])
            yield None
        self._counts = counts
        keys: dict[str, KeyGrant] = {}
        # the index is large: who was known the last time is not looked for
        names = {(each.kind, each.id): (each.name, each.token) for each in self.most_used if each.token}
        nameless = {_key_of(each.kind, each.id) for found in most_used.values() for _, _, each in found}
        wanted |= nameless - {_key_of(*each) for each in names}
        wanted.discard("")
        grants = iter(self._index.grants() if wanted else ())
        while found := list(islice(grants, STEP)):
            keys.update((grant.key_id, grant) for grant in found if grant.key_id in wanted)
            yield None
        self.most_used = [_named(each, names, keys) for found in most_used.values() for each in _most_first(found)]
        for each in crossings:
            if (key := keys.get(_key_of(each.kind, each.id))) is not None:
                each = msgspec.structs.replace(each, key=key)
            for tell in self.on_crossing:
                try:
                    tell(each)
                except Exception:
                    self._log.failure("What is told of budgets failed")
            yield None

    def _look_at(
        self,
        budget: Budget,
        now: float,
        counts: dict[tuple[str, int], int],
        most_used: dict[str, _Heap],
    ) -> Crossing | None:
        kind, id = budget.key
        allowance = self._index.allowance_of(kind, id)
        most = allowance.max_budget
        if not most:
            return None
        budget.enter_period(allowance.budget_duration, now)
        spent = budget.spent
        if spent:
            _keep(most_used.setdefault(kind, []), budget, most)
        # it may fall and rise a little without being told again
        budget.told = min(budget.told, spent + most * HYSTERESIS // 100)
        share = reached(spent, most)
        if not share:
            return None
        for each in SHARES:
            if each <= share:
                counts[kind, each] = counts.get((kind, each), 0) + 1
        if share <= reached(budget.told, most):
            return None
        budget.told = spent
        return Crossing(kind, id, share, spent, most, budget.start, budget.ends)


def _key_of(kind: str, id: str) -> str:
    """Return the id of the key that has a budget; empty if none does."""
    if kind == MODEL_BUDGET:
        holder, _, rest = id.partition(SEPARATOR)
        return rest.rpartition(SEPARATOR)[0] if holder == KEY else ""
    return id if kind == KEY else ""


def _keep(found: _Heap, budget: Budget, most: int) -> None:
    """Keep a budget if it is one of those that are used most."""
    share = budget.spent / most
    if len(found) >= MOST_SHOWN and share <= found[0][0]:
        return
    entry = (share, budget.key[1], UsedBudget(*budget.key, budget.spent, most, budget.ends))
    if len(found) >= MOST_SHOWN:
        heappushpop(found, entry)
    else:
        heappush(found, entry)


def _most_first(found: _Heap) -> list[UsedBudget]:
    return [each for _, _, each in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def _named(
    budget: UsedBudget, names: Mapping[tuple[str, str], tuple[str, str]], keys: Mapping[str, KeyGrant]
) -> UsedBudget:
    key = keys.get(_key_of(budget.kind, budget.id))
    name, token = names.get((budget.kind, budget.id), ("", "")) if key is None else (key.name, key.token)
    return msgspec.structs.replace(budget, name=name, token=token) if token else budget


def reached(spent: int, max_budget: int) -> int:
    """Return the highest of `SHARES` that was spent of a budget above 0; 0 for none."""
    return next((share for share in reversed(SHARES) if spent * 100 >= share * max_budget), 0)
