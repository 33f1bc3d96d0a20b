"""How fast a queue is served, and so what ``Retry-After`` says to a request that found no room. It does no I/O.

Two measurements are joined. While requests wait, every one that leaves for a server tells the rate itself. Before
that, the servers' places divided by the time for which a request holds one (Little's law) tell what it will be; so
the first refusal of a burst is already told the truth. The rate without a queue would say how much was asked, and
not how much can be served.

Each refused request is promised a time of its own, one after the other, as if it stood behind the queue. If all were
told the same, all would come back at once, and most would find the queue full again.
"""

from __future__ import annotations

from math import ceil, exp

#: seconds after which a measurement counts a third (1/e)
MEMORY = 30.0
#: seconds of waiting after which the measured rate counts as much as the one of Little's law
TRUSTED = 1.0
#: how much the latest request changes the mean of the times
NEWEST = 0.1
#: the least and the most that is promised, in seconds. OpenAI's clients ignore more than 60
#: (``_calculate_retry_timeout`` of ``openai/_base_client.py``)
LEAST, MOST = 1, 60


class ServiceRate:
    """Measures one queue. Times are in seconds; a clock that is set back measures nothing meanwhile."""

    __slots__ = ("_at", "_duration", "_promised", "_served", "_waited", "_waiting")

    def __init__(self, now: float) -> None:
        """Start with nothing known."""
        self._at = now
        self._waiting = False
        # sums that decay: requests that left the queue for a server, and seconds in which requests waited
        self._served = 0.0
        self._waited = 0.0
        self._duration = 0.0
        self._promised = now

    def waiting(self, now: float) -> None:
        """The queue is no longer empty."""
        self._advance(now)
        self._waiting = True

    def served(self, now: float) -> None:
        """A request left the queue for a server."""
        self._advance(now)
        self._served += 1.0

    def empty(self, now: float) -> None:
        """The queue is empty."""
        self._advance(now)
        self._waiting = False

    def held(self, seconds: float) -> None:
        """A request, queued before or not, has held a place of a server for so long."""
        self._duration += (seconds - self._duration) * (NEWEST if self._duration else 1.0)

    def rate(self, places: int, now: float) -> float:
        """Return the requests a second that leave the queue while requests wait; 0.0 if nothing is known.

        Args:
            places: the requests that the servers that are in use serve at a time.
            now: the time.
        """
        self._advance(now)
        served, waited = self._served, self._waited
        if self._duration > 0.0:
            served += places / self._duration * TRUSTED
            waited += TRUSTED
        return served / waited if waited > 0.0 else 0.0

    def promise(self, ahead: int, places: int, now: float) -> int:
        """Return the seconds until a request that is refused now would have been served.

        Args:
            ahead: the requests that wait.
            places: as in `rate`.
            now: the time.

        Returns:
            `LEAST` to `MOST` seconds.
        """
        rate = self.rate(places, now)
        if rate * MOST <= 1.0:
            # unknown, or nothing is served
            return MOST if self._waited > TRUSTED else LEAST
        latest = now + MOST
        instant = max(min(self._promised, latest), now + ahead / rate) + 1.0 / rate
        self._promised = min(instant, latest)
        return max(LEAST, min(MOST, ceil(instant - now)))

    def _advance(self, now: float) -> None:
        passed = now - self._at
        self._at = now
        if passed <= 0.0:
            return
        kept = exp(-passed / MEMORY)
        self._served *= kept
        self._waited *= kept
        if self._waiting:
            self._waited += MEMORY * (1.0 - kept)
