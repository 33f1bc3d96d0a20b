"""The requests in flight of a gateway with several processes, whichever is asked."""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, inlineCallbacks

from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, WasCut, merged
from twisted_vllm.workers.processes import name_of
from twisted_vllm.workers.siblings import Siblings

if TYPE_CHECKING:
    # few gateways are asked for them
    from twisted_vllm.proxy.live_requests import LiveRequests

#: what the messages are about
REPORT, CUT = "live.report", "live.cut"

#: seconds that another process has to answer
_SECONDS = 2.0


class SharedLive:
    """Asks all processes, and makes one report of what they say."""

    def __init__(self, live: Callable[[], LiveRequests], siblings: Siblings) -> None:
        """Answer the others from now on.

        Args:
            live: returns what looks at the requests of this process.
            siblings: the other processes.
        """
        self._live = live
        self._siblings = siblings
        siblings.answers(REPORT, LiveQuery, lambda query, asker: live().report(query))
        siblings.answers(CUT, Cut, lambda cut, asker: live().cut(cut))

    @inlineCallbacks
    def report(self, query: LiveQuery) -> Generator[Deferred[Any], Any, LiveReport]:
        """Return what is in flight in all processes of what is asked for."""
        asked = dict(self._siblings.others)
        asking = self._siblings.ask_others(REPORT, query, LiveReport, _SECONDS)
        own: LiveReport = yield self._live().report(query)
        answers: dict[int, LiveReport] = yield asking
        return merged([own, *answers.values()], query, _missing(asked, answers))

    @inlineCallbacks
    def cut(self, cut: Cut) -> Generator[Deferred[Any], Any, WasCut]:
        """End the requests with an id, in whatever process they are; return what they were."""
        asked = dict(self._siblings.others)
        asking = self._siblings.ask_others(CUT, cut, WasCut, _SECONDS)
        own = self._live().cut(cut)
        answers: dict[int, WasCut] = yield asking
        found = [request for each in (own, *answers.values()) for request in each.requests]
        return WasCut(found, _missing(asked, answers))


def _missing(asked: Mapping[int, int], answers: Container[int]) -> tuple[str, ...]:
    """Return the names of processes that did not answer; `asked` has their slots by their numbers."""
    return tuple(sorted(name_of(slot) for number, slot in asked.items() if number not in answers))
