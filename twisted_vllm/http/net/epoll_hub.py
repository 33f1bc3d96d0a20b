"""The data path's own set of sockets, which Twisted's reactor watches as one.

Twisted's reactor gives each event of each socket a logging context of its own, which costs more than many a chunk's
whole way through the gateway. Here the sockets of the data path stand in one ``epoll`` set, whose descriptor is in turn
one reader of the reactor's: an ``epoll`` set is readable while any socket in it is. A turn handles all events that are
there, and then sends what was written meanwhile (`WriteCoalescer`), so that sends follow each other.

To transports, ports and endpoints the hub is their reactor; all but the readiness of sockets is the real one's. Where
the operating system has no ``epoll``, the real reactor serves alone.
"""

from __future__ import annotations

import select
from typing import Any

from twisted.internet import tcp
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReactorFDSet, IReadDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import directlyProvides, implementer, providedBy

from twisted_vllm.http.net.write_coalescing import WriteCoalescer

#: events that are handled in one go, and goes in one turn: then the reactor's other work has its turn
MOST_EVENTS = 64
MOST_GOES = 4

HAS_EPOLL = hasattr(select, "epoll")

_DONE = Failure(ConnectionDone())
_LOST = Failure(ConnectionLost())


def sockets_of(reactor: Any, writes: WriteCoalescer) -> Any:
    """Return what stands for the reactor on the data path: a `EpollHub`, or `reactor` itself where there is none."""
    return EpollHub(reactor, writes) if HAS_EPOLL and IReactorFDSet.providedBy(reactor) else reactor


@implementer(IReadDescriptor)
class EpollHub:
    """A set of sockets, and a reactor to those who own them."""

    _log = Logger()

    def __init__(self, reactor: Any, writes: WriteCoalescer) -> None:
        """Make the hub; it is watched from its first socket on.

        Args:
            reactor: the real reactor, an IReactorFDSet.
            writes: what was written in a turn.
        """
        self._reactor = reactor
        self._writes = writes
        self._epoll = select.epoll()
        # the events that are asked for, and who asks, by descriptor
        self._masks: dict[int, int] = {}
        self._owners: dict[int, Any] = {}
        self._watched = False
        directlyProvides(self, providedBy(reactor), IReadDescriptor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    # a reactor to transports and endpoints

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """Listen, with the hub as the reactor of every connection that is accepted."""
        listening = tcp.Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30.0, bindAddress: tuple[str, int] | None = None
    ) -> Any:
        """Connect, with the hub as the connection's reactor."""
        connector = tcp.Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def addReader(self, reader: Any) -> None:
        """Watch a socket for something to read."""
        self._ask(reader, select.EPOLLIN)

    def addWriter(self, writer: Any) -> None:
        """Watch a socket for room to write."""
        self._ask(writer, select.EPOLLOUT)

    def removeReader(self, reader: Any) -> None:
        """Watch a socket for something to read no longer."""
        self._ask_no_more(reader, select.EPOLLIN)

    def removeWriter(self, writer: Any) -> None:
        """Watch a socket for room to write no longer."""
        self._ask_no_more(writer, select.EPOLLOUT)

    def _ask(self, owner: Any, event: int) -> None:
        descriptor = owner.fileno()
        mask = self._masks.get(descriptor, 0)
        if mask and self._owners[descriptor] is not owner:
            # its number was another's, who closed it without a word; the kernel has let go of that one
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

    def _ask_no_more(self, owner: Any, event: int) -> None:
        descriptor = owner.fileno()
        if descriptor == -1:
            # closed already, and so out of the kernel's set
            descriptor = next((known for known, who in self._owners.items() if who is owner), -1)
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

    # a reader to the real reactor

    def fileno(self) -> int:
        """Return the descriptor that is readable while there is an event."""
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return what stands before lines of the old log."""
        return "-"

    def doRead(self) -> None:
        """Handle the events that are there."""
        writes = self._writes
        poll = self._epoll.poll
        handle = self._handle
        for _ in range(MOST_GOES):
            events = poll(0, MOST_EVENTS)
            if not events:
                return
            writes.hold()
            try:
                for descriptor, event in events:
                    handle(descriptor, event)
            finally:
                writes.release()

    def _handle(self, descriptor: int, event: int) -> None:
        """Let the owner read and write, and end its connection where that is over: as Twisted's own reactors do."""
        mask = self._masks.get(descriptor)
        if mask is None:
            # ended by an event before this one
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
        """End every connection: the reactor itself stops."""
        self._watched = False
        for owner in list(self._owners.values()):
            self.removeReader(owner)
            self.removeWriter(owner)
            owner.connectionLost(reason)


_IN = select.EPOLLIN if HAS_EPOLL else 0
_OUT = select.EPOLLOUT if HAS_EPOLL else 0
_GONE = select.EPOLLHUP | select.EPOLLERR if HAS_EPOLL else 0
