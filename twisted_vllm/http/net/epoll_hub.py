"""An epoll set for the sockets of the data path. Twisted's reactor watches it as one descriptor.

Twisted's reactor makes a logging context for each event of each socket, which costs more than relaying a chunk. Here
the sockets of the data path are in one ``epoll`` set, which is readable while any of them has an event. One turn
handles all events, and then sends what was written in it (`WriteCoalescer`).

Transports, ports and endpoints use the hub as their reactor; it delegates everything but the readiness of sockets to
the real reactor. Without ``epoll`` the real reactor is used directly.
"""

from __future__ import annotations

import select
import socket
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReactorFDSet, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from twisted_vllm.http.net.listening import TcpPort, TlsFactory, UnixPort
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer

#: events per poll, and polls per turn, before the reactor gets to its other work
MAX_EVENTS = 64
MAX_POLLS = 4

HAS_EPOLL = hasattr(select, "epoll")

_DONE = Failure(ConnectionDone())
_LOST = Failure(ConnectionLost())


def data_path_reactor(reactor: Any, coalescer: WriteCoalescer, shortages: Shortages) -> Any:
    """Return the reactor for the sockets of the data path: an `EpollHub`, or `reactor` itself without epoll."""
    return EpollHub(reactor, coalescer, shortages) if HAS_EPOLL and IReactorFDSet.providedBy(reactor) else reactor


@implementer(IReadDescriptor)
class EpollHub:
    """A set of sockets, and the reactor of their owners."""

    _log = Logger()

    def __init__(self, reactor: Any, coalescer: WriteCoalescer, shortages: Shortages) -> None:
        """Create the hub; the reactor watches it while it has a socket.

        Args:
            reactor: the real reactor, an IReactorFDSet.
            coalescer: sends at the end of a turn what was written in it.
            shortages: is told when a listening port has no descriptor for a connection.
        """
        self._shortages = shortages
        self._reactor = reactor
        self._coalescer = coalescer
        self._epoll = select.epoll()
        # by descriptor: the watched events, and the owner of the socket
        self._masks: dict[int, int] = {}
        self._owners: dict[int, Any] = {}
        self._watched = False
        directlyProvides(self, providedBy(reactor), IReadDescriptor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    # the reactor of transports and endpoints

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Listen; the hub is the reactor of the connections."""
        return self._start(TcpPort(port, factory, backlog, interface, self))

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Listen with TLS; the real reactor is the connections' own."""
        tls = TlsFactory(contextFactory, False, factory)
        return self._start(TcpPort(port, tls, backlog, interface, self._reactor))

    def listenUNIX(self, address: bytes, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0) -> Any:
        """Listen on a UNIX socket; the real reactor is the connections' own."""
        return self._start(UnixPort(address, factory, backlog, mode, self._reactor, wantPID))

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: Any, factory: Any) -> Any:
        """Listen on a socket that another process opened, as systemd does; the real reactor is the connections' own."""
        if addressFamily == socket.AF_UNIX:
            return self._start(UnixPort._fromListeningDescriptor(self._reactor, fileDescriptor, factory))
        return self._start(TcpPort._fromListeningDescriptor(self._reactor, fileDescriptor, addressFamily, factory))

    def _start(self, port: Any) -> Any:
        port.shortages = self._shortages
        port.startListening()
        return port

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30.0, bindAddress: tuple[str, int] | None = None
    ) -> Any:
        """Connect; the hub is the connection's reactor."""
        connector = tcp.Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def connectUNIX(self, address: Any, factory: Any, timeout: float = 30.0, checkPID: int = 0) -> Any:
        """Connect to a UNIX socket; the hub is the connection's reactor."""
        connector = unix.Connector(address, factory, timeout, self, checkPID)
        connector.connect()
        return connector

    def addReader(self, reader: Any) -> None:
        """Watch a socket until it is readable."""
        self._watch(reader, select.EPOLLIN)

    def addWriter(self, writer: Any) -> None:
        """Watch a socket until it is writable."""
        self._watch(writer, select.EPOLLOUT)

    def removeReader(self, reader: Any) -> None:
        """Stop watching whether a socket is readable."""
        self._unwatch(reader, select.EPOLLIN)

    def removeWriter(self, writer: Any) -> None:
        """Stop watching whether a socket is writable."""
        self._unwatch(writer, select.EPOLLOUT)

    def _watch(self, owner: Any, event: int) -> None:
        descriptor = owner.fileno()
        mask = self._masks.get(descriptor, 0)
        if mask and self._owners[descriptor] is not owner:
            # the descriptor's former owner closed its socket without removing it; the kernel has removed it
            mask = 0
        if mask & event:
            return
        if mask:
            self._epoll.modify(descriptor, mask | event)
        else:
            self._epoll.register(descriptor, event)
            if not self._watched:
                self._watched = True
                self._reactor.addReader(self)
        self._masks[descriptor] = mask | event
        self._owners[descriptor] = owner

    def _unwatch(self, owner: Any, event: int) -> None:
        descriptor = owner.fileno()
        if descriptor == -1:
            # closed, which removed it from the kernel's set
            descriptor = next((number for number, other in self._owners.items() if other is owner), -1)
        mask = self._masks.get(descriptor, 0)
        if not mask & event:
            return
        mask &= ~event
        if mask:
            self._epoll.modify(descriptor, mask)
            self._masks[descriptor] = mask
            return
        del self._masks[descriptor], self._owners[descriptor]
        if owner.fileno() != -1:
            self._epoll.unregister(descriptor)
        if not self._masks:
            self._watched = False
            self._reactor.removeReader(self)

    # IReadDescriptor, for the real reactor

    def fileno(self) -> int:
        """Return the descriptor of the epoll set."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return its name in the reactor's log."""
        return "-"

    def doRead(self) -> None:
        """Handle the events."""
        coalescer = self._coalescer
        poll = self._epoll.poll
        handle = self._handle
        for _ in range(MAX_POLLS):
            events = poll(0, MAX_EVENTS)
            if not events:
                return
            coalescer.hold()
            try:
                for descriptor, event in events:
                    handle(descriptor, event)
            finally:
                coalescer.release()

    def _handle(self, descriptor: int, event: int) -> None:
        """Let the owner read and write, and end its connection if it is lost, as Twisted's reactors do."""
        mask = self._masks.get(descriptor)
        if mask is None:
            # an earlier event ended it
            return
        owner = self._owners[descriptor]
        in_read = False
        try:
            if event & _IN:
                in_read = True
                why = owner.doRead()
                if not why and event & _OUT and self._masks.get(descriptor, 0) & _OUT:
                    in_read = False
                    why = owner.doWrite()
            elif event & _GONE:
                in_read = bool(mask & _IN)
                why = CONNECTION_DONE if in_read else CONNECTION_LOST
            else:
                why = owner.doWrite() if event & _OUT else None
        except Exception as error:
            self._log.failure("A connection could not be served")
            why = error
        if why:
            self._end(owner, why, in_read)

    def _end(self, owner: Any, why: Exception, in_read: bool) -> None:
        self.removeReader(owner)
        if isinstance(why, ConnectionDone):
            reason = _DONE
            if in_read and IHalfCloseableDescriptor.providedBy(owner):
                owner.readConnectionLost(reason)
                return
        else:
            reason = _LOST if isinstance(why, ConnectionLost) else Failure(why)
        self.removeWriter(owner)
        owner.connectionLost(reason)

    def connectionLost(self, reason: Failure) -> None:
        """End every connection: the reactor stops."""
        self._watched = False
        for owner in list(self._owners.values()):
            self.removeReader(owner)
            self.removeWriter(owner)
            owner.connectionLost(reason)


_IN = select.EPOLLIN if HAS_EPOLL else 0
_OUT = select.EPOLLOUT if HAS_EPOLL else 0
_GONE = select.EPOLLHUP | select.EPOLLERR if HAS_EPOLL else 0
