"""The server's side of a client connection: Twisted's HTTPChannel with llhttp as its parser.

Requests are parsed as bytes arrive and answered in the order they came. A request is dispatched once the segment that
holds the end of its head was parsed, so that a small body is in hand at that moment. While a request that was received
whole is being answered, what follows it on the connection is held unparsed, up to a limit, and then left in the kernel.
"""

from __future__ import annotations

from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from twisted_vllm.errors import GatewayError, RequestTimeout
from twisted_vllm.http.server.flow_control import FlowControlledConnection
from twisted_vllm.http.server.parser import RequestParser
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.http.tunnel import Tunnel

#: bytes that are held for a request whose predecessor is still being answered, before reading stops
HELD_LIMIT = 16_384

#: requests that wait for their turn on one connection, from which on no more are parsed: they are fifty times as
#: large as objects as they are as bytes
MOST_REQUESTS = 16

#: bytes that are parsed at once where they may be many requests
SLICE = 4_096

#: seconds for which the rest of a refused request is read and thrown away, so that the client gets to see the answer
#: (RFC 9112 §9.6: closing with unread data resets the connection)
LINGER = 2.0


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


class ServerConnection(FlowControlledConnection):
    """One client connection; see `FlowControlledConnection` for how it is kept in step with the client.

    Attributes:
        requests: the requests that were begun and not yet answered, oldest first.
        peer: where the connection comes from.
        tunnel: what the connection was left to, once a server agreed to the first request's upgrade.
    """

    requests: list[GatewayRequest]
    peer: Peer
    tunnel: Tunnel | None = None

    def __init__(self) -> None:
        super().__init__()
        self.requests = []
        self._advancing = False
        self._held: list[bytes] = []
        self._held_size = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that are not parsed before the request in front of them is answered."""
        return sum(map(len, self._held))

    # connection

    def connectionMade(self) -> None:
        """Take up the connection."""
        super().connectionMade()
        self.write, self.send_now = self.site.writes.writer(self.transport)
        self._reader = RequestParser(self._take_up, self.site.limits, self.site.known_heads)
        self.peer = Peer(getattr(self.transport.getPeer(), "host", ""), self.isSecure())
        self.site.connection_made(self)
        self.deadline = self.site.sweeper.after(self.site.timeouts.keep_alive)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the requests in work that their client has gone."""
        self._end_pauses()
        if self.tunnel is not None:
            self.tunnel.client_lost(reason)
        requests, self.requests = self.requests, []
        try:
            for request in requests:
                request.connectionLost(reason)
        finally:
            # last: a drain that waits for this connection must find its requests recorded
            self.site.connection_lost(self)

    def is_idle(self) -> bool:
        """Tell whether nothing was begun that is not finished."""
        return not self.requests and self._reader.current is None and not self._lingering

    def expired(self) -> None:
        """Act on the deadline: end an idle connection, refuse a late request, give up on a lingering connection."""
        if self._lingering or self._waitingForTransport:
            self._give_up_unless_it_reads()
        elif self._read_pauses:
            # it is the gateway that does not read
            self._set_deadline()
        elif self._reader.current is None:
            self._close()
        else:
            self._fail(RequestTimeout("The request did not arrive in time."))

    def _set_deadline(self) -> None:
        """Set the deadline that fits what is awaited from the client."""
        if self._waitingForTransport:
            # it has to read first, and `pauseProducing` gave it the time for that
            return
        current = self._reader.current
        if self.requests and current is not self.requests[0]:
            self.deadline = None
            return
        timeouts = self.site.timeouts
        if current is None:
            seconds = timeouts.keep_alive
        elif self._reader.in_head:
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
        if requests:
            self._advance()

    def switch_to(self, tunnel: Tunnel) -> bytes:
        """Leave what comes to `tunnel`, until the first request is finished; return what has come already."""
        self.tunnel = tunnel
        data = b"".join([self._reader.surplus, *self._held])
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
        """Tell whether so many more bytes are all of the body that is being read."""
        current = self._reader.current
        if current is None or self._reader.in_head or current.body_length is None:
            return False
        return current.body_received + size <= current.body_length

    def _feed_piece(self, data: bytes) -> bool:
        """Parse `data`; return whether more may follow."""
        reader = self._reader
        was_in_head = reader.in_head
        error = reader.feed(data)
        if error is not None:
            self._fail(error)
            return False
        if not (was_in_head and reader.in_head):
            # a head that comes slowly does not move its deadline
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
        if self._held and not self._lingering and (not self.requests or self._reader.current is self.requests[0]):
            # its turn has come, or that of the request which it continues
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
                # no more answers while the client does not read those that it has
                return False
            if request.fault is not None:
                if not request.failed:
                    self._reader.final = True
                    request.persistent = False
                    request.fail(request.fault)
            elif not request.dispatched:
                request.dispatch()
            else:
                request.body_arrived()
            return not (self.requests and self.requests[0] is request)
        return False

    def requestDone(self, request: GatewayRequest) -> None:
        """Go on to the next request, or end the connection: called when a request was answered."""
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
        """Close, after the rest of the request was read for a while where there is a rest."""
        self._reader.final = True
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
        request = self._reader.give_up()
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
        """Begin a request."""
        request = GatewayRequest(self)
        self.requests.append(request)
        return request

    def drain(self) -> None:
        """End the connection when nothing is in work on it; called when the gateway shuts down."""
        for request in self.requests:
            request.persistent = False
        if self.tunnel is not None:
            self.tunnel.drain()
        current = self._reader.current
        if self.is_idle():
            self._close()
        elif current is not None and current.finished:
            # answered already: the rest of its body is not worth waiting for
            self._end(current)
