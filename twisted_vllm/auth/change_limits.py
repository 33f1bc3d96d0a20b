"""The limits of what people change for themselves: each change is a write, and leaves a row in the audit log."""

from __future__ import annotations

from math import ceil

from twisted_vllm.auth.records import Principal
from twisted_vllm.errors import RateLimitExceeded
from twisted_vllm.ratelimit.minute_counts import MinuteCounts

#: the users to count: one more drops the one that asked longest ago
MOST_USERS = 10_000
DAY = 86_400.0


class ChangeLimits:
    """Limits the changes of each user, with all its keys, in a minute and in a day. Administrators are not limited."""

    def __init__(self, a_minute: int | None = None, a_day: int | None = None) -> None:
        """Set the limits; None means no limit."""
        self._minutes = MinuteCounts(MOST_USERS)
        self._days = MinuteCounts(MOST_USERS, DAY)
        self.reconfigure(a_minute, a_day)

    def reconfigure(self, a_minute: int | None, a_day: int | None) -> None:
        """Use other limits from now on; what was counted still counts."""
        self._limits = (
            (self._minutes, a_minute, "minute", "max_changes"),
            (self._days, a_day, "day", "max_changes_per_day"),
        )

    def count(self, principal: Principal, now: float) -> None:
        """Count a change that somebody asks for, refused or not.

        Raises:
            RateLimitExceeded: it is one too many for its user.
        """
        if principal.may_administer:
            return
        for counts, limit, period, setting in self._limits:
            if limit is None:
                continue
            counted, left = counts.add(principal.user_id, now)
            if counted > limit:
                seconds = max(1, ceil(left))
                raise RateLimitExceeded(
                    f"Too many changes: the keys of one user may make {limit} in a {period} together "
                    f"(passthrough.self_service.{setting}). Try again in {seconds} seconds.",
                    retry_after=seconds,
                )
