"""What makes a gateway one of several processes: its order, its link to the others, and the sockets it accepts from."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint

from twisted_vllm.config.listen import split
from twisted_vllm.http.net.certificates import Listeners
from twisted_vllm.http.net.inherited import Gate, InheritedListening, listen_inherited
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.workers.link import Link
from twisted_vllm.workers.orders import Order, Sockets
from twisted_vllm.workers.permitted import PermittedConnections

_SYSTEMD = "systemd"


class Member:
    """A process that the supervisor started.

    Attributes:
        order: what it is to be.
        permits: how many clients it may serve; None if it serves nobody.
    """

    permits: PermittedConnections | None = None

    def __init__(self, order: Order) -> None:
        self.order = order
        self._control = socket.socket(fileno=order.control)

    def join(self, reactor: Any, sockets: Any, shortages: Shortages, coalescer: WriteCoalescer) -> Link:
        """Return the link to the others, which is not connected yet.

        Args:
            reactor: Twisted's.
            sockets: the reactor of the data path.
            shortages: is told when there is no descriptor for a connection.
            coalescer: knows the turns of the data path.
        """
        self._reactor = reactor
        self._sockets = sockets
        self._shortages = shortages
        link = Link(reactor, coalescer, self.order.number, self.order.slot)
        if link.serves:
            self.permits = PermittedConnections(link, self.order.workers)
        return link

    def connect(self, link: Link) -> None:
        """Connect the link."""
        link.connect(self._sockets, self._control)

    def endpoints(self, listeners: Listeners) -> Sequence[IStreamServerEndpoint]:
        """Return the endpoints of the slot, whose ports accept from the supervisor's sockets."""
        return [self._endpoint(each, listeners) for each in self.order.sockets]

    def listen_for(self, slot: int, ports: Sequence[Any]) -> Sequence[IListeningPort]:
        """Accept the clients of another slot as those of this one.

        Args:
            slot: the other slot.
            ports: those of this slot.
        """
        pairs = zip(self.order.sockets, ports, strict=True)
        return [
            listen_inherited(
                self._reactor,
                self._sockets,
                self._shortages,
                self._gate,
                opened.of_slot(slot),
                opened.family,
                port.backlog,
                port.factory,
            )
            for opened, port in pairs
            # one socket for all is accepted from by all
            if len(opened.descriptors) > 1
        ]

    def close_sockets(self) -> None:
        """Close the supervisor's sockets here: no client comes from them any more."""
        for each in self.order.sockets:
            for descriptor in each.descriptors:
                os.close(descriptor)

    @property
    def _gate(self) -> Gate:
        assert self.permits is not None
        return self.permits

    def _endpoint(self, opened: Sockets, listeners: Listeners) -> IStreamServerEndpoint:
        descriptor = opened.of_slot(self.order.slot)
        listening = InheritedListening(
            self._reactor, self._sockets, self._shortages, self._gate, descriptor, opened.family
        )
        if split(opened.text)[0] == _SYSTEMD:
            # systemd's own numbers of descriptors are the supervisor's; the endpoint closes what it is given
            found: IStreamServerEndpoint = AdoptedStreamServerEndpoint(
                listening, os.dup(descriptor), socket.AddressFamily(opened.family)
            )
            return found
        return listeners.endpoint(opened.text, listening)
