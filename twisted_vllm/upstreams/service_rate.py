"""How fast a queue is served, and so what ``Retry-After`` says to a request that found no room. It does no I/O.

Two measurements are joined. While requests wait, those that leave for a server tell the rate itself. Before that, how
often a place of a server becomes free, times the places, tells what it will be; so the first refusals of a burst are
already told the truth. The rate of all requests would say how much was asked, and not how much can be served, and the
mean time of those that ended would be too short after a start, when only the shortest have ended.

Each refused request is promised a time of its own, one after the other, as if it stood behind the queue. If all were
told the same, all would come back at once, and most would find the queue full again.
"""

from __future__ import annotations

from math import ceil, inf

#: seconds after which a measurement counts half
MEMORY = 30.0
#: seconds of waiting after which the measured rate counts as much as what the places tell
TRUSTED = 1.0
#: place-seconds to divide by at least, because a clock has steps
SHORTEST = 0.001
#: the least and the most that is promised, in seconds. OpenAI's clients ignore more than 60
#: (``_calculate_retry_timeout`` of ``openai/_base_client.py``)
LEAST, MOST = 1, 60


class ServiceRate:
    """Measures one queue and the servers behind it. Times are in seconds; a clock that is set back measures nothing."""

    __slots__ = ("_at", "_ended", "_held", "_in_flight", "_promised", "_served", "_waited", "_waiting")

    def __init__(self) -> None:
        """Start with nothing known."""
        self._at = 0.0
        self._in_flight = 0
        self._waiting = False
        # these decay: requests that left the queue for a server, and the seconds in which requests waited
        self._served = 0.0
        self._waited = 0.0
        # and requests that ended, and the seconds that all held a place together
        self._ended = 0.0
        self._held = 0.0
        self._promised = 0.0

    def began(self, now: float) -> None:
        """A request got a place of a server, whether or not it had waited."""
        self._advance(now)
        self._in_flight += 1

    def ended(self, now: float) -> None:
        """A request gave its place back."""
        self._advance(now)
        self._in_flight -= 1
        self._ended += 1.0

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

    def rate(self, places: int, now: float) -> float:
        """Return the requests a second that leave the queue for a server, while requests wait.

        Args:
            places: the requests that the servers in use serve at a time.
            now: the time.
        """
        self._advance(now)
        # before one has ended, the guess is that one does after a second
        guess = max(1.0 - self._ended, 0.0)
        expected = places * (self._ended + guess) / max(self._held + guess, SHORTEST)
        return (self._served + expected * TRUSTED) / (self._waited + TRUSTED)

    def promise(
        self, ahead: int, capacity: int, places: int, now: float, *, most: float = inf, earliest: float = 0.0
    ) -> int:
        """Return the seconds until a request that is refused now would have been served.

        Args:
            ahead: the requests that wait.
            capacity: the most requests that may wait.
            places: as in `rate`.
            now: the time.
            most: the most requests a second that other limits allow.
            earliest: seconds before which other limits allow none.

        Returns:
            `LEAST` to `MOST` seconds.
        """
        rate = min(self.rate(places, now), most)
        if rate <= 0.0:
            return MOST
        # all that are told the same second come back at once, and must find room together
        next_one = self._promised + 1.0 / min(rate, max(capacity + places, 1))
        instant = min(max(next_one, now + ahead / rate, now + earliest), now + MOST)
        self._promised = instant
        # rounding may add to the difference
        return min(max(LEAST, ceil(instant - now)), MOST)

    def _advance(self, now: float) -> None:
        passed = now - self._at
        if passed == 0.0:
            return
        self._at = now
        if passed < 0.0:
            return
        # many short steps decay like an exponential function, which costs more
        kept = MEMORY / (MEMORY + passed)
        self._served *= kept
        self._ended *= kept
        self._held = (self._held + self._in_flight * passed) * kept
        if self._waiting:
            passed += self._waited
            self._waited = passed * kept
        else:
            self._waited *= kept
