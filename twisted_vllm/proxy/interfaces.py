"""The interfaces that the accounting of the pass-through uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from twisted_vllm.auth.grants import EndUser
from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.reservation import Reservation
from twisted_vllm.usage.records import UsageRow


class Limiter(Protocol):
    """Enforces limits: `LocalLimiter`, or a limiter that shares its counters with other processes and decides later."""

    def admit(
        self, limited: Sequence[Limited], model: str, tokens: int, cost: int, now: float
    ) -> Reservation | Deferred[Reservation]:
        """Reserve, or raise the error of the limit that is reached."""

    def settle(self, reservation: Reservation, tokens: int, cost: int, now: float, *, sent: bool = True) -> None:
        """Replace the reserved usage by the actual usage."""


class EndUsers(Protocol):
    """The records of end users, kept by the key index.

    Attributes:
        has_end_users: whether there is any record.
    """

    @property
    def has_end_users(self) -> bool: ...

    def end_user(self, user_id: str, /) -> EndUser | None:
        """Return the record of an end user, or None."""


class UsageSink(Protocol):
    """Takes ledger rows: the spool.

    Attributes:
        healthy: whether rows can be written at present.
    """

    @property
    def healthy(self) -> bool: ...

    def append(self, row: UsageRow) -> None:
        """Add a row, to be written at the next `flush`."""

    def flush(self) -> None:
        """Write the appended rows."""
