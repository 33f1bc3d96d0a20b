"""The budget of one key, user, team or end user: its spend and reservations in the current period."""

from __future__ import annotations

from math import inf

from twisted_vllm.ratelimit.periods import period_of


class Budget:
    """The spend of the current period. Amounts are in picodollars, times in Unix seconds.

    Attributes:
        key: the kind and the id of the owner.
        saved: the spend in the database.
        unsaved: the spend that was settled here, and that nobody has told to be in the database.
        reserved: by requests in flight.
        soft: the soft budget of the last request.
        duration: the period's length, as in `Allowance`.
        ends: when the period ends.
        is_loaded: whether it was ever said what the database has.
        epoch: the number of the period; a reservation belongs to one.
        told: the spend up to which it was told which share of the budget is used: what the database had when this
            process first knew of the budget counts as told. The watch of the budgets sets it.
    """

    __slots__ = (
        "_generation",
        "_recent",
        "_start",
        "_warned",
        "duration",
        "ends",
        "epoch",
        "is_loaded",
        "key",
        "reserved",
        "saved",
        "soft",
        "told",
        "unsaved",
    )

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.saved = 0
        self.unsaved = 0
        self.reserved = 0
        self.soft: int | None = None
        self.duration: str | None = None
        self.ends = -inf
        self.is_loaded = False
        self.epoch = 0
        self.told = 0
        self._start = -1
        self._warned: int | None = None
        #: the newest generation that settled anything, and how much it settled
        self._generation = 0
        self._recent = 0

    @property
    def spent(self) -> int:
        """The spend of the period, without reservations."""
        return self.saved + self.unsaved

    @property
    def start(self) -> int:
        """When the period began."""
        return self._start

    def enter_period(self, duration: str | None, now: float) -> None:
        """Start the period of `now`, unless it has started.

        If the duration became longer, the new period began earlier, and the spend stays counted.
        """
        if now < self.ends and duration == self.duration:
            return
        start, end = period_of(duration, now)
        self.duration = duration
        self.ends = inf if end is None else end
        if start > self._start:
            self._begin(start)
        self._start = start

    def loaded(self, spend: int, period_start: int) -> None:
        """Set the spend of a period from the database, unless the period is over."""
        self.is_loaded = True
        if period_start >= self._start:
            is_first = not self.epoch
            if period_start > self._start:
                self._begin(period_start)
                self.ends = -inf
            self.saved = spend
            if is_first:
                self.told = spend

    def committed(self, amount: int, total: int, period_start: int) -> None:
        """Set the database's new total, which includes an amount that this process spent."""
        self.loaded(total, period_start)
        if period_start == self._start:
            self.unsaved = max(self.unsaved - amount, 0)

    def reset(self, spend: int, period_start: int) -> None:
        """Set the spend that an administrator set in the database; the soft budget warns again."""
        self.loaded(spend, period_start)
        self.told = self.saved
        self._warned = None

    def settle(self, epoch: int, reserved: int, cost: int, generation: int = 0) -> None:
        """Replace a request's reservation by its cost, unless its period is over.

        Args:
            epoch: the period of the reservation.
            reserved: what was reserved, in picodollars.
            cost: the cost, in picodollars.
            generation: as in `LocalLimiter`.
        """
        if epoch == self.epoch:
            self.reserved -= reserved
            self.unsaved += cost
            if generation >= self._generation:
                self._recent = self._recent_of(generation) + cost
                self._generation = generation

    def reconciled(self, total: int | None, period_start: int, generation: int) -> None:
        """Set the database's total, which includes all that former generations settled, and nothing of this one.

        Args:
            total: in picodollars; None if the database has no spend.
            period_start: when its period began, in Unix seconds.
            generation: this generation.
        """
        self.is_loaded = True
        if total is not None:
            self.loaded(total, period_start)
        self.unsaved = self._recent_of(generation)

    def _recent_of(self, generation: int) -> int:
        """Return what a generation has settled, if no later one has settled anything."""
        return self._recent if generation == self._generation else 0

    def crossed(self) -> bool:
        """Return whether to warn that the soft budget is reached: once per period and soft budget."""
        soft = self.soft
        if soft is None or self._warned == soft or self.spent < soft:
            return False
        self._warned = soft
        return True

    def _begin(self, start: int) -> None:
        self._start = start
        self.epoch += 1
        self.saved = self.unsaved = self.reserved = self.told = self._recent = 0
        self._warned = None
