"""How fast a server answers: a moving average that rises at once and falls slowly.

Plain Python: the time is an argument, in seconds.
"""

from __future__ import annotations

import math

#: Seconds in which what was measured loses 63 % of its weight.
DECAY = 10.0


class PeakEwma:
    """The peak-sensitive, exponentially weighted moving average of Finagle's load balancer (``PeakEwma.scala``).

    A slow answer counts at once and whole, so that a server that begins to struggle is avoided; better answers win it
    back over the decay. Without answers the average falls, so that a server that nobody asks is asked again.
    """

    __slots__ = ("_at", "_decay", "_value")

    def __init__(self, decay: float = DECAY) -> None:
        """Begin without a measurement.

        Args:
            decay: Seconds in which what was measured loses 63 % of its weight.
        """
        self._decay = decay
        self._value = 0.0
        self._at = 0.0

    def observe(self, seconds: float, now: float) -> None:
        """Count an answer that took so many seconds."""
        if seconds >= self._value:
            self._value = seconds
        else:
            kept = math.exp(-max(now - self._at, 0.0) / self._decay)
            self._value = seconds + (self._value - seconds) * kept
        self._at = now

    def value(self, now: float) -> float:
        """Return the average in seconds; 0.0 before the first measurement."""
        return self._value * math.exp(-max(now - self._at, 0.0) / self._decay)
