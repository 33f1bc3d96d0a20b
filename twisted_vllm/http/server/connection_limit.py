"""Client connections over the cap: each is told so in one small answer, and none of them is a way to hold memory."""

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

#: seconds that a connection over the cap may last: to say what it wants, and to read the answer
PATIENCE = 2.0

#: connections over the cap that are answered at a time; what comes beyond is closed without a word
MOST_REFUSED = 128

#: the part of the cap below which a crowd has gone, and the next one is worth another line in the log
GONE = 0.9


class RefusedConnection(Protocol):
    """A connection over the cap: it is answered at its first bytes, whatever they are, and nothing is kept of them.

    Not before: a client that is answered while it has asked nothing may take that for a fault of the protocol.

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
        """Answer, and throw away what comes: closing with unread data would take the answer back (RFC 9112 §9.6)."""
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
    """A connection of which nothing is wanted."""

    transport: Any

    def connectionMade(self) -> None:
        self.transport.abortConnection()


class ConnectionLimit:
    """What happens to connections over the cap."""

    _log = Logger()

    def __init__(
        self, cap: int, sweeper: DeadlineSweeper, date: Callable[[], bytes], make_id: Callable[[], bytes]
    ) -> None:
        """Make it.

        Args:
            cap: connections that are served at a time.
            sweeper: the deadlines of all connections.
            date: returns the value of a ``Date`` header.
            make_id: returns a new request id.
        """
        self.cap = cap
        self._sweeper = sweeper
        self._date = date
        self._make_id = make_id
        self._refused: set[RefusedConnection] = set()
        self._count = 0

    def refuse(self) -> Protocol:
        """Return what refuses one connection."""
        if not self._count:
            self._log.warn("Over {cap} client connections: more are refused until some have ended", cap=self.cap)
        self._count += 1
        if len(self._refused) >= MOST_REFUSED:
            # not None, which stands for a closed connection too, but not below TLS
            return _ClosedConnection()
        refused = RefusedConnection(self._sweeper, self._answer, self._refused.discard)
        self._refused.add(refused)
        return refused

    def left(self, connections: int) -> None:
        """Take note that a connection has ended, and that so many are left."""
        if self._count and connections < self.cap * GONE:
            self._log.info("{count} client connections over the cap were refused", count=self._count)
            self._count = 0

    def close(self) -> None:
        """Cut what is being refused."""
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
