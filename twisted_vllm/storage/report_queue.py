"""Decides which reports run, which wait and which are refused. No I/O, no clock.

A report may read millions of rows. So few run at a time, fewer still of one key, user or team, and those that wait are
counted as well: the whole of it has a bound, and one tenant's share of it leaves room for others.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Generic, TypeVar

import attrs

from twisted_vllm.auth.records import Principal
from twisted_vllm.errors import ReportsBusy, TooManyReports
from twisted_vllm.storage.errors import RETRY_SECONDS

ReportT = TypeVar("ReportT")

#: what reports are counted for: ``key``, ``user`` or ``team``, and which one
Scope = tuple[str, str]

#: the share of the queue that the reports of one key, user or team may take
QUEUE_SHARE = 4

_ADMINISTRATORS = ("administrators", "")


@attrs.frozen
class ReportCaller:
    """Who asks for a report.

    Attributes:
        scopes: what its reports are counted for: its key, user and team.
        is_administrator: whether it sees everybody's usage; administrators are counted together.
    """

    scopes: tuple[Scope, ...]
    is_administrator: bool

    @classmethod
    def of(cls, principal: Principal) -> ReportCaller:
        """Return the caller for a principal."""
        if principal.may_administer:
            return cls((_ADMINISTRATORS,), True)
        named = (("key", principal.key_id), ("user", principal.user_id), ("team", principal.team_id))
        return cls(tuple((kind, name) for kind, name in named if name), False)


@attrs.frozen
class ReportLimits:
    """How many reports may run and wait.

    Attributes:
        running: at a time.
        running_per_key: at a time, of one key, and of all keys of one user or team together.
        waiting: at a time.
    """

    running: int = 4
    running_per_key: int = 1
    waiting: int = 100


class ReportQueue(Generic[ReportT]):
    """The reports that run and those that wait. Administrators' reports come first, then those that came first.

    Attributes:
        running: how many run.
        refused: how many were refused.
    """

    def __init__(self, limits: ReportLimits) -> None:
        """Begin empty."""
        self.running = self.refused = 0
        self.reconfigure(limits)
        self._waiting: tuple[deque[tuple[ReportCaller, ReportT]], ...] = (deque(), deque())
        self._waiting_of: Counter[Scope] = Counter()
        self._running_of: Counter[Scope] = Counter()

    def reconfigure(self, limits: ReportLimits) -> None:
        """Use other limits from now on; what runs and waits stays."""
        self._limits = limits

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting))

    def add(self, caller: ReportCaller, report: ReportT, *, begun: bool = False) -> None:
        """Add a report to those that wait.

        Args:
            caller: who asks.
            report: the report.
            begun: whether the caller has the beginning of it already. Its next part is never refused: it waits for its
                turn, and a caller has one part at a time.

        Raises:
            TooManyReports: the caller's share of the queue is taken.
            ReportsBusy: the queue is full.
        """
        limits = self._limits
        if not begun:
            share = max(limits.waiting // QUEUE_SHARE, 1)
            if not caller.is_administrator and any(self._waiting_of[scope] >= share for scope in caller.scopes):
                self.refused += 1
                raise TooManyReports(
                    f"Too many reports of this key, its user or its team wait already: {share}, a quarter of "
                    "passthrough.limits.max_queued_reports. Wait for their answers, or ask for one report over a "
                    "longer time.",
                    retry_after=RETRY_SECONDS,
                )
            if self.waiting >= limits.waiting:
                self.refused += 1
                raise ReportsBusy(
                    f"Too many reports wait already: {limits.waiting} (passthrough.limits.max_queued_reports). Try "
                    "again in a few seconds.",
                    retry_after=RETRY_SECONDS,
                )
        self._waiting[not caller.is_administrator].append((caller, report))
        self._waiting_of.update(caller.scopes)

    def take(self) -> ReportT | None:
        """Return the next report that may run, and count it as running; None if none may."""
        if self.running >= self._limits.running:
            return None
        for waiting in self._waiting:
            for number, (caller, report) in enumerate(waiting):
                if self._may_run(caller):
                    del waiting[number]
                    _count_down(self._waiting_of, caller.scopes)
                    self._running_of.update(caller.scopes)
                    self.running += 1
                    return report
        return None

    def remove(self, caller: ReportCaller, report: ReportT) -> bool:
        """Remove a report that waits; return whether it did."""
        waiting = self._waiting[not caller.is_administrator]
        for number, (_, each) in enumerate(waiting):
            if each is report:
                del waiting[number]
                _count_down(self._waiting_of, caller.scopes)
                return True
        return False

    def clear(self) -> list[ReportT]:
        """Remove and return all reports that wait."""
        found = [report for waiting in self._waiting for _, report in waiting]
        for waiting in self._waiting:
            waiting.clear()
        self._waiting_of.clear()
        return found

    def finished(self, caller: ReportCaller) -> None:
        """Note the end of a report that ran."""
        self.running -= 1
        _count_down(self._running_of, caller.scopes)

    def _may_run(self, caller: ReportCaller) -> bool:
        limit = self._limits.running if caller.is_administrator else self._limits.running_per_key
        return all(self._running_of[scope] < limit for scope in caller.scopes)


def _count_down(counts: Counter[Scope], scopes: tuple[Scope, ...]) -> None:
    """Count one less of each, and forget who has none left: callers of long ago take no memory."""
    for scope in scopes:
        counts[scope] -= 1
        if not counts[scope]:
            del counts[scope]
