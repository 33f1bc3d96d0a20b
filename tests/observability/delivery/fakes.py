"""A reactor and a destination for the tests of deliveries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IDestination


class ThreadsClock(Clock):
    """A clock that is also told of work from threads; it does it at the next advance."""

    def callFromThread(self, function: Callable[..., object], *args: Any) -> None:
        self.callLater(0, function, *args)

    def pass_time(self, seconds: float, step: float = 0.1) -> None:
        """Advance in steps, so that what is planned for now is done now."""
        self.advance(0)
        for _ in range(round(seconds / step)):
            self.advance(step)


@implementer(IDestination)
class RecordingDestination:
    """Keeps what is delivered; answers as it is told, and then by success."""

    def __init__(self, *answers: DeliveryFailed | Exception | Deferred[None]) -> None:
        self.batches: list[list[Any]] = []
        self.answers = list(answers)
        self.is_closed = False

    @property
    def items(self) -> list[Any]:
        return [item for batch in self.batches for item in batch]

    def deliver(self, batch: Sequence[Any]) -> Deferred[None]:
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            return fail(answer)
        self.batches.append(list(batch))
        return succeed(None) if answer is None else answer

    def close(self) -> None:
        self.is_closed = True
