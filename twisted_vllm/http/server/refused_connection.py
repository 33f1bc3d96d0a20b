"""A connection that is refused with one small response, without buffering what its client sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from twisted_vllm.http.net.deadlines import DeadlineSweeper

#: seconds for a refused connection to send its first bytes and read the response
PATIENCE = 2.0


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
