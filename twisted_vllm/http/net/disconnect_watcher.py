"""Noticing that a client has disconnected while it is not read from.

The reactor does not watch a transport whose reading is paused. It would notice a disconnect at the next write, which
may be minutes away, and a server would generate for nobody until then. Here such sockets are watched for a disconnect
alone, in an epoll set that the reactor reads like any other descriptor. Without epoll nothing is watched, and a
disconnect is noticed when the transport is read from or written to again.
"""

from __future__ import annotations

import select
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.http.net.write_coalescing import underlying_transport


@implementer(IReadDescriptor)
class DisconnectWatcher:
    """Aborts connections whose other side disconnects while they are not read from.

    A client that has closed only its sending half counts as disconnected, as it does while it is read from.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Make the watcher; it opens nothing before it watches something.

        Args:
            reactor: a provider of IReactorFDSet.
        """
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Any] = {}
        self._descriptors: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, transport: Any, resets_only: bool = False) -> None:
        """Abort the connection of `transport` when the other side disconnects or, if `resets_only`, resets it."""
        connection = underlying_transport(transport)
        descriptor = -1 if connection is None else connection.fileno()
        if descriptor < 0 or transport in self._descriptors or not hasattr(select, "epoll"):
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        # level-triggered, which notices an earlier disconnect too; EPOLLHUP and EPOLLERR are implied
        self._epoll.register(descriptor, 0 if resets_only else select.EPOLLRDHUP)
        self._watched[descriptor] = transport
        self._descriptors[transport] = descriptor

    def forget(self, transport: Any) -> None:
        """Stop watching `transport`: it is read from again, or has ended."""
        descriptor = self._descriptors.pop(transport, None)
        if descriptor is None:
            return
        del self._watched[descriptor]
        if self._epoll is not None:
            try:
                self._epoll.unregister(descriptor)
            except OSError:
                # closing the socket took it out of the set
                self._log.debug("A watched socket was closed")

    def close(self) -> None:
        """Stop watching everything."""
        self._watched.clear()
        self._descriptors.clear()
        if self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    # IReadDescriptor, for the reactor

    def fileno(self) -> int:
        """Return the descriptor of the epoll set."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        """Abort the connections whose other side has disconnected."""
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0):
            transport = self._watched.get(descriptor)
            if transport is not None:
                self.forget(transport)
                transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Close: the reactor stops."""
        self.close()

    def logPrefix(self) -> str:
        """Return its name in the reactor's log."""
        return "DisconnectWatcher"
