"""Streams with backpressure in both directions: the request's body to the server, the response to the client."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import UNKNOWN_LENGTH
from zope.interface import implementer

from twisted_vllm.errors import TURNED_AWAY, GatewayError, OutOfSockets, UpstreamAnswerCut
from twisted_vllm.http.client.connect_errors import words_of
from twisted_vllm.http.client.interfaces import IRelayedBody
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import TRACE_HEADERS, HeaderList, ResponseHead, relayed_trailers
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.mounts import prefix_of
from twisted_vllm.proxy.client_head import for_client


@implementer(IRelayedBody)
class RequestBody:
    """The client's body as it arrives.

    Attributes:
        length: its size in bytes, or ``UNKNOWN_LENGTH`` for a chunked one.
        watch: called with each piece that is sent to the server.
    """

    watch: Callable[[bytes], None] | None = None

    def __init__(self, request: GatewayRequest, dropped: frozenset[bytes] = frozenset()) -> None:
        """Make the body.

        Args:
            request: the client's request.
            dropped: lower-case names of headers to drop from the trailers too: a server may treat trailers as headers.
        """
        self.length = UNKNOWN_LENGTH if request.head.length is None else request.head.length
        self._dropped = dropped
        self._request = request
        self._consumer: IConsumer | None = None
        self._held = False
        self._done: Deferred[None] = Deferred()

    @property
    def trailers(self) -> HeaderList:
        """The trailers for the server; complete once the body has ended."""
        trailers = self._request.trailers
        if not trailers:
            return trailers
        # the gateway told the server the trace
        dropped = self._dropped if self._request.context.trace is None else self._dropped | TRACE_HEADERS
        return relayed_trailers(trailers, dropped)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write the body to `consumer`; the Deferred fires at its end."""
        self._consumer = consumer
        if self._held:
            self._held = False
            self._request.resume_body()
        self._request.stream_body(self._piece)
        return self._done

    def _piece(self, data: bytes, last: bool) -> None:
        if self._consumer is None:
            return
        if self.watch is not None:
            self.watch(data)
        self._consumer.write(data)
        if last:
            self._consumer = None
            self._done.callback(None)

    def hold(self) -> None:
        """Stop reading from the client until `startProducing`."""
        self._held = True
        self._request.pause_body()

    def pauseProducing(self) -> None:
        """Stop reading from the client."""
        self._request.pause_body()

    def resumeProducing(self) -> None:
        """Resume reading."""
        self._request.resume_body()

    def stopProducing(self) -> None:
        """Drop the rest: the server has responded or disconnected."""
        self._consumer = None
        self._request.resume_body()


class Verdict(Enum):
    """What becomes of a response whose head came."""

    #: it goes to the client
    RELAYED = "relayed"
    #: it goes to the client once its body begins
    HELD = "held"
    #: it is dropped, or read first: the relay is over
    TAKEN = "taken"


# to read a member of an enum from its class takes 0.1 µs
RELAYED, HELD, TAKEN = Verdict.RELAYED, Verdict.HELD, Verdict.TAKEN


class Forwarding(TypingProtocol):
    """Is told what became of an attempt, and may make another."""

    @property
    def path_prefix(self) -> bytes:
        """The path that proxies in front of the gateway cut off."""

    def answered(self, response: UpstreamResponse) -> Verdict:
        """The head of a response came; return what becomes of it."""

    def began(self) -> None:
        """The body of a response that was held began."""

    def failed(self, error: GatewayError) -> bool:
        """No response came; return whether another attempt takes its place."""

    def cut(self, error: GatewayError) -> None:
        """The response was cut short."""

    def cancelled(self) -> None:
        """The client has disconnected."""


class Relay(Protocol):
    """Relays one response to the client: the protocol that receives the response's body, and the request's `Work`.

    Attributes:
        context: the request's context.
        paused: whether the client reads slowly, so that the server's response is not read.
    """

    _log = Logger()
    #: the response while its body is delivered; it pauses and resumes the server's connection
    transport: Any
    _pending: Deferred[UpstreamResponse] | None = None
    _response: UpstreamResponse | None = None
    paused = False
    _ended = False
    # the response's head, while it waits for the first byte of the body
    _held: ResponseHead | None = None

    def __init__(self, request: GatewayRequest, forwarding: Forwarding | None = None) -> None:
        """Relay to the client of `request`; `forwarding` is told what became of the attempt."""
        self._request = request
        self._forwarding = forwarding
        self.context = request.context

    def cancel(self) -> None:
        """The client has disconnected: close the connection to the server, which makes vLLM abort the generation."""
        self._ended = True
        self.context.outcome = self.context.outcome or "client_disconnected"
        forwarding, self._forwarding = self._forwarding, None
        if forwarding is not None:
            forwarding.cancelled()
        pending, self._pending = self._pending, None
        response, self._response = self._response, None
        if pending is not None:
            pending.cancel()
        elif response is not None:
            response.stopProducing()

    def fail(self, error: GatewayError) -> None:
        """Give up waiting for the response."""
        pending, self._pending = self._pending, None
        if self._ended or (pending is None and self._held is None):
            return
        response, self._response = self._response, None
        self._held = None
        self._ended = True
        if pending is not None:
            pending.cancel()
        elif response is not None:
            response.stopProducing()
        self._ended = False
        self._failed(Failure(error))

    # the head

    def await_response(self, pending: Deferred[UpstreamResponse]) -> None:
        """Relay the response that `pending` fires with, or respond with an error."""
        self._pending = pending
        pending.addCallbacks(self._responded, self._failed)

    def _responded(self, response: UpstreamResponse) -> None:
        self._pending = None
        if self._ended:
            response.stopProducing()
            return
        try:
            verdict = RELAYED if self._forwarding is None else self._forwarding.answered(response)
            if verdict is TAKEN:
                self._ended = True
                self._forwarding = None
                return
            self._response = response
            if verdict is HELD:
                self._held = response.head
                response.deliverBody(self)
            else:
                self._begin_response(response)
        except Exception:
            self._broken(Failure())

    def answer_whole(self, head: ResponseHead, body: bytes) -> None:
        """Relay a response whose body was read already."""
        self._ended = True
        self.context.outcome = "completed"
        self._relay_head(head)
        if self.context.meter is not None:
            body = self.context.meter.finish(body)
        self._request.relay_body(body, True)

    def _release(self) -> None:
        """Relay the head that was held: the body begins."""
        head, self._held = self._held, None
        assert head is not None
        if self._forwarding is not None:
            self._forwarding.began()
        self._relay_head(head)
        if not self._ended and self._response is not None and not self._response.complete:
            self._request.registerProducer(self, True)

    def _begin_response(self, response: UpstreamResponse) -> None:
        request = self._request
        self._relay_head(response.head)
        response.deliverBody(self)
        if response.complete:
            # its body is delivered at once
            return
        if not self._ended:
            # now there is a body to pause if the client reads slowly
            request.registerProducer(self, True)
        request.flush()

    def _relay_head(self, head: ResponseHead) -> None:
        context = self.context
        if context.meter is not None:
            context.meter.start(head)
        if context.reservation is not None:
            self._request.added = context.reservation.lines
        if head.status != 200 or context.repeated_as or context.fallback:
            head = for_client(head, context, self._mount())
        self._request.relay_head(head)

    def _mount(self) -> bytes:
        """Return what stands before the server's paths in the client's."""
        cut_off = b"" if self._forwarding is None else self._forwarding.path_prefix
        return cut_off + prefix_of(self.context.head.target)

    def _failed(self, failure: Failure) -> None:
        self._pending = None
        if self._ended:
            return
        error = failure.value
        if not isinstance(error, GatewayError):
            self._broken(failure)
            return
        self._ended = True
        forwarding, self._forwarding = self._forwarding, None
        if forwarding is not None and forwarding.failed(error):
            return
        if isinstance(error, OutOfSockets):
            self.context.sent = False
        # a request with an unacceptable body counts as refused too
        is_refused = error.status < 500 or error.code in TURNED_AWAY
        self.context.outcome = "refused" if is_refused else "upstream_failed"
        self._request.answer(error)

    def _broken(self, failure: Failure) -> None:
        """Respond to an internal error of the gateway."""
        self._ended = True
        self.context.outcome = "failed"
        self._request.processingFailed(failure)

    # the body

    def dataReceived(self, data: bytes) -> None:
        """Write a piece; the last piece and the end of the response go out in one write."""
        if self._ended:
            return
        if self._held is not None:
            self._release()
        response = self._response
        if response is not None and response.complete:
            self._finish(data)
            return
        meter = self.context.meter
        if meter is not None:
            if not meter.began:
                meter.began = self._request.channel.site.seconds()
            try:
                data = meter.feed(data)
            except Exception:
                self._broken(Failure())
                return
            if not data:
                # the meter holds it back until its rest arrives
                return
        self._request.relay_body(data, False)

    def _finish(self, data: bytes) -> None:
        self._ended = True
        self.context.outcome = "completed"
        response = self._response
        meter = self.context.meter
        if meter is not None:
            try:
                data = meter.finish(data)
            except Exception:
                # the server has finished, so nothing else would end the response
                self._broken(Failure())
                return
        trailers = response.trailers if response is not None else None
        # break the reference cycle
        self._response = self.transport = None
        self._request.relay_body(data, True, relayed_trailers(trailers) if trailers else None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End the response, or cut it off if the server's was cut off."""
        if self._ended:
            return
        if reason.check(ResponseDone):
            if self._held is not None:
                self._release()
            self._finish(b"")
            return
        if self._held is not None:
            # nothing reached the client yet
            self._held = self._response = None
            self._failed(Failure(cause_of_cut(reason)))
            return
        self._ended = True
        self.context.outcome = "upstream_failed"
        error = cause_of_cut(reason)
        if self._forwarding is not None:
            self._forwarding.cut(error)
        request = self._request
        meter = self.context.meter
        try:
            held = b"" if meter is None else meter.finish(b"")
        except Exception:
            self._broken(Failure())
            return
        if held:
            # deliver what arrived before the cut
            request.relay_body(held, False)
        self.context.error_code = error.code
        server = "" if self.context.server is None else self.context.server.name
        self._log.warn(
            "The response of {server} to {request_id} was cut short: {reason}",
            server=server,
            request_id=self.context.request_id.decode("ascii"),
            reason=words_of(error),
            once_a_second=f"{server} {error.code}",
        )
        request.abort()

    # IPushProducer, for the client's connection

    def pauseProducing(self) -> None:
        """Stop reading from the server: the client reads slowly."""
        if self.transport is not None and not self._ended:
            self.paused = True
            if self.context.meter is not None:
                self.context.meter.paused = True
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume reading."""
        if self.transport is not None and not self._ended:
            self.paused = False
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client's connection is ending."""
        self.cancel()


def cause_of_cut(reason: Failure) -> GatewayError:
    """Return why a response ended early."""
    if isinstance(reason.value, ResponseFailed):
        for cause in reason.value.reasons:
            if isinstance(cause.value, GatewayError):
                return cause.value
    return UpstreamAnswerCut("The vLLM server's answer was cut short.")
