"""The agent that speaks to vLLM servers: connections, the pool, and one retry where it is safe.

It takes header lists as bytes pairs, follows nothing, decodes nothing, keeps no cookies, and alters no byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectingCancelledError, TCPTimedOutError, TimeoutError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from twisted_vllm.config.settings import Server, Timeouts
from twisted_vllm.errors import UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.wire.eager import EagerWrites
from twisted_vllm.wire.exchange import Exchange, Informational
from twisted_vllm.wire.headers import HeaderList, write_request_head
from twisted_vllm.wire.pool import Pool
from twisted_vllm.wire.response import UpstreamResponse
from twisted_vllm.wire.sweeper import Sweeper
from twisted_vllm.wire.upstream import UpstreamConnection


@implementer(IAgent)
class UpstreamAgent:
    """Sends requests to servers over kept connections.

    Attributes:
        pool: the idle connections.
    """

    _log = Logger()

    def __init__(self, reactor: Any, sweeper: Sweeper, writes: EagerWrites) -> None:
        """Make the agent.

        Args:
            reactor: a provider of IReactorTime, IReactorTCP and IReactorPluggableNameResolver.
            sweeper: the deadlines of all connections.
            writes: sends what was written in a turn of the reactor.
        """
        self._reactor = reactor
        self._sweeper = sweeper
        self._writes = writes
        self.pool: Pool[UpstreamConnection] = Pool()
        self._connections: set[UpstreamConnection] = set()
        self._connecting: set[Exchange] = set()
        self._closed = False
        self._endpoints: dict[Server, IStreamClientEndpoint] = {}

    def forward(
        self,
        server: Server,
        method: bytes,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes | IBodyProducer | None = None,
        informational: Informational | None = None,
    ) -> Deferred[UpstreamResponse]:
        """Send a request to `server`.

        Args:
            server: where to.
            method: the method.
            target: the path and query, as the server shall see them.
            headers: the whole header list, framing included, in the order in which it is sent.
            body: bytes in hand, a producer that streams the body (its ``length`` decides the framing), or None.
            informational: called with each interim response.

        Returns:
            The response, as soon as its head arrived. Cancelling gives up the request and closes its connection.

        Errors, through the Deferred:
            UpstreamUnreachable: no connection could be made, or it closed before the answer began.
            UpstreamTimeout: connecting, or waiting for the head of the response, took too long.
            UpstreamProtocolError: the answer is not HTTP.
        """
        result: Deferred[UpstreamResponse] = Deferred(lambda _: self._cancel(exchange))
        exchange = Exchange(server, method, write_request_head(method, target, headers), body, result, informational)
        connection = self.pool.take(server, self._sweeper.now)
        if connection is None:
            self._connect(exchange)
        else:
            exchange.at = connection
            connection.send(exchange)
        return result

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request to any URL, in the shape that IAgent asks for; `forward` is what the gateway uses."""
        parsed = URI.fromBytes(uri)
        target = parsed.originForm if parsed.originForm.startswith(b"/") else b"/" + parsed.originForm
        server = Server(
            name=parsed.netloc.decode("ascii"),
            host=parsed.host.decode("ascii"),
            port=parsed.port,
            tls=parsed.scheme == b"https",
            base_path=b"",
            host_header=parsed.netloc,
            api_key=None,
            timeouts=Timeouts(),
        )
        given = headers or Headers()
        pairs: HeaderList = [] if given.hasHeader(b"host") else [(b"Host", parsed.netloc)]
        pairs += [(name, value) for name, values in given.getAllRawHeaders() for value in values]
        if bodyProducer is not None and not given.hasHeader(b"content-length"):
            if isinstance(bodyProducer.length, int):
                pairs.append((b"Content-Length", b"%d" % bodyProducer.length))
            else:
                pairs.append((b"Transfer-Encoding", b"chunked"))
        answer: Deferred[Any] = self.forward(server, method, target, pairs, bodyProducer)
        return answer

    def close(self) -> None:
        """Close every connection, whatever is in work on it, and give up those that are being made."""
        self._closed = True
        for exchange in list(self._connecting):
            exchange.at.cancel()
            self._give_up(exchange)
        for connection in list(self._connections):
            connection.transport.abortConnection()

    def _give_up(self, exchange: Exchange) -> None:
        if not exchange.result.called:
            exchange.result.errback(UpstreamUnreachable("The gateway is shutting down."))

    # connections

    def _connect(self, exchange: Exchange) -> None:
        server = exchange.server
        factory = Factory.forProtocol(
            lambda: UpstreamConnection(server, self._sweeper, self._writes, self._idle, self._lost)
        )
        connecting = self._endpoint(server).connect(factory)
        exchange.at = connecting
        self._connecting.add(exchange)
        connecting.addCallbacks(self._connected, self._unreachable, callbackArgs=(exchange,), errbackArgs=(exchange,))

    def _endpoint(self, server: Server) -> IStreamClientEndpoint:
        endpoint = self._endpoints.get(server)
        if endpoint is None:
            arguments = (self._reactor, server.host, server.port)
            seconds = server.timeouts.connect
            if isIPAddress(server.host):
                endpoint = TCP4ClientEndpoint(*arguments, timeout=seconds)
            elif isIPv6Address(server.host):
                endpoint = TCP6ClientEndpoint(*arguments, timeout=seconds)
            else:
                endpoint = HostnameEndpoint(*arguments, timeout=seconds)
            if server.tls:
                endpoint = wrapClientTLS(optionsForClientTLS(server.host), endpoint)
            self._endpoints[server] = endpoint
        return endpoint

    def _connected(self, connection: UpstreamConnection, exchange: Exchange) -> None:
        self._connecting.discard(exchange)
        self._connections.add(connection)
        if exchange.result.called:
            # given up in the same turn in which the connection came
            connection.close()
            return
        exchange.at = connection
        connection.send(exchange)

    def _unreachable(self, failure: Failure, exchange: Exchange) -> None:
        self._connecting.discard(exchange)
        if exchange.result.called or failure.check(CancelledError, ConnectingCancelledError):
            return
        self._log.warn(
            "No connection to {server}: {reason}", server=exchange.server.name, reason=failure.getErrorMessage()
        )
        if failure.check(TimeoutError, TCPTimedOutError):
            exchange.result.errback(UpstreamTimeout("Connecting to the vLLM server took too long."))
        else:
            exchange.result.errback(UpstreamUnreachable("The vLLM server cannot be reached."))

    def _cancel(self, exchange: Exchange) -> None:
        at = exchange.at
        if isinstance(at, UpstreamConnection):
            at.cut(exchange)
        elif at is not None:
            at.cancel()

    def _idle(self, connection: UpstreamConnection) -> None:
        for surplus in self.pool.put(connection.server, connection, self._sweeper.now):
            surplus.close()

    def _lost(self, connection: UpstreamConnection, resend: Exchange | None) -> None:
        self._connections.discard(connection)
        self.pool.discard(connection.server, connection)
        if resend is None:
            return
        if self._closed:
            self._give_up(resend)
        else:
            resend.retried = True
            self._connect(resend)
