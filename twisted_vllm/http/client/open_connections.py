"""The open connections to servers, by address where a server has several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping

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
        self._pool = pool
        self._put = put
        self._open: dict[Server, Counter[str]] = {}

    def key(self, server: Server, now: float) -> Hashable:
        """Return what the pool knows the connections by that a request to `server` may use."""
        named = self.spread.get(server)
        return server if named is None else (server, named.name.addresses.best(self.loads(server), now))

    def loads(self, server: Server) -> Mapping[str, int]:
        """Return how many connections of each address are in use, or being made."""
        named = self.named.get(server)
        found = Counter[str]() if named is None else named.connecting.copy()
        for address, count in self._open.get(server, {}).items():
            found[address] += count - self._pool.count((server, address))
        return found

    def of(self, server: Server) -> Iterator[UpstreamConnection]:
        """Yield the connections to a server."""
        return iter([each for each in self.every if each.server == server])

    def add(self, connection: UpstreamConnection) -> None:
        """Add a new connection."""
        self.every.add(connection)
        named = self.named.get(connection.server)
        if named is not None:
            self._open.setdefault(connection.server, Counter())[connection.address] += 1
            connection.key = named.key_of(connection.address)
            named.name.use(True)

    def remove(self, connection: UpstreamConnection) -> None:
        """Remove a connection that has ended; idempotent."""
        self._pool.discard(connection.key, connection)
        if connection not in self.every:
            return
        self.every.discard(connection)
        server, address = connection.server, connection.address
        opened = self._open.get(server)
        if opened is None or not address:
            return
        named = self.named.get(server)
        if named is not None and connection.tls_failed:
            named.failed(address, "TLS was not established")
        opened[address] -= 1
        if not opened[address]:
            del opened[address]
        if not opened:
            del self._open[server]
            if named is not None:
                named.name.use(False)

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
