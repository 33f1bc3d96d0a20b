"""What was counted in the last 60 seconds, exactly and in bounded memory."""

from __future__ import annotations

from math import ceil, inf

#: the length of a window, in seconds
WINDOW = 60.0
#: within how many seconds of each other counts share a bucket, so that a window has at most 240 or so
GRAIN = 0.25
#: the time of a bucket that fell out of its window
_GONE = -inf


class Bucket:
    """Counts that came close together; all of them leave the window when the last of them must.

    So a window never counts too little. What comes slower than one in `GRAIN` has a bucket of its own each, and is
    counted to the instant.
    """

    __slots__ = ("amount", "closes", "last")

    def __init__(self, now: float, amount: int) -> None:
        self.last = now
        self.closes = now + GRAIN
        self.amount = amount


class Window:
    """A sum over the last 60 seconds. Times are seconds that never go backwards.

    Attributes:
        used: the sum, once `tidy` was called where `stale` says so.
        stale: the time from which on something may have fallen out.
    """

    __slots__ = ("_buckets", "stale", "used")

    def __init__(self) -> None:
        # A list: an empty deque is ten times as large, and there are as many of these as there are callers.
        self._buckets: list[Bucket] = []
        self.used = 0
        self.stale = inf

    def tidy(self, now: float) -> None:
        """Drop what is older than the window."""
        old = 0
        for bucket in self._buckets:
            if bucket.last + WINDOW > now:
                self.stale = bucket.last + WINDOW
                break
            self.used -= bucket.amount
            bucket.last = _GONE
            old += 1
        else:
            self.stale = inf
        del self._buckets[:old]

    def tidied(self, now: float) -> Window:
        """Return this window once what is older than it is dropped."""
        if now >= self.stale:
            self.tidy(now)
        return self

    @property
    def is_empty(self) -> bool:
        """Whether nothing is counted in it."""
        return not self._buckets

    def add(self, now: float, amount: int) -> Bucket:
        """Count an amount, and return where it is counted."""
        self.used += amount
        buckets = self._buckets
        if buckets:
            bucket = buckets[-1]
            if now < bucket.closes:
                bucket.last = now
                bucket.amount += amount
                return bucket
        else:
            self.stale = now + WINDOW
        bucket = Bucket(now, amount)
        buckets.append(bucket)
        return bucket

    def correct(self, bucket: Bucket, difference: int, now: float) -> None:
        """Give back what was counted too much where it was counted, or count what was missing now."""
        if difference > 0:
            self.add(now, difference)
        elif bucket.last != _GONE:
            bucket.amount += difference
            self.used += difference

    def give_back(self, counted_at: float) -> None:
        """Take one back that was counted at a time, if it still counts."""
        for bucket in self._buckets:
            if counted_at <= bucket.last:
                # the first whose last is no earlier: all of those before had closed by then
                bucket.amount -= 1
                self.used -= 1
                return

    def wait(self, limit: int, amount: int, now: float) -> int | None:
        """Return after how many whole seconds an amount fits below a limit if nothing else is counted.

        Returns:
            0 or more, or None if it never does.
        """
        if amount > limit:
            return None
        left = self.used
        instant = now
        for bucket in self._buckets:
            if left + amount <= limit:
                break
            left -= bucket.amount
            instant = bucket.last + WINDOW
        return whole_seconds(instant, now)

    def empty_after(self, now: float) -> float:
        """Return after how many seconds all is gone if nothing else is counted."""
        for bucket in reversed(self._buckets):
            if bucket.amount:
                return max(bucket.last + WINDOW - now, 0.0)
        return 0.0


def whole_seconds(instant: float, now: float) -> int:
    """Return the least whole number of seconds after which it is no earlier than an instant, in floats as in fact."""
    seconds = ceil(max(instant - now, 0.0))
    while now + seconds < instant:
        seconds += 1
    return seconds
