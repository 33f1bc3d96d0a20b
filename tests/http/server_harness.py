"""A gateway's site in memory: clients without sockets, resources that the test controls, and a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import attrs
import msgspec
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ISSLTransport, ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from twisted_vllm.config.settings import Limits, Timeouts
from twisted_vllm.context import RequestContext
from twisted_vllm.errors import GatewayError
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.net.deadlines import DeadlineSweeper
from twisted_vllm.http.net.disconnect_watcher import DisconnectWatcher
from twisted_vllm.http.net.open_files import MAX_REFUSED
from twisted_vllm.http.net.write_coalescing import WriteCoalescer
from twisted_vllm.http.server.ids import RequestIds
from twisted_vllm.http.server.request import GatewayRequest, IStreamingResource
from twisted_vllm.http.server.site import GatewaySite
from twisted_vllm.lifecycle import Lifecycle, RequestObserver

#: bytes that a TCP transport delivers at once (twisted.internet.abstract.FileDescriptor.bufferSize)
SEGMENT = 65_536

#: more than the maximum lateness of a deadline
A_MOMENT = 1.0

#: seconds after which a closing connection has ended, whatever its client does
LONG_ENOUGH = 1_000.0

JSON_TYPE = (b"content-type", b"application/json")


class MemoryTransport(StringTransport):
    """A connection that closes as a real one does: after the call that closes it, not within it.

    Attributes:
        aborted: whether it was reset rather than closed.
        write_closed: whether the gateway has said that nothing more will come from it.
    """

    aborted = False
    write_closed = False
    producer: Any

    def __init__(self) -> None:
        super().__init__(lenient=True)

    @property
    def closing(self) -> bool:
        return self.disconnecting or self.aborted

    def abortConnection(self) -> None:
        self.aborted = True

    def loseConnection(self) -> None:
        self.disconnecting = True

    def write(self, data: bytes) -> None:
        if not (self.closing or self.write_closed):
            super().write(data)


@implementer(ITCPTransport)
class TcpTransport(MemoryTransport):
    """The plain kind, whose sending half can be closed alone."""

    def loseWriteConnection(self) -> None:
        self.write_closed = True

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Small pieces are not held back."""

    def getTcpKeepAlive(self) -> bool:
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Not used."""


@implementer(ISSLTransport)
class TlsTransport(TcpTransport):
    """TLS on TCP."""

    def getPeerCertificate(self) -> None:
        """Clients have none."""


@attrs.frozen
class Answer:
    """A response as a client reads it.

    Attributes:
        headers: all headers, names in lower case, in order.
        delimited: whether its end is marked, so that another response may follow on the connection.
    """

    status: int
    reason: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    delimited: bool

    def all(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.headers if found == name]

    def header(self, name: bytes) -> bytes | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name!r} stands {len(values)} times"
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        return self.header(b"connection") == b"close"

    def error(self) -> dict[str, Any]:
        """Return what stands below ``error``, after a check that the whole is OpenAI's shape."""
        found = msgspec.json.decode(self.body)
        assert set(found) == {"error"}
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert self.header(b"content-type") == b"application/json"
        assert self.header(b"x-vllm-passthrough-error") == found["error"]["code"].encode()
        return dict(found["error"])


def read_answers(data: bytes, methods: Iterable[bytes] = (), *, ended: bool = False) -> list[Answer]:
    """Read responses as RFC 9112 §6.3 says a client must; fail on anything that is not one.

    Args:
        data: all that the server sent.
        methods: the methods of the requests, in order; GET where there are no more.
        ended: whether the connection has ended: only then may a response have no length.
    """
    answers = []
    waiting = iter(methods)
    method = next(waiting, b"GET")
    while data:
        head, found, data = data.partition(b"\r\n\r\n")
        assert found, f"a head without its end: {head!r}"
        first, *lines = head.split(b"\r\n")
        version, status_text, reason = first.split(b" ", 2)
        assert version == b"HTTP/1.1", first
        status = int(status_text)
        headers = []
        for line in lines:
            name, colon, value = line.partition(b": ")
            assert colon, line
            headers.append((name.lower(), value))
        values = dict(headers)
        assert len([name for name, _ in headers if name in (b"content-length", b"transfer-encoding")]) <= 1, head
        delimited = True
        if method == b"HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif b"transfer-encoding" in values:
            assert values[b"transfer-encoding"] == b"chunked"
            body, data = _read_chunks(data)
        elif b"content-length" in values:
            size = int(values[b"content-length"])
            assert len(data) >= size, "the body is cut"
            body, data = data[:size], data[size:]
        else:
            assert ended, "a body without an end"
            body, data, delimited = data, b"", False
        answers.append(Answer(status, reason, headers, body, delimited))
        if status >= 200:
            method = next(waiting, b"GET")
    return answers


def _read_chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size_line, found, data = data.partition(b"\r\n")
        assert found, "the chunks are cut"
        size = int(size_line, 16)
        assert data[size : size + 2] == b"\r\n", "the chunks are cut"
        body, data = body + data[:size], data[size + 2 :]
        if not size:
            return body, data


@attrs.frozen
class Seen:
    """A request as a resource got it."""

    method: bytes
    uri: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Work:
    """The work of a streaming resource for a request; counts its cancellations."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def reply(
    request: GatewayRequest,
    body: bytes = b"ok",
    status: int = 200,
    reason: bytes = b"OK",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer whole, with a length."""
    request.relay_head(ResponseHead(status, reason, [*headers, (b"content-length", b"%d" % len(body))]))
    request.relay_body(body, True)


def echo(request: GatewayRequest) -> None:
    """Answer with the request target and the body, once that was collected."""
    request.collect_body(1_000_000, lambda body: reply(request, request.uri + b" " + body))


@implementer(IStreamingResource)
class Streaming(Resource):
    """A streaming resource whose behaviour is a function.

    Attributes:
        rendered: the requests it was asked to answer, in order.
        works: what each of them was given as its work.
        behaviour: what it does with a request; by default `echo`.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.rendered: list[GatewayRequest] = []
        self.works: list[Work] = []
        self.behaviour: Callable[[GatewayRequest], None] = echo

    def render(self, request: Request) -> int:
        assert isinstance(request, GatewayRequest)
        work = Work()
        request.work = work
        self.rendered.append(request)
        self.works.append(work)
        self.behaviour(request)
        return NOT_DONE_YET


class Ordinary(Resource):
    """A resource of twisted.web's usual kind: answers with the path and the body.

    Attributes:
        seen: what it was asked, in order.
        behaviour: what it returns for a request, if not the echo.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        self.behaviour: Callable[[Any], Any] | None = None

    def render(self, request: Any) -> bytes | int:
        request.read_body().addCallback(self._respond, request).addErrback(
            lambda failure: request.answer(failure.value) if failure.check(GatewayError) else failure
        ).addErrback(request.processingFailed).addErrback(lambda _: None)
        return NOT_DONE_YET

    def _respond(self, body: bytes, request: Any) -> None:
        headers = [
            (name.lower(), value) for name, values in request.requestHeaders.getAllRawHeaders() for value in values
        ]
        self.seen.append(Seen(request.method, request.uri, sorted(headers), body))
        answer = request.path + b" " + body if self.behaviour is None else self.behaviour(request)
        if answer != NOT_DONE_YET:
            request.write(answer)
            request.finish()


class LoggedFailures(Protocol):
    """The fixture of the same purpose in conftest."""

    def flush(self, *types: type[BaseException]) -> list[Failure | None]: ...


class Client:
    """One client's connection, as far as the wire can tell.

    Attributes:
        transport: the gateway's side of it.
        gone: whether the gateway was told that it ended.
    """

    def __init__(self, site: GatewaySite, transport: MemoryTransport) -> None:
        self.site = site
        self.transport = transport
        self.gone = False
        self._inbox: list[bytes] = []
        self.channel: Any = site.buildProtocol(transport.getPeer())
        if self.channel is None:
            # as Twisted's ports do
            transport.abortConnection()
            self.gone = True
            return
        self.channel.makeConnection(transport)

    def send(self, *segments: bytes) -> None:
        """Send each as one segment (or several, if it is larger than what is read at once)."""
        for segment in segments:
            self._inbox += [segment[at : at + SEGMENT] for at in range(0, len(segment), SEGMENT)]
        self.settle()

    def settle(self) -> None:
        """Let the connection do what the reactor would: deliver what may be read, and end what was closed."""
        transport = self.transport
        while self._inbox and not transport.closing and transport.producerState == "producing":
            self.channel.dataReceived(self._inbox.pop(0))
            self._later_turns()
        self._later_turns()
        if transport.closing:
            self._lost(ConnectionAborted() if transport.aborted else ConnectionDone())

    def _later_turns(self) -> None:
        """Run what waits for the reactor's next turns."""
        clock: Any = self.site.reactor
        clock.advance(0)

    @property
    def unread(self) -> int:
        """Bytes that the gateway has left in the kernel."""
        return sum(map(len, self._inbox))

    def leave(self) -> None:
        """Disconnect."""
        self._lost(ConnectionLost())

    def _lost(self, reason: Exception) -> None:
        if not self.gone:
            self.gone = True
            self.channel.connectionLost(Failure(reason))

    @property
    def ended(self) -> bool:
        """Whether the client has read the end of the stream."""
        return self.gone or self.transport.write_closed

    def answers(self, *methods: bytes) -> list[Answer]:
        """Return all that was answered so far."""
        return read_answers(self.transport.value(), methods, ended=self.ended)

    def answer(self, *methods: bytes) -> Answer:
        """Return the one answer."""
        answers = self.answers(*methods)
        assert len(answers) == 1, answers
        return answers[0]


class Finished(RequestObserver):
    """Records the finished requests."""

    def __init__(self, contexts: list[RequestContext]) -> None:
        self._contexts = contexts

    def finished(self, context: RequestContext) -> None:
        self._contexts.append(context)


class SiteHarness:
    """A site with one streaming resource at ``/vllm`` and an ordinary one elsewhere.

    Attributes:
        finished: the requests that the site was told of as over.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        is_exempt: Callable[[str], bool] = lambda host: True,
        max_refused: int = MAX_REFUSED,
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.deadlines = DeadlineSweeper(self.clock)
        self.streaming = Streaming()
        self.ordinary = Ordinary()
        self.finished: list[RequestContext] = []
        self.ids = RequestIds(self._randbytes)
        self._drawn = 0
        self._sites = 0
        self._limits = limits or Limits()
        self._timeouts = timeouts or Timeouts()
        self._is_exempt = is_exempt
        self._max_refused = max_refused
        self.site = self.make_site({b"vllm": self.streaming}, self.ordinary)

    def make_site(self, streaming: dict[bytes, IResource], other: IResource) -> GatewaySite:
        """Return a site with other resources, and everything else of this one."""
        self._sites += 1
        return GatewaySite(
            streaming=streaming,
            other=other,
            deadlines=self.deadlines,
            coalescer=WriteCoalescer(),
            disconnects=DisconnectWatcher(self.clock),
            reactor=self.clock,
            limits=self._limits,
            timeouts=self._timeouts,
            ids=self.ids,
            lifecycle=Lifecycle([Finished(self.finished)]),
            is_exempt=self._is_exempt,
            max_refused=self._max_refused,
        )

    def _randbytes(self, size: int) -> bytes:
        self._drawn += 1
        return b"".join(b"%08d%08d" % (self._drawn, at) for at in range(size // 16 + 1))[:size]

    def connect(self, transport: MemoryTransport | None = None, host: str | None = None) -> Client:
        """Connect, from `host` or from the address that all others have."""
        transport = transport or TcpTransport()
        if host is not None:
            transport.peerAddr = IPv4Address("TCP", host, 54_321)
        return Client(self.site, transport)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and check the deadlines at their interval."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(0.25, end - self.clock.seconds()))
            self.deadlines.sweep()

    def assert_clean(self) -> None:
        """Check that nothing of a past request or connection is left."""
        assert len(self.ids) == 0
        assert not self.site.connections
        # of each site, its account of held bodies
        assert len(self.deadlines) == self._sites
        account = self.site.held_bodies
        assert (account.held, account.waiting, len(account)) == (0, 0, 0)
        assert len(self.finished) == len(set(map(id, self.finished)))


def get(target: bytes = b"/vllm/a", *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    """Return a request without a body; `headers` are whole lines."""
    lines = [method + b" " + target + b" " + version, b"Host: gateway", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(target: bytes, body: bytes, *headers: bytes) -> bytes:
    """Return a request with a body of known length."""
    return get(target, *headers, b"Content-Length: %d" % len(body), method=b"POST") + body


def chunked(target: bytes, *chunks: bytes, trailers: bytes = b"", extension: bytes = b"") -> bytes:
    """Return a request whose body comes in chunks."""
    pieces = [b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks if chunk]
    head = get(target, b"Transfer-Encoding: chunked", method=b"POST")
    return head + b"".join(pieces) + b"0\r\n" + trailers + b"\r\n"
