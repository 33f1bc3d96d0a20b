"""The metrics of several processes as those of one gateway, whichever is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import attrs
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from twisted_vllm.app.processes.metrics_keeper import ALL, ANSWER_SECONDS, LAST, NUMBERS, OWN
from twisted_vllm.observability.metrics.conversion import message_of, metrics_of
from twisted_vllm.observability.metrics.messages import Family, Part, for_strangers, merge, names_in
from twisted_vllm.observability.metrics.registry import Metrics, Snapshot, encoder_for, written
from twisted_vllm.workers.processes import name_of
from twisted_vllm.workers.siblings import Siblings
from twisted_vllm.workers.topics import NoAnswer

#: seconds that the supervisor has to answer: longer than the processes that it asks
_SECONDS = ANSWER_SECONDS + 1.0
#: an answer is given again for so many seconds, and for so many times as long as it took
_AGAIN_SECONDS, _AGAIN_TIMES = 0.25, 10.0


@attrs.define(eq=False)
class _Answer:
    """A collection, and what was written of it.

    Attributes:
        ends: until when it is given again.
        families: all families.
        texts: what was written, by the media type and whether with names.
        open: the families with numbers in place of names, once they were asked for.
    """

    ends: float
    families: Sequence[Family]
    texts: dict[tuple[str, bool], bytes] = attrs.Factory(dict)
    open: Sequence[Family] | None = None


class SharedMetrics:
    """Asks all processes, and adds what they say."""

    _log = Logger()

    def __init__(self, metrics: Metrics, siblings: Siblings, seconds: Callable[[], float] = monotonic) -> None:
        """Answer the supervisor from now on.

        Args:
            metrics: those of this process.
            siblings: the other processes.
            seconds: the clock.
        """
        self._metrics = metrics
        self._siblings = siblings
        self._seconds = seconds
        self._answer: _Answer | None = None
        self._waiting: list[Deferred[_Answer]] | None = None
        siblings.answers(OWN, type(None), lambda question, asker: self.own())

    def own(self) -> list[Family]:
        """Return the families of this process."""
        return [message_of(metric, is_open=is_open) for metric, is_open in self._metrics.families()]

    def tell_last(self) -> None:
        """Tell what this process counted: it ends."""
        self._siblings.tell(LAST, self.own())

    @inlineCallbacks
    def expose(self, accept: str, named: bool = False) -> Any:
        """Return all metrics and their media type, as `Metrics.expose`."""
        encode, content_type = encoder_for(accept)
        answer: _Answer = yield self._current()
        text = answer.texts.get((content_type, named))
        if text is None:
            families = answer.families
            if not named:
                if answer.open is None:
                    answer.open = yield self._without_names(answer.families)
                families = answer.open
            text = answer.texts[content_type, named] = written(metrics_of(families), encode)
        return text, content_type

    @inlineCallbacks
    def snapshot(self, now: float) -> Any:
        """Return all metrics, with names; `now` is the time in Unix seconds."""
        answer: _Answer = yield self._current()
        return Snapshot(now, metrics_of(answer.families))

    def _current(self) -> Deferred[_Answer]:
        """Return a collection that is young enough, or a new one; those who ask meanwhile get the same."""
        result: Deferred[_Answer] = Deferred()
        answer = self._answer
        if answer is not None and self._seconds() < answer.ends:
            result.callback(answer)
        elif self._waiting is not None:
            self._waiting.append(result)
        else:
            self._waiting = [result]
            self._collect().addErrback(lambda failure: self._log.failure("The metrics cannot be collected", failure))
        return result

    @inlineCallbacks
    def _collect(self) -> Any:
        waiting = self._waiting or []
        try:
            began = self._seconds()
            try:
                parts = yield self._siblings.ask(ALL, None, list[Part], _SECONDS)
            except NoAnswer:
                # this process will not live long either
                parts = [Part(name_of(self._siblings.slot), self.own())]
            merging = self._seconds()
            families = merge(parts)
            now = self._seconds()
            # the wait for others costs nothing; all processes together work about as long as this one merges
            again = max(_AGAIN_SECONDS, _AGAIN_TIMES * min(now - merging, now - began))
            answer = self._answer = _Answer(now + again, families)
        except Exception as error:
            self._waiting = None
            for each in waiting:
                each.errback(error)
            raise
        self._waiting = None
        for each in waiting:
            each.callback(answer)

    @inlineCallbacks
    def _without_names(self, families: Sequence[Family]) -> Any:
        names = names_in(families)
        try:
            numbers = yield self._siblings.ask(NUMBERS, names, list[str])
        except NoAnswer:
            numbers = []
        return for_strangers(families, dict(zip(names, numbers, strict=False)))
