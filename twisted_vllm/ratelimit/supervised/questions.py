"""A worker's questions to the limiter in the supervisor: one message a turn, without a timeout for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twisted_vllm.config.alert_types import SUPERVISOR_ALERT
from twisted_vllm.ratelimit.supervised.messages import LIMITS, Answer, Operation, Speaks, error_of, unavailable

#: the supervisor is late if an answer takes longer, in seconds
LATE_SECONDS = 5
_TICK = 1.0

AtSend = Callable[[Callable[[], None]], None]


class Questions:
    """The operations of this turn, and the questions that are not answered yet.

    If the supervisor is late, those who wait are refused, and others at once, until it answers again. So what it does
    not take is bounded by the requests in work.

    Attributes:
        is_late: whether the supervisor did not answer in time, and has not answered since.
    """

    _log = Logger()

    def __init__(self, supervisor: Speaks, clock: IReactorTime, at_send: AtSend) -> None:
        """Set up.

        Args:
            supervisor: talks to the supervisor.
            clock: the reactor.
            at_send: calls a function before what this turn wrote is sent.
        """
        self._tell = supervisor.tell
        self._clock = clock
        self._at_send = at_send
        self._operations: list[tuple[Any, ...]] = []
        self._waiting: dict[int, Deferred[Any]] = {}
        self._number = 0
        #: the last number at each of the last ticks
        self._ticks: deque[int] = deque()
        self._is_ticking = False
        self.is_late = False
        supervisor.on(LIMITS, list, self._answered)

    def __len__(self) -> int:
        """Return how many questions wait for an answer."""
        return len(self._waiting)

    def add(self, operation: tuple[Any, ...]) -> None:
        """Send an operation with the others of this turn, in order."""
        operations = self._operations
        operations.append(operation)
        if len(operations) == 1:
            self._at_send(self.flush)

    def next_number(self) -> int:
        """Return the number of the next question."""
        self._number += 1
        return self._number

    @property
    def last_number(self) -> int:
        """The number of the last question."""
        return self._number

    def ask(self, number: int, operation: tuple[Any, ...]) -> Deferred[Any]:
        """Ask a question.

        Args:
            number: from `next_number`, once; the operation has it too.
            operation: the question.

        Returns:
            A Deferred of the answer's words. If it is cancelled, or fails, and the question was for an admission, that
            is taken back.

        Raises:
            RateLimitExceeded, BudgetExceeded: the admission was refused.
            LimitsUnavailable: the supervisor is late, or cannot answer.
        """
        if self.is_late:
            return fail(unavailable())
        result: Deferred[Any] = Deferred(lambda _: self._give_up(number))
        self._waiting[number] = result
        self.add(operation)
        if not self._is_ticking:
            self._is_ticking = True
            self._clock.callLater(_TICK, self._tick)
        return result

    def _give_up(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            # an admission is taken back; of a count, there is nothing to settle
            self.add((Operation.SETTLE, number, 0, 0, False))

    def flush(self) -> None:
        """Send the operations of this turn now."""
        operations, self._operations = self._operations, []
        if operations:
            self._tell(LIMITS, operations)

    def _answered(self, answers: list[Any], sender: int) -> None:
        if self.is_late:
            self.is_late = False
            self._log.warn("The supervisor counts limits again", **SUPERVISOR_ALERT)
        waiting = self._waiting
        for answer in answers:
            result = waiting.pop(answer[0], None)
            if result is None:
                # it was given up
                continue
            kind = answer[1]
            if kind == Answer.REFUSED:
                result.errback(error_of(answer[2:]))
            elif kind == Answer.FAILED:
                result.errback(unavailable())
            else:
                result.callback(answer)

    def _tick(self) -> None:
        """Refuse those who wait for too long. It is called while anybody waits."""
        self._is_ticking = False
        if not self._waiting:
            self._ticks.clear()
            return
        self._ticks.append(self._number)
        self._is_ticking = True
        self._clock.callLater(_TICK, self._tick)
        if len(self._ticks) <= LATE_SECONDS:
            return
        last = self._ticks.popleft()
        late = [number for number in self._waiting if number <= last]
        if late and not self.is_late:
            self.is_late = True
            self._log.error(
                "The supervisor does not answer: requests with limits are refused until it does ({late} wait)",
                late=len(late),
                **SUPERVISOR_ALERT,
            )
        for number in late:
            result = self._waiting.get(number)
            if result is not None:
                self._give_up(number)
                result.errback(unavailable())
