"""One connection to a vLLM server: it writes a request and reads the response, one exchange after another.

What a segment held of the response is handed on at once, with the knowledge of whether it was the last: so a small
response leaves in one write, and a chunk in one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import GatewayError, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.exchange import ResponseParser, UpstreamExchange
from twisted_vllm.http.client.pool import KEEP
from twisted_vllm.http.client.response import DONE, UpstreamResponse, failed
from twisted_vllm.http.client.upload import Upload
from twisted_vllm.http.header_cache import ResponseHeaderCache
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.http.tunnel import Tunnel


@implementer(IHandshakeListener)
class UpstreamConnection(Protocol):
    """A connection to `server`, over `transport`.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds.
        exchange: what is in work, or None while idle.
        tunnel: what the connection was left to, once the server agreed to an upgrade.
    """

    transport: Any
    _log = Logger()

    def __init__(
        self,
        server: Server,
        sweeper: DeadlineSweeper,
        writes: WriteCoalescer,
        known: ResponseHeaderCache,
        on_idle: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection, UpstreamExchange | None], None],
    ) -> None:
        """Make the connection's protocol.

        Args:
            server: which server.
            sweeper: the deadlines of all connections.
            writes: sends what was written in a turn of the reactor.
            known: the heads of responses that were read before.
            on_idle: called when an exchange ended and the connection can take another.
            on_lost: called when the connection ended, with the exchange that may be sent again, if there is one.
        """
        self.server = server
        self.deadline: float | None = None
        self.exchange: UpstreamExchange | None = None
        self.tunnel: Tunnel | None = None
        self._sweeper = sweeper
        self._writes = writes
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._reader = ResponseParser(known)
        self._used = self._reused = self._closing = self._lost = self._paused = False
        self._upload: Upload | None = None
        self._handshaking = server.tls
        self._total: float | None = None

    # connection

    def connectionMade(self) -> None:
        """Take up the connection."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._write, _ = self._writes.writer(self.transport)
        self._sweeper.add(self)

    def handshakeCompleted(self) -> None:
        """Wait for the answer, now that the server speaks TLS."""
        self._handshaking = False
        if self.exchange is not None:
            self._await(self.server.timeouts.response_head)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End what was in work: complete where the end of the connection is the end of the body, else failed."""
        self._lost = True
        self._sweeper.discard(self)
        exchange = self.exchange
        reader = self._reader
        resend = None
        if exchange is not None:
            if reader.until_eof and reason.check(ConnectionDone):
                reader.complete = True
                self._deliver()
            elif not reader.any_bytes and self._reused and exchange.can_be_resent:
                resend = exchange
                self.exchange = None
                self._stop_body()
            elif not reader.any_bytes:
                self._tell(reason)
                self._fail(UpstreamUnreachable("The vLLM server closed the connection before it answered."))
            else:
                self._tell(reason)
                self._fail(UpstreamProtocolError("The vLLM server's answer was cut short."))
        if self.tunnel is not None:
            self.tunnel.server_lost(reason)
        self._on_lost(self, resend)

    def _tell(self, reason: Failure) -> None:
        """Tell the operator, not the client, why: a certificate that is not trusted shows only here."""
        self._log.warn("Lost {server}: {reason}", server=self.server.name, reason=reason.getErrorMessage())

    def close(self) -> None:
        """End an idle connection; one whose server does not play its part in that is cut when it expires again."""
        self._closing = True
        self.deadline = self._sweeper.after(KEEP)
        self.transport.loseConnection()

    def expired(self) -> None:
        """Give up on a server that takes too long."""
        self.deadline = None
        if self._closing:
            self.transport.abortConnection()
        elif self.exchange is None:
            self.close()
        else:
            self.fail(UpstreamTimeout("The vLLM server took too long."))

    def fail(self, error: GatewayError) -> None:
        """Give up the exchange in work with `error`, and the connection with it."""
        self._fail(error)
        self.transport.abortConnection()

    def give_up(self, exchange: UpstreamExchange) -> None:
        """Give up `exchange`, about which nobody asks any more, and the connection with it; nothing if it has ended."""
        if self.exchange is exchange:
            self.exchange = None
            self.deadline = None
            self._stop_body()
            self.transport.abortConnection()
            if exchange.response is not None:
                exchange.response.ended(failed(ConnectionAborted()))

    # sending

    def send(self, exchange: UpstreamExchange) -> None:
        """Send `exchange`'s request and read the response to it."""
        self.exchange = exchange
        self._reused = self._used
        self._used = True
        self._reader.expect(exchange.method, exchange.asker.informational)
        timeouts = self.server.timeouts
        self._total = self._sweeper.after(timeouts.total)
        # until then a server that does not speak TLS is one that cannot be reached
        self._await(timeouts.connect if self._handshaking else timeouts.response_head)
        self._upload = None
        body = exchange.body
        if body is None:
            self._write(exchange.head)
        elif isinstance(body, bytes):
            self._write(exchange.head + body)
        else:
            self._write(exchange.head)
            self._upload = Upload(body, self.transport, self._write, self._sent_more, self._body_failed)
            self._upload.start()

    def _sent_more(self) -> None:
        if not self._reader.head_arrived and not self._handshaking:
            self._await(self.server.timeouts.response_head)

    def _stop_body(self) -> None:
        """Take no more of a body that the server will not read."""
        if self._upload is not None:
            self._upload.stop(self._lost)

    def _body_failed(self, failure: Failure) -> None:
        """Give up a request whose body cannot be had whole: the server must not take the half for it."""
        self._fail(failure.value or UpstreamProtocolError("The request's body broke off."))
        self.transport.abortConnection()

    def _await(self, seconds: float | None) -> None:
        """Wait for at most `seconds`, and no longer than the exchange's total time."""
        deadline = None if seconds is None else self._sweeper.after(seconds)
        if self._total is not None and (deadline is None or self._total < deadline):
            deadline = self._total
        self.deadline = deadline

    # receiving

    def dataReceived(self, data: bytes) -> None:
        """Parse what came and hand it on."""
        if self.tunnel is not None:
            self.tunnel.server_sent(data)
            return
        if self.exchange is None:
            # nothing was asked for: whatever this is, it must not become the next answer
            self._on_lost(self, None)
            self.transport.abortConnection()
            return
        if self._reader.feed(data):
            self._deliver()
            return
        if self._reader.switched and self.exchange.asked_for(self._reader.head):
            self._switch(self.exchange)
            return
        # what came before the fault is the client's; the cut follows it
        self._deliver()
        if self.exchange is not None:
            self.fail(UpstreamProtocolError("The vLLM server's answer is not well-formed HTTP."))

    def _switch(self, exchange: UpstreamExchange) -> None:
        """Leave the connection to a tunnel."""
        self.exchange = self.deadline = None
        idle = self.server.timeouts.tunnel_idle
        self.tunnel = Tunnel(self.transport, self._write, self._reader.surplus, self._sweeper, idle)
        self.tunnel.offer(exchange, self._reader.head)

    def _deliver(self) -> None:
        exchange = self.exchange
        reader = self._reader
        if exchange is None or not reader.head_arrived:
            return
        data = reader.take()
        complete = reader.complete
        begun = exchange.response
        response = begun or UpstreamResponse(
            reader.head, reader.trailers, self, partial(self.give_up, exchange), reader.bodyless
        )
        if complete:
            response.complete = True
            self._release()
        elif not self._paused:
            self._await(self.server.timeouts.idle)
        if begun is None:
            exchange.response = response
            exchange.over = True
            exchange.asker.responded(response)
        if data:
            response.received(data)
        if complete:
            response.ended(DONE)
            exchange.response = None  # it refers back: so both are gone at once
        elif begun is None:
            response.hold()

    def _release(self) -> None:
        """End the exchange; keep the connection where both sides can."""
        self.exchange = None
        self.deadline = None
        if self._lost:
            self._stop_body()
            return
        whole = self._upload is None or self._upload.done
        self._stop_body()
        if whole and self._reader.keep_alive and not self._reader.spoiled:
            if self._paused:
                self.resumeProducing()
            self.deadline = self._sweeper.after(KEEP)
            self._on_idle(self)
        else:
            self.transport.abortConnection()

    def _fail(self, error: BaseException) -> None:
        exchange, self.exchange = self.exchange, None
        self.deadline = None
        if exchange is None:
            return
        self._stop_body()
        if exchange.response is None:
            exchange.fail(error)
        else:
            exchange.response.ended(failed(error))

    # backpressure, as the response asks for it

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
