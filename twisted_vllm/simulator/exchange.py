"""One request's answer on its way out: the waiting, the writing, the faults, and the counting at its end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import cast

from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.python.failure import Failure
from twisted.web.server import Request

from twisted_vllm.simulator.engine import Engine
from twisted_vllm.simulator.faults import Ending, Faults
from twisted_vllm.simulator.pace import PacedEvents
from twisted_vllm.simulator.replies import EVENT_STREAM, Answer, EventStream, Reply, Work

SERVER = b"twisted-vllm-simulator"

_GARBAGE = b"\x00\xff this is no HTTP \r\n\r\n"

# a reset throws away what was not sent yet: so many seconds for the bytes before it to leave
_BEFORE_RESET = 0.05


class Exchange:
    """Answers one request.

    Args:
        clock: tells the time and calls later.
        engine: is told what runs and what is done.
        request: the request to answer.
        reply: the answer.
        faults: what is to go wrong with it.
    """

    def __init__(self, clock: IReactorTime, engine: Engine, request: Request, reply: Reply, faults: Faults) -> None:
        self._clock = clock
        self._engine = engine
        self._request = request
        self._reply = reply
        self._faults = faults
        self._timer: IDelayedCall | None = None
        self._producer: PacedEvents | None = None

    def start(self) -> None:
        """Begin to answer; the rest happens as time passes and as the connection takes it."""
        self._request.notifyFinish().addCallbacks(self._finished, self._disconnected)
        if self._reply.work is not None:
            self._engine.begin(self._reply.work)
        self._later(self._faults.slow_head, self._answer)

    def _later(self, seconds: float, call: Callable[[], object]) -> None:
        if seconds <= 0:
            call()
            return

        def due() -> None:
            self._timer = None
            call()

        self._timer = self._clock.callLater(seconds, due)

    def _answer(self) -> None:
        ending, reply = self._faults.ending, self._reply
        if ending is Ending.HANG:
            return
        if ending is Ending.CLOSE:
            self._close()
        elif ending is Ending.GARBAGE:
            self._transport.write(_GARBAGE)
            self._close()
        elif isinstance(reply, EventStream):
            self._stream(reply)
        else:
            self._later(self._seconds_of(reply.work), lambda: self._send(reply))

    def _seconds_of(self, work: Work | None) -> float:
        if work is None:
            return 0.0
        settings = self._engine.settings
        return settings.first_token + settings.token_interval * max(0, work.steps - 1)

    def _head(self, status: int, content_type: bytes | None) -> None:
        request = self._request
        request.setResponseCode(status)
        request.setHeader(b"server", SERVER)
        request.setHeader(b"vary", b"Origin")
        # twisted.web names a type of its own where none is set, also for an empty body
        request.defaultContentType = None
        if content_type is not None:
            request.setHeader(b"content-type", content_type)

    def _send(self, answer: Answer) -> None:
        request, ending = self._request, self._faults.ending
        self._head(answer.status, answer.content_type)
        for name, value in answer.headers:
            request.setHeader(name, value)
        if ending is not Ending.BAD_CHUNK:
            # without a length the body is sent in chunks, which is what a bad chunk needs
            request.setHeader(b"content-length", b"%d" % len(answer.body))
        if ending is None or ending is Ending.ERROR_EVENT:
            request.write(answer.body)
            request.finish()
            return
        request.write(answer.body[: (len(answer.body) + 1) // 2])
        self._break_off(ending)

    def _stream(self, stream: EventStream) -> None:
        ending, settings, events = self._faults.ending, self._engine.settings, stream.events
        if ending is not None:
            events = islice(events, max(1, stream.work.steps // 2))
        self._head(200, EVENT_STREAM)
        # vLLM sends the head before its first token
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
        # the connection itself, below what makes HTTP of all that is written
        return cast(ITCPTransport, self._request.channel.transport)

    def _close(self) -> None:
        self._request.unregisterProducer()
        self._request.loseConnection()

    def _reset(self) -> None:
        self._transport.abortConnection()

    def _finished(self, _: object) -> None:
        if self._reply.work is not None:
            self._engine.finish(self._reply.work)

    def _disconnected(self, _: Failure) -> None:
        if self._timer is not None:
            self._timer.cancel()
        steps = 0
        if self._producer is not None:
            self._producer.stopProducing()
            steps = self._producer.steps
        if self._reply.work is not None:
            self._engine.abort(self._reply.work, steps)
