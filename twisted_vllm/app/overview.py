"""The overview of the gateway: what passes, what is wrong, and which budgets are used most, of all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from twisted_vllm.app.problems import ProblemWatch, Sources
from twisted_vllm.app.traffic import Traffic
from twisted_vllm.ratelimit.used_budget import UsedBudget
from twisted_vllm.workers.siblings import HOUSEKEEPER, Siblings
from twisted_vllm.workers.topics import NoAnswer

#: the topic of the question which budgets are used
BUDGETS = "overview.budgets"


class GatewayOverview:
    """What the admin API tells of the gateway as a whole.

    Attributes:
        passed: counts what passes.
        watch: looks what is wrong.
    """

    def __init__(self, siblings: Siblings, reactor: Any, in_flight: Callable[[], int], sources: Sources) -> None:
        """Set up; `start` begins to count and to look.

        Args:
            siblings: the other processes.
            reactor: the clock; its seconds are Unix seconds.
            in_flight: returns how many requests this process has in flight.
            sources: where the facts come from.
        """
        self._siblings = siblings
        self._budgets = sources.budgets
        self.passed = Traffic(siblings, reactor, in_flight)
        self.watch = ProblemWatch(siblings, reactor, sources)
        if siblings.housekeeps:
            siblings.answers(BUDGETS, type(None), lambda question, asker: list(self._budgets()))

    def start(self) -> None:
        """Begin."""
        self.passed.start()
        self.watch.start()

    def stop(self) -> None:
        """End. Idempotent."""
        self.passed.stop()
        self.watch.stop()

    def traffic(self, seconds: int, start: float) -> Deferred[bytes]:
        """As `Traffic.report`."""
        found: Deferred[bytes] = self.passed.report(seconds, start)
        return found

    def problems(self) -> Deferred[bytes]:
        """As `ProblemWatch.report`."""
        found: Deferred[bytes] = self.watch.report()
        return found

    @inlineCallbacks
    def budgets(self) -> Any:
        """Return the budgets that are used most; none while the housekeeper, which watches them, does not answer."""
        found: Sequence[UsedBudget] = ()
        if self._siblings.housekeeps:
            found = list(self._budgets())
        else:
            housekeeper = next((number for number, slot in self._siblings.others.items() if slot == HOUSEKEEPER), None)
            if housekeeper is not None:
                try:
                    found = yield self._siblings.ask_one(housekeeper, BUDGETS, None, list[UsedBudget])
                except NoAnswer:
                    found = ()
        return found
