"""A tunnel: what a connection becomes once client and server agreed on another protocol, such as a WebSocket's.

Bytes pass unread both ways. Each side is read no faster than the other takes it, the end of one is passed on to the
other after what was on its way, and a tunnel in which nothing moves is closed. There is one only after a server's 101:
until then the client's request is a request like any other, and what it sent after it waits in the channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.errors import Draining, UpstreamProtocolError, UpstreamTimeout
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.write_coalescing import unsent_bytes

if TYPE_CHECKING:
    from twisted_vllm.http.client.exchange import UpstreamExchange
    from twisted_vllm.http.server.connection import DownstreamConnection
    from twisted_vllm.http.server.request import GatewayRequest

#: seconds that a server is given to take what is still on its way to it, or some of it, and to close its side
CLOSING = 10.0


@implementer(IPushProducer)
class Tunnel:
    """A connection to a server, joined to a client's. To the client's connection it is what produces.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds.
    """

    deadline: float | None = None

    def __init__(
        self,
        transport: Any,
        write: Callable[[bytes], None],
        early: bytes,
        sweeper: DeadlineSweeper,
        idle: float | None,
    ) -> None:
        """Make a tunnel with its server's side.

        Args:
            transport: the transport of the connection to the server.
            write: writes to it.
            early: what the server sent after its 101.
            sweeper: the deadlines of all connections.
            idle: seconds after which a tunnel in which nothing moved is closed, or None.
        """
        self._transport = transport
        self._write = write
        self._early = early
        self._sweeper = sweeper
        self._idle = idle
        self._request: GatewayRequest | None = None
        self._ended: Callable[[str], None] | None = None
        self._paused = self._server_lost = False
        self._unsent = 0

    def offer(self, exchange: UpstreamExchange, head: ResponseHead) -> None:
        """Tell who asked of the server's 101; whoever does not join the tunnel has it cut."""
        exchange.over = True
        exchange.asker.responded(SwitchedResponse(head, self))
        if self._request is None:
            self.cut()

    def join(self, request: GatewayRequest, head: ResponseHead, ended: Callable[[str], None]) -> None:
        """Answer `request` with the server's 101, and begin to pass bytes.

        Args:
            request: the client's; it is in work until the tunnel ends.
            head: the server's 101.
            ended: called once with the outcome, in the words of `RequestRecord`, before the request is finished.
        """
        self._request = request
        self._ended = ended
        self._sweeper.add(self)
        self._touch()
        waiting = request.channel.switch_to(self)
        request.relay_switch(head)
        request.registerProducer(self, True)
        early, self._early = self._early, b""
        request.relay_body(early, False)
        self._transport.registerProducer(_ClientReading(request.channel), True)
        if waiting:
            self.client_sent(waiting)

    def _touch(self) -> None:
        self.deadline = self._sweeper.after(self._idle)

    # from the client's connection

    def client_sent(self, data: bytes) -> None:
        """Pass on what came from the client."""
        if self._request is not None:
            self._request.body_received += len(data)
            self._touch()
            self._write(data)

    def client_lost(self, reason: Failure) -> None:
        """Close the server's side: the client has closed the connection, or lost it."""
        if self._request is not None:
            self._tell("completed" if reason.check(ConnectionDone) else "client_disconnected")
            self._request = None
            self._close_server()

    def drain(self) -> None:
        """Close both sides: the gateway shuts down, and a tunnel would not end by itself."""
        self._close("failed", Draining.code)

    # from the server's connection

    def server_sent(self, data: bytes) -> None:
        """Pass on what came from the server."""
        if self._request is not None:
            self._touch()
            self._request.relay_body(data, False)

    def server_lost(self, reason: Failure) -> None:
        """Close the client's side: the server has closed the connection, or lost it."""
        self._server_lost = True
        self._sweeper.discard(self)
        if reason.check(ConnectionDone):
            self._close("completed")
        else:
            self._close("upstream_failed", UpstreamProtocolError.code)

    def cut(self) -> None:
        """Give up the connection to the server at once."""
        self._request = None
        self._transport.abortConnection()

    # from the sweeper

    def expired(self) -> None:
        """Close a tunnel in which nothing moves, and cut the connection to a server that does not play its part."""
        request = self._request
        if request is None:
            unsent = unsent_bytes(self._transport)
            if 0 < unsent < self._unsent:
                self._await_end(unsent)
            else:
                self._transport.abortConnection()
        elif self._paused:
            # it is the client that takes nothing: there is no use in waiting until it has taken what is queued
            request.abort()
        else:
            self._close("upstream_failed", UpstreamTimeout.code)

    # the end

    def _close(self, outcome: str, error: str = "") -> None:
        """Close whichever sides are open, each after what is on its way to it."""
        request = self._request
        if request is None:
            return
        request.context.error_code = error
        self._tell(outcome)
        self._request = None
        if not self._server_lost:
            self._close_server()
        request.relay_body(b"", True)

    def _tell(self, outcome: str) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(outcome)

    def _close_server(self) -> None:
        transport = self._transport
        transport.unregisterProducer()
        # what still comes is dropped: to close with unread data would reset the connection, and lose what is on its way
        transport.resumeProducing()
        self._await_end(unsent_bytes(transport))
        if ITCPTransport.providedBy(transport) and not ISSLTransport.providedBy(transport):
            transport.loseWriteConnection()
        else:
            transport.loseConnection()

    def _await_end(self, unsent: int) -> None:
        self._unsent = unsent
        self.deadline = self._sweeper.after(CLOSING)

    # IPushProducer, for the client's connection

    def pauseProducing(self) -> None:
        """The client reads slowly: read no more from the server."""
        if self._request is not None:
            self._paused = True
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._request is not None:
            self._paused = False
            self._touch()
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: `client_lost` follows, and knows the reason."""


@implementer(IPushProducer)
class _ClientReading:
    """The client's side as what produces for the server's connection."""

    def __init__(self, channel: DownstreamConnection) -> None:
        self._channel = channel

    def pauseProducing(self) -> None:
        """The server reads slowly: read no more from the client."""
        self._channel.pause_reading("tunnel")

    def resumeProducing(self) -> None:
        """Read on."""
        self._channel.resume_reading("tunnel")

    def stopProducing(self) -> None:
        """Do nothing: `Tunnel.server_lost` follows, and knows the reason."""


class SwitchedResponse(UpstreamResponse):
    """A server's 101.

    Attributes:
        tunnel: the connection that it leaves.
    """

    def __init__(self, head: ResponseHead, tunnel: Tunnel) -> None:
        super().__init__(head, [], tunnel, tunnel.cut, True)
        self.tunnel = tunnel
