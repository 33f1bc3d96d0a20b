"""One connection to a vLLM server: it writes a request and reads the response, one exchange after another.

What a TCP segment holds of the response is delivered at once, with a flag for the last piece. So a small response, or a
chunk, leaves the gateway in one write.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.config.settings import Server
from twisted_vllm.errors import UpstreamAnswerCut, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.body import BodyUpload
from twisted_vllm.http.client.connect_errors import SPEAKS_TLS, TLS_ALERT, explain, with_words
from twisted_vllm.http.client.exchange import UpstreamExchange
from twisted_vllm.http.client.parser import ResponseParser
from twisted_vllm.http.client.pool import KEEP
from twisted_vllm.http.client.response import DONE, UpstreamResponse, failed
from twisted_vllm.http.client.retries import Retries, StaleRequest
from twisted_vllm.http.header_cache import ResponseHeaderCache
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.unread import Look, look_into
from twisted_vllm.http.net.write_coalescing import WriteCoalescer, unsent_bytes
from twisted_vllm.http.tunnel import SwitchedResponse, Tunnel

#: a request of this size in bytes may still be on its way when its answer is complete
LARGE_REQUEST = 16_384

#: the status that some servers send before they close an idle connection (RFC 9110 §15.5.9)
_REQUEST_TIMEOUT = b"408"

_UNREACHABLE = "The vLLM server cannot be reached."
_NO_ANSWER = (
    "The vLLM server closed the connection before it answered. It may have begun to work, so the gateway did not send "
    "the request twice."
)


@implementer(IHandshakeListener)
class UpstreamConnection(Protocol):
    """A connection to `server`.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds.
        exchange: the exchange in flight, or None while idle.
        tunnel: the tunnel, once the server agreed to an upgrade.
        address: the address that it goes to, if the server is reached by its name; else empty.
        key: what the pool knows it by; None if it takes no other request.
        is_handshaking: whether TLS is not yet established.
        certificate_fault: what is wrong with the server's certificate; set before the connection is lost.
        certificate_wanted: whether the server asked for a certificate.
        tls_failed: whether TLS was not established, without the client's doing.
        was_silent: whether the server, which never answered, closed it without TLS before it sent a byte.
    """

    transport: Any
    _log = Logger()

    def __init__(
        self,
        server: Server,
        deadlines: DeadlineSweeper,
        coalescer: WriteCoalescer,
        header_cache: ResponseHeaderCache,
        retries: Retries,
        on_idle: Callable[[UpstreamConnection], None],
        on_stray: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection, UpstreamExchange | None], None],
    ) -> None:
        """Create the protocol.

        Args:
            server: the server.
            deadlines: checks the deadlines of all connections.
            coalescer: sends at the end of a reactor turn what was written in it.
            header_cache: the parsed heads of earlier responses.
            retries: decides which requests to the server are sent again.
            on_idle: called when an exchange ended and the connection can be reused.
            on_stray: called when the server sent what nobody asked for.
            on_lost: called when the connection ended, with the exchange that needs another, or None.
        """
        self.server = server
        self.deadline: float | None = None
        self.exchange: UpstreamExchange | None = None
        self.tunnel: Tunnel | None = None
        self.address = ""
        self.key: Hashable | None = server
        self.is_handshaking = server.tls
        self.certificate_fault = ""
        self.certificate_wanted = False
        self.tls_failed = False
        self.was_silent = False
        self._deadlines = deadlines
        self._coalescer = coalescer
        self._retries = retries
        self._on_idle = on_idle
        self._on_stray = on_stray
        self._on_lost = on_lost
        self._parser = ResponseParser(header_cache)
        self._used = self._reused = self._unsent = self._aborting = False
        self._closing = self._lost = self._paused = self._sent_large = False
        self._upload: BodyUpload | None = None
        self._total: float | None = None

    # connection

    def connectionMade(self) -> None:
        """Start to watch the connection's deadline."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._write, _ = self._coalescer.writer(self.transport)
        self._has_unread: Look = look_into(self.transport)
        self._deadlines.add(self)

    def handshakeCompleted(self) -> None:
        """Wait for the response, now that TLS is established."""
        self.is_handshaking = False
        if self.exchange is not None:
            self._await(self.server.timeouts.response_head)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End the exchange in flight: complete it if its body ends with the connection, resend it, or fail it."""
        self._lost = True
        self._deadlines.discard(self)
        exchange = self.exchange
        parser = self._parser
        resend = None
        if exchange is not None:
            self.tls_failed = self.is_handshaking
            if parser.until_eof and reason.check(ConnectionDone):
                parser.complete = True
                self._deliver()
            elif not parser.any_bytes and self._reused and self._sends_again(exchange):
                resend = exchange
                self.exchange = None
                self._stop_upload()
            elif not parser.any_bytes:
                words = self._log_loss(reason)
                closed = bool(reason.check(ConnectionDone)) and not (self.server.tls or self._reused)
                self.was_silent = closed and not self._retries.answered
                no_tls = self.is_handshaking or reason.check(SSL.Error) or self._shown_in_vain
                error = UpstreamUnreachable(_UNREACHABLE if no_tls else _NO_ANSWER)
                error.__cause__ = reason.value
                self._fail(with_words(error, words))
            else:
                self._log_loss(reason)
                self._fail(UpstreamAnswerCut("The vLLM server's answer was cut short."))
        if self.tunnel is not None:
            self.tunnel.server_lost(reason)
        self._on_lost(self, resend)

    def _sends_again(self, exchange: UpstreamExchange) -> bool:
        """Decide whether `exchange`, which the server did not answer, goes to another connection."""
        decision = self._retries.decide(unsent=self._unsent, repeatable=exchange.is_repeatable)
        if decision is StaleRequest.REPEATED:
            exchange.repeat()
        return decision in (StaleRequest.MOVED, StaleRequest.REPEATED)

    def _log_loss(self, reason: Failure) -> str:
        """Log and return why the connection was lost, such as an untrusted certificate. Clients do not get it."""
        reason_in_words = explain(
            reason.value or ConnectionDone(),
            self.server,
            handshaking=self.is_handshaking,
            certificate=self.certificate_fault,
            wanted=self._shown_in_vain,
        )
        self._log.warn(
            "Lost {server}: {reason}",
            server=self.server.name,
            reason=reason_in_words,
            once_a_second=self.server.name,
        )
        return reason_in_words

    @property
    def _shown_in_vain(self) -> bool:
        """Whether the server asked for a certificate and then sent nothing: in TLS 1.3 it looks after the handshake."""
        return self.certificate_wanted and not self._reused and not self._parser.any_bytes

    def close(self) -> None:
        """Close an idle connection; abort it if the server does not close its side within `KEEP`."""
        self._closing = True
        self.deadline = self._deadlines.after(KEEP)
        self.transport.loseConnection()

    def expired(self) -> None:
        """Act on the deadline: close an idle connection, or fail the exchange."""
        self.deadline = None
        if self._closing:
            self.transport.abortConnection()
        elif self.exchange is None:
            self.close()
        else:
            self.tls_failed = self.is_handshaking
            self.fail(UpstreamTimeout("The vLLM server took too long."))

    def fail(self, error: BaseException) -> None:
        """Fail the exchange in flight with `error` and abort the connection."""
        self._fail(error)
        self.transport.abortConnection()

    def give_up(self, exchange: UpstreamExchange) -> None:
        """Drop `exchange` and abort the connection; nothing happens if the exchange has ended."""
        if self.exchange is not exchange:
            return
        self.exchange = None
        self.deadline = None
        self._stop_upload()
        self.transport.abortConnection()
        response, exchange.response = exchange.response, None
        if response is not None:
            response.ended(failed(ConnectionAborted()))

    # sending

    def send(self, exchange: UpstreamExchange) -> None:
        """Send the request of `exchange` at the end of the reactor's turn, and wait for the response."""
        self.exchange = exchange
        exchange.carrier = self
        self._reused = self._used
        self._used = True
        self._parser.expect(exchange.method, exchange.informational)
        timeouts = self.server.timeouts
        self._total = self._deadlines.after(timeouts.total)
        # a server that does not complete the TLS handshake counts as unreachable
        self._await(timeouts.connect if self.is_handshaking else timeouts.response_head)
        self._upload = None
        self._unsent = True
        self._coalescer.at_send(self._begin)

    def _begin(self) -> None:
        """Send the request, unless the server has closed the connection meanwhile, or sent what nobody asked for."""
        exchange = self.exchange
        if exchange is None or self._aborting:
            return
        if self._reused and self._has_unread(0):
            # the request goes to another connection: once the bytes, or the end of the connection, have been read
            if self.server.tls:
                # the bytes may be none of the server's application
                self.transport.abortConnection()
            return
        self._unsent = False
        self._retries.requests += 1
        try:
            self._write(exchange.data)
            self._sent_large = len(exchange.data) > LARGE_REQUEST
            if exchange.on_sent is not None and not exchange.retried:
                exchange.on_sent(self._deadlines.seconds())
            if exchange.body is not None:
                self._upload = BodyUpload(
                    exchange.body, self.transport, self._write, self._uploaded, self._upload_failed
                )
                self._upload.start()
        except Exception as error:
            # other connections send in the same turn
            self.fail(error)

    def _uploaded(self) -> None:
        """A piece of the body was sent: restart the timeout for the response's head."""
        if self.exchange is not None and self.exchange.on_sent is not None:
            self.exchange.on_sent(self._deadlines.seconds())
        if not self._parser.head_arrived and not self.is_handshaking:
            self._await(self.server.timeouts.response_head)

    def _stop_upload(self) -> None:
        """Stop a body that the server will not read."""
        if self._upload is not None:
            self._upload.stop(self._lost)

    def _upload_failed(self, failure: Failure) -> None:
        """Fail the exchange: the server must not mistake a part of the body for the whole."""
        self.fail(failure.value or UpstreamProtocolError("The request's body broke off."))

    def _await(self, seconds: float | None) -> None:
        """Set the deadline `seconds` from now, or at the end of the exchange's total time if that is earlier."""
        deadline = None if seconds is None else self._deadlines.after(seconds)
        if self._total is not None and (deadline is None or self._total < deadline):
            deadline = self._total
        self.deadline = deadline

    # receiving

    def dataReceived(self, data: bytes) -> None:
        """Parse a segment and deliver what it holds."""
        if self.tunnel is not None:
            self.tunnel.server_sent(data)
            return
        if self.exchange is None or self._unsent:
            # unsolicited data must not become the response to the next request
            self._aborting = True
            if data[9:12] != _REQUEST_TIMEOUT:
                self._on_stray(self)
            self._on_lost(self, None)
            self.transport.abortConnection()
            return
        if self._parser.feed(data):
            self._deliver()
            return
        if self._parser.switched and self.exchange.allows_switch(self._parser.head):
            self._switch(self.exchange)
            return
        if data.startswith(TLS_ALERT) and not self._parser.head_arrived and not self.server.tls:
            self._log.warn(
                "Lost {server}: {reason}",
                server=self.server.name,
                reason=SPEAKS_TLS,
                once_a_second=self.server.name,
            )
            self.fail(with_words(UpstreamUnreachable(_UNREACHABLE), SPEAKS_TLS))
            return
        # deliver what arrived before the fault, then abort
        self._deliver()
        if self.exchange is not None:
            self.fail(UpstreamProtocolError("The vLLM server's answer is not well-formed HTTP."))

    def _switch(self, exchange: UpstreamExchange) -> None:
        """Turn the connection into a tunnel; abort it if nobody joins."""
        self.exchange = self.deadline = None
        parser = self._parser
        idle = self.server.timeouts.tunnel_idle
        tunnel = self.tunnel = Tunnel(
            self.transport, self._write, parser.surplus, self._deadlines, idle, on_closed=exchange.end
        )
        exchange.respond(SwitchedResponse(parser.head, tunnel))
        if not tunnel.joined:
            tunnel.cut()

    def _deliver(self) -> None:
        exchange = self.exchange
        parser = self._parser
        if exchange is None or not parser.head_arrived:
            return
        data = parser.take()
        complete = parser.complete
        existing = exchange.response
        response = existing or UpstreamResponse(parser.head, parser.trailers, self, exchange.give_up, parser.bodyless)
        if complete:
            response.complete = True
            self._release(exchange)
        elif not self._paused and (data or existing is None):
            # the framing of chunks is no progress
            self._await(self.server.timeouts.idle)
        try:
            if existing is None:
                exchange.response = response
                self._retries.answered = True
                if self._upload is None or self._upload.done:
                    # it is not sent again, and the response may take minutes
                    exchange.data = b""
                    exchange.body = None
                exchange.respond(response)
            if data:
                response.received(data)
            if complete:
                response.ended(DONE)
            elif existing is None:
                response.hold()
        finally:
            if complete:
                # break the reference cycle
                exchange.response = None
                if exchange.on_ended is not None:
                    exchange.end()

    def _release(self, exchange: UpstreamExchange) -> None:
        """End `exchange`; keep the connection if its request was sent whole and both sides allow it."""
        self.exchange = None
        self.deadline = None
        if self._lost:
            self._stop_upload()
            return
        whole = True
        if self._upload is not None:
            whole = self._upload.done
            self._upload.stop(lost=False)
        elif self._sent_large:
            whole = not unsent_bytes(self.transport)
        if self._parser.spoiled:
            self._on_stray(self)
        self._parser.forget()
        if whole and self._parser.keep_alive and not self._parser.spoiled:
            if self._paused:
                self.resumeProducing()
            self.deadline = self._deadlines.after(KEEP)
            self._on_idle(self)
        else:
            self.transport.abortConnection()

    def _fail(self, error: BaseException) -> None:
        exchange, self.exchange = self.exchange, None
        self.deadline = None
        if exchange is None:
            return
        self._stop_upload()
        response, exchange.response = exchange.response, None
        if response is None:
            exchange.fail(error)
            return
        try:
            response.ended(failed(error))
        finally:
            exchange.end()

    # IPushProducer, for the response

    def pauseProducing(self) -> None:
        """Stop reading the body, and suspend the idle timeout."""
        self._paused = True
        self._await(None)
        if not self._lost:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume reading."""
        self._paused = False
        if self.exchange is not None:
            self._await(self.server.timeouts.idle)
        if not self._lost:
            self.transport.resumeProducing()
