"""Logs failures of deliveries, rate-limited."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from twisted_vllm.observability.delivery.interfaces import Spool

#: how often a destination that is away, or what is dropped, is named in the log, in seconds
REPORT_SECONDS = 60.0


class DeliveryReports:
    """The reports of one queue. Its methods get the time in Unix seconds."""

    _log = Logger()

    def __init__(self, name: str) -> None:
        """Set up; `name` is the queue's."""
        self._name = name
        self._last_report = float("-inf")
        #: when the destination went away
        self._away_since: float | None = None
        self._is_away_reported = False
        self._dropped = 0
        self._last_refusal = ""
        self._is_disk_reported = False

    def away(self, reason: str, now: float, queued: int, dropped: int) -> None:
        """Say that a delivery failed; `queued` items wait, and `dropped` were dropped since the start."""
        if self._away_since is None:
            self._away_since = now
        if now - self._last_report < REPORT_SECONDS:
            return
        self._last_report = now
        self._dropped = 0
        self._is_away_reported = True
        self._log.warn(
            "{name} does not take what is delivered: {reason}; for {seconds} s so far, {queued} items wait, {dropped} "
            "were dropped since the start",
            name=self._name,
            reason=reason,
            seconds=round(now - self._away_since, 1),
            queued=queued,
            dropped=dropped,
        )

    def delivered(self, now: float, queued: int) -> None:
        """Say that the destination is back, if it was said that it is away."""
        away_since, self._away_since = self._away_since, None
        if away_since is not None and self._is_away_reported:
            self._is_away_reported = False
            self._log.info(
                "{name} takes what is delivered again, after {seconds} s; {queued} items wait",
                name=self._name,
                seconds=round(now - away_since, 1),
                queued=queued,
            )

    def count_dropped(self, count: int, reason: str) -> None:
        """Count items that were dropped for `tell_dropped`; without a reason, the queue was full."""
        self._dropped += count
        if reason:
            self._last_refusal = reason

    def tell_dropped(self, now: float) -> None:
        """Say how many items were dropped since the last time."""
        if self._dropped and now - self._last_report >= REPORT_SECONDS:
            self._last_report = now
            count, self._dropped = self._dropped, 0
            self._log.warn(
                "{count} items for {name} were dropped: {reason}",
                name=self._name,
                count=count,
                reason=self._last_refusal or "its queue was full",
            )

    def disk(self, spool: Spool[Any]) -> None:
        """Say once that the disk does not take items; never in `put`, which the log may have called."""
        if not spool.failing:
            self._is_disk_reported = False
        elif not self._is_disk_reported:
            self._is_disk_reported = True
            self._log.error(
                "The spool of {name} at {directory} cannot be written: {reason}; new items are in memory alone",
                name=self._name,
                directory=str(spool.directory),
                reason=spool.failing,
            )

    def ended(self, lost: int, kept: int) -> None:
        """Say what was not delivered when the gateway stopped: lost, or kept in the spool."""
        if lost:
            self._log.warn("{count} items for {name} are lost: the gateway stopped", name=self._name, count=lost)
        if kept:
            self._log.info("{count} items for {name} stay in its spool", name=self._name, count=kept)
