"""A hub and links that are connected by real sockets in one process."""

from __future__ import annotations

import socket
from typing import Any

import attrs

from tests.end_to_end.end_to_end_harness import eventually
from twisted_vllm.http.net.epoll_hub import data_path_reactor
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.link import Link


@attrs.define
class Connected:
    """A hub with its links, by the numbers of their processes.

    Attributes:
        hub: the supervisor's side.
        links: the processes; one that was closed stays here.
    """

    hub: Hub
    links: dict[int, Link]
    _reactor: Any
    _sockets: Any
    _coalescer: WriteCoalescer

    def start(self, number: int, slot: int) -> Link:
        """Connect one more process, which is not ready yet."""
        ours, theirs = socket.socketpair()
        link = self.links[number] = Link(self._reactor, self._coalescer, number, slot)
        self.hub.connect(self._sockets, ours, number, slot)
        link.connect(self._sockets, theirs)
        return link

    async def ready(self, number: int, slot: int) -> Link:
        """Connect one more process, and wait until all know of it."""
        link = self.start(number, slot)
        link.ready()
        await eventually(self._reactor, lambda: number in self.hub.ready)
        ready = [link for number, link in self.links.items() if number in self.hub.ready]
        await eventually(self._reactor, lambda: all(len(each.others) == len(ready) - 1 for each in ready))
        return link

    def close(self) -> None:
        """Close every connection."""
        for link in self.links.values():
            link.close()


def connected(reactor: Any) -> Connected:
    """Return a hub without processes."""
    coalescer = WriteCoalescer()
    sockets = data_path_reactor(reactor, coalescer, Shortages())
    return Connected(Hub(reactor, coalescer), {}, reactor, sockets, coalescer)
