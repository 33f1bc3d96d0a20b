"""Writing to a socket at once, without a turn of the reactor.

Twisted queues every write, registers the socket for writing, and sends on the reactor's next turn: two ``epoll_ctl``
calls and a wake-up for each piece. Where nothing is queued, sending at once and queueing only what the kernel did not
take saves all three. TLS and other transports take the ordinary way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import ITransport


def eager_write(transport: ITransport) -> Callable[[bytes], None]:
    """Return a function that writes to `transport`, at once where the transport is plain TCP.

    The order of bytes is the order of calls, also when calls to ``transport.write`` stand between them: while anything
    is queued, everything is queued. Errors of the socket surface where Twisted expects them: in the transport's own
    write.
    """
    if not isinstance(transport, tcp.Connection) or transport.TLS:
        return transport.write
    connection = transport

    def write(data: bytes) -> None:
        # the two buffers of twisted.internet.abstract.FileDescriptor; a test holds that they are still what they were
        if (
            connection.dataBuffer
            or connection._tempDataBuffer
            or connection.disconnecting
            or connection._aborting
            or not connection.connected
        ):
            connection.write(data)
            return
        try:
            sent = connection.socket.send(data)
        except OSError:
            # full, or broken: the queued write finds out which
            connection.write(data)
            return
        if sent < len(data):
            connection.write(data[sent:])

    return write


def unsent_bytes(transport: Any) -> int:
    """Return how many bytes are queued on `transport`, or on what carries it; 0 where that cannot be told."""
    while not isinstance(transport, FileDescriptor):
        transport = getattr(transport, "transport", None)
        if transport is None:
            return 0
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen
