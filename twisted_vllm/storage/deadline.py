"""How long a piece of work in the database may take, and whether anybody still wants its result."""

from __future__ import annotations

import time
from collections.abc import Callable


class WorkStopped(Exception):
    """The work took too long, or nobody wants it any more. Nothing was changed."""


class Deadline:
    """The deadline of one piece of work. The work's thread looks at it, and another thread may cancel it.

    Attributes:
        seconds: the time between its making and its end.
        answer: the longest wait for one answer of the database, in seconds.
        cancelled: whether nobody wants the work any more.
    """

    def __init__(
        self, seconds: float, answer: float | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to count.

        Args:
            seconds: how long the work may take.
            answer: how long it may wait for one answer; None for no less than that.
            monotonic: seconds, from any start.
        """
        self.seconds = seconds
        self.answer = seconds if answer is None else answer
        self.cancelled = False
        self._monotonic = monotonic
        self._end = monotonic() + seconds

    def cancel(self) -> None:
        """Stop the work at its next look. Idempotent, and safe in any thread."""
        self.cancelled = True

    @property
    def remaining(self) -> float:
        """The seconds that are left; 0 at the end, and once it is cancelled."""
        return 0.0 if self.cancelled else max(self._end - self._monotonic(), 0.0)

    @property
    def is_over(self) -> bool:
        """Whether the work must stop."""
        return self.remaining <= 0.0

    def check(self) -> None:
        """Check that the work may go on.

        Raises:
            WorkStopped: it may not.
        """
        if self.is_over:
            raise WorkStopped
