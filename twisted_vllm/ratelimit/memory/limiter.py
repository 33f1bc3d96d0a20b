"""Limits counted in this process's memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil

from twisted_vllm.errors import BudgetExceeded, RateLimitExceeded
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.memory.counters import Scope
from twisted_vllm.ratelimit.refusals import Refusal, error_of
from twisted_vllm.ratelimit.reservation import LocalReservation, Reservation, headers_of
from twisted_vllm.ratelimit.windows import WINDOW

#: what is told of a crossed soft budget: the kind, the id, what was spent, and the soft budget; in picodollars
SoftBudgetCrossed = Callable[[str, str, int, int], None]

#: seconds between two looks for what may be forgotten
_SWEEP_SECONDS = 0.1
#: how much one look may take on, so that nobody waits for it
_MOST_SWEPT = 4000


def tell_nobody(kind: str, id: str, spent: int, soft: int) -> None:
    """Ignore that a soft budget was crossed."""


class LocalLimiter:
    """Admits requests within the limits of everybody they concern, and counts what they use.

    Requests and parallel requests are counted when they are admitted, so that no burst gets past a limit. Tokens and
    money are reserved by an estimate, and settled to what was used: what was reserved too much is given back where it
    was counted, and what was not reserved is counted when it is known.

    An allowance may differ from one request to the next: the one that comes with the request holds, and what was
    counted before stays counted.

    Args:
        on_soft_budget: called when spending crosses a soft budget, once for each period.
    """

    def __init__(self, on_soft_budget: SoftBudgetCrossed = tell_nobody) -> None:
        self._on_soft_budget = on_soft_budget
        self._scopes: dict[tuple[str, str], Scope] = {}
        self._budgets: dict[tuple[str, str], Budget] = {}
        self._order: deque[Scope] = deque()
        self._latest = 0.0
        self._behind = 0
        self._swept_at = 0.0
        self._round = 0
        self._left_of_round = 0

    def __len__(self) -> int:
        """Return of how many keys, users, teams and end users something is counted at present."""
        return len(self._scopes)

    @property
    def in_flight(self) -> int:
        """The requests in flight, each counted once for everybody with limits that it concerns."""
        return sum(scope.in_work for scope in self._scopes.values())

    @property
    def spent(self) -> int:
        """What was spent in the present periods of all budgets, in picodollars."""
        return sum(budget.spent for budget in self._budgets.values())

    @property
    def reserved(self) -> int:
        """What requests in flight have reserved of all budgets, in picodollars."""
        return sum(budget.reserved for budget in self._budgets.values())

    def admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float) -> Reservation:
        """Let a request begin.

        Args:
            limited: whose request it is: everybody with limits that it concerns, each once.
            model: the model's name, for the limits of models; empty if it names none.
            tokens: how many it may use, as far as one can tell.
            cost: how much it may cost, in picodollars.
            now: Unix seconds.

        Raises:
            RateLimitExceeded, BudgetExceeded: a limit does not let it begin; then nothing at all was counted.
        """
        wall = now
        now += self._behind
        if now < self._latest:
            now = self._turned_back(now)
        self._latest = now
        if now - self._swept_at > _SWEEP_SECONDS:
            self._sweep(now)
        # What is used up lets nothing begin, whatever the estimate.
        needed_tokens, needed_cost = tokens or 1, cost or 1
        scopes = []
        known = self._scopes
        for who in limited:
            scope = known.get((who.kind, who.id)) or self._remember((who.kind, who.id), now)
            scopes.append(scope)
            allowance = who.allowance
            if allowance.max_budget is not None or allowance.soft_budget is not None:
                budget = scope.budget or self._open_budget(scope)
                if wall >= budget.ends or allowance.budget_duration != budget.duration:
                    budget.turn(allowance.budget_duration, wall)
            if not scope.has_room(allowance, model, needed_tokens, needed_cost, now):
                raise self._refusal(limited, model, needed_tokens, needed_cost, now, wall)
        reservation = LocalReservation(limited, model, tokens, cost, now, scopes)
        for who, scope in zip(limited, scopes):  # noqa: B905 - of one length, and each call of strict= costs
            allowance = who.allowance
            scope.take(reservation, allowance, model, tokens, now)
            known_budget = scope.budget
            if known_budget and (allowance.max_budget is not None or allowance.soft_budget is not None):
                known_budget.reserved += cost
                known_budget.soft = allowance.soft_budget
                reservation.budgets.append((known_budget, known_budget.epoch))
        return reservation

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, went_on: bool = True) -> None:
        """Count what a request used in place of what was reserved; of a second call for it nothing comes.

        Args:
            reservation: what `admit` returned.
            tokens: how many it used.
            cost: what it cost, in picodollars.
            now: Unix seconds.
            went_on: whether it counts as a request; False where the gateway turned it away after all.
        """
        if reservation.settled or not isinstance(reservation, LocalReservation):
            return
        reservation.settled = True
        now += self._behind
        if now < self._latest:
            now = self._turned_back(now)
        self._latest = now
        for scope in reservation.scopes:
            scope.in_work -= 1
            scope.used_at = now
        if not went_on:
            reservation.give_back(now)
        difference = tokens - reservation.tokens
        if difference:
            for window, bucket in reservation.charges:
                window.correct(bucket, difference, now)
        for budget, epoch in reservation.budgets:
            budget.settle(epoch, reservation.cost, cost)
            if budget.soft is not None:
                self._warn(budget)

    def budget_of(self, who: Limited, now: float) -> Budget:
        """Return what is known of somebody's spending in the present period."""
        budget = self._budget((who.kind, who.id))
        if now >= budget.ends or who.allowance.budget_duration != budget.duration:
            budget.turn(who.allowance.budget_duration, now)
        return budget

    def budget_loaded(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Take what the database says was spent in a period.

        Args:
            kind: whose budget, as in `Limited`.
            id: likewise.
            spend: in picodollars.
            period_start: the first second of the period, in Unix seconds, as `period_of` says.
        """
        self._budget((kind, id)).loaded(spend, period_start)

    def budget_committed(self, kind: str, id: str, amount: int, total: int, period_start: int) -> None:
        """Take note that the database has an amount now that was settled here, and what its total is thereby.

        For somebody of whom no budget is known nothing comes of it.
        """
        budget = self._budgets.get((kind, id))
        if budget is not None:
            budget.committed(amount, total, period_start)
            self._warn(budget)

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Take note that an administrator set what was spent in a period, in the database; a soft budget warns anew."""
        self._budget((kind, id)).reset(spend, period_start)

    def budget_forgotten(self, kind: str, id: str) -> None:
        """Forget somebody's budget: it was taken away, or whose it was is deleted."""
        self._budgets.pop((kind, id), None)
        scope = self._scopes.get((kind, id))
        if scope is not None:
            scope.budget = None

    def _budget(self, key: tuple[str, str]) -> Budget:
        budget = self._budgets.get(key)
        if budget is None:
            budget = self._budgets[key] = Budget(key)
            scope = self._scopes.get(key)
            if scope is not None:
                scope.budget = budget
        return budget

    def _open_budget(self, scope: Scope) -> Budget:
        scope.budget = self._budget(scope.key)
        return scope.budget

    def _warn(self, budget: Budget) -> None:
        if budget.crossed():
            kind, id = budget.key
            self._on_soft_budget(kind, id, budget.spent, budget.soft or 0)

    def _remember(self, key: tuple[str, str], now: float) -> Scope:
        scope = self._scopes[key] = Scope(key, self._budgets.get(key))
        scope.used_at = now
        self._order.append(scope)
        return scope

    def _refusal(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float, wall: float
    ) -> RateLimitExceeded | BudgetExceeded:
        """Return the error, once every limit was asked: the wait must be long enough for all of them."""
        scopes: list[Scope] = []
        refusals: list[Refusal] = []
        for who in limited:
            scope = self._scopes.get((who.kind, who.id)) or self._remember((who.kind, who.id), now)
            allowance = who.allowance
            if allowance.max_budget is not None:
                scope.budget = self.budget_of(who, wall)
            scopes.append(scope)
            refusals += scope.refusals(allowance, model, tokens, cost, now, wall)
        return error_of(refusals, headers_of(limited, scopes, model, now))

    def _turned_back(self, now: float) -> float:
        """Go on from the latest time where the clock was set back, and by whole seconds, which floats add exactly."""
        back = ceil(self._latest - now)
        self._behind += back
        return now + back

    def _sweep(self, now: float) -> None:
        """Forget some of those that were idle for a window; a round through all takes about a window."""
        order = self._order
        share = min((now - self._swept_at) / WINDOW, 1.0)
        self._swept_at = now
        if not self._left_of_round:
            self._left_of_round = self._round = len(order)
        count = min(ceil(self._round * share), self._left_of_round, _MOST_SWEPT)
        self._left_of_round -= count
        for _ in range(count):
            scope = order.popleft()
            if scope.is_idle(now):
                del self._scopes[scope.key]
            else:
                scope.forget_models(now)
                order.append(scope)
