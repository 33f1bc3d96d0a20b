"""A vLLM server's response, in the shape that twisted.web and treq give responses."""

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
    """What reads the body from the server."""

    def pauseProducing(self) -> None:
        """Read no more for now."""

    def resumeProducing(self) -> None:
        """Read on."""


@implementer(IResponse, IPushProducer)
class UpstreamResponse:
    """One response, whose body is delivered as it arrives.

    It is also the transport of whoever receives the body: what that asks for after the end concerns nobody, where the
    connection itself may carry somebody else's response by then.

    Attributes:
        version: ``(b"HTTP", 1, 1)``.
        head: the head.
        code: the status code.
        phrase: the reason phrase as it came.
        trailers: the trailers as they came; all of them once it is `complete`.
        request: always None; IResponse asks for it.
        previousResponse: always None: redirects are not followed.
        complete: whether nothing follows what has been delivered or is being delivered: set before the last piece.
    """

    version = (b"HTTP", 1, 1)
    request = None
    previousResponse = None

    def __init__(
        self,
        head: ResponseHead,
        trailers: HeaderList,
        transport: Pausable,
        cut: Callable[[], None],
        bodyless: bool,
    ) -> None:
        """Make the response.

        Args:
            head: the head.
            trailers: the list to which trailers will be added.
            transport: what pauses and resumes the body.
            cut: gives up the exchange, and with it the connection.
            bodyless: whether no body can follow: HEAD, 204, 304.
        """
        self.head = head
        self.code = head.status
        self.phrase = head.reason
        self.trailers = trailers
        self.complete = False
        self._transport = transport
        self._cut = cut
        self._protocol: IProtocol | None = None
        self._early: list[bytes] = []
        self._ended: Failure | None = None
        self._held = False
        self._told = False
        self._bodyless = bodyless

    @property
    def raw_headers(self) -> HeaderList:
        """The headers as they came, in order."""
        return self.head.headers

    @property
    def length(self) -> Any:
        """The body's declared size in bytes, or ``UNKNOWN_LENGTH``."""
        if self._bodyless:
            return 0
        return UNKNOWN_LENGTH if self.head.length is None else self.head.length

    @property
    def headers(self) -> Headers:
        """The headers in Twisted's shape."""
        headers = Headers()
        for name, value in self.raw_headers:
            headers.addRawHeader(name, value)
        return headers

    def deliverBody(self, protocol: IProtocol) -> None:
        """Deliver the body to `protocol`, beginning with what came already, in one piece."""
        if self._held:
            # before the first piece, at which `protocol` may ask for a pause of its own
            self._held = False
            self._transport.resumeProducing()
        self._protocol = protocol
        protocol.makeConnection(self)  # type: ignore[arg-type]  # a producer stands for the transport, as in Twisted
        early, self._early = self._early, []
        if early:
            protocol.dataReceived(b"".join(early))
        self._tell()

    def hold(self) -> None:
        """Stop the body until somebody asks for it."""
        if self._protocol is None and self._ended is None:
            self._held = True
            self._transport.pauseProducing()

    def setPreviousResponse(self, response: object) -> None:
        """Do nothing: redirects are relayed, not followed."""

    def cut(self) -> None:
        """Give up the response; the connection to the server is closed at once."""
        self._cut()

    # for whoever receives the body

    def pauseProducing(self) -> None:
        """Read no more of the body for now."""
        if not self.complete and self._ended is None:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        if not self.complete and self._ended is None:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """Give up the body, and the connection to the server with it."""
        self._cut()

    abortConnection = loseConnection = stopProducing

    # from the connection

    def received(self, data: bytes) -> None:
        """Take a piece of the body from the connection."""
        if self._protocol is None:
            self._early.append(data)
        else:
            self._protocol.dataReceived(data)

    def ended(self, reason: Failure) -> None:
        """Take the end of the body from the connection: ``ResponseDone`` or ``ResponseFailed``."""
        self._ended = reason
        self._tell()

    def _tell(self) -> None:
        """Tell whoever receives the body of its end, once."""
        if self._protocol is not None and self._ended is not None and not self._told:
            self._told = True
            self._protocol.connectionLost(self._ended)


#: the end of a whole response; one failure serves all, as it carries no state
DONE = Failure(ResponseDone())


def failed(error: BaseException | None) -> Failure:
    """Return the end of a response that was cut short by `error`."""
    return Failure(ResponseFailed([Failure(error)]))
