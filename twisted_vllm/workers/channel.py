"""The socket pair between the supervisor and one process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import unix
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from twisted_vllm.http.net.write_coalescing import WriteCoalescer, unsent_bytes
from twisted_vllm.workers.messages import Envelope, FrameError, FrameReader, write_frame


class Channel(Protocol):
    """One end of a socket pair. What is sent in one turn of the reactor goes out as one frame, at the turn's end."""

    noisy = False

    def __init__(
        self,
        coalescer: WriteCoalescer,
        on_envelope: Callable[[Envelope], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """Set up; `connect` uses a socket.

        Args:
            coalescer: knows the turns.
            on_envelope: called for each envelope that comes.
            on_lost: called once with the reason when the other side is gone.
        """
        self._coalescer = coalescer
        self._on_envelope = on_envelope
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._waiting: list[Envelope] = []
        self._write: Callable[[bytes], None] | None = None
        self._send: Callable[[], None] = _nothing
        self._lost = False

    def connect(self, reactor: Any, connected: socket.socket) -> None:
        """Talk over a connected UNIX socket.

        Args:
            reactor: of the socket: an `EpollHub`, or the reactor without epoll.
            connected: the socket; it belongs to the channel from now on.
        """
        connected.setblocking(False)
        transport: Any = unix.Server(connected, self, "", None, 0, reactor)
        self.makeConnection(transport)

    def connectionMade(self) -> None:
        """Send what waited for the connection."""
        transport: Any = self.transport
        self._write, self._send = self._coalescer.writer(transport)
        if self._waiting:
            self._flush()

    @property
    def unsent(self) -> int:
        """The bytes that the other side does not take."""
        return unsent_bytes(self.transport)

    def send(self, envelope: Envelope) -> None:
        """Send an envelope with the others of this turn. Once the other side is gone, nothing is sent."""
        waiting = self._waiting
        waiting.append(envelope)
        if len(waiting) == 1 and self._write is not None:
            self._coalescer.at_send(self._flush)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and self._write is not None and not self._lost:
            self._write(write_frame(waiting))
            # now: whoever flushes sends what is pending already
            self._send()

    def dataReceived(self, data: bytes) -> None:
        """Hand out the envelopes of complete frames."""
        try:
            for envelopes in self._reader.feed(data):
                for envelope in envelopes:
                    self._on_envelope(envelope)
        except FrameError as error:
            self._end(f"it sent what is no message: {error}")
            transport: Any = self.transport
            transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The other side is gone."""
        self._end("it has ended")

    def close(self) -> None:
        """Send what waits, and close the socket."""
        if self.transport is not None:
            self._flush()
            self.transport.loseConnection()

    def _end(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            self._on_lost(reason)


def _nothing() -> None:
    """Do nothing."""
