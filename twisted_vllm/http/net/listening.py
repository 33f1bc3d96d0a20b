"""Listening ports that go on when there is no descriptor for another connection.

Twisted's ports log three lines for each connection that they cannot accept, and try again in every turn of the reactor
once they have no descriptor in reserve. These close idle connections, or pause, or close what waits in the backlog.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from twisted_vllm.http.net.open_files import SHORTAGES, SpareDescriptor
from twisted_vllm.http.net.shortages import Shortages

#: connections to accept in one turn of the reactor
MAX_ACCEPTS = 16

#: seconds until a port accepts again: after idle connections were closed, and when nothing could be closed
SHORT_PAUSE = 0.05
PAUSE = 0.5


class _Accepting(tcp.Port):
    """A port that accepts with a plan for shortages.

    Attributes:
        shortages: is told of them, and makes room.
    """

    shortages: Shortages
    socket: Any
    reactor: Any
    factory: Any
    _accept_log = Logger()
    _pause: IDelayedCall | None = None

    def startListening(self) -> None:
        """Listen."""
        self._spare = SpareDescriptor()
        self._spare.take()
        super().startListening()

    def doRead(self) -> None:
        """Accept what waits, up to `MAX_ACCEPTS`."""
        wanted = self.numberAccepts
        accepted = 0
        while accepted < wanted:
            try:
                connected, address = self.socket.accept()
            except BlockingIOError:
                break
            except OSError as error:
                # anything else concerns one connection that ended while it waited (accept(2))
                if error.errno in SHORTAGES:
                    self._ran_short(error.errno or 0)
                break
            accepted += 1
            self._serve(connected, address)
        self.numberAccepts = min(MAX_ACCEPTS, wanted + 20) if accepted == wanted else max(1, accepted)

    def _serve(self, connected: socket.socket, address: Any) -> None:
        """Give the connection to its protocol, or close it if the factory returns none."""
        transport: Any = None
        try:
            if isinstance(address, tuple) and len(address) == 4:
                # an IPv6 address without its scope in the text
                host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
                address = (host, *address[1:])
            protocol = self.factory.buildProtocol(self._buildAddr(address))
            if protocol is None:
                connected.close()
                return
            number = self.sessionno
            self.sessionno = number + 1
            transport = self.transport(connected, protocol, address, self, number, self.reactor)
            protocol.makeConnection(transport)
        except Exception:
            self._accept_log.failure("A connection could not be served")
            if transport is None:
                connected.close()
            else:
                transport.abortConnection()

    def _ran_short(self, number: int) -> None:
        """Make room, or refuse what waits, or pause: the backlog stays readable, and would keep the reactor busy."""
        if self.shortages.note("accept", number):
            self._rest(SHORT_PAUSE)
        elif number != errno.EMFILE or not self._refuse_waiting():
            self._rest(PAUSE)

    def _refuse_waiting(self) -> bool:
        """Close waiting connections with the spare descriptor; return whether it could be taken back."""
        self._spare.free()
        try:
            for _ in range(MAX_ACCEPTS):
                self.socket.accept()[0].close()
        except OSError:
            # none waits any more, or another thread took the descriptor
            pass
        return self._spare.take()

    def _rest(self, seconds: float) -> None:
        self.stopReading()
        self._pause = self.reactor.callLater(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._spare.take()
        self.startReading()

    def loseConnection(self, connDone: Failure = connectionDone) -> Any:
        """Stop listening."""
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.cancel()
        return super().loseConnection(connDone)

    stopListening = loseConnection

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End: the port is closed."""
        self._spare.free()
        super().connectionLost(reason)


class TcpPort(_Accepting):
    """A TCP port."""


class UnixPort(_Accepting, unix.Port):
    """A UNIX socket."""


class TlsFactory(TLSMemoryBIOFactory):
    """Adds TLS to connections; a connection is closed at once if the factory below returns no protocol for it."""

    def buildProtocol(self, addr: Any) -> Any:
        """Return a protocol, or None."""
        protocol = self.wrappedFactory.buildProtocol(addr)
        return None if protocol is None else self.protocol(self, protocol)
