"""Producer and consumer in both directions: the request's body to the server, the response to the client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_vllm.errors import GatewayError, ServerBusy, UpstreamProtocolError
from twisted_vllm.http.client.exchange import NO_PROTOCOLS, UpstreamExchange
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import HeaderList, relayed_trailers
from twisted_vllm.http.server.request import GatewayRequest


@implementer(IBodyProducer)
class RequestBody:
    """The client's body as it arrives.

    Attributes:
        length: its size in bytes, or ``UNKNOWN_LENGTH`` for a chunked one.
        watch: looks on at what goes on to the server, piece by piece.
    """

    watch: Callable[[bytes], None] | None = None

    def __init__(self, request: GatewayRequest, dropped: frozenset[bytes] = frozenset()) -> None:
        """Make the body.

        Args:
            request: whose it is.
            dropped: lower-case names of the headers that the server must not get from this client: a server may take
                trailers for headers.
        """
        self.length = UNKNOWN_LENGTH if request.head.length is None else request.head.length
        self._dropped = dropped
        self._request = request
        self._consumer: IConsumer | None = None
        self._held = False
        self._done: Deferred[None] = Deferred()

    @property
    def trailers(self) -> HeaderList:
        """The trailers that go on with it; all of them once it has ended."""
        trailers = self._request.trailers
        return relayed_trailers(trailers, self._dropped) if trailers else trailers

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
        """Leave what comes of it with the client until `startProducing`."""
        self._held = True
        self._request.pause_body()

    def pauseProducing(self) -> None:
        """Read no more from the client for now."""
        self._request.pause_body()

    def resumeProducing(self) -> None:
        """Read on."""
        self._request.resume_body()

    def stopProducing(self) -> None:
        """Drop what is still to come: the server has answered, or has gone."""
        self._consumer = None
        self._request.resume_body()


class Relay(Protocol):
    """Carries one response to the client. It is the request's `Work` and the exchange's `ResponseHandler`.

    Attributes:
        exchange: the exchange with the server, until the response has ended.
        context: what is known of the request.
        protocols: none: a server that switches protocols is at fault.
    """

    _log = Logger()
    exchange: UpstreamExchange | None = None
    #: what pauses and resumes the server's connection: `UpstreamResponse.deliverBody` puts it here
    transport: Any
    protocols = NO_PROTOCOLS
    _response: UpstreamResponse | None = None
    _ended = False

    def __init__(self, request: GatewayRequest) -> None:
        self._request = request
        self.context = request.context
        self.informational = request.informational

    def cancel(self) -> None:
        """The client has gone: close the connection to the server at once, which makes vLLM abort the generation."""
        self._ended = True
        self.context.outcome = self.context.outcome or "client_disconnected"
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.cancel()

    # the head

    def responded(self, response: UpstreamResponse) -> None:
        """Begin the response, with the head that came."""
        if self._ended:
            return
        self._response = response
        try:
            self._begin_response(response)
        except Exception:
            self._broken(Failure())

    def _begin_response(self, response: UpstreamResponse) -> None:
        request = self._request
        meter = self.context.meter
        if meter is not None:
            meter.start(response.head)
        if self.context.reservation is not None:
            request.added = self.context.reservation.lines

        request.relay_head(response.head)
        response.deliverBody(self)
        if response.complete:
            # what there is of a body follows at once
            return
        if not self._ended:
            # not before: until the body is delivered there is nothing yet that a slow client could pause
            request.registerProducer(self, True)
        request.flush()

    def failed(self, error: BaseException) -> None:
        """Answer for the server."""
        if self._ended:
            return
        if not isinstance(error, GatewayError):
            self._broken(Failure(error))
            return
        self._ended = True
        self.exchange = None
        # a request whose body turned out to be unfit is refused as well
        self.context.outcome = "refused" if error.status < 500 or isinstance(error, ServerBusy) else "upstream_failed"
        self._request.answer(error)

    def _broken(self, failure: Failure) -> None:
        """A fault of our own: the client must not wait for ever."""
        self._ended = True
        self.context.outcome = "failed"
        self._request.processingFailed(failure)

    # the body

    def dataReceived(self, data: bytes) -> None:
        """Write a piece; the last one ends the response in the same write."""
        if self._ended:
            return
        response = self._response
        if response is not None and response.complete:
            self._finish(data)
            return
        meter = self.context.meter
        if meter is not None:
            try:
                data = meter.feed(data)
            except Exception:
                self._broken(Failure())
                return
            if not data:
                # held back until its rest comes
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
                # nobody else would end it: the server has done its part
                self._broken(Failure())
                return
        trailers = response.trailers if response is not None else None
        # they refer back to it: so all are gone at once, and not at the next collection
        self._response = self.exchange = self.transport = None
        self._request.relay_body(data, True, relayed_trailers(trailers) if trailers else None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End the response, or cut it where the server's was cut."""
        if self._ended:
            return
        if reason.check(ResponseDone):
            self._finish(b"")
            return
        self._ended = True
        self.context.outcome = "upstream_failed"
        error = _cause(reason)
        request = self._request
        meter = self.context.meter
        try:
            held = b"" if meter is None else meter.finish(b"")
        except Exception:
            self._broken(Failure())
            return
        if held:
            # what came before the cut is the client's
            request.relay_body(held, False)
        self.context.error_code = error.code
        self._log.warn(
            "The response to {request_id} was cut short: {reason}",
            request_id=self.context.request_id.decode("ascii"),
            reason=error.message,
        )
        request.abort()

    # IPushProducer, for the client's connection

    def pauseProducing(self) -> None:
        """The client reads slowly: read no more from the server."""
        if self.transport is not None and not self._ended:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        if self.transport is not None and not self._ended:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The client's connection is ending."""
        self.cancel()


def _cause(reason: Failure) -> GatewayError:
    """Return why a response ended early."""
    if isinstance(reason.value, ResponseFailed):
        for cause in reason.value.reasons:
            if isinstance(cause.value, GatewayError):
                return cause.value
    return UpstreamProtocolError("The vLLM server's answer was cut short.")
