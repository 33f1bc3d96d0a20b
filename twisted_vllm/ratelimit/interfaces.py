"""What a limiter promises; ``tests/ratelimit/limiter_contract.py`` holds each of them to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.reservation import Reservation


class Limiter(Protocol):
    """Counts what is used, as `LocalLimiter` does in memory and `RedisLimiter` together with other processes."""

    def admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Reservation | Deferred[Reservation]:
        """Let a request begin, or fail with the error that refuses it."""

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool = True) -> None:
        """Count what a request used in place of what it reserved."""

    def budget_loaded(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Take what the database says was spent in a period."""

    def budget_committed(self, kind: str, id: str, amount: int, total: int, period_start: int) -> None:
        """Take the database's new total, which includes an amount that was settled here."""

    def budget_reset(self, kind: str, id: str, spend: int, period_start: int) -> None:
        """Take what an administrator set in the database."""

    def budget_forgotten(self, kind: str, id: str) -> None:
        """Forget a budget."""


class SharedLimiter(Limiter, Protocol):
    """A limiter that counts with other processes."""

    def start(self) -> None:
        """Begin to connect to the others."""

    def stop(self) -> Deferred[Any]:
        """Give back what this process holds; the Deferred fires when that is done."""
