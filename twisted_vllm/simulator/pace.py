"""Sending a stream of tokens at a pace, and never faster than the connection takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

# what a float's rounding may take from a step that is due
_ROUNDING = 1e-6


@implementer(IPushProducer)
class PacedEvents:
    """Writes one event for each token when it is due.

    While the consumer has paused it, nothing is written; the engine goes on, as vLLM's does, so what became due
    meanwhile is written when the consumer resumes.

    Args:
        clock: tells the time and calls later.
        write: takes the bytes.
        opening: goes out with the first token.
        events: the bytes of each token.
        first: seconds until the first token.
        interval: seconds from one token to the next; 0 makes all due at once.
        done: called once after the last event.
    """

    def __init__(
        self,
        clock: IReactorTime,
        write: Callable[[bytes], object],
        opening: bytes,
        events: Iterator[bytes],
        *,
        first: float,
        interval: float,
        done: Callable[[], object],
    ) -> None:
        self.steps = 0
        self._clock = clock
        self._write = write
        self._opening = opening
        self._events = events
        self._first_at = clock.seconds() + first
        self._interval = interval
        self._done = done
        self._next = next(events, None)
        self._paused = False
        self._stopped = False
        self._writing = False
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Begin; call it after the producer was registered."""
        self._pump()

    def pauseProducing(self) -> None:
        """Stop writing until ``resumeProducing``: the connection does not take more now."""
        self._paused = True
        self._cancel_timer()

    def resumeProducing(self) -> None:
        """Write on."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:
        """Stop for good: the client went away, or the stream is to break off."""
        self._stopped = True
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        self._pump()

    def _pump(self) -> None:
        # a write may pause and resume us from within
        if self._writing:
            return
        self._writing = True
        try:
            while not (self._paused or self._stopped):
                if self._next is None:
                    self._stopped = True
                    self._done()
                    return
                wait = self._first_at + self.steps * self._interval - self._clock.seconds()
                if wait > _ROUNDING:
                    self._cancel_timer()
                    self._timer = self._clock.callLater(wait, self._tick)
                    return
                data, self._next = self._next, next(self._events, None)
                if self.steps == 0 and self._opening:
                    self._write(self._opening)
                self.steps += 1
                self._write(data)
        finally:
            self._writing = False
