"""The agent that sends requests to vLLM servers: connections, the pool, and one retry where that is harmless.

It follows no redirects, decodes nothing, keeps no cookies and changes no byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, TCPTimedOutError, TimeoutError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from twisted_vllm.config.server_tls import ServerTls
from twisted_vllm.config.settings import Server, Timeouts
from twisted_vllm.errors import UpstreamTimeout, UpstreamUnreachable
from twisted_vllm.http.client.body import hold
from twisted_vllm.http.client.connect_errors import explain, with_words
from twisted_vllm.http.client.connect_queue import ConnectQueue, shortage_in
from twisted_vllm.http.client.connection import UpstreamConnection
from twisted_vllm.http.client.endpoints import Endpoints
from twisted_vllm.http.client.exchange import UpstreamExchange
from twisted_vllm.http.client.interfaces import NO_PROTOCOLS, Again, Ended, Informational, IUpstreamAgent, Sent
from twisted_vllm.http.client.open_connections import OpenConnections
from twisted_vllm.http.client.pool import Pool
from twisted_vllm.http.client.raw_headers import RawHeaders
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.client.retries import Retries, StaleRequest
from twisted_vllm.http.client.tls import TlsFiles
from twisted_vllm.http.client.tls_question import TlsQuestions
from twisted_vllm.http.header_cache import ResponseHeaderCache
from twisted_vllm.http.headers import HeaderList, write_header_lines
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.shortages import Shortages
from twisted_vllm.http.net.write_coalescing import WriteCoalescer

#: seconds in which no connection to a server is reused that sent what nobody asked for
DISTRUST = 60.0
#: idle connections to cut at a time, to make room for others
MADE_AT_ONCE = 16

_SHUTTING_DOWN = "The gateway is shutting down."


@implementer(IUpstreamAgent)
class UpstreamAgent:
    """Sends requests to servers over pooled connections.

    Attributes:
        pool: the idle connections.
        stale_requests: what became of requests on reused connections that closed without an answer.
        header_cache: the parsed heads of earlier responses.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        deadlines: DeadlineSweeper,
        coalescer: WriteCoalescer,
        shortages: Shortages | None = None,
        max_connections: int | None = None,
        *,
        asks_for_tls: bool = False,
    ) -> None:
        """Make the agent.

        Args:
            reactor: a provider of IReactorTime, IReactorTCP and IReactorPluggableNameResolver.
            deadlines: checks the deadlines of all connections.
            coalescer: sends at the end of a reactor turn what was written in it.
            shortages: is told when there is no descriptor or port for a connection.
            max_connections: the most connections, idle ones included; more wait for one of them to end. None means no
                limit.
            asks_for_tls: whether a server with http:// that closes connections without a byte is asked, once in
                `tls_question.INTERVAL` seconds, whether it speaks TLS.
        """
        self._reactor = reactor
        self._deadlines = deadlines
        self._coalescer = coalescer
        self.header_cache = ResponseHeaderCache()
        self.pool: Pool[UpstreamConnection] = Pool()
        self.stale_requests: Counter[StaleRequest] = Counter()
        self._retries: dict[Server, Retries] = {}
        # until when a server is not trusted, in the reactor's seconds
        self._distrusted: dict[Server, float] = {}
        self._connecting: dict[UpstreamExchange, Deferred[Any]] = {}
        self._closed = False
        self._shortages = Shortages() if shortages is None else shortages
        self._shortages.add_reclaimer(self.make_room)
        self._max_connections = max_connections
        self._waiting = ConnectQueue(deadlines, self._has_room, self._connect)
        self._open = opened = OpenConnections(self.pool, self._idle)
        self._endpoints = Endpoints(reactor, deadlines, opened.named, self.pool.count, opened.addresses_changed)
        self._tls_questions = TlsQuestions(reactor, self._endpoints)
        self._asks_for_tls = asks_for_tls

    @property
    def connections(self) -> frozenset[UpstreamConnection]:
        """All connections, idle ones included."""
        return frozenset(self._open.every)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: bytes | IBodyProducer | None = None,
        *,
        server: Server | None = None,
        protocols: frozenset[bytes] = NO_PROTOCOLS,
        informational: Informational | None = None,
        on_sent: Sent | None = None,
        again: Again | None = None,
        on_ended: Ended | None = None,
    ) -> Deferred[UpstreamResponse]:
        """Send a request; see `IUpstreamAgent`."""
        if server is None:
            server, target = server_of(uri)
        else:
            target = uri[len(server.origin) :]
        if isinstance(headers, RawHeaders):
            lines = headers.lines
        else:
            lines = _complete(headers or Headers(), server.host_header, bodyProducer)
        held = b""
        if isinstance(bodyProducer, bytes):
            held, bodyProducer = bodyProducer, None
        if not target:
            # RFC 9112 §3.2.4
            target = b"*" if method == b"OPTIONS" else b"/"
        exchange = UpstreamExchange(
            server,
            method,
            b"".join((method, b" ", target, b" HTTP/1.1\r\n", lines, b"\r\n", held)),
            bodyProducer,
            protocols,
            informational,
            on_ended,
            on_sent,
            again,
        )
        # read before sending, which may fail at once
        result: Deferred[UpstreamResponse] = exchange.result  # type: ignore[assignment]  # it has not fired
        key = self._open.key(server, self._deadlines.now) if self._open.spread else server
        connection = self.pool.take(key, self._deadlines.now, self._coalescer.turn)
        if connection is None:
            self._connect_or_wait(exchange)
        else:
            connection.send(exchange)
        return result

    def close(self) -> None:
        """Abort every connection and every attempt to connect, and make no more."""
        self._closed = True
        self._waiting.close(UpstreamUnreachable(_SHUTTING_DOWN))
        for exchange, connecting in list(self._connecting.items()):
            connecting.cancel()
            exchange.fail(UpstreamUnreachable(_SHUTTING_DOWN))
        self._endpoints.close()
        self._tls_questions.close()
        for connection in list(self._open.every):
            connection.transport.abortConnection()

    def reconfigure(
        self, servers: Iterable[Server], max_connections: int | None, files: Mapping[ServerTls, TlsFiles]
    ) -> None:
        """Use other settings from now on, and resolve the known names again.

        What is in flight goes on. A connection of which files, address or server are gone takes no other request.

        Args:
            servers: all servers.
            max_connections: the most connections, as in the constructor.
            files: the files of TLS of servers, as `tls.read_all` reads them; others stay as they were read.
        """
        self._max_connections = max_connections
        for server in self._endpoints.use(files):
            self._open.retire(server)
        self.keep_only(servers)
        self._endpoints.resolve()
        self._waiting.go_on()

    def differs(self, files: Mapping[ServerTls, TlsFiles]) -> bool:
        """Return whether the content of any file of TLS is another than the one in use."""
        return self._endpoints.differs(files)

    def certificate_ends(self, server: Server) -> Iterator[tuple[str, float]]:
        """Yield which certificates of TLS to a server are known, and when each ends; see `Endpoints`."""
        return self._endpoints.certificate_ends(server)

    def keep_only(self, servers: Iterable[Server]) -> None:
        """Forget servers that are not used any more: their connections take no other request."""
        used = frozenset(servers)
        for server in (self._endpoints.servers | self._retries.keys()) - used:
            self._open.forget(server)
            self._endpoints.forget(server)
            self._tls_questions.forget(server)
            self._retries.pop(server, None)
            self._distrusted.pop(server, None)
        self._endpoints.keep_files(used)

    def ask_for_tls(self, server: Server) -> None:
        """Find out whether a server with http:// speaks TLS, and tell the operator; once in a minute at most."""
        if self._asks_for_tls and not self._closed:
            self._tls_questions.ask(server)

    def speaks_tls(self, server: Server) -> Deferred[bool]:
        """Return whether a server with http:// speaks TLS; False if it cannot be asked."""
        return self._tls_questions.speaks_tls(server)

    # connections

    def _has_room(self) -> bool:
        most = self._max_connections
        return most is None or len(self._open.every) + len(self._connecting) < most

    def _connect_or_wait(self, exchange: UpstreamExchange) -> None:
        if self._waiting or not self._has_room():
            self._wait(exchange)
            self.make_room(1)
        else:
            self._connect(exchange)

    def _connect(self, exchange: UpstreamExchange) -> None:
        if self._closed:
            exchange.fail(UpstreamUnreachable(_SHUTTING_DOWN))
            return
        server = exchange.server
        retries = self._retries.get(server)
        if retries is None:
            retries = self._retries[server] = Retries(self.stale_requests)
        factory = Factory.forProtocol(
            lambda: UpstreamConnection(
                server,
                self._deadlines,
                self._coalescer,
                self.header_cache,
                retries,
                self._idle,
                self._stray,
                self._lost,
            )
        )
        connecting = self._endpoints.of(server).connect(factory)
        exchange.carrier = self
        self._connecting[exchange] = connecting
        hold(exchange.body)
        connecting.addCallbacks(self._connected, self._unreachable, callbackArgs=(exchange,), errbackArgs=(exchange,))

    def give_up(self, exchange: UpstreamExchange) -> None:
        """Cancel the attempt to connect that `exchange` waits for."""
        self._waiting.discard(exchange)
        connecting = self._connecting.get(exchange)
        if connecting is not None:
            connecting.cancel()

    def make_room(self, most: int = MADE_AT_ONCE) -> int:
        """Cut the connections that have been idle for longest, at most `most`; return how many."""
        idle = self.pool.oldest(most)
        for connection in idle:
            connection.transport.abortConnection()
        return len(idle)

    def _wait(self, exchange: UpstreamExchange) -> None:
        """Connect `exchange` later, when another connection has ended."""
        exchange.carrier = self
        hold(exchange.body)
        self._waiting.add(exchange)

    def endpoint_of(self, server: Server) -> IStreamClientEndpoint:
        """Return what connects to a server."""
        return cast(IStreamClientEndpoint, self._endpoints.of(server))

    def _connected(self, connection: UpstreamConnection, exchange: UpstreamExchange) -> None:
        self._connecting.pop(exchange, None)
        self._open.add(connection)
        if exchange.result is None:
            # cancelled in the same reactor turn
            connection.close()
            return
        connection.send(exchange)

    def _unreachable(self, failure: Failure, exchange: UpstreamExchange) -> None:
        self._connecting.pop(exchange, None)
        if exchange.result is None or failure.check(CancelledError, ConnectingCancelledError):
            self._waiting.go_on()
            return
        shortage = None if failure.value is None else shortage_in(failure.value)
        if shortage is not None:
            self._shortages.note("connect", shortage)
            self._wait(exchange)
            return
        words = failure.getErrorMessage() if failure.value is None else explain(failure.value, exchange.server)
        self._log.warn(
            "No connection to {server}: {reason}",
            server=exchange.server.name,
            reason=words,
            once_a_second=exchange.server.name,
        )
        if failure.check(TimeoutError, TCPTimedOutError):
            exchange.fail(with_words(UpstreamTimeout("Connecting to the vLLM server took too long."), words))
        else:
            error = UpstreamUnreachable("The vLLM server cannot be reached.")
            error.__cause__ = failure.value
            exchange.fail(with_words(error, words))
        self._waiting.go_on()

    def _stray(self, connection: UpstreamConnection) -> None:
        """Reuse no connection of a server that sent what nobody asked for: the next client would get it."""
        server, now = connection.server, self._deadlines.seconds()
        if self._distrusted.get(server, now) <= now:
            self._log.warn(
                "{server} sent bytes that no request asked for: its connections are not reused for {seconds:g} s",
                server=server.name,
                seconds=DISTRUST,
            )
        self._distrusted[server] = now + DISTRUST
        for other in self._open.of(server):
            if self.pool.discard(other.key, other) and other is not connection:
                other.close()

    def _idle(self, connection: UpstreamConnection) -> None:
        until = self._distrusted.get(connection.server) if self._distrusted else None
        if until is not None:
            if until > self._deadlines.seconds():
                connection.close()
                return
            del self._distrusted[connection.server]
        if connection.key is None:
            connection.close()
            return
        for surplus in self.pool.put(connection.key, connection, self._deadlines.now, self._coalescer.turn):
            surplus.close()
        if self._waiting.deadline is not None:
            # one of another server, perhaps: an idle connection is of no use to those that wait
            self.make_room(1)

    def _lost(self, connection: UpstreamConnection, resend: UpstreamExchange | None) -> None:
        self._open.remove(connection)
        if connection.was_silent:
            self.ask_for_tls(connection.server)
        if resend is not None:
            self._connect_or_wait(resend)
        if self._waiting:
            self._waiting.go_on()


def _complete(headers: Headers, host: bytes, body: bytes | IBodyProducer | None) -> bytes:
    """Return the lines of `headers`, with ``Host`` and the body's framing added if they are missing."""
    pairs: HeaderList = [] if headers.hasHeader(b"host") else [(b"Host", host)]
    pairs += [(name, value) for name, values in headers.getAllRawHeaders() for value in values]
    if body is not None and not headers.hasHeader(b"content-length"):
        length = len(body) if isinstance(body, bytes) else body.length
        if isinstance(length, int):
            pairs.append((b"Content-Length", b"%d" % length))
        else:
            pairs.append((b"Transfer-Encoding", b"chunked"))
    return write_header_lines(pairs)


def server_of(url: bytes) -> tuple[Server, bytes]:
    """Return the server of a URL, with default timeouts, and the request target; empty if the URL has no path."""
    whole = url.partition(b"#")[0]
    parsed = URI.fromBytes(whole)
    # not `URI.originForm`: in newer Pythons it doubles the slashes of //path (urllib.parse.urlunparse)
    target = whole.partition(b"://")[2][len(parsed.netloc) :]
    if target.startswith(b"?"):
        target = b"/" + target
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
    return server, target
