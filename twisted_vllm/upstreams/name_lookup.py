"""Resolves the names of services with ``twisted.names``' messages, over TCP.

TCP, because the answer about a service with 40 pods does not fit into a datagram, because nobody can answer in a DNS
server's place, and because the queries of one look-up share a connection. RFC 7766 requires it of every DNS server.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredSemaphore,
    FirstError,
    TimeoutError,
    ensureDeferred,
    gatherResults,
)
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed
from twisted.internet.protocol import connectionDone
from twisted.names import dns
from twisted.python.failure import Failure

from twisted_vllm.config.servers import SRV
from twisted_vllm.config.settings import DiscoverySettings
from twisted_vllm.config.urls import ResolverAddress
from twisted_vllm.upstreams.discovered import Answer, Found, ServiceName, make_answer
from twisted_vllm.upstreams.discovery import LookupFailed
from twisted_vllm.upstreams.resolv_conf import (
    ResolvConf,
    addresses_in_hosts,
    candidates,
    parse_resolv_conf,
)

T = TypeVar("T")

#: queries at a time on one connection
MAX_QUERIES = 16

RESOLV_CONF, HOSTS = Path("/etc/resolv.conf"), Path("/etc/hosts")


def read_file(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


class _Connection(dns.DNSProtocol):
    """A connection to a DNS server, for one look-up."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(self, reactor)

    def connectionMade(self) -> None:
        self.liveMessages = {}

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        waiting, self.liveMessages = self.liveMessages, {}
        for deferred, timeout in waiting.values():
            timeout.cancel()
            deferred.errback(reason)

    def messageReceived(self, message: dns.Message, protocol: object, address: object = None) -> None:
        """Ignore an answer to a query that nobody waits for any more."""


class _Asking:
    """One look-up, on one connection."""

    def __init__(self, connection: _Connection, seconds: float) -> None:
        self.shortest_ttl: float | None = None
        self._connection = connection
        self._seconds = seconds
        self._places = DeferredSemaphore(MAX_QUERIES)

    async def records(self, name: str, kind: int) -> tuple[list[Any], list[Any]]:
        """Return what a name's records of a kind say, and the additional records; nothing for an unknown name.

        Raises:
            LookupFailed: the answer is an error.
        """
        query = [dns.Query(name.encode("ascii"), kind, dns.IN)]
        message = await self._places.run(self._connection.query, query, self._seconds)
        if message.rCode == dns.ENAME:
            return [], []
        if message.rCode != dns.OK:
            raise LookupFailed(f"the DNS server answered with the error {message.rCode} for {name}")
        found = [record for record in message.answers if record.type == kind]
        if found:
            # that of an alias on the way counts as well
            self._note(record.ttl for record in message.answers)
        # the type of what a record says depends on its kind
        return [record.payload for record in found], message.additional

    async def addresses(self, name: str) -> tuple[str, ...]:
        """Return the IPv4 addresses of a name, or if it has none, the IPv6 addresses.

        Not both: a pod of a cluster with both is one server.

        Raises:
            LookupFailed: the answer is an error.
        """
        four, six = await _all([self.records(name, dns.A), self.records(name, dns.AAAA)])
        return tuple(record.dottedQuad() for record in four[0]) or tuple(map(_ipv6, six[0]))

    async def services(self, name: str, most: int) -> list[Found]:
        """Return the servers of an SRV record.

        Raises:
            LookupFailed: the answer is an error.
        """
        records, additional = await self.records(name, dns.SRV)
        told: dict[bytes, list[str]] = {}
        for kind, text_of in ((dns.A, dns.Record_A.dottedQuad), (dns.AAAA, _ipv6)):
            for record in additional:
                key = record.name.name.lower()
                # as in `addresses`: IPv6 where there is no IPv4
                if record.type == kind and (kind == dns.A or not told.get(key)):
                    told.setdefault(key, []).append(text_of(record.payload))
        # "." says that the service is not there (RFC 2782)
        targets = sorted({record.target.name.lower() for record in records} - {b"", b"."})[:most]
        unknown = [target for target in targets if target not in told]
        answers = await _all([self.addresses(target.decode("ascii")) for target in unknown])
        told.update((target, list(found)) for target, found in zip(unknown, answers, strict=True))
        return [
            Found(service.priority, address, service.port, max(1, service.weight))
            for service in records
            for address in told.get(service.target.name.lower(), ())
        ]

    def _note(self, ttls: Iterable[int]) -> None:
        shortest = float(min(ttls))
        self.shortest_ttl = shortest if self.shortest_ttl is None else min(shortest, self.shortest_ttl)


class NameLookup:
    """Resolves names."""

    def __init__(self, reactor: Any, read: Callable[[Path], str] = read_file) -> None:
        """Make it.

        Args:
            reactor: provides IReactorTime and IReactorTCP.
            read: returns the text of a file, read anew for each look-up as it may change.
        """
        self._reactor = reactor
        self._read = read

    def look_up(self, name: ServiceName, settings: DiscoverySettings) -> Deferred[Answer]:
        """Resolve a name. A name that is not known has an empty answer.

        The Deferred fails with LookupFailed if no DNS server answers, or answers with an error. Cancelling it gives up.
        """
        return ensureDeferred(self._look_up(name, settings))

    async def _look_up(self, name: ServiceName, settings: DiscoverySettings) -> Answer:
        conf = parse_resolv_conf(self._read(RESOLV_CONF))
        if settings.resolver is not None:
            conf = attrs.evolve(conf, servers=(settings.resolver,))
        if name.discovery != SRV and settings.resolver is None:
            here = addresses_in_hosts(self._read(HOSTS), name.host)
            if here:
                return make_answer((Found(0, address) for address in here), None, settings.max_servers)
        # each server has its share of the time
        seconds = settings.timeout / len(conf.servers)
        reason = ""
        for server in conf.servers:
            asked = ensureDeferred(self._ask(server, name, conf, seconds, settings.max_servers))
            try:
                return await asked.addTimeout(seconds, self._reactor)
            except LookupFailed as error:
                reason = str(error)
            except (ConnectError, ConnectionClosed, TimeoutError) as error:
                reason = f"{server.host} does not answer ({type(error).__name__})"
        raise LookupFailed(reason)

    async def _ask(
        self, server: ResolverAddress, name: ServiceName, conf: ResolvConf, seconds: float, most: int
    ) -> Answer:
        make = TCP6ClientEndpoint if isIPv6Address(server.host) else TCP4ClientEndpoint
        endpoint = make(self._reactor, server.host, server.port, timeout=seconds)
        try:
            connection = await connectProtocol(endpoint, _Connection(self._reactor))
        except ConnectingCancelledError:
            raise CancelledError from None
        try:
            return await self._candidates(_Asking(connection, seconds), name, conf, most)
        finally:
            connection.transport.abortConnection()

    async def _candidates(self, asking: _Asking, name: ServiceName, conf: ResolvConf, most: int) -> Answer:
        """Return the answer of the first full name that has servers."""
        failed: LookupFailed | None = None
        for full in candidates(name.host, conf):
            try:
                if name.discovery == SRV:
                    found = await asking.services(full, most)
                else:
                    found = [Found(0, address) for address in await asking.addresses(full)]
            except LookupFailed as error:
                # glibc tries the others as well: a domain of the list may be one that its server does not serve
                failed = error
                continue
            if found:
                return make_answer(found, asking.shortest_ttl, most)
        if failed is not None:
            raise failed
        return Answer()


def _ipv6(record: dns.Record_AAAA) -> str:
    return str(IPv6Address(record.address))


async def _all(each: Sequence[Coroutine[Deferred[Any], Any, T]]) -> list[T]:
    """Run all at the same time; the first failure is raised."""
    try:
        return await gatherResults([ensureDeferred(one) for one in each], consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
        raise
