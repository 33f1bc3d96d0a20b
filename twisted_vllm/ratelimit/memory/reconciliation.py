"""Keeps budgets exact where other processes settle requests, and another one writes the ledger. No I/O.

A budget's spend is what the database has, and what was settled and is not in the database yet. The process that writes
the ledger tells each amount that it has written. It may die between the two, and a process that settles may die after
its rows are safe and before it has told what they cost. Then the database has amounts that nobody tells, and to add
what was settled to it would count them twice, for ever.

So after each such death the writer reconciles. Every process says, in order with its settlements, how far its rows
are: what it settles later is of a new generation. The writer moves all rows up to there, and none behind it, and tells
the totals of the budgets instead of amounts. From then on what former generations settled is in the totals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from twisted_vllm.ratelimit.memory.limiter import LocalLimiter


class BudgetTotal(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the database has of a budget.

    Attributes:
        kind: as in `Limited`.
        id: likewise.
        total: the spend of the period, in picodollars; None if the database has none.
        period_start: when the period began, in Unix seconds.
        amount: what was added since the last total, of what was settled.
    """

    kind: str
    id: str
    total: int | None
    period_start: int
    amount: int = 0


class BudgetReconciliation:
    """Takes what the writer of the ledger tells, for a limiter whose requests other processes settle.

    The caller sets the limiter's `generation` to that of the process before each settlement.

    Attributes:
        generation: of what is settled by those who have said how far their rows are.
        is_needed: whether the writer must reconcile: until it has, amounts are not counted.
        is_running: whether it does at present.
    """

    def __init__(self, limiter: LocalLimiter) -> None:
        """Set up; the first writer reconciles."""
        self.generation = 0
        self.is_needed = True
        self.is_running = False
        self._limiter = limiter
        #: those whose settlements are of the former generation: they have not said yet how far their rows are
        self._former: set[int] = set()
        #: whether amounts may be in the database of which nobody knows whose they are
        self._is_anything_stale = True
        #: budgets of which amounts were told and not counted
        self._stale: set[tuple[str, str]] = set()
        self._wanted: Sequence[tuple[str, str]] = ()

    def generation_of(self, process: int) -> int:
        """Return the generation of what a process settles at present."""
        return self.generation - 1 if process in self._former else self.generation

    def writer_left(self) -> None:
        """Note that the writer of the ledger has ended."""
        self.is_running = False
        self.is_needed = self._is_anything_stale = True

    def left(self, process: int) -> None:
        """Note that a process has ended that settled requests."""
        self._former.discard(process)
        self.is_needed = True

    def begin(self, processes: Iterable[int]) -> None:
        """Begin: the writer asks these processes how far their rows are. Others have no row yet."""
        self.is_needed, self.is_running = False, True
        self.generation += 1
        self._former = set(processes)
        self._wanted = ()

    def answered(self, process: int) -> None:
        """Note that a process has said how far its rows are; its settlements before are known."""
        self._former.discard(process)

    def failed(self) -> None:
        """Note that not all have answered: the writer begins again."""
        self.is_running, self.is_needed = False, True

    def wanted(self, first: int, most: int) -> list[tuple[str, str]]:
        """Return some of the budgets whose totals are wanted.

        Args:
            first: how many were returned before; at 0 they are determined, once all have answered.
            most: the maximum number.
        """
        if not first:
            # at once: those that follow are not moved by others that come and go
            self._wanted = [
                each.key
                for each in self._limiter.budgets()
                if self._is_anything_stale or each.unsaved or each.key in self._stale
            ]
        return list(self._wanted[first : first + most])

    def loaded(self, totals: Iterable[BudgetTotal]) -> None:
        """Take the totals of budgets that may not be known yet."""
        for each in totals:
            if self._limiter.has_budget(each.kind, each.id):
                self._reconciled(each)
            elif each.total is not None:
                self._limiter.budget_loaded(each.kind, each.id, each.total, each.period_start)

    def reconciled(self, totals: Iterable[BudgetTotal]) -> None:
        """Take the totals of budgets that were wanted."""
        for each in totals:
            self._reconciled(each)

    def finish(self) -> None:
        """Note that all totals were told: amounts are counted from now on, unless a process has ended meanwhile."""
        self.is_running = False
        self._is_anything_stale = False
        self._stale.clear()
        self._wanted = ()

    def committed(self, totals: Iterable[BudgetTotal]) -> None:
        """Take totals that grew by amounts which were settled, all of whose settlements are known."""
        if self.is_needed or self.is_running:
            # Perhaps some of it was never settled here: the writer tells all totals soon.
            self._remember(totals)
            return
        for each in totals:
            if each.total is not None:
                self._limiter.budget_committed(each.kind, each.id, each.amount, each.total, each.period_start)

    def uncertain(self, totals: Iterable[BudgetTotal]) -> None:
        """Take totals that grew by amounts of which nobody knows whether all settlements are known."""
        self.is_needed = True
        self._remember(totals)

    def _remember(self, totals: Iterable[BudgetTotal]) -> None:
        self._stale.update((each.kind, each.id) for each in totals)

    def _reconciled(self, each: BudgetTotal) -> None:
        self._limiter.budget_reconciled(each.kind, each.id, each.total, each.period_start, self.generation)
