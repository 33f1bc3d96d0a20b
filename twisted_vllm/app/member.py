"""What makes a gateway one of several processes: its order, its link to the others, and the sockets it accepts from."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpoint

from twisted_vllm.config.listen import split
from twisted_vllm.http.net.certificates import Listeners
from twisted_vllm.http.net.inherited import InheritedListening
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.workers.link import Link
from twisted_vllm.workers.orders import Order, Sockets

_SYSTEMD = "systemd"


class Member:
    """A process that the supervisor started.

    Attributes:
        order: what it is to be.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._control = socket.socket(fileno=order.control)

    def join(self, reactor: Any, coalescer: WriteCoalescer) -> Link:
        """Return the link to the others, which is not connected yet."""
        return Link(reactor, coalescer, self.order.number, self.order.slot)

    def connect(self, link: Link, sockets: Any) -> None:
        """Connect the link; `sockets` is the reactor of the data path."""
        link.connect(sockets, self._control)

    def endpoints(
        self, listeners: Listeners, reactor: Any, sockets: Any, shortages: Shortages
    ) -> Sequence[IStreamServerEndpoint]:
        """Return the endpoints of the slot, whose ports accept from the supervisor's sockets."""
        return [self._endpoint(each, listeners, reactor, sockets, shortages) for each in self.order.sockets]

    def close_sockets(self) -> None:
        """Close the supervisor's sockets here: no client comes from them any more."""
        for each in self.order.sockets:
            for descriptor in each.descriptors:
                os.close(descriptor)

    def _endpoint(
        self, opened: Sockets, listeners: Listeners, reactor: Any, sockets: Any, shortages: Shortages
    ) -> IStreamServerEndpoint:
        descriptor = opened.of_slot(self.order.slot)
        listening = InheritedListening(reactor, sockets, shortages, descriptor, opened.family)
        if split(opened.text)[0] == _SYSTEMD:
            # systemd's own numbers of descriptors are the supervisor's; the endpoint closes what it is given
            found: IStreamServerEndpoint = AdoptedStreamServerEndpoint(
                listening, os.dup(descriptor), socket.AddressFamily(opened.family)
            )
            return found
        return listeners.endpoint(opened.text, listening)
