"""The circuit breaker of a server that several processes share.

Each process has its own, and tells the others what changes it. Its states are numbered by the ticket, and of two
states with one number every process takes the same one (`SharedBreaker.version`): whatever order messages come in, all
end with the same state, and none goes back to an earlier one. A failure or a success counts only in the state that it
was seen in, as in one process.

When a trial is due, the process that made the last change may begin it at once and the others one after the other, each
`TURN` later. So one process tries, as long as a message takes less than that. If two do, the trial of one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from twisted_vllm.upstreams.breaker import HALF_OPEN, OPEN, STATES, Breaker, Change

#: seconds by which the next process waits longer to begin a trial that is due
TURN = 0.05

_RANKS = {state: rank for rank, state in enumerate(STATES)}


class Status(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The state of a breaker, as the processes tell it. Times are in the reactor's seconds, which all share."""

    ticket: int
    owner: int
    state: str
    reason: str
    since: float
    retry_at: float
    last_resort: bool
    slow_since: float | None
    trial_since: float | None
    openings: int
    fails: int

    @property
    def version(self) -> tuple[int, int, int]:
        """The place of the state among all: the highest one counts."""
        return self.ticket, _RANKS.get(self.state, -1), self.owner


class Seen(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a process saw of a server whose breaker is closed: a failure with its reason, or a success.

    Attributes:
        ticket: that of the breaker.
        reason: why the request failed; empty for a success.
        answered: as in `Breaker.failed`.
    """

    ticket: int
    reason: str = ""
    answered: bool = False


class SharedBreaker(Breaker):
    """A breaker that tells the other processes its changes, and takes theirs.

    Attributes:
        owner: the number of the process that made the last change.
        turn: how many processes may begin a trial before this one.
        tell: called with this breaker, and with what the others must know: its `Status`, or what was `Seen`.
    """

    __slots__ = ("_failed_in", "_number", "owner", "tell", "turn")

    def __init__(self, number: int, tell: Callable[[SharedBreaker, Status | Seen], None], **options: Any) -> None:
        """Begin closed.

        Args:
            number: the number of this process.
            tell: as the attribute.
            options: the arguments of `Breaker`.
        """
        super().__init__(**options)
        self._number = number
        # the ticket of its own last failure
        self._failed_in = -1
        self.owner = 0
        self.turn = 0
        self.tell = tell

    @property
    def status(self) -> Status:
        """What the others must know."""
        return Status(
            self.ticket,
            self.owner,
            self.state,
            self.reason,
            self.since,
            self.retry_at,
            self.last_resort,
            self.slow_since,
            self._trial_since,
            self._openings,
            self.fails,
        )

    @property
    def version(self) -> tuple[int, int, int]:
        """The place of its state among all that the processes were in."""
        return self.ticket, _RANKS[self.state], self.owner

    def allows(self, now: float) -> bool:
        """As `Breaker.allows`; a trial is begun by one process after the other."""
        if self.closed or not self.turn:
            return super().allows(now)
        later = TURN * self.turn
        if self.state == OPEN:
            # a clock that was set back must not lengthen a cool-down
            return now >= self.retry_at + later or now < self.since
        if self.state == HALF_OPEN:
            if self._trial_since is None:
                return now >= self.retry_at + later
            return not 0 <= now - self._trial_since < self._max_cooldown + later
        return False

    def begin(self, now: float) -> int:
        """As `Breaker.begin`."""
        if self.closed:
            return self.ticket
        before = self.ticket
        ticket = super().begin(now)
        self._tell_change(before)
        return ticket

    def succeeded(self, now: float, ticket: int) -> None:
        """As `Breaker.succeeded`."""
        before = self.ticket
        if ticket == before and self.closed and self.fails:
            self.tell(self, Seen(ticket))
        super().succeeded(now, ticket)
        self._tell_change(before)

    def failed(self, now: float, reason: str, ticket: int, *, answered: bool = False) -> None:
        """As `Breaker.failed`."""
        before = self.ticket
        if ticket == before and self.closed:
            self._failed_in = ticket
            self.tell(self, Seen(ticket, reason, answered))
        super().failed(now, reason, ticket, answered=answered)
        self._tell_change(before)

    def abandoned(self, now: float, ticket: int) -> None:
        """As `Breaker.abandoned`."""
        super().abandoned(now, ticket)
        if ticket == self.ticket and self.state == HALF_OPEN:
            before = self.ticket
            # the others must not take it for the state that they know
            self.ticket += 1
            self._tell_change(before)

    def declare_dead(self, now: float, reason: str, retry_at: float, *, answered: bool = False) -> None:
        """As `Breaker.declare_dead`."""
        before = self.ticket
        super().declare_dead(now, reason, retry_at, answered=answered)
        self._tell_change(before)

    def declare_alive(self, now: float) -> None:
        """As `Breaker.declare_alive`."""
        before = self.ticket
        super().declare_alive(now)
        self._tell_change(before)

    def release(self, now: float) -> None:
        """As `Breaker.release`."""
        before = self.ticket
        super().release(now)
        self._tell_change(before)

    def saw(self, now: float, seen: Seen) -> None:
        """Count what another process saw."""
        if seen.ticket != self.ticket or not self.closed:
            return
        if not seen.reason:
            self.fails = 0
            return
        self.fails += 1
        # who failed alone opens it by itself, and tells that
        if self.fails > self._allowed_fails and self._failed_in == self.ticket:
            before = self.ticket
            self._open(now, seen.reason, seen.answered)
            self._tell_change(before)

    def adopt(self, told: Status, sender: int) -> bool:
        """Take the state that a process tells, if it is a later one.

        Returns:
            Whether this process has no later one.
        """
        theirs, ours = told.version, self.version
        if theirs < ours:
            return False
        if theirs == ours:
            if sender == self.owner:
                # what its checks found since
                self.reason, self.retry_at, self.last_resort = told.reason, told.retry_at, told.last_resort
            self.fails = max(self.fails, told.fails)
            # a process that came later knows only since when it runs
            self.since = min(self.since, told.since)
            return True
        if told.state not in _RANKS:
            return True
        change = Change(self.state, told.state, told.reason)
        self.state, self.reason, self.since = told.state, told.reason, told.since
        self.closed = told.state == STATES[0]
        self.ticket, self.owner, self.fails = told.ticket, told.owner, told.fails
        self.retry_at, self.last_resort = told.retry_at, told.last_resort
        self.slow_since, self._trial_since, self._openings = told.slow_since, told.trial_since, told.openings
        if change.previous != change.state:
            self.on_change(change)
        return True

    def left(self, number: int, now: float) -> None:
        """Note that a process has ended: its trial is free."""
        if self.state == HALF_OPEN and self.owner == number:
            self._trial_since = None
            self.retry_at = min(self.retry_at, now)

    def _tell_change(self, before: int) -> None:
        if self.ticket != before:
            self.owner = self._number
            self.tell(self, self.status)
