"""The factory of client connections: what they share, and how they are drained."""

from __future__ import annotations

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
from twisted_vllm.http.server.connection import DownstreamConnection
from twisted_vllm.http.server.connection_limit import ConnectionLimit
from twisted_vllm.http.server.ids import RequestIds
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.lifecycle import Lifecycle


class GatewaySite(server.Site):
    """Builds connections, finds resources, and counts what is in flight.

    Attributes:
        sweeper: the deadlines of all connections.
        writes: sends what was written in a turn of the reactor.
        disconnects: notices clients that disconnect while nobody reads from them.
        limits: limits of connections, heads and bodies.
        timeouts: waiting times towards clients.
        lifecycle: whom requests are told to.
        header_cache: the heads of requests that were parsed before.
        ids: the ids of requests.
        connections: the client connections that are open.
        draining: whether the gateway is shutting down: every response then closes its connection.
        aborted: whether the drain ran out of time and cut what was left.
    """

    protocol: Any = DownstreamConnection
    resource: Any
    noisy = False

    def __init__(
        self,
        *,
        streaming: dict[bytes, IResource],
        other: IResource,
        sweeper: DeadlineSweeper,
        writes: WriteCoalescer,
        disconnects: DisconnectWatcher,
        reactor: IReactorTime,
        limits: Limits,
        timeouts: Timeouts,
        ids: RequestIds,
        lifecycle: Lifecycle,
    ) -> None:
        """Make the site.

        Args:
            streaming: the streaming resources, by their first path segment.
            other: what answers every other path.
            sweeper: the deadlines of all connections.
            writes: sends what was written in a turn of the reactor.
            disconnects: notices clients that disconnect while nobody reads from them.
            reactor: the clock.
            limits: limits of connections, heads and bodies.
            timeouts: waiting times towards clients.
            ids: the ids of requests.
            lifecycle: whom requests are told to.
        """
        super().__init__(other, timeout=None, reactor=reactor)
        self.sweeper = sweeper
        self.writes = writes
        self.disconnects = disconnects
        self.limits = limits
        self.header_cache = RequestHeaderCache(limits)
        self.timeouts = timeouts
        self.draining = False
        self.aborted = False
        self.seconds = reactor.seconds
        self._streaming = streaming
        self.ids = ids
        self.lifecycle = lifecycle
        self.connections: set[DownstreamConnection] = set()
        self._date = (-1, b"")
        self._drained: Deferred[None] | None = None
        cap = limits.max_connections
        self._connection_limit = (
            None if cap is None else ConnectionLimit(cap, sweeper, self.date, lambda: ids.make(self.seconds()))
        )

    def startFactory(self) -> None:
        """Begin: there is no access log of twisted.web's to open."""

    def stopFactory(self) -> None:
        """End."""

    # for requests

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
        """Return the id of a request; see `RequestIds.take`."""
        return self.ids.take(given, started)

    def finished(self, request: GatewayRequest) -> None:
        """Forget a request that was answered or given up, and tell the observers."""
        context = request.context
        self.ids.release(context.request_id)
        context.finish(
            self.seconds(),
            answered=bool(request.finished),
            drained=self.aborted,
            bytes_in=request.body_received,
            bytes_out=request.sentLength,
            body_complete=request.body_complete,
        )
        self.lifecycle.finished(context)
        # break the reference cycles, so that the request and its credential are freed at once
        request.work = None
        request.forget_body()

    def running(self) -> list[GatewayRequest]:
        """Return the requests that are in flight."""
        return [request for connection in self.connections for request in connection.requests if request.dispatched]

    # connections

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return the protocol that serves a connection, or refuses it."""
        limit = self._connection_limit
        if limit is not None and len(self.connections) >= limit.most:
            return limit.refuse()
        return super().buildProtocol(addr)

    def connection_made(self, connection: DownstreamConnection) -> None:
        """Count a connection in."""
        self.connections.add(connection)
        self.sweeper.add(connection)
        if self.draining:
            connection.drain()

    def connection_lost(self, connection: DownstreamConnection) -> None:
        """Count a connection out."""
        self.connections.discard(connection)
        self.sweeper.discard(connection)
        if self._connection_limit is not None:
            self._connection_limit.left(len(self.connections))
        if self._drained is not None and not self.connections:
            self._drained.callback(None)
            self._drained = None

    def drain(self) -> Deferred[None]:
        """Close idle connections at once and the others when their request is answered; fire when none is left."""
        self.draining = True
        if self._connection_limit is not None:
            self._connection_limit.close()
        done: Deferred[None] = Deferred()
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            self._drained = done
        else:
            done.callback(None)
        return done

    def abort(self) -> int:
        """Cut the connections that are left; return how many."""
        self.aborted = True
        connections = list(self.connections)
        for connection in connections:
            connection.transport.abortConnection()
        return len(connections)
