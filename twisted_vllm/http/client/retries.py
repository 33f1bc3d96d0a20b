"""Which requests are sent again after a reused connection closed without an answer.

A server may close an idle connection while a request is on its way. It may also have read the request, and be at work.
Nobody can tell the two apart, so a request is only sent again if that is harmless (RFC 9110 §9.2.2), and only so often
that a server that fails does not get twice the load.
"""

from __future__ import annotations

import enum
from collections import Counter

#: retries for each request that was sent, and retries at once that need no requests before them
SHARE = 0.1
BURST = 10


class StaleRequest(enum.Enum):
    """What becomes of a request on a reused connection that closed without an answer."""

    #: nothing of it was sent: it goes to another connection
    MOVED = "moved"
    #: it is sent again
    REPEATED = "repeated"
    #: it fails: to send it again could do harm, or its body has streamed by
    NOT_REPEATABLE = "not_repeatable"
    #: it fails: too many were sent again
    OVER_BUDGET = "over_budget"


class Retries:
    """Decides about the requests of one server: at most `SHARE` of them are sent again, and `BURST` at once.

    Attributes:
        requests: the requests that were sent to the server; its connections count them.
        answered: whether the server ever answered one in HTTP.
    """

    __slots__ = ("_counted", "_decided", "_left", "answered", "requests")

    def __init__(self, decided: Counter[StaleRequest]) -> None:
        """Start with `BURST` retries; `decided` counts the decisions."""
        self.requests = 0
        self.answered = False
        self._decided = decided
        self._counted = 0
        self._left = float(BURST)

    def decide(self, *, unsent: bool, repeatable: bool) -> StaleRequest:
        """Decide about one request, and count the decision.

        Args:
            unsent: whether certainly no byte of it was sent.
            repeatable: whether it is harmless to send it again.
        """
        if unsent:
            decision = StaleRequest.MOVED
        elif not repeatable:
            decision = StaleRequest.NOT_REPEATABLE
        else:
            decision = StaleRequest.REPEATED if self._take() else StaleRequest.OVER_BUDGET
        self._decided[decision] += 1
        return decision

    def _take(self) -> bool:
        earned = (self.requests - self._counted) * SHARE
        self._counted = self.requests
        self._left = min(float(BURST), self._left + earned)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
