"""All that one process counts together with the other processes of its gateway."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from twisted_vllm.ratelimit.supervised.limiter import SupervisedLimiter
from twisted_vllm.ratelimit.supervised.messages import Speaks, Table
from twisted_vllm.ratelimit.supervised.questions import AtSend, Questions
from twisted_vllm.ratelimit.supervised.shared_counts import DAY, SharedCounts


class SupervisedCounting:
    """The limiter and the counts of a process; all of them ask through the same messages.

    Attributes:
        limiter: enforces limits.
        failures: failed authentications by address.
        reads: requests that no limit counts, by key.
        preflights: likewise by address.
        changes_of_minute: what people change for themselves, by user.
        changes_of_day: likewise.
    """

    def __init__(self, supervisor: Speaks, clock: IReactorTime, at_send: AtSend) -> None:
        """Set up; the arguments are those of `Questions`."""
        questions = Questions(supervisor, clock, at_send)
        self.limiter = SupervisedLimiter(supervisor, questions, clock)
        self.failures = SharedCounts(questions, Table.FAILURES)
        self.reads = SharedCounts(questions, Table.READS)
        self.preflights = SharedCounts(questions, Table.PREFLIGHTS)
        self.changes_of_minute = SharedCounts(questions, Table.CHANGES_OF_MINUTE)
        self.changes_of_day = SharedCounts(questions, Table.CHANGES_OF_DAY, period=DAY)
