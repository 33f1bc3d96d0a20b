"""What a worker knows of the use of limits, for metrics: the supervisor is asked after each look, for the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.ratelimit.allowance import Limited
from twisted_vllm.ratelimit.budgets import Budget
from twisted_vllm.ratelimit.supervised.messages import USED, Speaks, Used

#: those whose use is asked for at once
MOST_WANTED = 5_000

Key = tuple[str, str]


class KnownUse:
    """The use of limits as the supervisor told it last. What nobody looks at is not asked for again.

    Args:
        supervisor: talks to the supervisor.
        clock: the reactor.
    """

    _log = Logger()

    def __init__(self, supervisor: Speaks, clock: IReactorTime) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._known: dict[Key, Used] = {}
        self._wanted: dict[Key, None] = {}

    def __len__(self) -> int:
        """Return of how many the use is known."""
        return len(self._known)

    def used(self, subject: Limited) -> Mapping[str, int]:
        """Return the counts of the last 60 seconds by limit, as far as they are known."""
        found = self._look((subject.kind, subject.id))
        return {} if found is None else {"rpm": found.requests, "tpm": found.tokens}

    def budget_of(self, subject: Limited, now: float) -> Budget | None:
        """Return a copy of a subject's budget in the period of `now`; None if it is not known."""
        key = subject.kind, subject.id
        found = self._look(key)
        if found is None:
            return None
        budget = Budget(key)
        if found.start >= 0:
            budget.loaded(int(found.spent), found.start)
        budget.enter_period(subject.allowance.budget_duration, now)
        return budget

    def _look(self, key: Key) -> Used | None:
        if not self._wanted:
            # once all have been looked at
            self._clock.callLater(0.0, self._ask)
        if len(self._wanted) < MOST_WANTED:
            self._wanted[key] = None
        return self._known.get(key)

    def _ask(self) -> None:
        wanted, self._wanted = list(self._wanted), {}

        def told(use: Sequence[Used]) -> None:
            self._known = dict(zip(wanted, use, strict=True))

        self._supervisor.ask(USED, wanted, list[Used]).addCallbacks(told, self._failed)

    def _failed(self, failure: Failure) -> None:
        self._known = {}
        self._log.debug("The supervisor did not say what is used of limits: {reason}", reason=failure.getErrorMessage())
