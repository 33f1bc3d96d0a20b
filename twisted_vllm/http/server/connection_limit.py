"""Rejects client connections over the limit with one small response, without buffering what they send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.errors import TooManyConnections
from twisted_vllm.http.headers import write_response_head
from twisted_vllm.http.net.deadlines import DeadlineSweeper

#: seconds for a connection over the limit to send its first bytes and read the response
PATIENCE = 2.0

#: connections over the limit to answer at a time; more are closed at once
MAX_REFUSED = 128

#: below this share of the limit, the log reports the end of the overload
RESET_SHARE = 0.9


class RefusedConnection(Protocol):
    """A connection over the limit. It gets an error response at its first bytes, which are dropped.

    A client that gets a response before it has sent anything may report a protocol error.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds.
    """

    transport: Any

    def __init__(
        self, deadlines: DeadlineSweeper, answer: Callable[[], bytes], on_lost: Callable[[RefusedConnection], None]
    ):
        """Create the protocol.

        Args:
            deadlines: checks the deadlines of all connections.
            answer: returns the serialized response.
            on_lost: called when the connection has ended.
        """
        self.deadline: float | None = deadlines.after(PATIENCE)
        self._deadlines = deadlines
        self._answer: Callable[[], bytes] | None = answer
        self._on_lost = on_lost

    def connectionMade(self) -> None:
        """Wait for the client's first bytes."""
        self._deadlines.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Respond, and drop further bytes: closing with unread data would reset the connection (RFC 9112 §9.6)."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        self.transport.write(answer())
        if ITCPTransport.providedBy(self.transport) and not ISSLTransport.providedBy(self.transport):
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Remove the connection from the deadlines."""
        self._deadlines.discard(self)
        self._on_lost(self)

    def expired(self) -> None:
        """Abort the connection."""
        self.deadline = None
        self.transport.abortConnection()


class _ClosedConnection(Protocol):
    """A connection that is closed as soon as it is made."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.abortConnection()


class ConnectionLimit:
    """Refuses connections over the limit.

    Attributes:
        max_connections: the limit.
    """

    _log = Logger()

    def __init__(
        self, max_connections: int, deadlines: DeadlineSweeper, date: Callable[[], bytes], make_id: Callable[[], bytes]
    ) -> None:
        """Create the limit.

        Args:
            max_connections: the maximum number of connections to serve at a time.
            deadlines: checks the deadlines of all connections.
            date: returns the value of a ``Date`` header.
            make_id: returns a new request id.
        """
        self.max_connections = max_connections
        self._deadlines = deadlines
        self._date = date
        self._make_id = make_id
        self._refused: set[RefusedConnection] = set()
        self._count = 0

    def refuse(self) -> Protocol:
        """Return a protocol that refuses one connection."""
        if not self._count:
            self._log.warn(
                "Over {cap} client connections: more are refused until some have ended", cap=self.max_connections
            )
        self._count += 1
        if len(self._refused) >= MAX_REFUSED:
            # None would close the connection as well, but not below TLS
            return _ClosedConnection()
        refused = RefusedConnection(self._deadlines, self._answer, self._refused.discard)
        self._refused.add(refused)
        return refused

    def left(self, connections: int) -> None:
        """Note that a served connection has ended and `connections` are left."""
        if self._count and connections < self.max_connections * RESET_SHARE:
            self._log.info("{count} client connections over the cap were refused", count=self._count)
            self._count = 0

    def close(self) -> None:
        """Abort the connections that are being refused."""
        for refused in self._refused:
            refused.transport.abortConnection()

    def _answer(self) -> bytes:
        error = TooManyConnections("The gateway has too many connections; send the request again.", retry_after=1)
        body = error.body()
        headers = error.headers()
        headers += [
            (b"content-length", b"%d" % len(body)),
            (b"date", self._date()),
            (b"x-request-id", self._make_id()),
            (b"Connection", b"close"),
        ]
        return write_response_head(error.status, b"Service Unavailable", headers) + body
