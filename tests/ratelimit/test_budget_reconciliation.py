"""Budgets stay exact while processes end that settle requests, and the one that writes the ledger."""

from __future__ import annotations

from collections import deque

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tests.ratelimit.limiter_contract import NOON, key
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter
from twisted_vllm.ratelimit.memory.reconciliation import BudgetReconciliation, BudgetTotal

WHO = key(max_budget=10**12)


def settle(limiter: LocalLimiter, cost: int, generation: int = 0) -> None:
    limiter.generation = generation
    limiter.settle(limiter.admit([WHO], "m", 0, 5, NOON), 0, cost, NOON)


def total(amount: int | None, of_it: int = 0) -> BudgetTotal:
    return BudgetTotal("key", "k1", amount, 0, of_it)


def test_the_first_writer_loads_what_the_database_has() -> None:
    limiter = LocalLimiter()
    budgets = BudgetReconciliation(limiter)
    budgets.begin([])
    assert budgets.wanted(0, 10) == []
    budgets.loaded([total(30), BudgetTotal("team", "t1", None, 0)])
    budgets.finish()
    assert (limiter.spent, len(limiter.budgets())) == (30, 1)


def test_what_a_writer_wrote_before_it_died_is_not_counted_twice() -> None:
    limiter = LocalLimiter()
    budgets = BudgetReconciliation(limiter)
    budgets.begin([])
    budgets.finish()
    settle(limiter, 10, budgets.generation_of(1))
    budgets.writer_left()
    budgets.begin([1])
    settle(limiter, 20, budgets.generation_of(1))
    budgets.answered(1)
    settle(limiter, 40, budgets.generation_of(1))
    assert (limiter.spent, budgets.wanted(0, 10)) == (70, [("key", "k1")])
    budgets.reconciled([total(30)])
    budgets.finish()
    assert limiter.spent == 70
    budgets.committed([total(70, 40)])
    assert limiter.spent == 70


def test_totals_without_amounts_are_wanted_after_a_process_has_died() -> None:
    """Its last row is in the database, and was never settled."""
    limiter = LocalLimiter()
    budgets = BudgetReconciliation(limiter)
    budgets.begin([])
    budgets.loaded([total(5)])
    budgets.finish()
    settle(limiter, 10)
    budgets.left(1)
    budgets.committed([total(18, 13)])
    assert limiter.spent == 15
    budgets.begin([2])
    budgets.answered(2)
    assert budgets.wanted(0, 10) == [("key", "k1")]
    budgets.reconciled([total(18)])
    budgets.finish()
    assert limiter.spent == 18


def test_a_budget_of_which_the_database_has_nothing_keeps_what_is_new() -> None:
    limiter = LocalLimiter()
    budgets = BudgetReconciliation(limiter)
    budgets.begin([1])
    budgets.answered(1)
    settle(limiter, 4, budgets.generation_of(1))
    budgets.reconciled([total(None)])
    budgets.finish()
    assert limiter.spent == 4


def test_wanted_budgets_come_in_pages() -> None:
    limiter = LocalLimiter()
    budgets = BudgetReconciliation(limiter)
    for number in range(5):
        limiter.budget_loaded("key", f"k{number}", 1, 0)
    budgets.begin([])
    pages = [budgets.wanted(first, 2) for first in range(0, 6, 2)]
    assert pages == [[("key", "k0"), ("key", "k1")], [("key", "k2"), ("key", "k3")], [("key", "k4")]]
    budgets.finish()
    budgets.left(1)
    budgets.begin([])
    assert budgets.wanted(0, 2) == []


def test_a_later_period_forgets_what_was_settled_before_it() -> None:
    limiter = LocalLimiter()
    budgets = BudgetReconciliation(limiter)
    limiter.budget_loaded("key", "k1", 0, 0)
    budgets.begin([])
    settle(limiter, 4, budgets.generation_of(1))
    budgets.reconciled([BudgetTotal("key", "k1", 2, 60)])
    assert limiter.spent == 2


@attrs.define(eq=False)
class Process:
    """One that settles: what it wrote to its spool, and what the supervisor did not read yet."""

    number: int
    rows: list[int] = attrs.Factory(list)
    #: costs that it settled; None says how far its rows are
    sent: deque[int | None] = attrs.Factory(deque)
    #: how many of its rows the supervisor knows to be settled
    settled: int = 0
    #: how many of its rows the database has
    moved: int = 0
    #: how many had it when the writer asked
    told: int | None = None
    is_alive: bool = True


class Budgets(RuleBasedStateMachine):
    """The spend is at any time that of all rows which were settled or are in totals that were told, each once."""

    processes = Bundle("processes")

    def __init__(self) -> None:
        super().__init__()
        self.limiter = LocalLimiter()
        self.budgets = BudgetReconciliation(self.limiter)
        self.all: list[Process] = []
        self.stored = 0
        #: rows that were in the totals that the supervisor took last, by process
        self.counted: dict[int, int] = {}
        #: how many there were when it asked last
        self.asked = 0

    @rule(target=processes)
    def join(self) -> Process:
        self.all.append(Process(len(self.all)))
        return self.all[-1]

    @rule(process=processes, cost=st.integers(1, 9), is_settled=st.booleans())
    def serve(self, process: Process, cost: int, is_settled: bool) -> None:
        if process.is_alive:
            process.rows.append(cost)
            process.sent.append(cost)
            if is_settled:
                self.read(process)

    @rule(process=processes)
    def read(self, process: Process) -> None:
        while process.sent:
            cost = process.sent.popleft()
            if cost is None:
                self.budgets.answered(process.number)
            else:
                settle(self.limiter, cost, self.budgets.generation_of(process.number))
                process.settled += 1

    @rule(process=consumes(processes), is_read=st.booleans())
    def kill(self, process: Process, is_read: bool) -> None:
        """What it had sent is read first, or was not sent."""
        if is_read:
            self.read(process)
        if None in process.sent:
            process.told = None
        process.sent.clear()
        process.is_alive = False
        self.budgets.left(process.number)

    def move(self, process: Process, to: int) -> int:
        amount = sum(process.rows[process.moved : to])
        process.moved = max(process.moved, to)
        self.stored += amount
        return amount

    @rule(process=processes, tells=st.booleans())
    def commit(self, process: Process, tells: bool) -> None:
        """The writer moves all rows of a process, and tells it once all settlements are known, or dies."""
        if self.budgets.is_needed or self.budgets.is_running:
            return
        amount = self.move(process, len(process.rows))
        if not amount:
            return
        if not tells:
            self.budgets.writer_left()
            return
        self.read(process)
        self.budgets.committed([total(self.stored, amount)])
        self.counted = {each.number: each.moved for each in self.all}

    @rule()
    def commit_what_dead_ones_left(self) -> None:
        """Before the writer knows, it tells a part of it."""
        if self.budgets.is_running:
            return
        amount = 0
        for each in self.all:
            if not each.is_alive:
                amount += self.move(each, each.settled + 1)
        if amount:
            assert self.budgets.is_needed
            self.budgets.committed([total(self.stored, amount)])

    @rule()
    def writer_dies(self) -> None:
        self.budgets.writer_left()
        for each in self.all:
            each.told = None
            each.sent = deque(cost for cost in each.sent if cost is not None)

    @rule()
    def ask(self) -> None:
        if self.budgets.is_needed and not self.budgets.is_running:
            living = [each for each in self.all if each.is_alive]
            self.budgets.begin([each.number for each in living])
            self.asked = len(self.all)
            for each in living:
                each.sent.append(None)
                each.told = len(each.rows)

    @rule()
    def reconcile(self) -> None:
        if not self.budgets.is_running or any(None in each.sent for each in self.all):
            return
        for each in self.all[: self.asked]:
            self.move(each, len(each.rows) if each.told is None and not each.is_alive else each.told or 0)
        assert set(self.budgets.wanted(0, 10)) <= {("key", "k1")}
        self.budgets.loaded([total(self.stored)])
        self.budgets.finish()
        self.counted = {each.number: each.moved for each in self.all}
        for each in self.all:
            each.told = None

    @invariant()
    def the_spend_is_exact(self) -> None:
        expected = sum(sum(each.rows[: max(each.settled, self.counted.get(each.number, 0))]) for each in self.all)
        assert self.limiter.spent == expected


Budgets.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestBudgets = Budgets.TestCase
