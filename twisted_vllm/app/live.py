"""The requests in flight, for the admin API: of this process, or of all. What looks at them is loaded at first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from twisted_vllm.workers.siblings import Siblings

if TYPE_CHECKING:
    # few gateways are asked for them
    from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, WasCut
    from twisted_vllm.proxy.live_answers import LiveAnswers
    from twisted_vllm.proxy.live_requests import LiveRequests


class Live:
    """Tells and ends requests in flight, in whatever process they are."""

    def __init__(self, make: Callable[[], LiveRequests], siblings: Siblings, clock: Any) -> None:
        """Answer the other processes from now on.

        Args:
            make: makes what looks at the requests of this process.
            siblings: the other processes.
            clock: the reactor.
        """
        self._make = make
        self._siblings = siblings
        self._clock = clock
        self._own: LiveRequests | None = None
        self._answers: LiveAnswers | None = None
        if not siblings.alone:
            from twisted_vllm.app.shared.live import SharedLive

            self._shared = SharedLive(lambda: self.own, siblings)

    @property
    def own(self) -> LiveRequests:
        """The requests of this process."""
        if self._own is None:
            self._own = self._make()
        return self._own

    def report(self, query: LiveQuery) -> Deferred[LiveReport]:
        """Return what is in flight of what is asked for."""
        return self._asked().report(query)

    def cut(self, cut: Cut) -> Deferred[WasCut]:
        """End a request."""
        return self._asked().cut(cut)

    def stop(self) -> None:
        """Forget what was looked at. Idempotent."""
        if self._answers is not None:
            self._answers.stop()
        if self._own is not None:
            self._own.stop()

    def _asked(self) -> LiveAnswers:
        if self._answers is None:
            from twisted_vllm.proxy.live_answers import LiveAnswers

            found: Any = self.own if self._siblings.alone else self._shared
            self._answers = LiveAnswers(found.report, found.cut, self._clock)
        return self._answers
