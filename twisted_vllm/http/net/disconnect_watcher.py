"""Detects that a client has disconnected while the gateway is not reading from it.

The reactor does not watch a transport that is paused for reading. It would notice a disconnect at the next write, maybe
minutes later, while a server generates for nobody. Here such sockets are watched for disconnects only, in an epoll set
that the reactor reads like any other descriptor. Without epoll, a disconnect is noticed at the next read or write.
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
    """Aborts connections whose peer disconnects while they are not read from.

    A client that closed only its sending half counts as disconnected, as it does while it is read from.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Create the watcher; it opens the epoll set when it is first needed.

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
        """Abort the connection of `transport` when its peer disconnects or, if `resets_only`, resets it."""
        connection = underlying_transport(transport)
        descriptor = -1 if connection is None else connection.fileno()
        if descriptor < 0 or transport in self._descriptors or not hasattr(select, "epoll"):
            return
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
                self._reactor.addReader(self)
            # level-triggered, so that an earlier disconnect is noticed too; EPOLLHUP and EPOLLERR are implied
            self._epoll.register(descriptor, 0 if resets_only else select.EPOLLRDHUP)
        except OSError as error:
            # no descriptor or no memory: the disconnect is noticed at the next read or write
            self._log.warn("A client cannot be watched: {reason}", reason=error.strerror, once_a_second=True)
            return
        self._watched[descriptor] = transport
        self._descriptors[transport] = descriptor

    def unwatch(self, transport: Any) -> None:
        """Stop watching `transport`."""
        descriptor = self._descriptors.pop(transport, None)
        if descriptor is None:
            return
        del self._watched[descriptor]
        if self._epoll is not None:
            try:
                self._epoll.unregister(descriptor)
            except OSError:
                # closing the socket removed it from the set
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
        """Abort the connections whose peers have disconnected."""
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0):
            transport = self._watched.get(descriptor)
            if transport is not None:
                self.unwatch(transport)
                transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Close: the reactor stops."""
        self.close()

    def logPrefix(self) -> str:
        """Return its name in the reactor's log."""
        return "DisconnectWatcher"
