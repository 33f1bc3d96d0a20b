"""Noticing that a client has gone while it is not read from.

A transport whose reading is paused is out of the reactor's sight: that its client has hung up would show at the next
write, which may be minutes away, and a server would work for nobody until then. Here such sockets are watched for their
end alone, in an epoll of our own that the reactor reads like any other descriptor. Where there is no epoll nothing is
watched, and a hangup shows when the transport is read from or written to again.
"""

from __future__ import annotations

import select
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from twisted_vllm.http.net.write_coalescing import socket_below


@implementer(IReadDescriptor)
class DisconnectWatcher:
    """Ends connections whose other side has hung up while nobody reads from them.

    A client that has closed its sending half alone counts as gone, as it does where it is read from.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """Make it; nothing is opened before something is watched.

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
        """End the connection of `transport` when its other side hangs up, or, if `resets_only`, resets it."""
        below = socket_below(transport)
        descriptor = -1 if below is None else below.fileno()
        if descriptor < 0 or transport in self._descriptors or not hasattr(select, "epoll"):
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        # level-triggered, so that one that hung up before is noticed too; EPOLLHUP and EPOLLERR are implied
        self._epoll.register(descriptor, 0 if resets_only else select.EPOLLRDHUP)
        self._watched[descriptor] = transport
        self._descriptors[transport] = descriptor

    def forget(self, transport: Any) -> None:
        """Watch `transport` no more: it is read from again, or has ended."""
        descriptor = self._descriptors.pop(transport, None)
        if descriptor is None:
            return
        del self._watched[descriptor]
        if self._epoll is not None:
            try:
                self._epoll.unregister(descriptor)
            except OSError:
                # closed, which has taken it out
                self._log.debug("A watched socket was closed")

    def close(self) -> None:
        """Watch nothing any more."""
        self._watched.clear()
        self._descriptors.clear()
        if self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    # IReadDescriptor, for the reactor

    def fileno(self) -> int:
        """Return the epoll's own descriptor."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        """End what has hung up."""
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0):
            transport = self._watched.get(descriptor)
            if transport is not None:
                self.forget(transport)
                transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Close: the reactor ends."""
        self.close()

    def logPrefix(self) -> str:
        """Return what the reactor calls it."""
        return "DisconnectWatcher"
