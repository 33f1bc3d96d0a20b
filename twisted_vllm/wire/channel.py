"""The server's side of a client connection: Twisted's HTTPChannel with llhttp as its parser.

Requests are parsed as bytes arrive and answered in the order they came. A request is dispatched once the segment that
holds the end of its head was parsed, so that a small body is in hand at that moment. While a request that was received
whole is being answered, what follows it on the connection is held unparsed, up to a limit, and then left in the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser
from twisted.internet.interfaces import IProducer, ITCPTransport
from twisted.python.failure import Failure
from twisted.web import http

from twisted_vllm.errors import BodyTooLarge, GatewayError, HeadTooLarge, MalformedHttp, RequestTimeout
from twisted_vllm.wire.eager import eager_write
from twisted_vllm.wire.heads import closes, first_values, origin_form
from twisted_vllm.wire.request import GatewayRequest

if TYPE_CHECKING:
    from twisted_vllm.wire.site import GatewaySite

#: bytes that are held for a request whose predecessor is still being answered, before reading stops
HELD_LIMIT = 16_384

#: seconds for which the rest of a refused request is read and thrown away, so that the client gets to see the answer
#: (RFC 9112 §9.6: closing with unread data resets the connection)
LINGER = 2.0

#: seconds that a closing connection is given to take what was written to it
FLUSH = 300.0

#: bytes that Twisted reads from a socket at once (twisted.internet.abstract.FileDescriptor.bufferSize)
READ_SIZE = 65_536


class Peer:
    """Where a connection comes from.

    Attributes:
        host: the address, or empty on a UNIX socket.
        secure: whether the connection is TLS.
    """

    __slots__ = ("host", "secure")

    def __init__(self, host: str, secure: bool) -> None:
        self.host = host
        self.secure = secure


class GatewayChannel(http.HTTPChannel):  # type: ignore[misc]  # Twisted's class is untyped
    """One client connection.

    Attributes:
        site: the factory that built the channel.
        deadline: when `expired` is called, in the reactor's seconds.
        requests: the requests that were begun and not yet answered, oldest first.
        peer: where the connection comes from.
    """

    site: GatewaySite
    peer: Peer
    deadline: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[GatewayRequest] = []
        self._parser = HttpRequestParser(self)
        self._current: GatewayRequest | None = None
        self._in_head = False
        self._fed_in_head = 0
        self._final = False
        self._priming = False
        self._advancing = False
        self._lingering = False
        self._held: list[bytes] = []
        self._held_size = 0
        self._read_pauses: set[str] = set()

    # connection

    def connectionMade(self) -> None:
        """Take up the connection."""
        super().connectionMade()
        self.write = eager_write(self.transport)
        self.peer = Peer(getattr(self.transport.getPeer(), "host", ""), self.isSecure())
        self.site.connection_made(self)
        self.deadline = self.site.sweeper.after(self.site.timeouts.keep_alive)

    def connectionLost(self, reason: Failure) -> None:
        """Tell the requests in work that their client has gone."""
        self.site.connection_lost(self)
        self._final = True
        requests, self.requests = self.requests, []
        for request in requests:
            request.connectionLost(reason)

    def is_idle(self) -> bool:
        """Tell whether nothing was begun that is not finished."""
        return not self.requests and self._current is None and not self._lingering

    def expired(self) -> None:
        """Act on the deadline: end an idle connection, refuse a request that does not come, give up on a lingering one."""
        if self._lingering:
            self.transport.abortConnection()
        elif self._read_pauses:
            # it is the gateway that does not read
            self._set_deadline()
        elif self._current is None:
            self.deadline = None
            self.loseConnection()
        else:
            self._fail(RequestTimeout("The request did not arrive in time."))

    def _set_deadline(self) -> None:
        """Set the deadline that fits what is awaited from the client."""
        timeouts = self.site.timeouts
        seconds: float | None
        if self.requests and self._current is not self.requests[0]:
            seconds = None
        elif self._current is None:
            seconds = timeouts.keep_alive
        elif self._in_head:
            seconds = timeouts.client_head
        else:
            seconds = timeouts.client_body
        self.deadline = self.site.sweeper.after(seconds)

    # from the client

    def dataReceived(self, data: bytes) -> None:
        """Parse what came, or hold it until the request before it is answered."""
        if self._lingering:
            return
        requests = self.requests
        if requests and (len(requests) > 1 or requests[0].body_complete):
            self._hold(data)
            return
        self._feed(data)
        self._advance()

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > HELD_LIMIT:
            self.pause_reading("held")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
        except HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except HttpParserError:
            if not self._final:
                self._fail(MalformedHttp("The request is not well-formed HTTP/1.1."))
            return
        if self._in_head:
            if self._fed_in_head == 0:
                self._set_deadline()
            self._fed_in_head += len(data)
            if self._fed_in_head > self.site.limits.max_head_bytes + READ_SIZE:
                self._fail(self._head_too_large())
        else:
            self._set_deadline()

    def _head_too_large(self) -> HeadTooLarge:
        return HeadTooLarge(f"The request's head is over {self.site.limits.max_head_bytes} bytes.")

    def _without_upgrade(self, rest: bytes) -> None:
        """Go on as if no upgrade had been asked for: RFC 9110 §7.8 lets a server ignore it.

        llhttp takes the request for complete and skips its body, so a fresh parser gets a head with the same framing.
        """
        request = self._current
        if request is None or request.fault is not None:
            return
        framing = [b"POST / HTTP/1.1\r\nHost: h\r\n"]
        framing += [
            b"%b: %b\r\n" % (name, request.head[name])
            for name in (b"content-length", b"transfer-encoding")
            if name in request.head
        ]
        self._parser = HttpRequestParser(self)
        self._priming = True
        self._parser.feed_data(b"".join(framing) + b"\r\n")
        self._priming = False
        if rest:
            self._feed(rest)

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._priming:
            return
        self._current = self._take_up()
        self._in_head = True
        self._fed_in_head = 0

    def on_url(self, piece: bytes) -> None:
        """Take a piece of the request target."""
        if self._priming or self._current is None:
            return
        self._current.uri += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        if self._current is not None and self._in_head:
            self._current.raw_headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Judge the head."""
        request = self._current
        if self._priming or request is None:
            return
        self._in_head = False
        parser = self._parser
        headers = request.raw_headers
        request.method = parser.get_method()
        request.head = head = first_values(headers)
        version = parser.get_http_version()
        request.clientproto = b"HTTP/" + version.encode("ascii")
        limits = self.site.limits
        try:
            if len(headers) > limits.max_header_count:
                raise HeadTooLarge(f"The request has over {limits.max_header_count} headers.")
            if len(request.uri) + sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_head_bytes:
                raise self._head_too_large()
            request.uri = origin_form(request.method, request.uri, version, headers, head)
            length = head.get(b"content-length")
            if length is not None:
                request.body_length = int(length)
                if request.body_length > limits.max_body_bytes:
                    raise BodyTooLarge(f"The request's body is over {limits.max_body_bytes} bytes.")
            elif b"transfer-encoding" in head:
                request.body_length = None
            request.persistent = not closes(version, head)
        except GatewayError as fault:
            request.fault = fault
        request.head_complete = True
        request.upgrade = parser.should_upgrade()

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        request = self._current
        if request is None or request.finished:
            return
        request.body_received += len(data)
        if request.body_received > self.site.limits.max_body_bytes:
            request.fault = request.fault or BodyTooLarge(
                f"The request's body is over {self.site.limits.max_body_bytes} bytes."
            )
            return
        request.body_pieces.append(data)

    def on_message_complete(self) -> None:
        """End the request, unless it asked for an upgrade and its body is still to be read."""
        request = self._current
        if request is None:
            return
        if request.upgrade:
            request.upgrade = False
            return
        request.body_complete = True
        self._current = None
        if not request.persistent:
            self._final = True

    # answering in order

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._advance_once():
                pass
        finally:
            self._advancing = False

    def _advance_once(self) -> bool:
        """Take one step; return whether another may follow."""
        if self.requests:
            request = self.requests[0]
            if not request.head_complete or self._lingering:
                return False
            if request.fault is not None:
                if not request.failed:
                    request.persistent = False
                    self._final = True
                    request.fail(request.fault)
            elif not request.dispatched:
                request.dispatch()
            else:
                request.body_arrived()
            return not (self.requests and self.requests[0] is request)
        if self._held and not self._lingering:
            data = b"".join(self._held)
            self._held.clear()
            self._held_size = 0
            self.resume_reading("held")
            self._feed(data)
            return True
        return False

    def requestDone(self, request: GatewayRequest) -> None:
        """Go on to the next request, or end the connection: called when a request was answered."""
        self.requests.remove(request)
        if not request.keeps_connection():
            self._end(request)
            return
        self._set_deadline()
        self.resume_reading("body")
        self._advance()

    def _end(self, request: GatewayRequest) -> None:
        """Close, after the rest of the request was read for a while where there is a rest."""
        self._final = True
        self._lingering = True
        self._held.clear()
        self._read_pauses.clear()
        if request.body_complete:
            self.deadline = self.site.sweeper.after(FLUSH)
            self.loseConnection()
            return
        self.deadline = self.site.sweeper.after(LINGER)
        self._networkProducer.resumeProducing()
        if ITCPTransport.providedBy(self.transport) and not self.isSecure():
            self._networkProducer.unregisterProducer()
            self.transport.loseWriteConnection()
        else:
            self.loseConnection()

    def _fail(self, error: GatewayError) -> None:
        """Answer `error` in place of the request that cannot be read, and close."""
        request = self._current or self._take_up()
        self._current = None
        self._final = True
        self._in_head = False
        self._held.clear()
        request.fault = error
        request.head_complete = True
        if request.finished:
            # answered early, and the rest of its body is not what it should be
            self._end(request)
        elif self.requests[0] is request:
            request.persistent = False
            request.fail(error)

    def _take_up(self) -> GatewayRequest:
        """Begin a request for bytes that are none."""
        request = GatewayRequest(self)
        self.requests.append(request)
        return request

    # backpressure

    def pause_reading(self, why: str) -> None:
        """Read no more from the client until `why` is over."""
        self._read_pauses.add(why)
        self._networkProducer.pauseProducing()

    def resume_reading(self, why: str) -> None:
        """Read again, if nothing else forbids it."""
        if why in self._read_pauses:
            self._read_pauses.discard(why)
            if not self._read_pauses:
                self._networkProducer.resumeProducing()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Register who produces the answer; it is paused at once where the client has not yet read what went before."""
        super().registerProducer(producer, streaming)
        if streaming and self._waitingForTransport:
            producer.pauseProducing()

    def pauseProducing(self) -> None:
        """The client does not read as fast as it is written to: stop whoever produces for it, and take no more requests."""
        self._waitingForTransport = True
        if self._requestProducer is not None:
            self._requestProducer.pauseProducing()
        elif not self.requests:
            self.pause_reading("unread")

    def resumeProducing(self) -> None:
        """The client has read what was written."""
        self._waitingForTransport = False
        self.resume_reading("unread")
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()

    def drain(self) -> None:
        """End the connection when nothing is in work on it; called when the gateway shuts down."""
        for request in self.requests:
            request.persistent = False
        if self.is_idle():
            self.loseConnection()
