"""A client's connection: Twisted's HTTPChannel with llhttp as its parser.

Requests are parsed as bytes arrive and answered in order. A request is dispatched after the TCP segment with the end of
its head was parsed, so that a small body is already there. While a complete request is processed, the bytes after it
are held unparsed up to a limit; then reading stops.

Flow control: the gateway reads from and writes to a client no faster than the server side allows.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IHandshakeListener, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from twisted_vllm.config.settings import Timeouts
from twisted_vllm.context import Peer
from twisted_vllm.errors import GatewayError, RequestTimeout
from twisted_vllm.http.header_cache import RequestHeaderCache
from twisted_vllm.http.net.deadlines import INTERVAL, DeadlineSweeper
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher
from twisted_vllm.http.net.write_coalescing import WriteCoalescer, unsent_bytes
from twisted_vllm.http.server.connection_limit import Idle
from twisted_vllm.http.server.parser import RequestParser
from twisted_vllm.http.server.pipelines import Pipelines
from twisted_vllm.http.server.request import GatewayRequest, RequestSite
from twisted_vllm.http.tunnel import Tunnel

#: bytes to hold while the request before them is processed; then reading stops. All connections together may hold an
#: eighth of `Limits.max_held_total_bytes`
HELD_LIMIT = 16_384

#: pipelined requests to parse ahead on one connection: as objects they take fifty times the memory of their bytes
MAX_REQUESTS = 16

#: bytes to parse at once if they may be many requests
SLICE = 4_096

#: a slice with more pieces of bodies than this is slow to parse: each costs some microseconds
FINE = 16

#: seconds to read and drop the rest of a refused request, so that the client can read the response (RFC 9112 §9.6:
#: closing with unread data resets the connection)
LINGER = 2.0

#: seconds that a new connection has for its first request while the gateway shuts down
FIRST_REQUEST = 1.0

#: seconds in which a client must read the pending output, or as much as `Limits.min_client_rate` requires
STALL = 300.0


class ConnectionSite(RequestSite, Protocol):
    """The part of the site that connections use, beside `RequestSite`."""

    deadlines: DeadlineSweeper

    coalescer: WriteCoalescer
    disconnects: DisconnectWatcher
    pipelines: Pipelines
    header_cache: RequestHeaderCache
    timeouts: Timeouts

    def connection_made(self, connection: DownstreamConnection) -> None:
        """Count a connection in."""

    def connection_lost(self, connection: DownstreamConnection) -> None:
        """Count a connection out."""


@implementer(IHandshakeListener)
class DownstreamConnection(http.HTTPChannel):
    """One client connection.

    Attributes:
        site: the factory that built it.
        peer: the client's address.
        requests: the requests without a complete response, oldest first.
        tunnel: the tunnel, once a server agreed to the first request's upgrade.
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
        self._advancing = self._follows = self._waits_for_turn = False
        self._lingering = False
        self._handshaking = False
        self._answered = self._awaited = False
        self._closing_since: float | None = None
        self._held: list[bytes] = []
        self._held_size = 0
        # bytes of a body in many small chunks, until it is their turn
        self._rest = b""
        self._slice_pieces = 0
        self._unsent = 0
        self._read_pauses: set[str] = set()

    @property
    def held_bytes(self) -> int:
        """The number of bytes held unparsed until the request before them is answered."""
        return sum(map(len, self._held))

    # connection

    def connectionMade(self) -> None:
        """Start to serve the connection."""
        super().connectionMade()
        self.write, self.send_now = self.site.coalescer.writer(self.transport)
        self._parser = RequestParser(self._begin_request, self.site, self.site.header_cache)
        self._handshaking = self.isSecure()
        self.peer = Peer(getattr(self.transport.getPeer(), "host", ""), self._handshaking)
        self._set_deadline()
        self.site.connection_made(self)

    def handshakeCompleted(self) -> None:
        """Wait for a request, now that TLS is established."""
        self._handshaking = False
        if not self._lingering:
            self._set_deadline()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Notify the requests in flight that their client has disconnected."""
        self._end_pauses()
        self._take_held()
        self._rest = b""
        if self.tunnel is not None:
            self.tunnel.client_lost(reason)
        # it may still wait for a turn
        self._held.clear()
        requests, self.requests = self.requests, []
        try:
            for request in requests:
                request.connectionLost(reason)
        finally:
            # after the requests were logged: a drain may wait for this connection
            self.site.connection_lost(self)

    def is_idle(self) -> bool:
        """Return whether no request is in flight."""
        return not self.requests and self._parser.current is None and not self._lingering

    def idle_for(self, now: float) -> tuple[Idle, float] | None:
        """Return how it is idle and for how many seconds; None while it works on a request or has bytes to send."""
        deadline = self.deadline
        if deadline is None or self._waitingForTransport or self._read_pauses:
            return None
        if self._lingering:
            if self._closing_since is None or unsent_bytes(self.transport):
                return None
            return Idle.CLOSING, now - self._closing_since
        current = self._parser.current
        if current is None:
            if self.requests or unsent_bytes(self.transport):
                return None
            idle = Idle.KEPT_ALIVE if self._answered else Idle.SILENT
        elif self._parser.in_head:
            idle = Idle.SLOW_HEAD
        else:
            return None
        return idle, now - (deadline - INTERVAL - self._patience())

    def drop(self) -> None:
        """Close it at once, without a response, to make room for another connection."""
        if self.isSecure() or unsent_bytes(self.transport):
            # its client would have to read, or to close its side of TLS
            self._lingering = True
            self.transport.abortConnection()
        else:
            self._close()

    def expired(self) -> None:
        """Close an idle connection, refuse a request that came too slowly, or cut a lingering connection."""
        if self._lingering or self._waitingForTransport:
            self._give_up_unless_it_reads()
        elif self._read_pauses:
            # the gateway has paused reading
            self._set_deadline()
        elif self._parser.current is None:
            self._close()
        else:
            self._fail(RequestTimeout("The request did not arrive in time."))

    def _set_deadline(self) -> None:
        """Set the deadline for the client's next step."""
        if self._waitingForTransport:
            # the client must read first; `pauseProducing` has set that deadline
            return
        current = self._parser.current
        if self.requests and current is not self.requests[0]:
            self.deadline = None
            return
        self.deadline = self.site.deadlines.after(self._patience())

    def _patience(self) -> float:
        """Return how many seconds the client has for its next step."""
        timeouts = self.site.timeouts
        if self._parser.current is None:
            return timeouts.client_head if self._handshaking else timeouts.keep_alive
        return timeouts.client_head if self._parser.in_head else timeouts.client_body

    def _extend_deadline(self, gained: int) -> None:
        """Give more time for a body, of which `gained` bytes have arrived, up to its whole time."""
        if self.deadline is None or self._waitingForTransport:
            return
        rate = self.site.limits.min_client_rate
        whole = self.site.deadlines.now + INTERVAL + self.site.timeouts.client_body
        self.deadline = whole if rate is None else min(whole, self.deadline + gained / rate)

    # from the client

    def dataReceived(self, data: bytes) -> None:
        """Parse `data`, or hold it until the request before it is answered."""
        if self._lingering:
            return
        if self._rest:
            # TLS may pass on what it has read already
            self._rest += data
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
        """The bytes after a request for an upgrade, in the TCP segment that ended its head."""
        return self._parser.surplus

    def switch_to(self, tunnel: Tunnel) -> bytes:
        """Pass the client's bytes to `tunnel` until the first request is finished; return those already received."""
        self.tunnel = tunnel
        data = self.surplus + self._take_held()
        self.resume_reading("held")
        return data

    def _hold(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel.client_sent(data)
            return
        if not self.site.held_bodies.take_unparsed(len(data)):
            # the client sends the requests again that were not answered (RFC 9112 §9.3.2)
            self._take_held()
            self._parser.final = True
            for request in self.requests:
                request.persistent = False
            self.pause_reading("held")
            return
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > HELD_LIMIT:
            self.pause_reading("held")

    def _take_held(self) -> bytes:
        """Return the held bytes, and hold none."""
        held, self._held = self._held, []
        if held:
            self.site.held_bodies.drop_unparsed(self._held_size)
            self._held_size = 0
        return b"".join(held)

    def _feed(self, data: bytes) -> None:
        if self._slice_pieces > FINE:
            self._feed_fine(data)
        elif len(data) > SLICE and not self._is_within_body(len(data)):
            for offset in range(0, len(data), SLICE):
                if len(self.requests) > MAX_REQUESTS:
                    self._hold(data[offset:])
                    return
                if not self._feed_piece(data[offset : offset + SLICE]):
                    return
                if self._slice_pieces > FINE:
                    self._feed_fine(data[offset + SLICE :])
                    return
                rest = len(data) - offset - SLICE
                if rest > 0 and self._is_within_body(rest):
                    self._feed_piece(data[-rest:])
                    return
        else:
            self._feed_piece(data)

    def _feed_fine(self, data: bytes) -> None:
        """Parse a body in many small chunks while such bodies have time left in this turn; the rest waits."""
        while data and self._slice_pieces > FINE and self.site.pipelines.take():
            if not self._feed_piece(data[:SLICE]):
                return
            data = data[SLICE:]
        if data:
            self._rest = data
            self.pause_reading("turn")
            self.site.pipelines.wait(self._feed_rest)

    def _feed_rest(self) -> None:
        rest, self._rest = self._rest, b""
        if rest and not self._lingering:
            # to wait for a turn is no progress
            deadline = self.deadline
            self.resume_reading("turn")
            self.deadline = deadline
            self.dataReceived(rest)

    def _is_within_body(self, size: int) -> bool:
        """Return whether the next `size` bytes all belong to the current body."""
        current = self._parser.current
        if current is None or self._parser.in_head or current.body_length is None:
            return False
        return current.body_received + size <= current.body_length

    def _feed_piece(self, data: bytes) -> bool:
        """Parse `data`; return whether more may follow."""
        parser = self._parser
        was_in_head, before, begun = parser.in_head, parser.current, len(self.requests)
        received = 0 if before is None else before.body_received
        pieces = parser.pieces
        error = parser.feed(data)
        self._slice_pieces = parser.pieces - pieces
        if error is not None:
            self._fail(error)
            return False
        # progress alone moves the deadline: no blank lines, no bytes of a slow head, no framing of chunks
        current = parser.current
        if current is not before or len(self.requests) > begun or was_in_head is not parser.in_head:
            self._set_deadline()
        elif current is not None and current.body_received > received:
            self._extend_deadline(current.body_received - received)
        return True

    # answering in order

    def _advance(self) -> None:
        if self._advancing or self._waits_for_turn:
            return
        self._advancing = True
        self._follows = False
        try:
            while self._advance_once():
                pass
        finally:
            self._advancing = False

    def _advance_once(self) -> bool:
        """Take one step; return whether another may follow."""
        if self._held and not self._lingering and (not self.requests or self._parser.current is self.requests[0]):
            # the held bytes start the next request, or continue the first
            data = self._take_held()
            self.resume_reading("held")
            self._feed(data)
        if self.requests:
            request = self.requests[0]
            if not request.head_complete or self._lingering:
                return False
            if self._waitingForTransport and not request.dispatched:
                # the client must read the earlier responses first
                self.pause_reading("unread")
                return False
            if request.fault is not None:
                if not request.failed:
                    self._parser.final = True
                    request.persistent = False
                    request.fail(request.fault)
            elif not request.dispatched:
                if self._follows and not self.site.pipelines.take():
                    self._waits_for_turn = True
                    self.site.pipelines.wait(self._go_on)
                    return False
                if self._follows:
                    # it waited for the answers before it
                    request.context.received = self.site.seconds()
                self._follows = True
                request.dispatch()
            else:
                if request.body_complete and not request.context.received:
                    request.context.received = self.site.seconds()
                request.body_arrived()
            return not (self.requests and self.requests[0] is request)
        return False

    def _go_on(self) -> None:
        self._waits_for_turn = False
        self._advance()

    def requestDone(self, request: GatewayRequest) -> None:
        """Continue with the next request, or close the connection. A request calls it when its response is complete."""
        self.requests.remove(request)
        self._answered = True
        if not request.keeps_connection():
            self._end(request)
            return
        self._set_deadline()
        self.resume_reading("body")
        if self._waitingForTransport:
            self.pause_reading("unread")
        self._advance()

    def _end(self, request: GatewayRequest) -> None:
        """Close; first read and drop the rest of the request for `LINGER` seconds."""
        self._parser.final = True
        self._lingering = True
        unread = not request.body_complete or self._held or self._read_pauses or self.tunnel is not None
        self._take_held()
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
        """Answer the unreadable request with `error`, and close."""
        request = self._parser.give_up()
        self._take_held()
        request.fault = error
        request.head_complete = True
        if request.finished:
            # already answered; the rest of its body is malformed
            self._end(request)
        elif self.requests[0] is request:
            request.persistent = False
            request.fail(error)

    def _begin_request(self) -> GatewayRequest:
        """Create a request and put it in line."""
        request = GatewayRequest(self)
        request.is_awaited, self._awaited = self._awaited, False
        self.requests.append(request)
        return request

    def drain(self) -> None:
        """Close the connection once nothing is in flight on it; called when the gateway shuts down.

        The first request of a new connection is waited for, and served: it may be on its way, and its client took the
        connection for a promise. So a restart refuses nobody where others listen at the same socket, as systemd does.
        """
        for request in self.requests:
            request.persistent = False
        if self.tunnel is not None:
            self.tunnel.drain()
        current = self._parser.current
        if self.is_idle():
            idle = self.idle_for(self.site.deadlines.now)
            if idle is not None and idle[0] is Idle.SILENT and idle[1] < FIRST_REQUEST:
                self._awaited = True
                self.deadline = self.site.deadlines.after(FIRST_REQUEST)
            else:
                self._close()
        elif current is not None and current.finished:
            # already answered: do not wait for the rest of its body
            self._end(current)

    # reading from the client

    def pause_reading(self, why: str) -> None:
        """Stop reading from the client until `resume_reading` is called with the same reason."""
        if not self._read_pauses:
            # in a tunnel, unread data may precede a FIN
            self.site.disconnects.watch(self.transport, resets_only=why == "tunnel")
        self._read_pauses.add(why)
        self._networkProducer.pauseProducing()

    def resume_reading(self, why: str) -> None:
        """Resume reading, unless there is another reason to pause."""
        if why in self._read_pauses:
            self._read_pauses.discard(why)
            if not self._read_pauses:
                self.site.disconnects.unwatch(self.transport)
                self._networkProducer.resumeProducing()
                if not self._lingering:
                    self._set_deadline()

    def _end_pauses(self) -> None:
        """Clear the reasons to pause; the caller resumes reading itself."""
        if self._read_pauses:
            self._read_pauses.clear()
            self.site.disconnects.unwatch(self.transport)

    # writing to the client

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Register the producer of the response; pause it while earlier output is pending."""
        super().registerProducer(producer, streaming)
        if streaming and self._waitingForTransport:
            producer.pauseProducing()

    def pauseProducing(self) -> None:
        """The client reads too slowly: pause the producer, and accept no more requests."""
        if not self._waitingForTransport:
            self._waitingForTransport = True
            self._await_reading(STALL)
        if self._requestProducer is not None:
            self._requestProducer.pauseProducing()
        elif not self.requests:
            self.pause_reading("unread")

    def resumeProducing(self) -> None:
        """The client has read the pending output: resume."""
        self._waitingForTransport = False
        if not self._lingering:
            self._set_deadline()
        self.resume_reading("unread")
        if self._requestProducer is not None:
            self._requestProducer.resumeProducing()
        self._advance()

    def _give_up_unless_it_reads(self) -> None:
        """Abort the connection unless the client has read enough since the last deadline."""
        unsent = unsent_bytes(self.transport)
        enough = max(1, STALL * (self.site.limits.min_client_rate or 0))
        if unsent and self._unsent - unsent >= enough:
            self._unsent = unsent
            self.deadline = self.site.deadlines.after(STALL)
        else:
            self.transport.abortConnection()

    def _close(self) -> None:
        """Close once everything was written; abort if the client neither reads nor closes."""
        self._lingering = True
        self._closing_since = self.site.deadlines.now
        self._await_reading(STALL)
        self.loseConnection()

    def _await_reading(self, seconds: float) -> None:
        self._unsent = unsent_bytes(self.transport)
        self.deadline = self.site.deadlines.after(STALL if self._unsent else seconds)
