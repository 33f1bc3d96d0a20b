"""The factory of client connections: what they share, and how they end together."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.web import server
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource

from twisted_vllm.config.settings import Limits, Timeouts
from twisted_vllm.http.header_cache import RequestHeaderCache
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.http.server.connection import ServerConnection
from twisted_vllm.http.server.connection_limit import ConnectionLimit
from twisted_vllm.http.server.request import GatewayRequest

#: the request ids that are taken over from clients: visible ASCII, so that they stand safely in headers and logs
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")

#: the randomness of an id that is made here, in bytes
ID_BYTES = 12
ID_COUNT = 64


class GatewaySite(server.Site):
    """Builds channels, finds resources, and keeps count of what is in work.

    Attributes:
        sweeper: the deadlines of all connections.
        writes: sends what was written in a turn of the reactor.
        hangups: notices who has gone while nobody reads from him.
        limits: caps on requests.
        known_heads: the heads that were read before.
        timeouts: waiting times towards clients.
        draining: whether the gateway is shutting down: every answer then closes its connection.
        aborted: whether it ran out of time for that, and cut what was left.
    """

    protocol: Any = ServerConnection
    resource: Any
    noisy = False

    def __init__(
        self,
        *,
        streaming: dict[bytes, IResource],
        other: IResource,
        sweeper: DeadlineSweeper,
        writes: WriteCoalescer,
        hangups: DisconnectWatcher,
        reactor: IReactorTime,
        limits: Limits,
        timeouts: Timeouts,
        randbytes: Callable[[int], bytes],
        on_finished: Callable[[GatewayRequest], None],
    ) -> None:
        """Make the site.

        Args:
            streaming: the streaming resources, by their first path segment.
            other: what answers every other path.
            sweeper: the deadlines of all connections.
            writes: sends what was written in a turn of the reactor.
            hangups: notices who has gone while nobody reads from him.
            reactor: the clock.
            limits: caps on requests.
            timeouts: waiting times towards clients.
            randbytes: returns so many random bytes.
            on_finished: called once with each request that was answered or given up.
        """
        super().__init__(other, timeout=None, reactor=reactor)
        self.sweeper = sweeper
        self.writes = writes
        self.hangups = hangups
        self.limits = limits
        self.known_heads = RequestHeaderCache(limits)
        self.timeouts = timeouts
        self.draining = False
        self.aborted = False
        self.seconds = reactor.seconds
        self._streaming = streaming
        self._randbytes = randbytes
        self._on_finished = on_finished
        self._channels: set[ServerConnection] = set()
        self._live_ids: set[bytes] = set()
        self._date = (-1, b"")
        self._random: list[bytes] = []
        self._second, self._second_digits = -1, b""
        self._drained: Deferred[None] | None = None
        cap = limits.max_connections
        self._crowd = (
            None if cap is None else ConnectionLimit(cap, sweeper, self.date, lambda: self.make_id(self.seconds()))
        )

    def startFactory(self) -> None:
        """Begin: there is no access log of twisted.web's to open."""

    def stopFactory(self) -> None:
        """End."""

    @property
    def connections(self) -> frozenset[ServerConnection]:
        """The open client connections."""
        return frozenset(self._channels)

    @property
    def request_ids(self) -> frozenset[bytes]:
        """The ids of the requests in flight."""
        return frozenset(self._live_ids)

    # what requests ask

    def leaf_for(self, path: bytes) -> IResource:
        """Return the resource that `path` belongs to."""
        leaf: IResource = self._streaming.get(path[1:].partition(b"/")[0], self.resource)
        return leaf

    def date(self) -> bytes:
        """Return the time for a ``Date`` header, made once a second."""
        now = int(self.seconds())
        if now != self._date[0]:
            self._date = (now, datetimeToString(now))
        return self._date[1]

    def take_request_id(self, given: bytes | None, started: float) -> bytes:
        """Return the id of a request: the client's own where it is safe and not in use, else a new one.

        Args:
            given: the client's.
            started: when the request began, in seconds since 1970.

        A second live request with one id has broken vLLM's engine (vLLM builds its own request ids from this header).
        """
        if given is None or given in self._live_ids or not REQUEST_ID.fullmatch(given):
            given = self.make_id(started)
        self._live_ids.add(given)
        return given

    def make_id(self, started: float) -> bytes:
        """Return an id of 32 hex digits: the second that a request began in, and 96 random bits.

        The ledger has its rows in the order of their time: the second tells where one is.
        """
        second = int(started)
        if second != self._second:
            self._second = second
            self._second_digits = b"%08x" % (second & 0xFFFFFFFF)
        if not self._random:
            # one question to the kernel for many ids
            digits = self._randbytes(ID_COUNT * ID_BYTES).hex().encode("ascii")
            self._random = [digits[at : at + 2 * ID_BYTES] for at in range(0, len(digits), 2 * ID_BYTES)]
        return self._second_digits + self._random.pop()

    def finished(self, request: GatewayRequest) -> None:
        """Forget a request that was answered or given up."""
        self._live_ids.discard(request.request_id)
        self._on_finished(request)
        # these refer back to it: without them it is gone at once, with its credential, and not at the next collection
        request.note = request.work = None
        request.forget_body()

    def running(self) -> list[GatewayRequest]:
        """Return the requests that are in work."""
        return [request for channel in self._channels for request in channel.requests if request.dispatched]

    # connections

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return what serves a connection, or refuses it."""
        crowd = self._crowd
        if crowd is not None and len(self._channels) >= crowd.cap:
            return crowd.refuse()
        return super().buildProtocol(addr)

    def connection_made(self, channel: ServerConnection) -> None:
        """Count a connection in."""
        self._channels.add(channel)
        self.sweeper.add(channel)
        if self.draining:
            channel.drain()

    def connection_lost(self, channel: ServerConnection) -> None:
        """Count a connection out."""
        self._channels.discard(channel)
        self.sweeper.discard(channel)
        if self._crowd is not None:
            self._crowd.left(len(self._channels))
        if self._drained is not None and not self._channels:
            self._drained.callback(None)
            self._drained = None

    def drain(self) -> Deferred[None]:
        """Close idle connections, and each of the others when its request is answered; fire when none is left."""
        self.draining = True
        if self._crowd is not None:
            self._crowd.close()
        done: Deferred[None] = Deferred()
        for channel in list(self._channels):
            channel.drain()
        if self._channels:
            self._drained = done
        else:
            done.callback(None)
        return done

    def abort(self) -> int:
        """Cut what is left; return how many connections that were."""
        self.aborted = True
        channels = list(self._channels)
        for channel in channels:
            channel.transport.abortConnection()
        return len(channels)
