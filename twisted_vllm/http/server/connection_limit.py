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

#: seconds in which a connection over the limit may send its first bytes and read the response
PATIENCE = 2.0

#: connections over the limit that are answered at a time; more are closed at once
MOST_REFUSED = 128

#: the share of the limit below which the next refusal is logged again
RESET_SHARE = 0.9


class RefusedConnection(Protocol):
    """A connection over the limit. It is answered at its first bytes, whatever they are, and nothing is kept of them.

    A client that is answered before it has sent anything may take that for a protocol error.

    Attributes:
        deadline: when `expired` is called, in the reactor's seconds.
    """

    transport: Any

    def __init__(
        self, sweeper: DeadlineSweeper, answer: Callable[[], bytes], on_lost: Callable[[RefusedConnection], None]
    ):
        """Make the connection's protocol.

        Args:
            sweeper: the deadlines of all connections.
            answer: returns the answer, written out.
            on_lost: called when the connection has ended.
        """
        self.deadline: float | None = sweeper.after(PATIENCE)
        self._sweeper = sweeper
        self._answer: Callable[[], bytes] | None = answer
        self._on_lost = on_lost

    def connectionMade(self) -> None:
        """Wait for the client's first bytes."""
        self._sweeper.add(self)

    def dataReceived(self, data: bytes) -> None:
        """Answer, and drop what comes: closing with unread data would reset the connection (RFC 9112 §9.6)."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        self.transport.write(answer())
        if ITCPTransport.providedBy(self.transport) and not ISSLTransport.providedBy(self.transport):
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget the connection."""
        self._sweeper.discard(self)
        self._on_lost(self)

    def expired(self) -> None:
        """Cut the connection."""
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
        most: connections that are served at a time.
    """

    _log = Logger()

    def __init__(
        self, most: int, sweeper: DeadlineSweeper, date: Callable[[], bytes], make_id: Callable[[], bytes]
    ) -> None:
        """Make it.

        Args:
            most: connections that are served at a time.
            sweeper: the deadlines of all connections.
            date: returns the value of a ``Date`` header.
            make_id: returns a new request id.
        """
        self.most = most
        self._sweeper = sweeper
        self._date = date
        self._make_id = make_id
        self._refused: set[RefusedConnection] = set()
        self._count = 0

    def refuse(self) -> Protocol:
        """Return what refuses one connection."""
        if not self._count:
            self._log.warn("Over {cap} client connections: more are refused until some have ended", cap=self.most)
        self._count += 1
        if len(self._refused) >= MOST_REFUSED:
            # not None, which stands for a closed connection too, but not below TLS
            return _ClosedConnection()
        refused = RefusedConnection(self._sweeper, self._answer, self._refused.discard)
        self._refused.add(refused)
        return refused

    def left(self, connections: int) -> None:
        """A served connection has ended, and `connections` are left."""
        if self._count and connections < self.most * RESET_SHARE:
            self._log.info("{count} client connections over the cap were refused", count=self._count)
            self._count = 0

    def close(self) -> None:
        """Cut the connections that are being refused."""
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
