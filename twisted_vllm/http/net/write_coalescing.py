"""Writing to sockets at the end of a turn of the reactor, without a wait for each to be writable.

Twisted queues every write, registers the socket for writing, and sends on the reactor's next turn: two ``epoll_ctl``
calls and a wake-up for each piece. Here what was written in one turn is sent at its end: one ``send`` for each
connection, all of them in a row, and only what the kernel did not take goes Twisted's way. Sending in a row matters as
much as sending early: a send to a process that sleeps wakes it, which costs more than the send itself; while it handles
the first piece, the next ones find it awake. TLS and other transports take the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import ITransport

#: connections whose pieces wait for the end of a turn: from so many on they are sent at once, so that a busy turn does
#: not hold back the first of them
MOST_WAITING = 16

#: bytes that wait for the end of a turn on one connection
MOST_BYTES = 262_144


class WriteCoalescer:
    """What was written in the turn of the reactor that is running; outside of a turn, everything is sent at once.

    Attributes:
        before: called before what was written in a turn is sent.
        holds: whether a turn is running.
    """

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self.holds = False
        self.before: Callable[[], None] = _nothing

    def hold(self) -> None:
        """Begin a turn."""
        self.holds = True

    def release(self) -> None:
        """End the turn: send what was written in it."""
        self.holds = False
        self.flush()

    def writer(self, transport: ITransport) -> tuple[Callable[[bytes], None], Callable[[], None]]:
        """Return a function that writes to `transport`, and one that sends at once what waits there.

        The order of bytes is the order of calls, also when calls to ``transport.write`` stand between them: what waits
        stands in the transport's own queue. Errors of the socket surface where Twisted expects them: in the transport's
        own write.
        """
        if not isinstance(transport, tcp.Connection) or transport.TLS:

            def write_queued(data: bytes) -> None:
                self.before()
                transport.write(data)

            return write_queued, _nothing
        # a connection's queue is two attributes of twisted.internet.abstract.FileDescriptor; a test holds that they
        # are still what they were
        connection: Any = transport
        waiting = self._waiting
        waits = False

        def write(data: bytes) -> None:
            nonlocal waits
            if waits:
                connection._tempDataBuffer.append(data)
                connection._tempDataLen += len(data)
                if connection._tempDataLen > MOST_BYTES:
                    self.before()
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
                # the socket may be written to before the turn is over
                self.before()
                connection.write(data)
                return
            waits = True
            connection._tempDataBuffer.append(data)
            connection._tempDataLen = len(data)
            if not self.holds:
                send()
                return
            waiting.append(send)
            if len(waiting) >= MOST_WAITING:
                self.flush()

        def send() -> None:
            nonlocal waits
            if not waits:
                return
            waits = False
            pieces = connection._tempDataBuffer
            if (
                not pieces
                or connection.dataBuffer
                or connection.disconnecting
                or connection._aborting
                or not connection.connected
            ):
                # something else was begun meanwhile, and has the reactor see to what is queued
                return
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            try:
                sent = connection.socket.send(data)
            except OSError:
                # full, or broken: the queued write finds out which
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
        """Send what waits on every connection."""
        self.before()
        while self._waiting:
            waiting = self._waiting[:]
            self._waiting.clear()
            for send in waiting:
                send()


def _nothing() -> None:
    """Where nothing waits there is nothing to do."""


def socket_below(transport: Any) -> Any:
    """Return the socket's own transport: `transport`, or what carries it below TLS; None where there is none."""
    while transport is not None and not isinstance(transport, FileDescriptor):
        transport = getattr(transport, "transport", None)
    return transport


def unsent_bytes(transport: Any) -> int:
    """Return how many bytes are queued on `transport`, or on what carries it; 0 where that cannot be told."""
    below = socket_below(transport)
    return 0 if below is None else len(below.dataBuffer) - below.offset + below._tempDataLen
