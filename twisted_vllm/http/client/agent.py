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
from twisted_vllm.http.client.connection import UpstreamConnection
from twisted_vllm.http.client.exchange import NO_PROTOCOLS, Informational, UpstreamExchange
from twisted_vllm.http.client.pool import Pool
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.header_cache import ResponseHeaderCache
from twisted_vllm.http.headers import HeaderList, write_request_head
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.write_coalescing import WriteCoalescer

_SHUTTING_DOWN = "The gateway is shutting down."


class _DeferredHandler:
    """Makes a Deferred of what it is told."""

    exchange: UpstreamExchange
    protocols = NO_PROTOCOLS

    def __init__(self, informational: Informational | None) -> None:
        self.result: Deferred[UpstreamResponse] = Deferred(lambda _: self.exchange.cancel())
        self._informational = informational

    def responded(self, response: UpstreamResponse) -> None:
        self.result.callback(response)

    def failed(self, error: BaseException) -> None:
        self.result.errback(error)

    def informational(self, status: int, reason: bytes, headers: HeaderList) -> None:
        if self._informational is not None:
            self._informational(status, reason, headers)


@implementer(IAgent)
class UpstreamAgent:
    """Sends requests to servers over kept connections.

    Attributes:
        pool: the idle connections.
    """

    _log = Logger()

    def __init__(self, reactor: Any, sweeper: DeadlineSweeper, writes: WriteCoalescer) -> None:
        """Make the agent.

        Args:
            reactor: a provider of IReactorTime, IReactorTCP and IReactorPluggableNameResolver.
            sweeper: the deadlines of all connections.
            writes: sends what was written in a turn of the reactor.
        """
        self._reactor = reactor
        self._sweeper = sweeper
        self._writes = writes
        self._known = ResponseHeaderCache()
        self.pool: Pool[UpstreamConnection] = Pool()
        self._connections: set[UpstreamConnection] = set()
        self._connecting: dict[UpstreamExchange, Deferred[Any]] = {}
        self._closed = False
        self._endpoints: dict[Server, IStreamClientEndpoint] = {}

    @property
    def connections(self) -> frozenset[UpstreamConnection]:
        """All connections, idle ones included."""
        return frozenset(self._connections)

    def forward(self, exchange: UpstreamExchange) -> None:
        """Send a request to its server; the exchange's asker is told of the response as soon as its head arrived.

        Failures that it is told of:
            UpstreamUnreachable: no connection could be made, or it closed before the answer began.
            UpstreamTimeout: connecting, or waiting for the head of the response, took too long.
            UpstreamProtocolError: the answer is not HTTP.
        """
        connection = self.pool.take(exchange.server, self._sweeper.now)
        if connection is None:
            self._connect(exchange)
        else:
            exchange.at = connection
            connection.send(exchange)

    def ask(
        self,
        server: Server,
        method: bytes,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes | IBodyProducer | None = None,
        informational: Informational | None = None,
    ) -> Deferred[UpstreamResponse]:
        """Send a request to `server`, for callers that want a Deferred.

        Args:
            server: where to.
            method: the method.
            target: the path and query, as the server shall see them.
            headers: the whole header list, framing included, in the order in which it is sent.
            body: bytes in hand, a producer that streams the body (its ``length`` decides the framing), or None.
            informational: called with each interim response.

        Returns:
            The response, as soon as its head arrived; or a failure as `forward` has them. Cancelling gives up the
            request and closes its connection.
        """
        asker = _DeferredHandler(informational)
        exchange = asker.exchange = UpstreamExchange(
            server, method, write_request_head(method, target, headers), body, asker
        )
        self.forward(exchange)
        return asker.result

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request to any URL, in the shape that IAgent asks for."""
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
        answer: Deferred[Any] = self.ask(server, method, target, pairs, bodyProducer)
        return answer

    def close(self) -> None:
        """Close every connection, whatever is in work on it, and give up those that are being made."""
        self._closed = True
        for exchange, connecting in list(self._connecting.items()):
            connecting.cancel()
            exchange.fail(UpstreamUnreachable(_SHUTTING_DOWN))
        for connection in list(self._connections):
            connection.transport.abortConnection()

    # connections

    def _connect(self, exchange: UpstreamExchange) -> None:
        server = exchange.server
        factory = Factory.forProtocol(
            lambda: UpstreamConnection(server, self._sweeper, self._writes, self._known, self._idle, self._lost)
        )
        connecting = self._endpoint(server).connect(factory)
        exchange.at = self
        self._connecting[exchange] = connecting
        # IBodyProducer knows no such thing; the pass-through's own body would pile up meanwhile
        hold = getattr(exchange.body, "hold", None)
        if hold is not None:
            hold()
        connecting.addCallbacks(self._connected, self._unreachable, callbackArgs=(exchange,), errbackArgs=(exchange,))

    def give_up(self, exchange: UpstreamExchange) -> None:
        """Give up the attempt to connect that `exchange` waits for."""
        connecting = self._connecting.get(exchange)
        if connecting is not None:
            connecting.cancel()

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

    def _connected(self, connection: UpstreamConnection, exchange: UpstreamExchange) -> None:
        self._connecting.pop(exchange, None)
        self._connections.add(connection)
        if exchange.over:
            # given up in the same turn in which the connection came
            connection.close()
            return
        exchange.at = connection
        connection.send(exchange)

    def _unreachable(self, failure: Failure, exchange: UpstreamExchange) -> None:
        self._connecting.pop(exchange, None)
        if exchange.over or failure.check(CancelledError, ConnectingCancelledError):
            return
        self._log.warn(
            "No connection to {server}: {reason}", server=exchange.server.name, reason=failure.getErrorMessage()
        )
        if failure.check(TimeoutError, TCPTimedOutError):
            exchange.fail(UpstreamTimeout("Connecting to the vLLM server took too long."))
        else:
            exchange.fail(UpstreamUnreachable("The vLLM server cannot be reached."))

    def _idle(self, connection: UpstreamConnection) -> None:
        for surplus in self.pool.put(connection.server, connection, self._sweeper.now):
            surplus.close()

    def _lost(self, connection: UpstreamConnection, resend: UpstreamExchange | None) -> None:
        self._connections.discard(connection)
        self.pool.discard(connection.server, connection)
        if resend is None:
            return
        if self._closed:
            resend.fail(UpstreamUnreachable(_SHUTTING_DOWN))
        else:
            resend.retried = True
            self._connect(resend)
