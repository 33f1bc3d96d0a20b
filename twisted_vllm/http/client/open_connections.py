"""The open connections to servers, by address where a server has several."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.connection import UpstreamConnection
from twisted_vllm.http.client.endpoints import NamedServer
from twisted_vllm.http.client.pool import Pool


class OpenConnections:
    """Knows every open connection, and decides which address a request goes to.

    Attributes:
        every: the connections, idle ones included.
        spread: the servers with several addresses; empty if no server has.
        named: the servers that are reached by a name.
    """

    def __init__(self, pool: Pool[UpstreamConnection], put: Callable[[UpstreamConnection], None]) -> None:
        """Start with none.

        Args:
            pool: the idle connections.
            put: puts an idle connection into the pool.
        """
        self.every: set[UpstreamConnection] = set()
        self.spread: dict[Server, NamedServer] = {}
        self.named: dict[Server, NamedServer] = {}
        # a server may be forgotten while it has connections, and named anew
        self._named_of: dict[UpstreamConnection, NamedServer] = {}
        self._pool = pool
        self._put = put

    def key(self, server: Server, now: float) -> Hashable:
        """Return what the pool knows the connections by that a request to `server` may use."""
        named = self.spread.get(server)
        return server if named is None else named.best(now)

    def of(self, server: Server) -> Iterator[UpstreamConnection]:
        """Yield the connections to a server."""
        return iter([each for each in self.every if each.server == server])

    def add(self, connection: UpstreamConnection) -> None:
        """Add a new connection."""
        self.every.add(connection)
        named = self.named.get(connection.server)
        if named is not None:
            self._named_of[connection] = named
            named.count(connection.address, 1)
            connection.key = named.key_of(connection.address)

    def remove(self, connection: UpstreamConnection) -> None:
        """Remove a connection that has ended; idempotent."""
        self._pool.discard(connection.key, connection)
        if connection not in self.every:
            return
        self.every.discard(connection)
        named = self._named_of.pop(connection, None)
        if named is not None:
            named.count(connection.address, -1)
            if connection.tls_failed:
                named.failed(connection.address, "TLS was not established")

    def forget(self, server: Server) -> None:
        """Retire the connections to a server that is not used any more."""
        self.retire(server)
        self.spread.pop(server, None)

    def retire(self, server: Server) -> None:
        """Send no other request on any connection to a server; idle ones are closed."""
        for connection in self.of(server):
            self._retire(connection)

    def addresses_changed(self, server: Server) -> None:
        """Retire the connections to addresses that are gone, and know the others by their addresses."""
        named = self.named[server]
        if len(named.name.addresses.known) > 1:
            self.spread[server] = named
        else:
            self.spread.pop(server, None)
        for connection in self.of(server):
            key = named.key_of(connection.address)
            if key is None:
                self._retire(connection)
            elif connection.key not in (None, key):
                was_idle = self._pool.discard(connection.key, connection)
                connection.key = key
                if was_idle:
                    self._put(connection)

    def _retire(self, connection: UpstreamConnection) -> None:
        was_idle = self._pool.discard(connection.key, connection)
        connection.key = None
        if was_idle:
            connection.close()
