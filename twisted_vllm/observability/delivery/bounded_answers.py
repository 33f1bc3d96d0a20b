"""Connections that are cut when an answer is longer than any that is of use.

Twisted's client reads headers, and the parts of a chunked body that are no content, without a bound: an answer that
never ends would fill the memory within seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

#: bytes of one answer, its head included
MOST_RECEIVED = 262_144


class _BoundedConnection(ProtocolWrapper):
    """Counts what arrives since something was sent: one answer."""

    _received = 0

    def write(self, data: bytes) -> None:
        self._received = 0
        super().write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self._received = 0
        super().writeSequence(data)

    def dataReceived(self, data: bytes) -> None:
        self._received += len(data)
        if self._received <= MOST_RECEIVED:
            super().dataReceived(data)
        else:
            # the transport's, of TCP and of TLS
            self.abortConnection()


class _BoundedConnections(WrappingFactory):
    protocol = _BoundedConnection
    # its lines would name connections that are no news
    noisy = False


@implementer(IStreamClientEndpoint)
class _BoundedEndpoint:
    def __init__(self, inner: IStreamClientEndpoint) -> None:
        self._inner = inner

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        connecting: Deferred[Any] = self._inner.connect(_BoundedConnections(protocolFactory))
        return connecting.addCallback(lambda wrapper: wrapper.wrappedProtocol)


@implementer(IAgentEndpointFactory)
class BoundedEndpoints:
    """Makes the endpoints of an `Agent` whose answers are bounded."""

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS, connect_seconds: float) -> None:
        """Set up.

        Args:
            reactor: the reactor.
            policy: decides about certificates.
            connect_seconds: how long a connection may take to be made, in seconds.
        """
        self._reactor = reactor
        self._policy = policy
        self._connect_seconds = connect_seconds

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint of a URL, ``http`` or ``https``."""
        endpoint: Any = HostnameEndpoint(self._reactor, uri.host, uri.port, timeout=self._connect_seconds)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
        return _BoundedEndpoint(endpoint)
