"""Sends at the end of a reactor turn what was written in it.

Twisted queues every write, registers the socket for writing, and sends in the next turn: two ``epoll_ctl`` calls and a
wake-up per piece. Here the writes of one turn are sent at its end, with one ``send`` per connection; Twisted sends what
the kernel does not accept. Sending in a row matters as much as sending early: a send to a sleeping process wakes it,
which costs more than the send itself, and the following sends find it awake. TLS and other transports are written to as
usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import ITransport

#: at this number of connections with pending data everything is sent, so that a long turn does not delay the first
MAX_PENDING_CONNECTIONS = 16

#: a connection with more pending bytes is sent at once
MAX_PENDING_BYTES = 262_144


class WriteCoalescer:
    """Holds writes until the end of the reactor turn; outside a turn they are sent at once.

    Attributes:
        before_send: called before anything is sent.
        holding: whether a turn is in progress.
        turn: the number of the turn in progress; 0 outside a turn.
    """

    def __init__(self) -> None:
        self._pending: list[Callable[[], None]] = []
        self._turns = 0
        self.turn = 0
        self.holding = False
        self.before_send: Callable[[], None] = _nothing

    def hold(self) -> None:
        """Start a turn."""
        self.holding = True
        self._turns = self.turn = self._turns + 1

    def release(self) -> None:
        """End the turn: send what was written in it."""
        self.holding = False
        self.turn = 0
        self.flush()

    def at_send(self, write: Callable[[], None]) -> None:
        """Call `write` just before what this turn wrote is sent; outside a turn at once."""
        if not self.holding:
            write()
            return
        self._pending.append(write)
        if len(self._pending) >= MAX_PENDING_CONNECTIONS:
            self.flush()

    def writer(self, transport: ITransport) -> tuple[Callable[[bytes], None], Callable[[], None]]:
        """Return a function that writes to `transport`, and one that sends its pending bytes at once.

        Bytes keep the order of the calls, ``transport.write`` included, because pending bytes are in the transport's
        own queue. Socket errors occur where Twisted expects them: in the transport's write.
        """
        if not isinstance(transport, tcp.Connection) or transport.TLS:

            def write_queued(data: bytes) -> None:
                self.before_send()
                transport.write(data)

            return write_queued, _nothing
        # the queue is private to twisted.internet.abstract.FileDescriptor; a test fails if Twisted changes it
        connection: Any = transport
        pending = self._pending
        is_pending = False

        def write(data: bytes) -> None:
            nonlocal is_pending
            if is_pending:
                connection._tempDataBuffer.append(data)
                connection._tempDataLen += len(data)
                if connection._tempDataLen > MAX_PENDING_BYTES:
                    self.before_send()
                    send()
                return
            if (
                connection.dataBuffer
                or connection._tempDataBuffer
                or connection.disconnecting
                or connection._writeDisconnected
                or connection._aborting
                or not connection.connected
            ):
                # the reactor may write to this socket before the end of the turn
                self.before_send()
                connection.write(data)
                return
            is_pending = True
            connection._tempDataBuffer.append(data)
            connection._tempDataLen = len(data)
            if not self.holding:
                send()
                return
            pending.append(send)
            if len(pending) >= MAX_PENDING_CONNECTIONS:
                self.flush()

        def send() -> None:
            nonlocal is_pending
            if not is_pending:
                return
            is_pending = False
            pieces = connection._tempDataBuffer
            if (
                not pieces
                or connection.dataBuffer
                or connection.disconnecting
                or connection._aborting
                or not connection.connected
            ):
                # the reactor sends what is queued
                return
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            try:
                sent = connection.socket.send(data)
            except OSError:
                # full or broken: let Twisted's own write handle it
                connection.startWriting()
                connection._maybePauseProducer()
                return
            pieces.clear()
            connection._tempDataLen = 0
            if sent < len(data):
                connection.dataBuffer = data
                connection.offset = sent
                connection.startWriting()
                connection._maybePauseProducer()

        return write, send

    def flush(self) -> None:
        """Send the pending bytes of every connection."""
        self.before_send()
        while self._pending:
            pending = self._pending[:]
            self._pending.clear()
            for send in pending:
                send()


def _nothing() -> None:
    """Do nothing."""


def underlying_transport(transport: Any) -> Any:
    """Return the transport that owns the socket: `transport`, or the one below its TLS; None if there is no socket."""
    while transport is not None and not isinstance(transport, FileDescriptor):
        transport = getattr(transport, "transport", None)
    return transport


def unsent_bytes(transport: Any) -> int:
    """Return how many bytes are queued on the transport that owns the socket; 0 if there is no socket."""
    owner = underlying_transport(transport)
    return 0 if owner is None else len(owner.dataBuffer) - owner.offset + owner._tempDataLen
