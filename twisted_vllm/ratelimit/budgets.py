"""The money that one may spend in a period: spent, in the database or on its way there, and reserved."""

from __future__ import annotations

from math import inf

from twisted_vllm.ratelimit.periods import period_of


class Budget:
    """What is known of somebody's spending in the present period. Amounts are picodollars.

    Attributes:
        key: whose: the kind and the id.
        saved: spent, as the database says.
        unsaved: spent through this process, and not in the database yet.
        reserved: by requests in work.
        soft: the amount to warn at, as last allowed.
        ends: when the period is over, in Unix seconds.
        epoch: which of the periods that this object saw; a reservation belongs to one.
    """

    __slots__ = ("_start", "_warned", "duration", "ends", "epoch", "key", "reserved", "saved", "soft", "unsaved")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.saved = 0
        self.unsaved = 0
        self.reserved = 0
        self.soft: int | None = None
        self.duration: str | None = None
        self.ends = -inf
        self.epoch = 0
        self._start = -1
        self._warned: int | None = None

    @property
    def spent(self) -> int:
        """What was spent in the period, without what is reserved."""
        return self.saved + self.unsaved

    @property
    def start(self) -> int:
        """The first second of the period, in Unix seconds."""
        return self._start

    def turn(self, duration: str | None, now: float) -> None:
        """Begin the period that it is now, where another was at work.

        A period that is longer than the last one goes on with what was spent in that.
        """
        start, end = period_of(duration, now)
        self.duration = duration
        self.ends = inf if end is None else end
        if start > self._start:
            self._begin(start)
        self._start = start

    def loaded(self, spend: int, period_start: int) -> None:
        """Take what the database says of a period, unless that is over."""
        if period_start >= self._start:
            if period_start > self._start:
                self._begin(period_start)
                self.ends = -inf
            self.saved = spend

    def committed(self, amount: int, total: int, period_start: int) -> None:
        """Take what the database says after it got an amount of this process's."""
        self.loaded(total, period_start)
        if period_start == self._start:
            self.unsaved = max(self.unsaved - amount, 0)

    def reset(self, spend: int, period_start: int) -> None:
        """Take an administrator's word for what the database says, and warn anew."""
        self.loaded(spend, period_start)
        self._warned = None

    def settle(self, epoch: int, reserved: int, cost: int) -> None:
        """Count what a request cost in place of what it reserved, unless its period is over."""
        if epoch == self.epoch:
            self.reserved -= reserved
            self.unsaved += cost

    def crossed(self) -> bool:
        """Return whether there is a warning to give, once for each period and soft budget."""
        soft = self.soft
        if soft is None or self._warned == soft or self.saved + self.unsaved < soft:
            return False
        self._warned = soft
        return True

    def _begin(self, start: int) -> None:
        self._start = start
        self.epoch += 1
        self.saved = self.unsaved = self.reserved = 0
        self._warned = None
