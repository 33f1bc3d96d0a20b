"""Sends a response: at the engine's pace, no faster than the connection takes it, and with its faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import cast

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime, ITCPTransport
from twisted.python.failure import Failure
from twisted.web.server import Request
from zope.interface import implementer

from twisted_vllm.simulator.engine import Engine
from twisted_vllm.simulator.faults import Ending, Faults
from twisted_vllm.simulator.messages import EVENT_STREAM, ApiResponse, EventStream, Response, Work

SERVER = b"twisted-vllm-simulator"

_GARBAGE = b"\x00\xff this is no HTTP \r\n\r\n"

#: seconds before a reset, which discards bytes that are not sent yet
_BEFORE_RESET = 0.05

#: seconds that rounding may take from the time of a step
_ROUNDING = 1e-6


class ResponseSender:
    """Sends the response to one request.

    Args:
        clock: tells the time and schedules calls.
        engine: counts the work.
        request: the request.
        response: the response.
        faults: what shall go wrong.
    """

    def __init__(
        self, clock: IReactorTime, engine: Engine, request: Request, response: Response, faults: Faults
    ) -> None:
        self._clock = clock
        self._engine = engine
        self._request = request
        self._response = response
        self._faults = faults
        self._timer: IDelayedCall | None = None
        self._producer: PacedEvents | None = None

    def start(self) -> None:
        """Begin to send."""
        self._request.notifyFinish().addCallbacks(self._finished, self._disconnected)
        if self._response.work is not None:
            self._engine.begin(self._response.work)
        self._later(self._faults.slow_head, self._send)

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        if seconds <= 0:
            call()
            return

        def due() -> None:
            self._timer = None
            call()

        self._timer = self._clock.callLater(seconds, due)

    def _send(self) -> None:
        ending, response = self._faults.ending, self._response
        if ending is Ending.HANG:
            return
        if ending is Ending.CLOSE:
            self._close()
        elif ending is Ending.GARBAGE:
            self._transport.write(_GARBAGE)
            self._close()
        elif isinstance(response, EventStream):
            self._send_stream(response)
        else:
            self._later(self._seconds_of(response.work), lambda: self._send_whole(response))

    def _seconds_of(self, work: Work | None) -> float:
        if work is None:
            return 0.0
        settings = self._engine.settings
        return settings.first_token + settings.token_interval * max(0, work.steps - 1)

    def _set_headers(self, status: int, content_type: bytes | None) -> None:
        request = self._request
        request.setResponseCode(status)
        request.setHeader(b"server", SERVER)
        request.setHeader(b"vary", b"Origin")
        # Without this, twisted.web sends a content type of its own.
        request.defaultContentType = None
        if content_type is not None:
            request.setHeader(b"content-type", content_type)

    def _send_whole(self, response: ApiResponse) -> None:
        request, ending = self._request, self._faults.ending
        self._set_headers(response.status, response.content_type)
        for name, value in response.headers:
            request.setHeader(name, value)
        if ending is not Ending.BAD_CHUNK:
            # Without a length, the body is sent in chunks.
            request.setHeader(b"content-length", b"%d" % len(response.body))
        if ending is None or ending is Ending.ERROR_EVENT:
            request.write(response.body)
            request.finish()
            return
        request.write(response.body[: (len(response.body) + 1) // 2])
        self._break_off(ending)

    def _send_stream(self, stream: EventStream) -> None:
        ending, settings, events = self._faults.ending, self._engine.settings, stream.events
        if ending is not None:
            events = islice(events, max(1, stream.work.steps // 2))
        self._set_headers(200, EVENT_STREAM)
        # vLLM sends the headers before the first token.
        self._request.write(b"")
        self._producer = PacedEvents(
            self._clock,
            self._request.write,
            stream.opening,
            events,
            first=settings.first_token,
            interval=settings.token_interval,
            done=lambda: self._end_stream(stream),
        )
        self._request.registerProducer(self._producer, True)
        self._producer.start()

    def _end_stream(self, stream: EventStream) -> None:
        ending = self._faults.ending
        if ending is None or ending is Ending.ERROR_EVENT:
            self._request.write(stream.closing if ending is None else stream.failure)
            self._request.unregisterProducer()
            self._request.finish()
        else:
            self._break_off(ending)

    def _break_off(self, ending: Ending) -> None:
        if ending is Ending.TRUNCATE:
            self._close()
        elif ending is Ending.CLOSE_MID_BODY:
            self._later(_BEFORE_RESET, self._reset)
        elif ending is Ending.BAD_CHUNK:
            self._transport.write(b"no size\r\n")
            self._close()

    @property
    def _transport(self) -> ITCPTransport:
        # The TCP connection, below the HTTP channel.
        return cast(ITCPTransport, self._request.channel.transport)

    def _close(self) -> None:
        self._request.unregisterProducer()
        self._request.loseConnection()

    def _reset(self) -> None:
        self._transport.abortConnection()

    def _finished(self, _: object) -> None:
        if self._response.work is not None:
            self._engine.finish(self._response.work)

    def _disconnected(self, _: Failure) -> None:
        if self._timer is not None:
            self._timer.cancel()
        steps = 0
        if self._producer is not None:
            self._producer.stopProducing()
            steps = self._producer.steps
        if self._response.work is not None:
            self._engine.abort(self._response.work, steps)


@implementer(IPushProducer)
class PacedEvents:
    """Writes the event of each token when it is due.

    While the consumer pauses it, it writes nothing. The engine goes on, as vLLM's does: what became due meanwhile is
    written when the consumer resumes.

    Args:
        clock: tells the time and schedules calls.
        write: takes the bytes.
        opening: is written before the first token.
        events: the bytes of each token.
        first: seconds until the first token.
        interval: seconds from one token to the next; with 0, all are due at once.
        done: called once, after the last event.
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
        """Begin to write. Register the producer first."""
        self._pump()

    def pauseProducing(self) -> None:
        """Stop writing until `resumeProducing`."""
        self._paused = True
        self._cancel_timer()

    def resumeProducing(self) -> None:
        """Write on."""
        self._paused = False
        self._pump()

    def stopProducing(self) -> None:
        """Stop for good: the client has gone, or the stream shall break off."""
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
        # `write` may call `pauseProducing` and `resumeProducing`.
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
