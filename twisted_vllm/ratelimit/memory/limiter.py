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
from twisted_vllm.ratelimit.windows import WINDOW_SECONDS, SteadyTime

#: reports a crossed soft budget: the kind, the id, the spend and the soft budget, both in picodollars
SoftBudgetCrossed = Callable[[str, str, int, int], None]

#: seconds between sweeps for idle counters
_SWEEP_SECONDS = 0.1
#: the maximum counters per sweep, so that no request waits long for it
_MAX_SWEPT = 4000


def ignore_soft_budget(kind: str, id: str, spent: int, soft: int) -> None:
    """Do nothing: the default of `on_soft_budget`."""


class LocalLimiter:
    """Admits requests within the limits of their key, user, team and end user, and counts their usage.

    Requests are counted at their admission, so that no burst exceeds a limit. Tokens and money are reserved by an
    estimate, and settled to the actual usage: a surplus is subtracted where it was counted, a shortfall is counted when
    it is known.

    An allowance may change between requests: the one passed with the request applies, and the counters stay.

    Args:
        on_soft_budget: called when the spend crosses a soft budget, once per period.

    Attributes:
        generation: of what is settled next. `BudgetReconciliation` tells what generations are; one process alone has
            one.
    """

    def __init__(self, on_soft_budget: SoftBudgetCrossed = ignore_soft_budget) -> None:
        self.generation = 0
        self._on_soft_budget = on_soft_budget
        self._scopes: dict[tuple[str, str], Scope] = {}
        self._budgets: dict[tuple[str, str], Budget] = {}
        self._sweep_order: deque[Scope] = deque()
        self._swept_at = 0.0
        self._round = 0
        self._left_of_round = 0
        self._time = SteadyTime()

    def __len__(self) -> int:
        """Return the number of keys, users, teams and end users with counters."""
        return len(self._scopes)

    @property
    def in_flight(self) -> int:
        """The requests in flight, summed over all keys, users, teams and end users."""
        return sum(scope.in_flight for scope in self._scopes.values())

    @property
    def spent(self) -> int:
        """The spend of the current periods of all budgets, in picodollars."""
        return sum(budget.spent for budget in self._budgets.values())

    @property
    def reserved(self) -> int:
        """The reservations on all budgets, in picodollars."""
        return sum(budget.reserved for budget in self._budgets.values())

    def budgets(self) -> list[Budget]:
        """Return all budgets that anything was spent of, in any period."""
        return list(self._budgets.values())

    def used(self, subject: Limited, model: str, now: float) -> dict[str, int]:
        """Return the counts of the last 60 seconds by limit, for a subject and a model."""
        scope = self._scopes.get((subject.kind, subject.id)) or Scope((subject.kind, subject.id), None, now)
        return {
            name: window.used
            for name, _, window in scope.window_limits(subject.allowance, model, now + self._time.offset)
        }

    def admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float) -> Reservation:
        """Admit a request.

        Args:
            limited: the keys, users, teams and end users whose limits apply, without duplicates.
            model: the model's name, for limits per model; empty if there is none.
            tokens: the estimated tokens.
            cost: the estimated cost, in picodollars.
            now: Unix seconds.

        Raises:
            RateLimitExceeded, BudgetExceeded: a limit refused it; nothing was counted.
        """
        wall, now = now, self._time.at(now)
        if now - self._swept_at > _SWEEP_SECONDS:
            self._sweep(now)
        # An exhausted limit admits nothing, even with an estimate of 0.
        needed_tokens, needed_cost = tokens or 1, cost or 1
        found: list[tuple[Scope, Allowance, list[WindowLimit]]] = []
        for subject in limited:
            scope, allowance = self._scope(subject, wall, now), subject.allowance
            windows = scope.window_limits(allowance, model, now)
            if not scope.has_room(allowance, windows, needed_tokens, needed_cost):
                raise self._refusal(limited, model, needed_tokens, needed_cost, wall, now)
            found.append((scope, allowance, windows))
        reservation = LocalReservation(tokens, cost)
        for scope, allowance, windows in found:
            scope.reserve(reservation, allowance, windows, now)
        all_windows = chain.from_iterable([windows for _, _, windows in found])
        reservation.requests_left, reservation.tokens_left = tightest(all_windows, now)
        return reservation

    def check(self, limited: Sequence[Limited], now: float) -> None:
        """Check whether any request would be refused: by its limits of requests, or because one is used up.

        Args:
            limited: as for `admit`.
            now: Unix seconds.

        Raises:
            RateLimitExceeded, BudgetExceeded: as from `admit` for a request that uses nothing, of no model.
        """
        wall, now = now, self._time.at(now)
        for subject in limited:
            scope, allowance = self._scope(subject, wall, now), subject.allowance
            if not scope.has_room(allowance, scope.window_limits(allowance, "", now), 1, 1):
                raise self._refusal(limited, "", 1, 1, wall, now)

    def would_admit(self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float) -> None:
        """Decide as `admit`, with its errors, and leave nothing counted."""
        self.settle(self.admit(limited, model, tokens, cost, now), 0, 0, now, sent=False)

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool = True) -> None:
        """Replace a request's reservation by its actual usage. Idempotent.

        Args:
            reservation: the result of `admit`.
            tokens: the used tokens.
            cost: the cost, in picodollars.
            now: Unix seconds.
            sent: whether it was sent to a server; if not, it does not count as a request.
        """
        if reservation.settled or not isinstance(reservation, LocalReservation):
            return
        reservation.settled = True
        now = self._time.at(now)
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
            budget.settle(epoch, reservation.cost, cost, self.generation)
            self._warn(budget)

    def budget_of(self, subject: Limited, now: float) -> Budget:
        """Return the budget of a subject, in the current period."""
        budget = self._budget((subject.kind, subject.id))
        budget.enter_period(subject.allowance.budget_duration, now)
        return budget

    def budget_loaded(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Set the spend of a period from the database.

        Args:
            kind: the owner's kind, as in `Limited`.
            id: the owner's id.
            spend: in picodollars.
            period_start: the first second of the period, in Unix seconds, as from `period_of`.
        """
        self._budget((kind, id)).loaded(spend, period_start)

    def budget_committed(self, kind: str, id: str, amount: int, total: int, period_start: int) -> None:
        """Set the database's new total, which includes an amount that was settled here.

        Does nothing if there is no budget.
        """
        budget = self._budgets.get((kind, id))
        if budget is not None:
            budget.committed(amount, total, period_start)
            self._warn(budget)

    def budget_reconciled(self, kind: str, id: str, total: int | None, period_start: int, generation: int) -> None:
        """Set the database's total as `Budget.reconciled` does. Does nothing if there is no budget."""
        budget = self._budgets.get((kind, id))
        if budget is not None:
            budget.reconciled(total, period_start, generation)
            self._warn(budget)

    def has_budget(self, kind: str, id: str) -> bool:
        """Return whether anything is known of a budget."""
        return (kind, id) in self._budgets

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Set the spend that an administrator set in the database; the soft budget warns again."""
        self._budget((kind, id)).reset(spend, period_start)

    def known_budget(self, kind: str, id: str) -> Budget | None:
        """Return a budget as it is, in whichever period; None if nothing is known of it."""
        return self._budgets.get((kind, id))

    def budget_is_loaded(self, kind: str, id: str) -> bool:
        """Return whether it was ever said what the database has of a budget."""
        budget = self._budgets.get((kind, id))
        return budget is not None and budget.is_loaded

    def budget_told(self, kind: str, id: str, start: int, told: int) -> None:
        """Set `Budget.told`, unless the period that began at `start` is over."""
        budget = self._budgets.get((kind, id))
        if budget is not None and budget.start == start:
            budget.told = told

    def budget_released(self, kind: str, id: str) -> bool:
        """Remove a budget if it is idle; return whether it was."""
        is_idle = self.budget_is_idle(kind, id)
        if is_idle:
            self.budget_forgotten(kind, id)
        return is_idle

    def budget_is_idle(self, kind: str, id: str) -> bool:
        """Return whether the database has all that was spent of a budget, and nothing is reserved."""
        budget = self._budgets.get((kind, id))
        scope = self._scopes.get((kind, id))
        return (budget is None or not (budget.unsaved or budget.reserved)) and (scope is None or not scope.in_flight)

    def budget_forgotten(self, kind: str, id: str) -> None:
        """Remove a budget that was removed, or whose owner was deleted."""
        self._budgets.pop((kind, id), None)
        scope = self._scopes.get((kind, id))
        if scope is not None:
            scope.budget = None

    def _scope(self, subject: Limited, wall: float, now: float) -> Scope:
        key = (subject.kind, subject.id)
        scope = self._scopes.get(key)
        if scope is None:
            scope = self._scopes[key] = Scope(key, self._budgets.get(key), now)
            self._sweep_order.append(scope)
        if subject.allowance.has_budget:
            scope.budget = self.budget_of(subject, wall)
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
        """Return the error, with a wait that is long enough for all limits that refuse."""
        refusals: list[Refusal] = []
        all_windows: list[WindowLimit] = []
        for subject in limited:
            scope = self._scope(subject, wall, now)
            windows = scope.window_limits(subject.allowance, model, now)
            all_windows += windows
            refusals += scope.refusals(subject.allowance, windows, model, tokens, cost, wall=wall, now=now)
        return error_of(refusals, limit_headers(*tightest(all_windows, now)))

    def _sweep(self, now: float) -> None:
        """Remove some of the idle counters; a round through all of them takes about one window."""
        order = self._sweep_order
        share = min((now - self._swept_at) / WINDOW_SECONDS, 1.0)
        self._swept_at = now
        if not self._left_of_round:
            self._left_of_round = self._round = len(order)
        count = min(ceil(self._round * share), self._left_of_round, _MAX_SWEPT)
        self._left_of_round -= count
        for _ in range(count):
            scope = order.popleft()
            if scope.is_idle(now):
                del self._scopes[scope.key]
            else:
                scope.forget_models(now)
                order.append(scope)
