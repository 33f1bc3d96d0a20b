"""When a server gets requests: the circuit breaker of one server.

Plain Python: every method gets the time in seconds, and the jitter's randomness is an argument.

=========  ==============================================================================================
state      requests
=========  ==============================================================================================
closed     go to the server; during a slow start fewer than its weight says
open       none until the cool-down is over
half_open  one at a time, the trial: its success closes the breaker, its failure opens it for longer
dead       none until active checks find the server alive; they are its trials
=========  ==============================================================================================

A server that takes requests, though it fails them, is a last resort in all of these states (`Breaker.last_resort`).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half_open"
DEAD = "dead"
STATES = (CLOSED, OPEN, HALF_OPEN, DEAD)

#: Statuses from 500 on that say something of the request, and nothing of the server: vLLM answers 501 to what a model
#: cannot do.
_OF_THE_REQUEST = frozenset((501, 505))

#: The share of its weight with which a slow start begins.
FIRST_SHARE = 0.1

#: By how much of itself a cool-down may be shortened, so that several gateways do not try a server at the same time.
JITTER = 0.2


def fault_of_status(status: int) -> str | None:
    """Return the reason for which a status counts as a failure of its server; None for one that does not.

    A status below 500 never counts: a client could open the breaker of every server with it.
    """
    return f"status_{status}" if status >= 500 and status not in _OF_THE_REQUEST else None


class Change(msgspec.Struct, frozen=True, gc=False):
    """A change of a breaker's state."""

    previous: str
    state: str
    reason: str


def ignore(change: Change) -> None:
    """Do nothing with a change of state."""


class Breaker:
    """The circuit breaker of one server.

    `begin` returns a ticket, which the request's result gives back. A result counts only in the period in which its
    request began: what was sent before the breaker opened says nothing about a server that came back since.

    Attributes:
        closed: Whether requests go to the server as usual.
        state: `CLOSED`, `OPEN`, `HALF_OPEN` or `DEAD`.
        reason: Why it is in this state; empty before the first change.
        since: When it came into this state, in seconds.
        retry_at: When the server can get its next request, in seconds; 0.0 while closed. While a trial runs, one
            cool-down after it began.
        last_resort: It is not closed, but its server took the last request, and answered with an error or broke the
            connection. A request for which there is no other server is better sent there than refused.
        ticket: The ticket of requests that begin while it is closed.
        fails: How many failed in a row.
        slow_since: When its slow start began, in seconds; None outside of one.
        failures: How many requests failed by the server's fault, or because it was slow, by reason.
        on_change: Called with each change of state.
    """

    __slots__ = (
        "_allowed_fails",
        "_cooldown",
        "_max_cooldown",
        "_openings",
        "_random",
        "_slow_start",
        "_trial_since",
        "closed",
        "fails",
        "failures",
        "last_resort",
        "on_change",
        "reason",
        "retry_at",
        "since",
        "slow_since",
        "state",
        "ticket",
    )

    def __init__(
        self,
        *,
        allowed_fails: int,
        cooldown: float,
        max_cooldown: float,
        slow_start: float,
        random: Callable[[], float],
        now: float = 0.0,
    ) -> None:
        """Begin closed.

        Args:
            allowed_fails: Failures in a row that do not open it; one more does.
            cooldown: The first cool-down, in seconds. Each further one is twice as long.
            max_cooldown: The longest cool-down, in seconds.
            slow_start: Seconds after a recovery until the server has its whole weight again; 0: at once.
            random: Returns a number from 0.0 to below 1.0, for the jitter.
            now: The time, in seconds.
        """
        self.reconfigure(
            allowed_fails=allowed_fails, cooldown=cooldown, max_cooldown=max_cooldown, slow_start=slow_start
        )
        self._random = random
        self.fails = 0
        self._openings = 0
        self.slow_since: float | None = None
        self._trial_since: float | None = None
        self.closed = True
        self.last_resort = False
        self.state = CLOSED
        self.reason = ""
        self.since = now
        self.retry_at = 0.0
        self.ticket = 0
        self.failures: dict[str, int] = {}
        self.on_change: Callable[[Change], None] = ignore

    def reconfigure(self, *, allowed_fails: int, cooldown: float, max_cooldown: float, slow_start: float) -> None:
        """Use other settings from now on; a cool-down that runs keeps its length.

        The arguments are the constructor's.
        """
        self._allowed_fails = allowed_fails
        self._cooldown = min(cooldown, max_cooldown)
        self._max_cooldown = max_cooldown
        self._slow_start = slow_start

    def allows(self, now: float) -> bool:
        """Whether a request may go to the server: it is closed, or its trial is due and nobody makes it."""
        if self.closed:
            return True
        if self.state == OPEN:
            # A clock that was set back must not lengthen a cool-down.
            return now >= self.retry_at or now < self.since
        if self.state == HALF_OPEN:
            # A trial may take as long as a long generation; a server that is back does not wait for that without end.
            return self._trial_since is None or not 0 <= now - self._trial_since < self._max_cooldown
        return False

    def begin(self, now: float) -> int:
        """A request goes to the server; if the trial is due, it is the trial.

        Returns:
            The ticket that the result of the request gives back.
        """
        if not self.closed:
            if not self.allows(now):
                # Sent as a last resort: its result is no trial's.
                return -1
            self._trial_since = now
            self.retry_at = now + self._cooldown
            if self.state == OPEN:
                self._enter(HALF_OPEN, now, self.reason)
            else:
                # An earlier trial that is still under way is no trial any more.
                self.ticket += 1
        return self.ticket

    def succeeded(self, now: float, ticket: int) -> None:
        """The server answered a request."""
        if ticket == self.ticket:
            self.fails = 0
            if self.state == HALF_OPEN:
                self._recover(now, "trial_succeeded")

    def failed(self, now: float, reason: str, ticket: int, *, answered: bool = False) -> None:
        """A request failed by the server's fault.

        Args:
            now: The time, in seconds.
            reason: Why, as metrics and the log name it.
            ticket: What `begin` returned.
            answered: The server took the request: it answered that it cannot, or broke the connection.
        """
        self.count(reason)
        if ticket != self.ticket:
            return
        self.fails += 1
        if self.state == HALF_OPEN or (self.closed and self.fails > self._allowed_fails):
            self._open(now, reason, answered)

    def count(self, reason: str) -> None:
        """Count a failed request in `failures` alone: it is no reason to take the server out."""
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def abandoned(self, now: float, ticket: int) -> None:
        """A request ended without a word about its server: its client left. A trial is free again."""
        if ticket == self.ticket and self.state == HALF_OPEN:
            self._trial_since = None
            self.retry_at = now

    def declare_dead(self, now: float, reason: str, retry_at: float, *, answered: bool = False) -> None:
        """Active checks found the server dead. Another call tells what the checks found since.

        Args:
            now: The time, in seconds.
            reason: Why.
            retry_at: When the checks can find it alive at the earliest, in seconds.
            answered: The server answered its checks, with a status that says that it cannot.
        """
        self.last_resort = answered
        if self.state != DEAD:
            self._enter(DEAD, now, reason)
        self.reason = reason
        self.retry_at = retry_at

    def declare_alive(self, now: float) -> None:
        """Active checks found the server alive.

        This closes the breaker. If answers opened it, requests must try the server first, because one that fails them
        may pass its checks; but if none does so for long after the cool-down, the checks must do.
        """
        if self.closed or (self.last_resort and self.state != DEAD and now < self.retry_at + self._max_cooldown):
            return
        self._recover(now, "checks_passed")

    def release(self, now: float) -> None:
        """Nobody checks the server any more: a dead one gets a trial."""
        if self.state == DEAD:
            self.retry_at = now
            self._enter(OPEN, now, "checks_stopped")

    def share(self, now: float) -> float:
        """Which share of its weight the server gets: `FIRST_SHARE` to 1.0, growing during a slow start."""
        since = self.slow_since
        if since is None:
            return 1.0
        elapsed = now - since
        if not 0 <= elapsed < self._slow_start:
            self.slow_since = None
            return 1.0
        return FIRST_SHARE + (1.0 - FIRST_SHARE) * elapsed / self._slow_start

    def _open(self, now: float, reason: str, answered: bool) -> None:
        """Open for a cool-down, longer than the last one unless the server was well for long since."""
        if self.closed and not 0 <= now - self.since < self._max_cooldown:
            self._openings = 0
        # The exponent is bounded, as a float is.
        cooldown = min(self._cooldown * 2.0 ** min(self._openings, 64), self._max_cooldown)
        self._openings += 1
        self.retry_at = now + cooldown * (1.0 - JITTER * self._random())
        self.last_resort = answered
        self._enter(OPEN, now, reason)

    def _recover(self, now: float, reason: str) -> None:
        """Close, with a slow start."""
        self.retry_at = 0.0
        self.last_resort = False
        self.slow_since = now
        self._enter(CLOSED, now, reason)

    def _enter(self, state: str, now: float, reason: str) -> None:
        """Come into another state, in which results of earlier requests do not count."""
        change = Change(self.state, state, reason)
        self.state, self.reason, self.since = state, reason, now
        self.closed = state == CLOSED
        self.ticket += 1
        self.fails = 0
        if state != HALF_OPEN:
            self._trial_since = None
        self.on_change(change)
