"""The limits of what people change for themselves: each change is a write, and leaves a row in the audit log."""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Any

from twisted_vllm.auth.records import Principal
from twisted_vllm.errors import RateLimitExceeded
from twisted_vllm.ratelimit.minute_counts import Counted, Counts, Later, MinuteCounts

#: the users to count: one more drops the one that asked longest ago
MOST_USERS = 10_000
DAY = 86_400.0


class ChangeLimits:
    """Limits the changes of each user, with all its keys, in a minute and in a day. Administrators are not limited."""

    def __init__(
        self,
        a_minute: int | None = None,
        a_day: int | None = None,
        minutes: Counts | None = None,
        days: Counts | None = None,
    ) -> None:
        """Set up.

        Args:
            a_minute: the changes in a minute; None means no limit.
            a_day: likewise in a day.
            minutes: the counts by user in a minute; None for this process's own.
            days: likewise in a day.
        """
        self._minutes = MinuteCounts(MOST_USERS) if minutes is None else minutes
        self._days = MinuteCounts(MOST_USERS, DAY) if days is None else days
        self.reconfigure(a_minute, a_day)

    def reconfigure(self, a_minute: int | None, a_day: int | None) -> None:
        """Use other limits from now on; what was counted still counts."""
        self._limits = (
            (self._minutes, a_minute, "minute", "max_changes"),
            (self._days, a_day, "day", "max_changes_per_day"),
        )

    def count(self, principal: Principal, now: float) -> Later[None] | None:
        """Count a change that somebody asks for, refused or not.

        Returns:
            None, or what fails with the error if several processes count together.

        Raises:
            RateLimitExceeded: it is one too many for its user.
        """
        if principal.may_administer:
            return None
        return self._count(principal.user_id, now, 0)

    def _count(self, user_id: str | None, now: float, first: int) -> Later[None] | None:
        """Count in the periods from the `first` one on."""
        for number, (counts, limit, period, setting) in enumerate(self._limits[first:], first):
            if limit is None:
                continue
            counted = counts.add(user_id, now)
            if not isinstance(counted, tuple):
                return counted.addCallback(partial(self._go_on, user_id, now, number))
            _judge(counted, limit, period, setting)
        return None

    def _go_on(self, user_id: str | None, now: float, number: int, counted: Counted) -> Any:
        _, limit, period, setting = self._limits[number]
        if limit is not None:
            _judge(counted, limit, period, setting)
        # a Deferred waits for the one that its callback returns
        return self._count(user_id, now, number + 1)


def _judge(counted: Counted, limit: int, period: str, setting: str) -> None:
    count, left = counted
    if count > limit:
        seconds = max(1, ceil(left))
        raise RateLimitExceeded(
            f"Too many changes: the keys of one user may make {limit} in a {period} together "
            f"(passthrough.self_service.{setting}). Try again in {seconds} seconds.",
            retry_after=seconds,
        )
