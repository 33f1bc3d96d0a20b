"""The budgets that are watched: those in memory, or those that the supervisor has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from twisted.internet.defer import Deferred

from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter


class WatchedBudgets(Protocol):
    """All budgets of which anything was spent, in steps."""

    def steps(self, most: int) -> Iterator[Sequence[Budget] | Deferred[Sequence[Budget]]]:
        """Yield at most `most` budgets at a time. A Deferred must have fired before the next step."""

    def told(self, budgets: Sequence[Budget]) -> None:
        """Keep `Budget.told` of budgets, which a step gave."""


class LocalBudgets:
    """The budgets of a limiter in this process."""

    def __init__(self, limiter: LocalLimiter) -> None:
        self._limiter = limiter

    def steps(self, most: int) -> Iterator[Sequence[Budget]]:
        """As `WatchedBudgets.steps`."""
        budgets = iter(self._limiter.budgets())
        while step := list(islice(budgets, most)):
            yield step

    def told(self, budgets: Sequence[Budget]) -> None:
        """Do nothing: they are the limiter's own."""
