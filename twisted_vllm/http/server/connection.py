"""A client's connection: Twisted's HTTPChannel with llhttp as its parser.

Requests are parsed as bytes arrive and answered in the order they came. A request is dispatched once the segment that
holds the end of its head was parsed, so that a small body is in hand at that moment. While a request that was received
whole is being answered, what follows it on the connection is held unparsed, up to a limit, and then left in the kernel.

Flow control: a client is read from and written to no faster than the other side of the gateway can go.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http

from twisted_vllm.config.settings import Timeouts
from twisted_vllm.context import Peer
from twisted_vllm.errors import GatewayError, RequestTimeout
from twisted_vllm.http.header_cache import RequestHeaderCache
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher
from twisted_vllm.http.net.write_coalescing import WriteCoalescer, unsent_bytes
from twisted_vllm.http.server.parser import RequestParser
from twisted_vllm.http.server.request import GatewayRequest, RequestSite
from twisted_vllm.http.tunnel import Tunnel

#: bytes that are held for a request whose predecessor is still being answered, before reading stops
HELD_LIMIT = 16_384

#: requests that wait for their turn on one connection before no more are parsed: they take fifty times as much memory
#: as objects than as bytes
MOST_REQUESTS = 16

#: bytes that are parsed at once where they may be many requests
SLICE = 4_096

#: seconds for which the rest of a refused request is read and dropped, so that the client can read the response
#: (RFC 9112 §9.6: closing with unread data resets the connection)
LINGER = 2.0

#: seconds in which a client must read something of what was written to it
STALL = 300.0


class ConnectionSite(RequestSite, Protocol):
    """What a connection asks of its site, beside what its requests ask."""

    sweeper: DeadlineSweeper
    writes: WriteCoalescer
    disconnects: DisconnectWatcher
    header_cache: RequestHeaderCache
    timeouts: Timeouts

    def connection_made(self, connection: DownstreamConnection) -> None:
        """Count a connection in."""

    def connection_lost(self, connection: DownstreamConnection) -> None:
        """Count a connection out."""


class DownstreamConnection(http.HTTPChannel):
    """One client connection.

    Attributes:
        site: the factory that built it.
        peer: where it comes from.
        requests: the requests that were begun and not yet answered, oldest first.
        tunnel: what the connection was left to, once a server agreed to the first request's upgrade.
        deadline: when `expired` is called, in the reactor's seconds.
    """

    site: ConnectionSite
    transport: Any
    write: Any
    send_now: Any
    requests: list[GatewayRequest]
    peer: Peer
    tunnel: Tunnel | None = None
    deadline: float | None = None
    _networkProducer: Any
    _requestProducer: Any

    def __init__(self) -> None:
        super().__init__()
        self.requests = []
        self._advancing = False
        self._lingering = False
        self._held: list[bytes] = []
        self._held_size = 0
        self._unsent = 0
        self._read_pauses: set[str] = set()

    @property
    def held_bytes(self) -> int:
        """Bytes that are not parsed before the request in front of them is answered."""
        return sum(map(len, self._held))

    # connection

    def connectionMade(self) -> None:
        """Begin to serve the connection."""
        super().connectionMade()
        self.write, self.send_now = self.site.writes.writer(self.transport)
        self._parser = RequestParser(self._take_up, self.site.limits, self.site.header_cache)
        self.peer = Peer(getattr(self.transport.getPeer(), "host", ""), self.isSecure())
        self.site.connection_made(self)
        self.deadline = self.site.sweeper.after(self.site.timeouts.keep_alive)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the requests in flight that their client has disconnected."""
        self._end_pauses()
        if self.tunnel is not None:
            self.tunnel.client_lost(reason)
        requests, self.requests = self.requests, []
        try:
            for request in requests:
                request.connectionLost(reason)
        finally:
            # a drain that waits for this connection must find its requests logged
            self.site.connection_lost(self)

    def is_idle(self) -> bool:
        """Tell whether no request is in flight."""
        return not self.requests and self._parser.current is None and not self._lingering

    def expired(self) -> None:
        """Close an idle connection, refuse a request that came too slowly, or cut a lingering connection."""
        if self._lingering or self._waitingForTransport:
            self._give_up_unless_it_reads()
        elif self._read_pauses:
            # it is the gateway that does not read
            self._set_deadline()
        elif self._parser.current is None:
            self._close()
        else:
            self._fail(RequestTimeout("The request did not arrive in time."))

    def _set_deadline(self) -> None:
        """Set the deadline for what the client has to do next."""
        if self._waitingForTransport:
            # it has to read first; `pauseProducing` has set the deadline for that
            return
        current = self._parser.current
        if self.requests and current is not self.requests[0]:
            self.deadline = None
            return
        timeouts = self.site.timeouts
        if current is None:
            seconds = timeouts.keep_alive
        elif self._parser.in_head:
            seconds = timeouts.client_head
        else:
            seconds = timeouts.client_body
        self.deadline = self.site.sweeper.after(seconds)

    # from the client

    def dataReceived(self, data: bytes) -> None:
        """Parse `data`, or hold it until the request before it is answered."""
        if self._lingering:
            return
        requests = self.requests
        if requests and (len(requests) > 1 or requests[0].body_complete):
            self._hold(data)
            return
        self._feed(data)
        if requests:
            self._advance()

    @property
    def surplus(self) -> bytes:
        """What followed a request that asks for an upgrade, in the segment that ended its head."""
        return self._parser.surplus

    def switch_to(self, tunnel: Tunnel) -> bytes:
        """Give what the client sends to `tunnel`, until the first request is finished; return what has come already."""
        self.tunnel = tunnel
        data = b"".join([self.surplus, *self._held])
        self._held.clear()
        self.resume_reading("held")
        return data

    def _hold(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel.client_sent(data)
            return
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > HELD_LIMIT:
            self.pause_reading("held")

    def _feed(self, data: bytes) -> None:
        if len(data) > SLICE and not self._is_within_body(len(data)):
            for at in range(0, len(data), SLICE):
                if len(self.requests) > MOST_REQUESTS:
                    self._hold(data[at:])
                    return
                if not self._feed_piece(data[at : at + SLICE]):
                    return
                rest = len(data) - at - SLICE
                if rest > 0 and self._is_within_body(rest):
                    self._feed_piece(data[-rest:])
                    return
        else:
            self._feed_piece(data)

    def _is_within_body(self, size: int) -> bool:
        """Tell whether the next `size` bytes all belong to the body that is being read."""
        current = self._parser.current
        if current is None or self._parser.in_head or current.body_length is None:
            return False
        return current.body_received + size <= current.body_length

    def _feed_piece(self, data: bytes) -> bool:
        """Parse `data`; return whether more may follow."""
        parser = self._parser
        was_in_head = parser.in_head
        error = parser.feed(data)
        if error is not None:
            self._fail(error)
            return False
        if not (was_in_head and parser.in_head):
            # the bytes of a slow head do not move its deadline
            self._set_deadline()
        return True

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
        if self._held and not self._lingering and (not self.requests or self._parser.current is self.requests[0]):
            # what is held begins the next request, or continues the first
            data = b"".join(self._held)
            self._held.clear()
            self._held_size = 0
            self.resume_reading("held")
            self._feed(data)
        if self.requests:
            request = self.requests[0]
            if not request.head_complete or self._lingering:
                return False
            if self._waitingForTransport and not request.dispatched:
                # the client must read the earlier responses first
                return False
            if request.fault is not None:
                if not request.failed:
                    self._parser.final = True
                    request.persistent = False
                    request.fail(request.fault)
            elif not request.dispatched:
                request.dispatch()
            else:
                request.body_arrived()
            return not (self.requests and self.requests[0] is request)
        return False

    def requestDone(self, request: GatewayRequest) -> None:
        """Go on to the next request, or close the connection; called when a request was answered."""
        self.requests.remove(request)
        if not request.keeps_connection():
            self._end(request)
            return
        self._set_deadline()
        self.resume_reading("body")
        if self._waitingForTransport:
            self.pause_reading("unread")
        self._advance()

    def _end(self, request: GatewayRequest) -> None:
        """Close; where the request has a rest, read and drop it for a while first."""
        self._parser.final = True
        self._lingering = True
        unread = not request.body_complete or self._held or self._read_pauses or self.tunnel is not None
        self._held.clear()
        self._end_pauses()
        if not unread:
            self._close()
            return
        self._await_reading(LINGER)
        self._networkProducer.resumeProducing()
        if ITCPTransport.providedBy(self.transport) and not self.isSecure():
            self._networkProducer.unregisterProducer()
            self.transport.loseWriteConnection()
        else:
            self.loseConnection()

    def _fail(self, error: GatewayError) -> None:
        """Answer `error` in place of the request that cannot be read, and close."""
        request = self._parser.give_up()
        self._held.clear()
        request.fault = error
        request.head_complete = True
        if request.finished:
            # it was answered early, and the rest of its body is malformed
            self._end(request)
        elif self.requests[0] is request:
            request.persistent = False
            request.fail(error)

    def _take_up(self) -> GatewayRequest:
        """Begin a request."""
        request = GatewayRequest(self)
        self.requests.append(request)
        return request

    def drain(self) -> None:
        """Close the connection once nothing is in flight on it; called when the gateway shuts down."""
        for request in self.requests:
            request.persistent = False
        if self.tunnel is not None:
            self.tunnel.drain()
        current = self._parser.current
        if self.is_idle():
            self._close()
        elif current is not None and current.finished:
            # it is answered; do not wait for the rest of its body
            self._end(current)

    # reading from the client

    def pause_reading(self, why: str) -> None:
        """Read no more from the client until `resume_reading` is called with the same reason."""
        if not self._read_pauses:
            # in a tunnel, a FIN comes behind data that is still to be read
            self.site.disconnects.watch(self.transport, resets_only=why == "tunnel")
        self._read_pauses.add(why)
        self._networkProducer.pauseProducing()

    def resume_reading(self, why: str) -> None:
        """Read again, unless another reason forbids it."""
        if why in self._read_pauses:
            self._read_pauses.discard(why)
            if not self._read_pauses:
                self.site.disconnects.forget(self.transport)
                self._networkProducer.resumeProducing()
                if not self._lingering:
                    self._set_deadline()

    def _end_pauses(self) -> None:
        """Forget the reasons not to read; the caller resumes reading itself."""
        if self._read_pauses:
            self._read_pauses.clear()
            self.site.disconnects.forget(self.transport)

    # writing to the client

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register the producer of the response; pause it while the client has not read what went before."""
        super().registerProducer(producer, streaming)
        if streaming and self._waitingForTransport:
            producer.pauseProducing()

    def pauseProducing(self) -> None:
        """The client reads slower than it is written to: pause the producer, and take no more requests."""
        if not self._waitingForTransport:
            self._waitingForTransport = True
            self._await_reading(STALL)
        if self._requestProducer is not None:
            self._requestProducer.pauseProducing()
        elif not self.requests:
            self.pause_reading("unread")

    def resumeProducing(self) -> None:
        """The client has read what was written."""
        self._waitingForTransport = False
        if not self._lingering:
            self._set_deadline()
        self.resume_reading("unread")
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()
        self._advance()

    def _give_up_unless_it_reads(self) -> None:
        """Cut the connection unless the client has read something since the last deadline."""
        unsent = unsent_bytes(self.transport)
        if 0 < unsent < self._unsent:
            self._unsent = unsent
            self.deadline = self.site.sweeper.after(STALL)
        else:
            self.transport.abortConnection()

    def _close(self) -> None:
        """Close once everything was written; cut off a client that neither reads nor closes."""
        self._lingering = True
        self._await_reading(STALL)
        self.loseConnection()

    def _await_reading(self, seconds: float) -> None:
        self._unsent = unsent_bytes(self.transport)
        self.deadline = self.site.sweeper.after(STALL if self._unsent else seconds)
