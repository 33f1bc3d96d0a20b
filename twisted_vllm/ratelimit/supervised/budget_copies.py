"""The supervisor's budgets, for the housekeeper, which watches them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from twisted.internet.defer import Deferred

from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.supervised.messages import BUDGETS, TOLD, Known, Page, Speaks, Told


class BudgetCopies:
    """Copies of the supervisor's budgets, for the housekeeper."""

    def __init__(self, supervisor: Speaks) -> None:
        self._supervisor = supervisor

    def steps(self, most: int) -> Iterator[Deferred[Sequence[Budget]]]:
        """As `WatchedBudgets.steps`; a Deferred fails with `NoAnswer` if the supervisor does not answer."""
        asked, full = 0, True

        def found(page: Sequence[Known]) -> Sequence[Budget]:
            nonlocal full
            full = len(page) == most
            return [_copy(each) for each in page]

        while full:
            yield self._supervisor.ask(BUDGETS, Page(asked, most), list[Known]).addCallback(found)
            asked += most

    def told(self, budgets: Sequence[Budget]) -> None:
        """Tell the supervisor."""
        if budgets:
            told = [Told(*each.key, each.start, str(each.told)) for each in budgets]
            self._supervisor.tell(TOLD, told)


def _copy(known: Known) -> Budget:
    budget = Budget((known.kind, known.id))
    budget.loaded(int(known.spent), known.start)
    budget.told = int(known.told)
    return budget
