"""Takes what passed through the gateway every 5 seconds, and answers what passed of late, for all processes.

Each process that serves takes steps. With workers, they go to the housekeeper as well, which has those of all: it
serves no clients, so that whoever looks on costs them nothing. What a worker counted outlives it there. A new
housekeeper is given what each worker has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from twisted_vllm.observability.metrics.requests import RequestMetrics
from twisted_vllm.observability.traffic.report import TrafficReport, make_now, make_report
from twisted_vllm.observability.traffic.ring import FINE, History, Kept
from twisted_vllm.observability.traffic.sampler import Sampler
from twisted_vllm.observability.traffic.steps import Step
from twisted_vllm.workers.siblings import HOUSEKEEPER, Siblings
from twisted_vllm.workers.topics import NoAnswer

#: the topics: a step, and all that is kept, for the housekeeper; the question for a report
STEP, KEPT, REPORT = "traffic.step", "traffic.kept", "traffic.report"

#: reports that are given again until the next step: one for each period
_MOST_REPORTS = 16
#: seconds that the series of a long period is given again, at most
_LONGEST = 30
#: a timer may be early by less
_GRACE = 0.01


class Question(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Asks for a report.

    Attributes:
        seconds: how long ago it begins; 0 for `start`.
        start: when it begins, in Unix seconds.
    """

    seconds: int
    start: float = 0.0


class Traffic:
    """Knows what passed of late.

    Attributes:
        history: of all processes, or of a worker alone.
    """

    _log = Logger()

    def __init__(self, siblings: Siblings, reactor: Any, in_flight: Callable[[], int]) -> None:
        """Set up; `start` begins to take steps.

        Args:
            siblings: the other processes.
            reactor: the clock; its seconds are Unix seconds.
            in_flight: returns how many requests this process has in flight.
        """
        self._siblings = siblings
        self._reactor = reactor
        self._in_flight = in_flight
        self._sampler: Sampler | None = None
        self._call: IDelayedCall | None = None
        self._answers: dict[Question, bytes] = {}
        self._answers_end = 0.0
        self._reports: dict[Question, tuple[float, TrafficReport]] = {}
        self._began = reactor.seconds()
        self._was_told = False
        self.history = History(self._began)
        if siblings.housekeeps:
            siblings.on(STEP, Step, lambda step, sender: self.history.add(step))
            siblings.on(KEPT, Kept, lambda kept, sender: self._take(kept))
            siblings.answers(REPORT, Question, lambda question, asker: self._answer(question))
        else:
            siblings.on_joined(self._joined)

    def follow(self, counted: RequestMetrics) -> None:
        """Take steps of what this counts."""
        self._sampler = Sampler(counted)

    def start(self) -> None:
        """Take a step now and then, in all processes at the same time."""
        self._plan()

    def stop(self) -> None:
        """Take no more. Idempotent."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _plan(self) -> None:
        now = self._reactor.seconds()
        self._call = self._reactor.callLater(FINE - now % FINE + _GRACE, self._tick)

    def _tick(self) -> None:
        self._plan()
        now = self._reactor.seconds()
        try:
            self._take_step(int(now // FINE) - 1)
            self.history.tick(now)
        except Exception:
            # the next step may do better
            self._log.failure("What passed through the gateway could not be counted")

    def _take_step(self, number: int) -> None:
        if self._sampler is None or not self._siblings.serves:
            return
        step = self._sampler.take(number, self._in_flight()).bounded()
        self.history.add(step)
        if not self._siblings.housekeeps and not step.is_empty:
            housekeeper = self._housekeeper()
            if housekeeper is not None:
                self._siblings.send(housekeeper, STEP, step)

    def _housekeeper(self) -> int | None:
        return next((number for number, slot in self._siblings.others.items() if slot == HOUSEKEEPER), None)

    # of several processes

    def _joined(self, number: int) -> None:
        if self._siblings.others.get(number) == HOUSEKEEPER:
            self._siblings.send(number, KEPT, self.history.kept())

    def _take(self, kept: Kept) -> None:
        """Take in what a worker has, unless this process knows it from the beginning."""
        if kept.since >= self._began:
            return
        self.history.take(kept)
        self.history.since = max(self.history.since, kept.since) if self._was_told else kept.since
        self._was_told = True

    # the answer

    @inlineCallbacks
    def report(self, seconds: int, start: float = 0.0) -> Any:
        """Return the JSON of a `TrafficReport`.

        Args:
            seconds: how long ago it begins; 0 for `start`.
            start: when it begins, in Unix seconds.
        """
        question = Question(seconds, start)
        if self._siblings.housekeeps:
            return self._answer(question)
        housekeeper = self._housekeeper()
        if housekeeper is not None:
            asking: Deferred[bytes] = self._siblings.ask_one(housekeeper, REPORT, question, bytes)
            try:
                answer = yield asking
            except NoAnswer:
                pass
            else:
                return answer
        return self._answer(question)

    def _answer(self, question: Question) -> bytes:
        """Return a report, made once for all who look on."""
        now = self._reactor.seconds()
        if now >= self._answers_end or len(self._answers) >= _MOST_REPORTS:
            self._answers.clear()
            # a second after the next step, when those of all processes are there
            self._answers_end = ((now - 1.0) // FINE + 1) * FINE + 1.0
        answer = self._answers.get(question)
        if answer is None:
            answer = self._answers[question] = msgspec.json.encode(self._report(question, now))
        return answer

    def _report(self, question: Question, now: float) -> TrafficReport:
        """Return a report. That of a long period is made anew when it has another point, the rest at each step."""
        until, report = self._reports.get(question, (0.0, None))
        is_partial = not self._siblings.housekeeps
        if report is None or now >= until or report.of_one_process is not is_partial:
            if len(self._reports) >= _MOST_REPORTS:
                self._reports.clear()
            start = now - question.seconds if question.seconds else question.start
            report = make_report(self.history, start, now, of_one_process=is_partial)
            self._reports[question] = now + min(report.step_seconds, _LONGEST) - FINE / 2, report
            return report
        return msgspec.structs.replace(report, now=make_now(self.history, now))
