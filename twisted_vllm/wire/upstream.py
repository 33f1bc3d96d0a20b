"""One connection to a vLLM server: it writes a request and reads the response, one exchange after another.

llhttp reads the response. What its callbacks give is collected and handed on once for each segment that arrived, with the
knowledge of whether it was the last: so a small response leaves in one write, and a chunk in one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import GatewayError, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.wire.eager import eager_write
from twisted_vllm.wire.headers import BODILESS, HeaderList, content_length
from twisted_vllm.wire.pool import KEEP
from twisted_vllm.wire.response import DONE, UpstreamResponse, failed
from twisted_vllm.wire.sweeper import Sweeper

Informational = Callable[[int, bytes, HeaderList], None]


class Exchange:
    """One request and the response to it.

    Attributes:
        server: where it goes.
        method: the request's method.
        head: the request's head, written out.
        body: the body: bytes, a producer that streams it, or None.
        result: fires with the `UpstreamResponse` when its head arrived, or fails with a `GatewayError`.
        informational: called with each interim response.
        at: the connection that it is on, or the attempt to connect that it waits for.
        retried: whether it was sent before, on a connection that turned out to be dead.
        response: the response, once its head arrived.
    """

    def __init__(
        self,
        server: Server,
        method: bytes,
        head: bytes,
        body: bytes | IBodyProducer | None,
        result: Deferred[UpstreamResponse],
        informational: Informational | None,
    ) -> None:
        self.server = server
        self.method = method
        self.head = head
        self.body = body
        self.result = result
        self.informational = informational
        self.retried = False
        self.at: Any = None
        self.response: UpstreamResponse | None = None

    @property
    def can_be_resent(self) -> bool:
        """Whether the body is still in hand."""
        return not self.retried and (self.body is None or isinstance(self.body, bytes))


@implementer(IPushProducer)
class UpstreamConnection(Protocol):
    """A connection to `server`.

    Attributes:
        server: which server.
        deadline: when `expired` is called, in the reactor's seconds.
        exchange: what is in work, or None while idle.
    """

    def __init__(
        self,
        server: Server,
        sweeper: Sweeper,
        on_idle: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection, Exchange | None], None],
    ) -> None:
        """Make the connection's protocol.

        Args:
            server: which server.
            sweeper: the deadlines of all connections.
            on_idle: called when an exchange ended and the connection can take another.
            on_lost: called when the connection ended, with the exchange that may be sent again, if there is one.
        """
        self.server = server
        self.deadline: float | None = None
        self.exchange: Exchange | None = None
        self._sweeper = sweeper
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._parser = HttpResponseParser(self)
        self._used = False
        self._lost = False
        self._paused = False
        self._total: float | None = None

    # connection

    def connectionMade(self) -> None:
        """Take up the connection."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._write = eager_write(self.transport)
        self._sweeper.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End what was in work: complete where the end of the connection is the end of the body, else failed."""
        self._lost = True
        self._sweeper.discard(self)
        exchange = self.exchange
        resend = None
        if exchange is not None:
            if exchange.response is not None and self._until_eof and reason.check(ConnectionDone):
                self._complete = True
                self._deliver()
            elif not self._any_bytes and self._reused and exchange.can_be_resent:
                resend = exchange
                self.exchange = None
                self._stop_body()
            elif not self._any_bytes:
                self._fail(UpstreamUnreachable("The vLLM server closed the connection before it answered."))
            else:
                self._fail(UpstreamProtocolError("The vLLM server's answer was cut short."))
        self._on_lost(self, resend)

    def close(self) -> None:
        """End an idle connection."""
        self.transport.loseConnection()

    def expired(self) -> None:
        """Give up on a server that takes too long."""
        self.deadline = None
        if self.exchange is None:
            self.close()
        else:
            self.fail(UpstreamTimeout("The vLLM server took too long."))

    def fail(self, error: GatewayError) -> None:
        """Give up the exchange in work with `error`, and the connection with it."""
        self._fail(error)
        self.transport.abortConnection()

    def cut(self, exchange: Exchange) -> None:
        """Give up `exchange`, about which nobody asks any more, and the connection with it; nothing if it has ended."""
        if self.exchange is exchange:
            self.exchange = None
            self._stop_body()
            self.transport.abortConnection()

    # sending

    def send(self, exchange: Exchange) -> None:
        """Send `exchange`'s request and read the response to it."""
        self.exchange = exchange
        self._reused = self._used
        self._used = True
        self._any_bytes = self._head_arrived = self._complete = self._until_eof = self._spoiled = False
        self._reason = b""
        self._headers: HeaderList = []
        self._pieces: list[bytes] = []
        self._body_producer: Any = None
        self._body_sent = True
        timeouts = self.server.timeouts
        self._total = self._sweeper.after(timeouts.total)
        self._await(timeouts.response_head)
        body = exchange.body
        if body is None:
            self._write(exchange.head)
        elif isinstance(body, bytes):
            self._write(exchange.head + body)
        else:
            self._write(exchange.head)
            self._stream(body)

    def _stream(self, body: IBodyProducer) -> None:
        self._body_sent = False
        self._body_producer = body
        self._chunk_body = body.length is UNKNOWN_LENGTH
        self.transport.registerProducer(body, True)
        body.startProducing(self).addCallbacks(self._body_done, lambda _: None)

    def write(self, data: bytes) -> None:
        """Send a piece of the request's body: IConsumer for the body's producer."""
        if data and self._body_producer is not None and not self._lost:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunk_body else data)
            if not self._head_arrived:
                self._await(self.server.timeouts.response_head)

    def _body_done(self, _: object) -> None:
        if self._body_producer is None:
            return
        self._body_producer = None
        self._body_sent = True
        if not self._lost:
            self.transport.unregisterProducer()
            if self._chunk_body:
                self._write(b"0\r\n\r\n")

    def _stop_body(self) -> None:
        """Take no more of a body that the server will not read."""
        body, self._body_producer = self._body_producer, None
        if body is not None:
            if not self._lost:
                self.transport.unregisterProducer()
            body.stopProducing()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Do nothing: the transport knows the body's producer already."""

    def unregisterProducer(self) -> None:
        """Do nothing, likewise."""

    def _await(self, seconds: float | None) -> None:
        """Wait for at most `seconds`, and no longer than the exchange's total time."""
        deadline = None if seconds is None else self._sweeper.after(seconds)
        if self._total is not None and (deadline is None or self._total < deadline):
            deadline = self._total
        self.deadline = deadline

    # receiving

    def dataReceived(self, data: bytes) -> None:
        """Parse what came and hand it on."""
        if self.exchange is None:
            # nothing was asked for: whatever this is, it must not become the next answer
            self.transport.abortConnection()
            return
        self._any_bytes = True
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self.fail(UpstreamProtocolError("The vLLM server switched protocols unasked."))
            return
        except HttpParserError:
            if not self._complete:
                # what came before the fault is the client's; the cut follows it
                self._deliver()
                if self.exchange is not None:
                    self.fail(UpstreamProtocolError("The vLLM server's answer is not well-formed HTTP."))
                return
            self._spoiled = True
        self._deliver()

    def on_status(self, piece: bytes) -> None:
        """Take a piece of the reason phrase."""
        self._reason += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if not self._head_arrived:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the head: an interim response, one without a body, or one that ends with the connection."""
        if self._head_arrived:
            # a second response: llhttp calls back for it only when the first did not ask for the connection's end
            self._spoiled = True
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            return
        self._head_arrived = True
        self._status = status
        exchange = self.exchange
        self._keep_alive = False
        if exchange is not None and exchange.method == b"HEAD":
            # llhttp would wait for the body that Content-Length announces
            self._parser = HttpResponseParser(self)
            self._bodyless = self._complete = True
            connection = b",".join(value for name, value in self._headers if name.lower() == b"connection")
            self._keep_alive = b"close" not in connection.lower()
        else:
            self._bodyless = status in BODILESS
            if not self._bodyless and content_length(self._headers) is None:
                coding = b",".join(value for name, value in self._headers if name.lower() == b"transfer-encoding")
                self._until_eof = not coding.lower().rstrip().endswith(b"chunked")

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self._complete:
            self._spoiled = True
        elif data:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """End the response, or the interim response."""
        if not self._head_arrived:
            exchange = self.exchange
            if exchange is not None and exchange.informational is not None:
                exchange.informational(self._parser.get_status_code(), self._reason, self._headers)
            self._reason = b""
            self._headers = []
            return
        if not self._complete and not self._until_eof:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()

    def _deliver(self) -> None:
        exchange = self.exchange
        if exchange is None or not self._head_arrived:
            return
        pieces = self._pieces
        data = b""
        if pieces:
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces = []
        response = exchange.response
        begun = response is not None
        if response is None:
            response = exchange.response = UpstreamResponse(
                version=(b"HTTP", 1, 1),
                code=self._status,
                phrase=self._reason,
                raw_headers=self._headers,
                transport=self,
                cut=partial(self.cut, exchange),
                bodyless=self._bodyless,
            )
        complete = self._complete
        if complete:
            response.complete = True
            self._release()
        elif not self._paused:
            self._await(self.server.timeouts.idle)
        if data:
            response.received(data)
        if complete:
            response.ended(DONE)
        if not begun:
            exchange.result.callback(response)
            response.hold()

    def _release(self) -> None:
        """End the exchange; keep the connection where both sides can."""
        self.exchange = None
        self.deadline = None
        if self._lost:
            return
        whole = self._body_sent
        self._stop_body()
        if whole and self._keep_alive and not self._spoiled:
            if self._paused:
                self.resumeProducing()
            self.deadline = self._sweeper.after(KEEP)
            self._on_idle(self)
        else:
            self.transport.abortConnection()

    def _fail(self, error: GatewayError) -> None:
        exchange, self.exchange = self.exchange, None
        self.deadline = None
        if exchange is None:
            return
        self._stop_body()
        if exchange.response is None:
            exchange.result.errback(error)
        else:
            exchange.response.ended(failed(error))

    # backpressure: IPushProducer for whoever receives the body

    def pauseProducing(self) -> None:
        """Read no more of the body for now; a server is not late while it is not read."""
        self._paused = True
        self._await(None)
        if not self._lost:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        self._paused = False
        if self.exchange is not None:
            self._await(self.server.timeouts.idle)
        if not self._lost:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Give up the body, and the connection."""
        if self.exchange is not None:
            self.cut(self.exchange)
