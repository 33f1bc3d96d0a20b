"""What the accounting of the pass-through needs of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from twisted_vllm.auth.grants import EndUser
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.usage.records import UsageRow


class Limiter(Protocol):
    """What counts: `LocalLimiter`, or one that counts with other processes, whose answer comes later."""

    def admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Reservation | Deferred[Reservation]:
        """Reserve, or raise."""

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, went_on: bool = True) -> None:
        """Count what was used in place of what was reserved."""


class EndUsers(Protocol):
    """What is known of those for whom callers ask: the index.

    Attributes:
        knows_end_users: whether anything is known of any.
    """

    @property
    def knows_end_users(self) -> bool: ...

    def end_user(self, user_id: str, /) -> EndUser | None:
        """Return one; None where there is nothing to know of it."""


class UsageSink(Protocol):
    """Where rows go: the spool.

    Attributes:
        healthy: whether rows that are given now will be kept.
    """

    @property
    def healthy(self) -> bool: ...

    def append(self, row: UsageRow) -> None:
        """Take a row, to be written at the next `flush`."""

    def flush(self) -> None:
        """Write the rows that were appended."""
