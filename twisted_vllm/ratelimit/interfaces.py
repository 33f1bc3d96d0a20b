"""The interface of a limiter; ``tests/ratelimit/limiter_contract.py`` tests every implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.reservation import Reservation


class Limiter(Protocol):
    """Enforces limits: `LocalLimiter` alone, `SupervisedLimiter` with workers, `RedisLimiter` with gateways."""

    def admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Reservation | Deferred[Reservation]:
        """Admit a request, or fail with the error of the limit that is reached."""

    def check(self, limited: Sequence[Limited], now: float) -> None:
        """Raise the error with which `admit` would refuse any request; count nothing.

        It looks at what is known without asking anybody, so it may pass what `admit` refuses.
        """

    def would_admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Deferred[None] | None:
        """Decide as `admit`, with its errors, and leave nothing counted.

        In Redis it counts for as long as the answer takes.
        """

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool = True) -> None:
        """Replace a request's reservation by its actual usage."""

    def budget_loaded(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Set the spend of a period from the database."""

    def budget_committed(self, kind: str, id: str, amount: int, total: int, period_start: int) -> None:
        """Set the database's new total, which includes an amount that was settled here."""

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Set the spend that an administrator set in the database."""

    def budget_released(self, kind: str, id: str) -> bool:
        """Remove a budget if the database has all that was spent of it, and nothing is reserved here.

        Returns:
            Whether the caller is rid of it; if not, it must use it on.
        """

    def budget_forgotten(self, kind: str, id: str) -> None:
        """Remove a budget."""


class WorkerLimiter(Limiter, Protocol):
    """The limiter of one of several processes of a gateway: the supervisor counts.

    Attributes:
        on_soft_budget: called in the housekeeper when the spend crosses a soft budget, once per period.
    """

    on_soft_budget: Callable[[str, str, int, int], None]

    @property
    def is_away(self) -> bool:
        """Whether the supervisor does not answer, so that every request with limits is refused."""

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int, *, is_found: bool = False) -> None:
        """As `Limiter.budget_reset`; `is_found`: another process set it, and it was found in the database."""

    def budget_forgotten(self, kind: str, id: str, *, is_found: bool = False) -> None:
        """As `Limiter.budget_forgotten`, likewise."""

    def used(self, subject: Limited, model: str, now: float) -> Mapping[str, int]:
        """Return the counts of the last 60 seconds by limit, as far as they are known here."""

    def budget_of(self, subject: Limited, now: float) -> Budget | None:
        """Return the budget of a subject in the current period; None if it is not known here."""

    def tell_soft_budget(self, kind: str, id: str, spent: int, soft: int) -> None:
        """Have `on_soft_budget` called in the housekeeper."""

    def flush(self) -> None:
        """Send the settlements of this turn now."""

    def load(self, budgets: Sequence[tuple[str, str, int, int]], clock: Any) -> Deferred[Any]:
        """Tell the supervisor what the database has of all budgets, unless it knows; the Deferred never fails."""


class SharedLimiter(Limiter, Protocol):
    """A limiter that shares its counters with other processes."""

    @property
    def is_ready(self) -> bool:
        """Whether the shared counters are in use at present."""

    def reconfigure(self, on_loss: str) -> None:
        """Use another setting from now on."""

    def start(self) -> None:
        """Start to connect."""

    def stop(self) -> Deferred[Any]:
        """Release the reservations of this process; the Deferred fires when that is done."""
