"""Limits counted in this process's memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from math import ceil

from twisted_vllm.errors import BudgetExceeded, RateLimitExceeded
from twisted_vllm.ratelimit.allowance import Allowance, Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.headers import limit_headers
from twisted_vllm.ratelimit.memory.counters import REQUEST_LIMITS, LocalReservation, Scope, WindowLimit, tightest
from twisted_vllm.ratelimit.refusals import Refusal, error_of
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.ratelimit.windows import WINDOW_SECONDS

#: reports a crossed soft budget: the kind, the id, what was spent and the soft budget, both in picodollars
SoftBudgetCrossed = Callable[[str, str, int, int], None]

#: seconds between two sweeps for idle counters
_SWEEP_SECONDS = 0.1
#: how many counters one sweep looks at, so that no request waits long for it
_MOST_SWEPT = 4000


def ignore_soft_budget(kind: str, id: str, spent: int, soft: int) -> None:
    """Ignore that a soft budget was crossed."""


class LocalLimiter:
    """Admits requests within the limits of everybody they concern, and counts what they use.

    Requests, in the last 60 seconds and in flight, are counted when they are admitted: no burst gets past a limit.
    Tokens and money are reserved by an estimate, and settled to what was used. What was reserved too much is given back
    where it was counted; what was not reserved is counted when it is known.

    An allowance may differ from one request to the next. The one that comes with the request holds; what was counted
    before stays counted.

    Args:
        on_soft_budget: called when spending crosses a soft budget, once for each period.
    """

    def __init__(self, on_soft_budget: SoftBudgetCrossed = ignore_soft_budget) -> None:
        self._on_soft_budget = on_soft_budget
        self._scopes: dict[tuple[str, str], Scope] = {}
        self._budgets: dict[tuple[str, str], Budget] = {}
        self._sweep_order: deque[Scope] = deque()
        self._swept_at = 0.0
        self._round = 0
        self._left_of_round = 0
        self._latest = 0.0
        self._behind = 0

    def __len__(self) -> int:
        """Return how many keys, users, teams and end users have counters."""
        return len(self._scopes)

    @property
    def in_flight(self) -> int:
        """The requests in flight, each counted once for everybody with limits that it concerns."""
        return sum(scope.in_flight for scope in self._scopes.values())

    @property
    def spent(self) -> int:
        """What was spent in the present periods of all budgets, in picodollars."""
        return sum(budget.spent for budget in self._budgets.values())

    @property
    def reserved(self) -> int:
        """What requests in flight have reserved of all budgets, in picodollars."""
        return sum(budget.reserved for budget in self._budgets.values())

    def used(self, who: Limited, model: str, now: float) -> dict[str, int]:
        """Return what was counted in the last 60 seconds, by the names of the limits that `who` has for a model."""
        scope = self._scopes.get((who.kind, who.id)) or Scope((who.kind, who.id), None, now)
        return {name: window.used for name, _, window in scope.window_limits(who.allowance, model, now + self._behind)}

    def admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float) -> Reservation:
        """Let a request begin.

        Args:
            limited: everybody with limits that the request concerns, each once.
            model: the model's name, for the limits of models; empty if it names none.
            tokens: how many it may use, by an estimate.
            cost: how much it may cost, in picodollars.
            now: Unix seconds.

        Raises:
            RateLimitExceeded, BudgetExceeded: a limit refused it; then nothing was counted.
        """
        wall, now = now, self._forward(now)
        if now - self._swept_at > _SWEEP_SECONDS:
            self._sweep(now)
        # A limit that is used up admits nothing, whatever the estimate.
        needed_tokens, needed_cost = tokens or 1, cost or 1
        found: list[tuple[Scope, Allowance, list[WindowLimit]]] = []
        for who in limited:
            scope, allowance = self._scope(who, wall, now), who.allowance
            windows = scope.window_limits(allowance, model, now)
            if not scope.has_room(allowance, windows, needed_tokens, needed_cost):
                raise self._refusal(limited, model, needed_tokens, needed_cost, wall, now)
            found.append((scope, allowance, windows))
        reservation = LocalReservation(tokens, cost)
        for scope, allowance, windows in found:
            scope.take(reservation, allowance, windows, now)
        all_windows = chain.from_iterable([windows for _, _, windows in found])
        reservation.requests_left, reservation.tokens_left = tightest(all_windows, now)
        return reservation

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool = True) -> None:
        """Count what a request used in place of what it reserved. Idempotent.

        Args:
            reservation: what `admit` returned.
            tokens: how many it used.
            cost: what it cost, in picodollars.
            now: Unix seconds.
            sent: whether it counts as a request; False where the gateway refused it after its admission.
        """
        if reservation.settled or not isinstance(reservation, LocalReservation):
            return
        reservation.settled = True
        now = self._forward(now)
        for scope in reservation.scopes:
            scope.in_flight -= 1
            scope.used_at = now
        difference = tokens - reservation.tokens
        for name, window, bucket in reservation.counted:
            if name not in REQUEST_LIMITS:
                window.correct(bucket, difference, now)
            elif not sent:
                window.correct(bucket, -1, now)
        for budget, epoch in reservation.budgets:
            budget.settle(epoch, reservation.cost, cost)
            self._warn(budget)

    def budget_of(self, who: Limited, now: float) -> Budget:
        """Return the spending of somebody in the present period."""
        budget = self._budget((who.kind, who.id))
        budget.enter_period(who.allowance.budget_duration, now)
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
        """Take the database's new total, which includes an amount that was settled here.

        Does nothing for somebody without a budget.
        """
        budget = self._budgets.get((kind, id))
        if budget is not None:
            budget.committed(amount, total, period_start)
            self._warn(budget)

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Take what an administrator set in the database; the soft budget warns again."""
        self._budget((kind, id)).reset(spend, period_start)

    def budget_forgotten(self, kind: str, id: str) -> None:
        """Forget a budget: it was taken away, or its owner was deleted."""
        self._budgets.pop((kind, id), None)
        scope = self._scopes.get((kind, id))
        if scope is not None:
            scope.budget = None

    def _scope(self, who: Limited, wall: float, now: float) -> Scope:
        key = (who.kind, who.id)
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = Scope(key, self._budgets.get(key), now)
            self._sweep_order.append(scope)
        if who.allowance.has_budget:
            scope.budget = self.budget_of(who, wall)
        return scope

    def _budget(self, key: tuple[str, str]) -> Budget:
        budget = self._budgets.get(key)
        if budget is None:
            budget = self._budgets[key] = Budget(key)
            scope = self._scopes.get(key)
            if scope is not None:
                scope.budget = budget
        return budget

    def _warn(self, budget: Budget) -> None:
        if budget.crossed():
            kind, id = budget.key
            self._on_soft_budget(kind, id, budget.spent, budget.soft or 0)

    def _refusal(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, wall: float, now: float
    ) -> RateLimitExceeded | BudgetExceeded:
        """Return the error. It asks every limit, as the wait must be long enough for all that refuse."""
        refusals: list[Refusal] = []
        all_windows: list[WindowLimit] = []
        for who in limited:
            scope = self._scope(who, wall, now)
            windows = scope.window_limits(who.allowance, model, now)
            all_windows += windows
            refusals += scope.refusals(who.allowance, windows, model, tokens, cost, wall=wall, now=now)
        return error_of(refusals, limit_headers(*tightest(all_windows, now)))

    def _forward(self, now: float) -> float:
        """Return the time of the windows: that of the clock, or later where the clock was set back.

        It goes on from the latest time, by whole seconds, which floats add exactly.
        """
        now += self._behind
        if now < self._latest:
            back = ceil(self._latest - now)
            self._behind += back
            now += back
        self._latest = now
        return now

    def _sweep(self, now: float) -> None:
        """Forget some of the idle counters; a round through all of them takes about a window."""
        order = self._sweep_order
        share = min((now - self._swept_at) / WINDOW_SECONDS, 1.0)
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
