"""The factory of client connections: their shared state, and the drain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.web import server
from twisted.web.http import datetimeToString
from twisted.web.resource import IResource

from twisted_vllm.config.settings import Limits, Timeouts
from twisted_vllm.context import RequestContext
from twisted_vllm.errors import BudgetExceeded
from twisted_vllm.http.header_cache import RequestHeaderCache
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher
from twisted_vllm.http.net.open_files import MAX_REFUSED
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.http.server.connection import DownstreamConnection
from twisted_vllm.http.server.connection_limit import ConnectionLimit, Shares
from twisted_vllm.http.server.held_bodies import HeldBodies
from twisted_vllm.http.server.ids import RequestIds
from twisted_vllm.http.server.pipelines import Pipelines
from twisted_vllm.http.server.request import GatewayRequest
from twisted_vllm.http.web_pages import NO_WEB_PAGES, WebPages
from twisted_vllm.lifecycle import Lifecycle

#: connections that are looked through for secrets when a failure is logged: it takes 5 µs for each
MOST_LOOKED_AT = 500


class GatewaySite(server.Site):
    """Builds connections, finds resources, and counts what is in flight.

    Attributes:
        deadlines: checks the deadlines of all connections.
        coalescer: sends at the end of a reactor turn what was written in it.
        disconnects: detects clients that disconnect while they are not read from.
        limits: limits of connections, heads and bodies.
        timeouts: the timeouts of client connections.
        lifecycle: the observers of requests.
        web_pages: decides which web pages may read the gateway's own errors.
        header_cache: the parsed heads of earlier requests.
        ids: the request ids.
        connection_limit: which connections are served.
        held_bodies: the account of the bodies in memory.
        pipelines: the connections whose next pipelined request waits for a turn.
        connections: the client connections that are open.
        leaving: whether the gateway is about to drain; every response that begins then says that its connection closes.
        draining: whether the gateway is shutting down; every response then closes its connection.
        aborted: whether the drain timed out and aborted the remaining connections.
    """

    protocol: Any = DownstreamConnection
    resource: Any
    noisy = False

    def __init__(
        self,
        *,
        streaming: dict[bytes, IResource],
        other: IResource,
        find: Callable[[bytes], IResource | None] = lambda path: None,
        deadlines: DeadlineSweeper,
        coalescer: WriteCoalescer,
        disconnects: DisconnectWatcher,
        reactor: IReactorTime,
        limits: Limits,
        timeouts: Timeouts,
        ids: RequestIds,
        lifecycle: Lifecycle,
        web_pages: WebPages = NO_WEB_PAGES,
        is_exempt: Callable[[str], bool] = lambda host: True,
        max_refused: int = MAX_REFUSED,
        shares: Shares | None = None,
        budget_exceeded_status: int = BudgetExceeded.status,
        added_lines: Callable[[RequestContext], bytes] | None = None,
    ) -> None:
        """Make the site.

        Args:
            streaming: the streaming resources, by first path segment.
            other: the resource for every other path.
            find: finds the streaming resource of a path that begins with none of these segments; None for `other`.
            deadlines: checks the deadlines of all connections.
            coalescer: sends at the end of a reactor turn what was written in it.
            disconnects: detects clients that disconnect while they are not read from.
            reactor: the clock.
            limits: limits of connections, heads and bodies.
            timeouts: the timeouts of client connections.
            ids: the request ids.
            lifecycle: the observers of requests.
            web_pages: decides which web pages may read the gateway's own errors.
            is_exempt: returns whether an address may have more than its share of the connections.
            max_refused: connections over the limit to answer at a time.
            shares: how many connections other processes leave to this one; None if it is the only one.
            budget_exceeded_status: the status of the answer to a request whose budget is spent.
            added_lines: returns header lines to add to the response of a streaming resource; None adds none.
        """
        super().__init__(other, timeout=None, reactor=reactor)
        self.deadlines = deadlines
        self.coalescer = coalescer
        self.disconnects = disconnects
        self.limits = limits
        self.timeouts = timeouts
        self.header_cache = RequestHeaderCache(limits)
        self.leaving = False
        self.draining = False
        self.added_lines = added_lines
        self.budget_exceeded_status = budget_exceeded_status
        self.aborted = False
        self.seconds = reactor.seconds
        self._streaming = streaming
        self._find = find
        self.ids = ids
        self.lifecycle = lifecycle
        self.web_pages = web_pages
        self.held_bodies = HeldBodies(
            limits.max_held_total_bytes, limits.max_held_bytes_per_key, timeouts.held_body, reactor.seconds
        )
        deadlines.add(self.held_bodies)
        self.pipelines = Pipelines(reactor)
        self.connections: set[DownstreamConnection] = set()
        self._date = (-1, b"")
        self._drained: Deferred[None] | None = None
        self.connection_limit = ConnectionLimit(
            limits.max_connections,
            deadlines,
            self.date,
            lambda: ids.make(self.seconds()),
            share=limits.max_connections_share,
            is_exempt=is_exempt,
            max_refused=max_refused,
            shares=shares,
        )

    def reconfigure(
        self,
        limits: Limits,
        timeouts: Timeouts,
        max_refused: int,
        budget_exceeded_status: int = BudgetExceeded.status,
        added_lines: Callable[[RequestContext], bytes] | None = None,
    ) -> None:
        """Use other settings from the next request on each connection; the arguments are the constructor's."""
        self.limits = limits
        self.timeouts = timeouts
        self.added_lines = added_lines
        self.budget_exceeded_status = budget_exceeded_status
        self.header_cache.reconfigure(limits)
        self.held_bodies.reconfigure(limits.max_held_total_bytes, limits.max_held_bytes_per_key, timeouts.held_body)
        self.connection_limit.reconfigure(limits.max_connections, limits.max_connections_share, max_refused)

    def startFactory(self) -> None:
        """Do nothing: twisted.web's access log is not used."""

    def stopFactory(self) -> None:
        """Do nothing, likewise."""

    # for requests

    def leaf_for(self, path: bytes) -> IResource:
        """Return the resource for `path`."""
        leaf = self._streaming.get(path[1:].partition(b"/")[0])
        if leaf is None:
            leaf = self._find(path)
        return self.resource if leaf is None else leaf

    def date(self) -> bytes:
        """Return the value of a ``Date`` header, formatted once a second."""
        now = int(self.seconds())
        if now != self._date[0]:
            self._date = (now, datetimeToString(now))
        return self._date[1]

    def take_request_id(self, given: bytes | None, started: float) -> bytes:
        """Return the id of a request; see `RequestIds.take`."""
        return self.ids.take(given, started)

    def finished(self, request: GatewayRequest) -> None:
        """End a request that was answered or given up, and notify the observers."""
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
        # break the reference cycles: free the request and its credential at once
        request.work = None
        request.forget_body()

    def running(self) -> list[GatewayRequest]:
        """Return the requests in flight."""
        return [request for connection in self.connections for request in connection.requests if request.dispatched]

    def secrets_in_flight(self) -> list[str]:
        """Return what the log must not show of requests in flight, of `MOST_LOOKED_AT` connections; in any thread."""
        connections = list(self.connections)[:MOST_LOOKED_AT]
        contexts = [request.context for connection in connections for request in list(connection.requests)]
        return [secret for context in contexts for secret in context.secrets]

    # connections

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return a protocol that serves the connection, or refuses it; None closes it at once."""
        host = getattr(addr, "host", "")
        if self.connection_limit.admits(host):
            return super().buildProtocol(addr)
        return self.connection_limit.refuse(host)

    def connection_made(self, connection: DownstreamConnection) -> None:
        """Count a connection in."""
        self.connections.add(connection)
        self.connection_limit.joined(connection)
        self.deadlines.add(connection)
        if self.draining:
            connection.drain()

    def connection_lost(self, connection: DownstreamConnection) -> None:
        """Count a connection out."""
        self.connections.discard(connection)
        self.deadlines.discard(connection)
        self.connection_limit.left(connection)
        if self._drained is not None and not self.connections:
            self._drained.callback(None)
            self._drained = None

    def drain(self) -> Deferred[None]:
        """Close idle connections now and the others after their response; the Deferred fires when none is left."""
        self.draining = True
        self.connection_limit.close()
        done: Deferred[None] = Deferred()
        for connection in list(self.connections):
            connection.drain()
        if self.connections:
            self._drained = done
        else:
            done.callback(None)
        return done

    def abort(self) -> int:
        """Abort the remaining connections; return how many."""
        self.aborted = True
        connections = list(self.connections)
        for connection in connections:
            connection.transport.abortConnection()
        return len(connections)
