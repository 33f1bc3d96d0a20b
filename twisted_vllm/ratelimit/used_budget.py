"""How much of a budget is used: a plain value."""

from __future__ import annotations

import msgspec


class UsedBudget(msgspec.Struct, frozen=True, gc=False):
    """How much of a budget is used. Amounts are in picodollars, times in Unix seconds.

    Attributes:
        kind: as in `Limited`.
        id: likewise.
        spent: what was spent in the period.
        max_budget: the budget, which is above 0.
        ends: when the period ends; infinity without periods.
        name: the name of the key that has it; empty for others.
        token: the SHA-256 of that key.
    """

    kind: str
    id: str
    spent: int
    max_budget: int
    ends: float
    name: str = ""
    token: str = ""

    @property
    def share(self) -> float:
        """The share that is used: 1 is all of it."""
        return self.spent / self.max_budget
