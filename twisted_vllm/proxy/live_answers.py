"""What the admin API asks about requests in flight: those who watch the same get the same answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from twisted_vllm.bounded_cache import BoundedCache
from twisted_vllm.observability.live_requests import Cut, LiveQuery, LiveReport, WasCut
from twisted_vllm.proxy.live_requests import LOOK_SECONDS

#: answers that are kept, and characters of the question of one: an answer may have a few hundred kilobytes
MOST_ANSWERS, LONGEST_QUESTION = 32, 1_024


class LiveAnswers:
    """Asks once for all who ask the same within `LOOK_SECONDS`."""

    def __init__(
        self,
        ask: Callable[[LiveQuery], Deferred[LiveReport]],
        cut: Callable[[Cut], WasCut | Deferred[WasCut]],
        clock: Any,
    ) -> None:
        """Begin without answers.

        Args:
            ask: finds out what is in flight.
            cut: ends a request.
            clock: the reactor.
        """
        self._ask = ask
        self._cut = cut
        self._clock = clock
        self._answers: BoundedCache[LiveQuery, LiveReport] = BoundedCache(MOST_ANSWERS, LONGEST_QUESTION)
        self._waiting: dict[LiveQuery, list[Deferred[LiveReport]]] = {}
        self._forgetting: IDelayedCall | None = None

    def report(self, query: LiveQuery) -> Deferred[LiveReport]:
        """Return what is in flight of what is asked for; it is at most `LOOK_SECONDS` old."""
        answer = self._answers.get(query)
        if answer is not None and answer.at <= self._clock.seconds() < answer.at + LOOK_SECONDS:
            return succeed(answer)
        result: Deferred[LiveReport] = Deferred()
        waiting = self._waiting.get(query)
        if waiting is not None:
            waiting.append(result)
            return result
        self._waiting[query] = [result]
        self._ask(query).addBoth(self._answered, query)
        return result

    def cut(self, cut: Cut) -> Deferred[WasCut]:
        """End a request. Whoever watches does not see it any more."""
        return maybeDeferred(self._cut, cut).addBoth(self._changed)

    def _changed(self, result: Any) -> Any:
        self._answers.clear()
        return result

    def stop(self) -> None:
        """Forget all answers. Idempotent."""
        self._answers.clear()
        forgetting, self._forgetting = self._forgetting, None
        if forgetting is not None and forgetting.active():
            forgetting.cancel()

    def _answered(self, found: LiveReport | Failure, query: LiveQuery) -> None:
        if isinstance(found, LiveReport):
            texts = (query.model, query.key, query.team, query.user, query.server)
            teams = () if query.whose is None else query.whose.teams
            self._answers.keep(query, found, sum(map(len, (*texts, *teams))))
            if self._forgetting is None or not self._forgetting.active():
                self._forgetting = self._clock.callLater(LOOK_SECONDS, self._answers.clear)
        for waiting in self._waiting.pop(query):
            waiting.callback(found)
