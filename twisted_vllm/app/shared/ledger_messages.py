"""What the processes of a gateway say to each other of the ledger and of budgets."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from twisted_vllm.ratelimit.memory.reconciliation import BudgetTotal
from twisted_vllm.usage.interfaces import Position

#: to any process: how far are your rows?
POSITION = "ledger.position"
#: from the housekeeper to the supervisor: ask all how far their rows are; which budgets' totals do you want?
BEGIN, WANTED = "ledger.begin", "ledger.wanted"
#: likewise: totals of all budgets, and of those that were wanted; that is all; what was written since the last
LOADED, RECONCILED, FINISHED, COMMITTED = "ledger.loaded", "ledger.reconciled", "ledger.finished", "ledger.committed"
#: from the supervisor to the housekeeper: begin again
NEEDED = "ledger.needed"
#: from the housekeeper to the workers, where Redis counts: the spend that the database has
SPENT = "ledger.spent"
#: from a worker to the others: the database may have been restored
RESTORED = "ledger.restored"

#: totals, or budgets, in one message
MOST = 2_000


class Follow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Who reads the segments; `by` is the name of its own."""

    by: str


class SpoolEnd(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How far the rows of a process are.

    Attributes:
        name: the name of its segments.
        segment: the number of the segment in which they end.
        offset: where in the segment, in bytes.
    """

    name: str
    segment: int
    offset: int

    @property
    def position(self) -> Position:
        """Where they end."""
        return Position(self.segment, self.offset)


class SpoolEnds(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How far the rows of all processes are.

    Attributes:
        processes: their numbers.
        ends: the answer of each.
    """

    processes: Sequence[int]
    ends: Sequence[SpoolEnd]


class Wanted(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Asks for budgets; `first` is how many were told before."""

    first: int


class Budgets(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Some budgets, by kind and id."""

    keys: Sequence[tuple[str, str]]


class Totals(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What the database has of some budgets."""

    totals: Sequence[BudgetTotal]


class Nothing(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A message whose topic says all."""
