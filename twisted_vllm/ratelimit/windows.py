"""A sliding window: the sum of the last 60 seconds, in bounded memory."""

from __future__ import annotations

from math import ceil, inf

#: the length of a window, in seconds
WINDOW_SECONDS = 60.0
#: counts this close to each other share a bucket, in seconds: a window has at most about 240 buckets
BUCKET_SECONDS = 0.25
#: `Bucket.last` once the bucket has left its window
_EXPIRED = -inf


class SteadyTime:
    """Turns a clock that may be set back into the time of windows, which never goes backwards.

    It continues from the latest time, shifted by whole seconds, which floats add exactly.

    Attributes:
        offset: seconds by which the windows are ahead of the clock.
    """

    __slots__ = ("_latest", "offset")

    def __init__(self) -> None:
        self.offset = 0
        self._latest = 0.0

    def at(self, now: float) -> float:
        """Return the time of the windows.

        Args:
            now: the clock's time, in seconds.
        """
        now += self.offset
        if now < self._latest:
            back = ceil(self._latest - now)
            self.offset += back
            now += back
        self._latest = now
        return now


class Bucket:
    """Amounts that were counted close together.

    All of them leave the window when the last one expires, so a window never counts too little. Amounts more than
    `BUCKET_SECONDS` apart have separate buckets, and their time is exact.

    Attributes:
        amount: the sum.
        last: when the last amount was counted.
        closes: when the bucket accepts no more.
    """

    __slots__ = ("amount", "closes", "last")

    def __init__(self, now: float, amount: int) -> None:
        self.last = now
        self.closes = now + BUCKET_SECONDS
        self.amount = amount


class Window:
    """The sum over the last 60 seconds. Times are in seconds and never go backwards.

    Attributes:
        used: the sum; call `expire` first.
    """

    __slots__ = ("_buckets", "_expires", "used")

    def __init__(self) -> None:
        # A list: an empty deque is ten times as large, and there are many windows.
        self._buckets: list[Bucket] = []
        self._expires = inf
        self.used = 0

    def expire(self, now: float) -> Window:
        """Drop the expired buckets, and return the window."""
        if now >= self._expires:
            expired = 0
            self._expires = inf
            for bucket in self._buckets:
                if bucket.last + WINDOW_SECONDS > now:
                    self._expires = bucket.last + WINDOW_SECONDS
                    break
                self.used -= bucket.amount
                bucket.last = _EXPIRED
                expired += 1
            del self._buckets[:expired]
        return self

    @property
    def is_empty(self) -> bool:
        """Whether nothing is counted."""
        return not self._buckets

    def add(self, now: float, amount: int) -> Bucket:
        """Count an amount, and return its bucket."""
        self.used += amount
        buckets = self._buckets
        if buckets:
            bucket = buckets[-1]
            if now < bucket.closes:
                bucket.last = now
                bucket.amount += amount
                return bucket
        else:
            self._expires = now + WINDOW_SECONDS
        bucket = Bucket(now, amount)
        buckets.append(bucket)
        return bucket

    def correct(self, bucket: Bucket, difference: int, now: float) -> None:
        """Correct an amount that `add` counted.

        Args:
            bucket: what `add` returned. difference: a shortfall is counted now; a surplus (negative) is subtracted from
            the bucket while that is in the
                window.
            now: the time.
        """
        if difference > 0:
            self.add(now, difference)
        elif bucket.last != _EXPIRED:
            bucket.amount += difference
            self.used += difference

    def wait(self, limit: int, amount: int, now: float) -> int | None:
        """Return the whole seconds until an amount fits below a limit, if nothing else is counted.

        Returns:
            0 or more, or None if it never fits.
        """
        if amount > limit:
            return None
        left = self.used
        instant = now
        for bucket in self._buckets:
            if left + amount <= limit:
                break
            left -= bucket.amount
            instant = bucket.last + WINDOW_SECONDS
        return whole_seconds(instant, now)

    def empty_after(self, now: float) -> float:
        """Return the seconds until the window is empty, if nothing else is counted."""
        for bucket in reversed(self._buckets):
            if bucket.amount:
                seconds = bucket.last + WINDOW_SECONDS - now
                return seconds if seconds > 0.0 else 0.0
        return 0.0


def whole_seconds(instant: float, now: float) -> int:
    """Return the fewest whole seconds that take `now` to `instant` or later, despite the rounding of floats."""
    seconds = ceil(max(instant - now, 0.0))
    while now + seconds < instant:
        seconds += 1
    return seconds
