"""Keeps steps: those of the last hour, and those of a day in minutes.

A step in which nothing happened is not kept, so an idle gateway keeps nothing. The others are kept encoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from twisted_vllm.observability.traffic.steps import Step, decode, encode, merged

#: the seconds of a step, and of one of the coarser kind
FINE, COARSE = 5, 60
#: the seconds that either kind is kept
HOUR, DAY = 3_600, 86_400
#: seconds that both are kept longer: the first interval of a report may begin before its period does
MORE = 600
#: minutes are added up so many seconds after their end: steps of other processes are late by the length of a message
LATE = 10

_FINE_IN_COARSE = COARSE // FINE


class Ring:
    """The latest steps of one length."""

    def __init__(self, seconds: int, kept: int) -> None:
        """Keep nothing yet.

        Args:
            seconds: the length of a step.
            kept: how many steps are kept.
        """
        self.seconds = seconds
        self._kept = kept
        self._steps: deque[tuple[int, bytes]] = deque()

    def __len__(self) -> int:
        """Return how many steps are kept."""
        return len(self._steps)

    @property
    def size(self) -> int:
        """The bytes of all steps."""
        return sum(len(body) for _, body in self._steps)

    def add(self, step: Step) -> None:
        """Add a step; what is known of the same time is that of another process."""
        self._keep(step, replaces=False)

    def put(self, step: Step) -> None:
        """Keep a step in place of what is known of the same time."""
        self._keep(step, replaces=True)

    def _keep(self, step: Step, *, replaces: bool) -> None:
        if step.is_empty:
            return
        steps, number = self._steps, step.number
        later: list[tuple[int, bytes]] = []
        while steps and steps[-1][0] > number:
            later.append(steps.pop())
        if steps and steps[-1][0] == number:
            known = decode(steps.pop()[1])
            if not replaces:
                known.add(step, same_time=True)
                step = known
        steps.append((number, encode(step.bounded())))
        steps.extend(reversed(later))
        self.forget(steps[-1][0])

    def forget(self, newest: int) -> None:
        """Forget what is too old when this is the number of the newest step."""
        steps = self._steps
        while steps and steps[0][0] <= newest - self._kept:
            steps.popleft()

    def between(self, first: int, end: int) -> Iterator[Step]:
        """Yield the steps from one number to another, exclusive, that were kept."""
        for number, body in self._steps:
            if number >= end:
                return
            if number >= first:
                yield decode(body)


class Kept(msgspec.Struct, array_like=True, gc=False):
    """All that a process keeps, for another one.

    Attributes:
        since: from when on it is complete, in Unix seconds.
        fine, coarse: the steps.
    """

    since: float
    fine: list[Step]
    coarse: list[Step]


class History:
    """The steps of the last hour, and the minutes of a day.

    Attributes:
        since: from when on it is complete, in Unix seconds.
        fine, coarse: the steps of either length.
    """

    def __init__(self, since: float) -> None:
        """Begin now: `since` is the time in Unix seconds."""
        self.since = since
        self.fine = Ring(FINE, (HOUR + MORE) // FINE)
        self.coarse = Ring(COARSE, DAY // COARSE + MORE // COARSE)
        #: the number of the next minute that is added up
        self._next = int(since) // COARSE

    @property
    def added_up(self) -> int:
        """The end of the last minute that was added up, in Unix seconds."""
        return self._next * COARSE

    def add(self, step: Step) -> None:
        """Add a step of 5 seconds."""
        self.fine.add(step)

    def tick(self, now: float) -> None:
        """Add up the minutes that are over, and forget what is too old."""
        minute = (int(now) - LATE) // COARSE
        # after a long pause of the process, only what can still be kept
        for number in range(max(self._next, minute - HOUR // COARSE), minute):
            first = number * _FINE_IN_COARSE
            self.coarse.put(merged(self.fine.between(first, first + _FINE_IN_COARSE), number))
        self._next = max(self._next, minute)
        self.fine.forget(int(now) // FINE - 1)
        self.coarse.forget(int(now) // COARSE - 1)

    def kept(self) -> Kept:
        """Return all that is kept."""
        end = 1 << 62
        return Kept(self.since, list(self.fine.between(0, end)), list(self.coarse.between(0, end)))

    def take(self, kept: Kept) -> None:
        """Add what another process kept."""
        for step in kept.fine:
            self.fine.add(step)
        for step in kept.coarse:
            self.coarse.add(step)
        # its last minute may be over and not yet added up
        newest = max((step.number for step in kept.coarse), default=self._next)
        self._next = min(self._next, newest + 1)
