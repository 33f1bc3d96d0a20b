"""A vLLM server's response, with the interface of twisted.web and treq."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse
from zope.interface import implementer

from twisted_vllm.http.headers import HeaderList, ResponseHead


class Pausable(Protocol):
    """Reads the body from the server."""

    def pauseProducing(self) -> None:
        """Stop reading."""

    def resumeProducing(self) -> None:
        """Resume reading."""


@implementer(IResponse, IPushProducer)
class UpstreamResponse:
    """One response. Its body is delivered as it arrives.

    It is also the transport of the protocol that receives the body. After the end of the body that transport does
    nothing: the connection may carry another response by then.

    Attributes:
        version: ``(b"HTTP", 1, 1)``.
        head: the head.
        code: the status code.
        phrase: the reason phrase as received.
        trailers: the trailers as received; all of them once the response is `complete`.
        request: always None; IResponse requires it.
        previousResponse: always None: redirects are not followed.
        complete: whether the body has ended; set before its last piece is delivered.
    """

    version = (b"HTTP", 1, 1)
    request = None
    previousResponse = None
    _early = b""
    _ended: Failure | None = None
    _held = False
    _end_delivered = False

    def __init__(
        self,
        head: ResponseHead,
        trailers: HeaderList,
        transport: Pausable,
        cut: Callable[[], None],
        bodyless: bool,
    ) -> None:
        """Create the response.

        Args:
            head: the head.
            trailers: the list that trailers will be added to.
            transport: pauses and resumes the body.
            cut: gives up the exchange and aborts the connection.
            bodyless: whether the response cannot have a body: HEAD, 204, 304.
        """
        self.head = head
        self.code = head.status
        self.phrase = head.reason
        self.trailers = trailers
        self.complete = False
        self._protocol: IProtocol | None = None
        self._transport = transport
        self._cut = cut
        self._bodyless = bodyless

    @property
    def raw_headers(self) -> HeaderList:
        """The headers as received, in order."""
        return self.head.headers

    @property
    def length(self) -> Any:
        """The body's declared size in bytes, or ``UNKNOWN_LENGTH``."""
        if self._bodyless:
            return 0
        return UNKNOWN_LENGTH if self.head.length is None else self.head.length

    @property
    def headers(self) -> Headers:
        """The headers as Twisted represents them."""
        headers = Headers()
        for name, value in self.raw_headers:
            headers.addRawHeader(name, value)
        return headers

    def deliverBody(self, protocol: IProtocol) -> None:
        """Deliver the body to `protocol`; what has arrived already is delivered in one piece."""
        if self._held:
            # before the first piece: `protocol` may pause when it gets it
            self._held = False
            self._transport.resumeProducing()
        self._protocol = protocol
        protocol.makeConnection(self)  # type: ignore[arg-type]  # a producer stands for the transport, as in Twisted
        early, self._early = self._early, b""
        if early:
            protocol.dataReceived(early)
        self._deliver_end()

    def hold(self) -> None:
        """Pause until `deliverBody`."""
        if self._protocol is None and self._ended is None:
            self._held = True
            self._transport.pauseProducing()

    def setPreviousResponse(self, response: object) -> None:
        """Do nothing: redirects are relayed, not followed."""

    def cut(self) -> None:
        """Give up the response and abort the connection to the server."""
        self._cut()

    # IPushProducer, for the protocol that receives the body

    def pauseProducing(self) -> None:
        """Stop reading the body."""
        if not self.complete and self._ended is None:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume reading."""
        if not self.complete and self._ended is None:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """Give up the response and abort the connection to the server."""
        self._cut()

    abortConnection = loseConnection = stopProducing

    # from the connection

    def received(self, data: bytes) -> None:
        """Deliver a piece of the body, or keep it until `deliverBody`."""
        if self._protocol is None:
            self._early += data
        else:
            self._protocol.dataReceived(data)

    def ended(self, reason: Failure) -> None:
        """Deliver the end of the body: ``ResponseDone`` or ``ResponseFailed``."""
        self._ended = reason
        self._deliver_end()

    def _deliver_end(self) -> None:
        if self._protocol is not None and self._ended is not None and not self._end_delivered:
            self._end_delivered = True
            self._protocol.connectionLost(self._ended)


#: the end of a complete response; one failure serves all, because it has no state
DONE = Failure(ResponseDone())


def failed(error: BaseException | None) -> Failure:
    """Return the end of a response that was cut short by `error`."""
    return Failure(ResponseFailed([Failure(error)]))
