"""Connects to servers: by TCP or a UNIX socket, by all addresses of a name, with TLS or without."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectingCancelledError, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.connect_errors import TlsFileError, explain
from twisted_vllm.http.client.connect_queue import shortage_in
from twisted_vllm.http.client.connection import UpstreamConnection
from twisted_vllm.http.client.names import ResolvedName, Resolver
from twisted_vllm.http.client.tls import ServerTlsCreator, TlsFiles, read_files
from twisted_vllm.http.net.deadlines import DeadlineSweeper

#: seconds after which the next address is tried as well (RFC 8305 §5: 250 ms)
ATTEMPT_DELAY = 0.25

Connecting = Deferred[UpstreamConnection]


class Connects(Protocol):
    """Connects to a server."""

    def connect(self, factory: Any) -> Connecting:
        """Return a Deferred of a new connection."""


class ServerAddress:
    """One address of a server that is reached by its name. The pool knows idle connections by it.

    Attributes:
        opened: the open connections, idle ones included.
        connecting: the attempts to connect.
    """

    __slots__ = ("connecting", "opened")

    def __init__(self) -> None:
        """Begin without any."""
        self.opened = self.connecting = 0


class NamedServer:
    """A server that is reached by its name.

    Attributes:
        name: resolves it.
        opened: its open connections, by any address.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        server: Server,
        name: ResolvedName,
        endpoint: Callable[[str], IStreamClientEndpoint],
        idle: Callable[[Hashable], int],
    ) -> None:
        """Create it.

        Args:
            reactor: a provider of IReactorTime.
            server: the server.
            name: resolves its name.
            endpoint: makes the endpoint of an address.
            idle: returns how many connections are idle, by what the pool knows them by.
        """
        self.name = name
        self.opened = 0
        self._idle = idle
        self._places: dict[str, ServerAddress] = {}
        self._reactor = reactor
        self._server = server
        self._endpoint = endpoint

    def key_of(self, address: str) -> Hashable | None:
        """Return what the pool knows connections to an address by; None if the address is gone."""
        known = self.name.addresses.known
        if address not in known:
            return None
        return self._place(address) if len(known) > 1 else self._server

    def best(self, now: float) -> Hashable:
        """Return what the pool knows connections to the best address by, of several."""
        return self._place(self.name.addresses.best(self._load, now))

    def count(self, address: str, change: int) -> None:
        """A connection to an address was opened (1) or has ended (-1)."""
        self._place(address).opened += change
        self.opened += change
        self._forget_unused(address)
        self.name.use(self.opened > 0)

    def _place(self, address: str) -> ServerAddress:
        found = self._places.get(address)
        if found is None:
            found = self._places[address] = ServerAddress()
        return found

    def _load(self, address: str) -> int:
        """Return how many connections to an address are in use, or being made."""
        place = self._places.get(address)
        return 0 if place is None else place.opened + place.connecting - self._idle(place)

    def _forget_unused(self, address: str) -> None:
        place = self._places.get(address)
        if place is not None and not place.opened and not place.connecting and address not in self.name.addresses.known:
            # a name may have ever new addresses
            del self._places[address]

    def failed(self, address: str, reason: str) -> None:
        """Pass over an address for a while."""
        is_news = self.name.addresses.failed(address, self._reactor.seconds())
        if is_news and len(self.name.addresses.known) > 1:
            self._log.warn(
                "{server} is passed over at {address}: {reason}",
                server=self._server.name,
                address=address,
                reason=reason,
                once_a_second=f"{self._server.name} {address}",
            )

    def connect(self, factory: Any) -> Connecting:
        """Connect to the best address; if it does not accept, to the next."""
        connecting = self.name.ready().addCallback(lambda _: self._race(factory))
        # each attempt is limited, but neither the resolution of the name nor all of them together
        return connecting.addTimeout(self._server.timeouts.connect, self._reactor, lambda *_: Failure(TimeoutError()))

    def _race(self, factory: Any) -> Connecting:
        addresses = self.name.addresses.order(self._load, self._reactor.seconds())
        return _Race(self._reactor, addresses, lambda each: self._attempt(each, factory), self._not_accepted).result

    def _attempt(self, address: str, factory: Any) -> Connecting:
        def connected(connection: Any) -> UpstreamConnection:
            connection.address = address
            if self.name.addresses.accepted(address):
                self._log.info(
                    "{server} accepts connections at {address} again", server=self._server.name, address=address
                )
            made: UpstreamConnection = connection
            return made

        def ended(result: Any) -> Any:
            place.connecting -= 1
            self._forget_unused(address)
            return result

        place = self._place(address)
        place.connecting += 1
        return self._endpoint(address).connect(factory).addBoth(ended).addCallback(connected)

    def _not_accepted(self, address: str, failure: Failure) -> None:
        reason = failure.value
        self.failed(address, "it failed" if reason is None else explain(reason, self._server))


class _Race:
    """Connects to the first of some addresses that accepts: the next is tried if one fails, or hesitates.

    Attributes:
        result: fires with the connection, or fails with the first reason.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[str],
        connect: Callable[[str], Connecting],
        failed: Callable[[str, Failure], None],
    ) -> None:
        self._reactor = reactor
        self._left = list(addresses)
        self._connect = connect
        self._failed = failed
        self._running: dict[str, Connecting] = {}
        self._hesitating: set[str] = set()
        self._first: Failure | None = None
        self._timer: IDelayedCall | None = None
        self._over = False
        self.result: Connecting = Deferred(lambda _: self._end())
        self._next()

    def _next(self) -> None:
        self._timer = None
        self._hesitating.update(self._running)
        address = self._left.pop(0)
        connecting = self._running[address] = self._connect(address)
        if self._left:
            self._timer = self._reactor.callLater(ATTEMPT_DELAY, self._next)
        connecting.addCallbacks(self._won, self._lost, callbackArgs=(address,), errbackArgs=(address,))

    def _won(self, connection: UpstreamConnection, address: str) -> None:
        del self._running[address]
        if self._over:
            # it was cancelled too late
            connection.transport.abortConnection()
            return
        for other in self._hesitating & self._running.keys():
            self._failed(other, Failure(TimeoutError()))
        self._end()
        self.result.callback(connection)

    def _lost(self, failure: Failure, address: str) -> None:
        self._running.pop(address, None)
        if self._over or failure.check(CancelledError, ConnectingCancelledError):
            return
        if failure.value is not None and shortage_in(failure.value) is not None:
            # it is not the address' fault, and the next one would fail as well
            self._end()
            self.result.errback(failure)
            return
        self._failed(address, failure)
        self._first = self._first or failure
        if self._left:
            if self._timer is not None:
                self._timer.cancel()
            self._next()
        elif not self._running:
            self._end()
            self.result.errback(self._first)

    def _end(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connecting in list(self._running.values()):
            connecting.cancel()


class _Unusable:
    """What a server is connected with whose files cannot be used. Its error tells which."""

    def __init__(self, error: TlsFileError) -> None:
        self._error = error

    def connect(self, factory: Any) -> Connecting:
        return fail(self._error)


class Endpoints:
    """How each server is connected to. What is read of files and asked of the resolver is kept."""

    def __init__(
        self,
        reactor: Any,
        deadlines: DeadlineSweeper,
        named: dict[Server, NamedServer],
        idle: Callable[[Hashable], int],
        changed: Callable[[Server], None],
    ) -> None:
        """Create it.

        Args:
            reactor: a provider of IReactorTCP, IReactorUNIX, IReactorTime and IReactorPluggableNameResolver.
            deadlines: checks when names are resolved again.
            named: keeps the servers that are reached by a name.
            idle: returns how many connections are idle, by what the pool knows them by.
            changed: called when the addresses of a server have changed.
        """
        self._reactor = reactor
        self._deadlines = deadlines
        self._idle = idle
        self._changed = changed
        self._resolver = Resolver(reactor)
        # twistd changes the directory later
        self._directory = os.getcwd()
        self._files: dict[ServerTls, TlsFiles] = {}
        self._known: dict[Server, Connects] = {}
        self._creators: dict[Server, ServerTlsCreator] = {}
        self._named = named

    @property
    def servers(self) -> frozenset[Server]:
        """The servers that were connected to."""
        return frozenset(self._known)

    def of(self, server: Server) -> Connects:
        """Return what connects to a server.

        Its Deferred fails as those of Twisted's endpoints do, and with `TlsFileError` if a file cannot be used.
        """
        known = self._known.get(server)
        if known is None:
            try:
                known = self._known[server] = self._make(server)
            except TlsFileError as error:
                return _Unusable(error)
        return known

    def use(self, files: Mapping[ServerTls, TlsFiles]) -> list[Server]:
        """Use these files of TLS from now on, others as they were read; return the servers whose files have changed."""
        # what has not changed stays, and so do its connections
        self._files |= {options: new for options, new in files.items() if self._files.get(options) != new}
        changed = []
        for server, creator in self._creators.items():
            found = self._files.get(server.tls_options)
            if found is not None and creator.context is not found.context:
                creator.context = found.context
                changed.append(server)
        return changed

    def differs(self, files: Mapping[ServerTls, TlsFiles]) -> bool:
        """Return whether the content of any of these files is another than the one in use."""
        return any(self._files.get(options, new) != new for options, new in files.items())

    def keep_files(self, servers: Iterable[Server]) -> None:
        """Forget the files of all but these servers."""
        used = {server.tls_options for server in servers}
        self._files = {options: files for options, files in self._files.items() if options in used}

    def resolve(self) -> None:
        """Resolve the names of all servers now."""
        for named in self._named.values():
            named.name.resolve()

    def close(self) -> None:
        """Resolve no name any more."""
        self._resolver.close()

    def forget(self, server: Server) -> None:
        """Forget what is known of a server that is not used any more."""
        self._known.pop(server, None)
        self._creators.pop(server, None)
        named = self._named.pop(server, None)
        if named is not None:
            named.name.forget()

    def _make(self, server: Server) -> Connects:
        seconds = server.timeouts.connect
        wrap = self._tls(server)
        if server.socket:
            endpoint: Connects = UNIXClientEndpoint(self._reactor, server.socket, timeout=seconds)
            return endpoint

        def by_address(address: str) -> Any:
            kind = TCP6ClientEndpoint if isIPv6Address(address) else TCP4ClientEndpoint
            return wrap(kind(self._reactor, address, server.port, timeout=seconds))

        host = server.host if server.address is None else server.address
        if isIPAddress(host) or isIPv6Address(host):
            literal: Connects = by_address(host)
            return literal
        name = ResolvedName(
            self._reactor,
            self._deadlines,
            self._resolver,
            server.host,
            server.port,
            lambda _: self._changed(server),
        )
        named = self._named[server] = NamedServer(self._reactor, server, name, by_address, self._idle)
        return named

    def _tls(self, server: Server) -> Callable[[Any], Any]:
        if not server.tls:
            return _unchanged
        options = server.tls_options
        files = self._files.get(options)
        if files is None:
            files = self._files[options] = read_files(options, self._directory)
        creator = self._creators[server] = ServerTlsCreator(files.context, server.host, verify=options.verify)
        return lambda endpoint: wrapClientTLS(creator, endpoint)


def _unchanged(endpoint: Any) -> Any:
    return endpoint
