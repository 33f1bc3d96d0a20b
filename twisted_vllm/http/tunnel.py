"""Tunnels: a client's and a server's connection after both agreed on another protocol, such as WebSocket.

Bytes pass unparsed in both directions, with backpressure. When one side ends, the other is closed after all pending
bytes were sent. An idle tunnel is closed. A tunnel begins with the server's 101: until then the client's request is
like any other, and the bytes after it wait in the channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ISSLTransport, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.context import RequestContext
from twisted_vllm.errors import Draining, UpstreamProtocolError, UpstreamTimeout
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.write_coalescing import unsent_bytes

#: seconds in which a server must read some of the pending bytes, or close its side
CLOSING = 10.0

#: seconds in which a server must have read all of them, and have closed
LONGEST_CLOSING = 120.0


class ClientConnection(Protocol):
    """The part of the client's connection that a tunnel uses."""

    def switch_to(self, tunnel: Tunnel) -> bytes:
        """Pass received bytes to `tunnel` from now on; return the bytes already received."""

    def pause_reading(self, why: str) -> None:
        """Stop reading until `resume_reading` is called with the same reason."""

    def resume_reading(self, why: str) -> None:
        """Resume reading, unless there is another reason to pause."""


class ClientRequest(Protocol):
    """The part of the client's request that a tunnel uses.

    Attributes:
        channel: the client's connection.
        context: the request's context.
        body_received: bytes received from the client.
    """

    channel: ClientConnection
    context: RequestContext
    body_received: int

    def relay_switch(self, head: ResponseHead) -> None:
        """Start the response with a 101."""

    def relay_body(self, data: bytes, last: bool) -> None:
        """Write to the client; `last` ends the request."""

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register the producer to pause while the client reads slowly."""

    def abort(self) -> None:
        """Abort the client's connection."""


@implementer(IPushProducer)
class Tunnel:
    """A server's connection joined to a client's.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds.
    """

    deadline: float | None = None

    def __init__(
        self,
        transport: Any,
        write: Callable[[bytes], None],
        early: bytes,
        deadlines: DeadlineSweeper,
        idle: float | None,
        on_closed: Callable[[], None],
    ) -> None:
        """Create a tunnel with its server side.

        Args:
            transport: the transport of the server's connection.
            write: writes to the server.
            early: the server's bytes after its 101.
            deadlines: checks the deadlines of all connections.
            idle: seconds after which an idle tunnel is closed, or None.
            on_closed: called when the tunnel is closed, whether or not a client joined it.
        """
        self._transport = transport
        self._write = write
        self._early = early
        self._deadlines = deadlines
        self._idle = idle
        self._on_closed = on_closed
        self._request: ClientRequest | None = None
        self._on_outcome: Callable[[str], None] | None = None
        self._paused = self._server_lost = False
        self._unsent = 0
        self._end_by = 0.0

    @property
    def joined(self) -> bool:
        """Whether a client's connection is joined to the server's."""
        return self._request is not None

    def join(self, request: ClientRequest, head: ResponseHead, on_outcome: Callable[[str], None]) -> None:
        """Answer `request` with the server's 101 and start to pass bytes.

        Args:
            request: the client's request; it stays in flight until the tunnel is closed.
            head: the server's 101.
            on_outcome: called once with the outcome, as in `RequestContext.outcome`, before the request is finished.
        """
        self._request = request
        self._on_outcome = on_outcome
        self._deadlines.add(self)
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
        self.deadline = self._deadlines.after(self._idle)

    # from the client's connection

    def client_sent(self, data: bytes) -> None:
        """Pass on what the client sent."""
        if self._request is not None:
            self._request.body_received += len(data)
            self._touch()
            self._write(data)

    def client_lost(self, reason: Failure) -> None:
        """Close the server's side: the client's connection was closed or lost."""
        if self._request is not None:
            self._request = None
            self._report("completed" if reason.check(ConnectionDone) else "client_disconnected")
            self._close_server()
            self._on_closed()

    def drain(self) -> None:
        """Close both sides: the gateway shuts down."""
        self._close("failed", Draining.code)

    # from the server's connection

    def server_sent(self, data: bytes) -> None:
        """Pass on what the server sent."""
        if self._request is not None:
            self._touch()
            self._request.relay_body(data, False)

    def server_lost(self, reason: Failure) -> None:
        """Close the client's side: the server's connection was closed or lost."""
        self._server_lost = True
        self._deadlines.discard(self)
        if reason.check(ConnectionDone):
            self._close("completed")
        else:
            self._close("upstream_failed", UpstreamProtocolError.code)

    def cut(self) -> None:
        """Abort the connection to the server."""
        self._request = None
        self._transport.abortConnection()
        self._on_closed()

    # from the deadlines

    def expired(self) -> None:
        """Close an idle tunnel; abort the connection to a server that neither reads nor closes."""
        request = self._request
        if request is None:
            unsent = unsent_bytes(self._transport)
            if 0 < unsent < self._unsent and self._deadlines.now < self._end_by:
                self._await_end(unsent)
            else:
                self._transport.abortConnection()
        elif self._paused:
            # the client does not read, so its queue would never be sent
            request.abort()
        else:
            self._close("upstream_failed", UpstreamTimeout.code)

    # the end

    def _close(self, outcome: str, error: str = "") -> None:
        """Close the sides that are open, each after its pending bytes."""
        request = self._request
        if request is None:
            return
        request.context.error_code = error
        self._request = None
        self._report(outcome)
        if not self._server_lost:
            self._close_server()
        try:
            request.relay_body(b"", True)
        finally:
            self._on_closed()

    def _report(self, outcome: str) -> None:
        on_outcome, self._on_outcome = self._on_outcome, None
        if on_outcome is not None:
            on_outcome(outcome)

    def _close_server(self) -> None:
        transport = self._transport
        transport.unregisterProducer()
        # read and drop the rest: closing with unread data would reset the connection and lose pending bytes
        transport.resumeProducing()
        self._end_by = self._deadlines.now + LONGEST_CLOSING
        self._await_end(unsent_bytes(transport))
        if ITCPTransport.providedBy(transport) and not ISSLTransport.providedBy(transport):
            transport.loseWriteConnection()
        else:
            transport.loseConnection()

    def _await_end(self, unsent: int) -> None:
        self._unsent = unsent
        self.deadline = self._deadlines.after(CLOSING)

    # IPushProducer, for the client's connection

    def pauseProducing(self) -> None:
        """Stop reading from the server: the client reads slowly."""
        if self._request is not None:
            self._paused = True
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume reading."""
        if self._request is not None:
            self._paused = False
            self._touch()
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: `client_lost` follows with the reason."""


@implementer(IPushProducer)
class _ClientReading:
    """The client's connection as the producer for the server's."""

    def __init__(self, channel: ClientConnection) -> None:
        self._channel = channel

    def pauseProducing(self) -> None:
        """Stop reading from the client: the server reads slowly."""
        self._channel.pause_reading("tunnel")

    def resumeProducing(self) -> None:
        """Resume reading."""
        self._channel.resume_reading("tunnel")

    def stopProducing(self) -> None:
        """Do nothing: `Tunnel.server_lost` follows with the reason."""


class SwitchedResponse(UpstreamResponse):
    """A server's 101.

    Attributes:
        tunnel: the tunnel to join.
    """

    def __init__(self, head: ResponseHead, tunnel: Tunnel) -> None:
        super().__init__(head, [], tunnel, tunnel.cut, True)
        self.tunnel = tunnel
