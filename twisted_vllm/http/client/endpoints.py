"""Connects to servers: by TCP or a UNIX socket, by all addresses of a name, with TLS or without."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import fail
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint, wrapClientTLS

from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.settings import Server
from twisted_vllm.http.client.connect_errors import TlsFileError
from twisted_vllm.http.client.named_server import Connecting, NamedServer
from twisted_vllm.http.client.names import ResolvedName, Resolver
from twisted_vllm.http.client.tls import ServerTlsCreator, TlsFiles, read_files, seconds_of
from twisted_vllm.http.net.deadlines import DeadlineSweeper


class Connects(Protocol):
    """Connects to a server."""

    def connect(self, factory: Any) -> Connecting:
        """Return a Deferred of a new connection."""


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

    def certificate_ends(self, server: Server) -> Iterator[tuple[str, float]]:
        """Yield what is known of certificates of TLS to a server: which one, and when it ends, in Unix seconds.

        They are the ``authority`` and the ``client`` certificate, as they were read from files, and that of the
        ``server``, as it was shown at the last handshake.
        """
        files = self._files.get(server.tls_options) if server.tls else None
        if files is not None:
            if files.authorities_end is not None:
                yield "authority", files.authorities_end
            if files.certificate_ends is not None:
                yield "client", files.certificate_ends
        creator = self._creators.get(server)
        if creator is not None and creator.not_after is not None:
            yield "server", seconds_of(creator.not_after)

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
