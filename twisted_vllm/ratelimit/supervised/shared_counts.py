"""Counts by name that all workers share: the supervisor has them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from twisted_vllm.errors import LimitsUnavailable
from twisted_vllm.ratelimit.minute_counts import MINUTE, MOST_NAMES, MinuteCounts
from twisted_vllm.ratelimit.supervised.messages import Operation
from twisted_vllm.ratelimit.supervised.questions import Questions

#: the period of the counts of a day, in seconds
DAY = 86_400.0


class SharedCounts:
    """One table of counts, as `MinuteCounts`. While the supervisor does not answer, this process counts for itself.

    Args:
        questions: the worker's questions.
        table: which counts, as in `Table`.
        most: as in `MinuteCounts`, likewise `period`; they are of what is known here.
    """

    def __init__(self, questions: Questions, table: int, most: int = MOST_NAMES, period: float = MINUTE) -> None:
        self._questions = questions
        self._table = table
        self._known = MinuteCounts(most, period)

    def __len__(self) -> int:
        return len(self._known)

    def count(self, name: Hashable, now: float) -> int:
        """Return the count of a name's period, as far as it is known here."""
        return self._known.count(name, now)

    def add(self, name: Hashable, now: float) -> Deferred[tuple[int, float]]:
        """Count one; return the count of this name's period, and the seconds until that period ends."""
        questions = self._questions
        number = questions.next_number()
        asked = questions.ask(number, (Operation.COUNT, number, self._table, name))

        def counted(answer: Sequence[Any]) -> tuple[int, float]:
            _, _, count, left = answer
            self._known.know(name, count, left, now)
            return count, left

        def not_counted(failure: Failure) -> tuple[int, float]:
            failure.trap(LimitsUnavailable)
            return self._known.add(name, now)

        return asked.addCallbacks(counted, not_counted)
