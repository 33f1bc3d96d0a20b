"""A whole gateway on a real port, raw TCP on both sides, and a clock that the test advances."""

from __future__ import annotations

import io
import json
import select
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy

from twisted_vllm.app.service import GatewayService
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import HealthSettings, LogSettings, Server, Settings, Timeouts
from twisted_vllm.errors import ERROR_HEADER
from twisted_vllm.http.net.deadlines import INTERVAL
from twisted_vllm.identification.inquiry import QUESTION_SECONDS, Inquiry
from twisted_vllm.observability.logging.setup import finish, make_observer, uninstall
from twisted_vllm.ratelimit.memory.limiter import LocalLimiter

MASTER_KEY = "sk-master-0123456789abcdef"
HOST = "127.0.0.1"
#: a gateway's SQLite database, in its directory
DATABASE = "keys.sqlite3"
#: real seconds after which a test that waits for bytes fails
PATIENCE = 30

HeaderPairs = list[tuple[bytes, bytes]]


class ClockedReactor:
    """The real reactor's sockets and threads, with a clock that the test advances."""

    def __init__(self, reactor: Any) -> None:
        self.clock = Clock()
        self.seconds = self.clock.seconds
        self._reactor = reactor
        directlyProvides(self, providedBy(reactor))

    def callLater(self, delay: float, function: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        """Call when the clock is advanced so far, or, without a delay, in the reactor's next turn.

        The pause between two questions to the database takes its own time: it ends no request.
        """
        of_inquiry = isinstance(getattr(function, "__self__", None), Inquiry) and delay < QUESTION_SECONDS
        clock = self.clock if delay and not of_inquiry else self._reactor
        return clock.callLater(delay, function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


class Wire(Protocol):
    """One end of a raw connection: the bytes that came, and Deferreds that wait for more.

    Attributes:
        received: every byte that came.
        lost: why the connection ended, or None while it lasts.
    """

    transport: Any

    def __init__(self, reactor: Any, on_data: Callable[[Wire], None] | None = None) -> None:
        self._reactor = reactor
        self.received = b""
        self.lost: Failure | None = None
        self._on_data = on_data
        self._waiting: list[tuple[Callable[[], object], Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._on_data is not None:
            self._on_data(self)
        self._look()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's default is no type
        self.lost = reason
        self._look()

    def until(self, is_so: Callable[[], object]) -> Deferred[None]:
        """Fire once `is_so`, which is asked at every piece and at the end."""
        waiting: Deferred[None] = Deferred()
        waiting.addTimeout(PATIENCE, self._reactor)
        waiting.addErrback(self._stuck)
        self._waiting.append((is_so, waiting))
        self._look()
        return waiting

    def until_received(self, wanted: bytes) -> Deferred[None]:
        """Fire once these bytes are among those that came."""
        return self.until(lambda: wanted in self.received)

    def until_lost(self) -> Deferred[None]:
        """Fire once the connection has ended."""
        return self.until(lambda: self.lost is not None)

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def next_turn(self) -> Deferred[None]:
        """Fire in the reactor's next turn."""
        return deferLater(self._reactor, 0, lambda: None)

    def close(self) -> None:
        self.transport.loseConnection()

    def cut(self) -> None:
        self.transport.abortConnection()

    def _look(self) -> None:
        ready = [pair for pair in self._waiting if pair[0]()]
        for pair in ready:
            self._waiting.remove(pair)
            pair[1].callback(None)

    def _stuck(self, failure: Failure) -> Failure:
        raise AssertionError(
            f"not within {PATIENCE} seconds; came: {self.received[-2000:]!r}, ended: {self.lost}"
        ) from failure.value


class StandIn(Factory):
    """A server that the test scripts: it keeps the bytes that came, and sends those that it is given.

    Attributes:
        answer: sent at once for each whole request head; None lets the test send.
        respond: called with a connection at each piece that comes on it; by default it sends `answer`.
        connections: the connections, in the order in which they came.
    """

    noisy = False

    def __init__(self, reactor: Any, answer: bytes | None) -> None:
        self.answer = answer
        self.respond: Callable[[Wire], None] = self._send_answer
        self.connections: list[Wire] = []
        self._waiting: list[tuple[int, Deferred[Wire]]] = []
        self._reactor = reactor
        self._port = reactor.listenTCP(0, self, interface=HOST)
        self.port = int(self._port.getHost().port)

    def buildProtocol(self, addr: object) -> Wire:
        connection = Wire(self._reactor, lambda wire: self.respond(wire))
        connection.factory = self
        self.connections.append(connection)
        for pair in [pair for pair in self._waiting if pair[0] < len(self.connections)]:
            self._waiting.remove(pair)
            pair[1].callback(self.connections[pair[0]])
        return connection

    def _send_answer(self, connection: Wire) -> None:
        if self.answer is not None and b"\r\n\r\n" in connection.received:
            connection.send(self.answer)

    def connection(self, number: int = 0) -> Deferred[Wire]:
        """Fire with the connection of this number, once it is there."""
        waiting: Deferred[Wire] = Deferred()
        if number < len(self.connections):
            waiting.callback(self.connections[number])
        else:
            self._waiting.append((number, waiting))
        return waiting

    @property
    def received(self) -> bytes:
        """The bytes of the first connection."""
        return self.connections[0].received

    def stop(self) -> Deferred[None]:
        """Close the port and every connection."""
        for connection in self.connections:
            if connection.lost is None:
                connection.cut()
        stopped: Deferred[None] = self._port.stopListening()
        return stopped


@attrs.frozen
class Answer:
    """A response as it came."""

    status: int
    reason: bytes
    headers: HeaderPairs
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower().encode()]
        return found[0].decode("latin-1") if found else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a gateway's own refusal, after its shape was checked."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert self.header("content-type") == "application/json"
        assert self.header(ERROR_HEADER.decode()) == error["code"]
        assert self.header("x-request-id")
        assert (self.header("www-authenticate") == "Bearer") == (self.status == 401)
        return error


def parse_head(raw: bytes) -> tuple[bytes, HeaderPairs]:
    """Split a head into its first line and its headers, every byte kept."""
    lines = raw.partition(b"\r\n\r\n")[0].split(b"\r\n")
    pairs = [line.partition(b": ") for line in lines[1:]]
    return lines[0], [(name, value) for name, _, value in pairs]


def lower(headers: HeaderPairs) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in headers}


def is_whole(raw: bytes, bodiless: bool) -> bool:
    _, end, body = raw.partition(b"\r\n\r\n")
    if not end:
        return False
    line, headers = parse_head(raw)
    found = lower(headers)
    if bodiless or line.split(b" ")[1] in (b"204", b"304"):
        return True
    if b"content-length" in found:
        return len(body) >= int(found[b"content-length"])
    return found.get(b"transfer-encoding") == b"chunked" and body.endswith(b"0\r\n\r\n")


def parse_answer(raw: bytes) -> Answer:
    line, headers = parse_head(raw)
    body = raw.partition(b"\r\n\r\n")[2]
    if lower(headers).get(b"transfer-encoding") == b"chunked":
        body = unchunked(body)
    _, status, reason = (line + b" ").split(b" ", 2)
    return Answer(int(status), reason.removesuffix(b" "), headers, body)


def unchunked(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        found += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return found


def request_bytes(
    method: str,
    target: str,
    key: str | None = MASTER_KEY,
    headers: Mapping[str, str] | None = None,
    body: object = None,
) -> bytes:
    """Return a request; a body that is not bytes is sent as JSON."""
    pairs = {"Host": "gateway.example", **(headers or {})}
    if key is not None:
        pairs["Authorization"] = f"Bearer {key}"
    if body is not None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            pairs.setdefault("Content-Type", "application/json")
        pairs["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


#: a request that fits into one segment
COMPLETION = request_bytes("POST", "/vllm/v1/completions", body={"model": "m"})


def server_at(
    port: int,
    *,
    api_key: str | None = None,
    base_path: bytes = b"",
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - it is frozen
) -> Server:
    name = f"{HOST}:{port}"
    secret = None if api_key is None else Secret(api_key)
    return Server(name, HOST, port, False, base_path, name.encode(), secret, timeouts)


def capped(port: int, limit: int = 1, places: int = 100, **timeouts: Any) -> Server:
    server = server_at(port, timeouts=Timeouts(**timeouts))
    return attrs.evolve(server, max_concurrent_requests=limit, max_queued_requests=places)


#: more pipelined requests than the gateway holds
PIPELINED = request_bytes("GET", "/vllm/v1/models") * 300

REALTIME = "/vllm/v1/realtime"
HANDSHAKE = {
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
SWITCHING_PROTOCOLS = (
    b"HTTP/1.1 101 Switching  Protocols!\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Twice: a\r\nX-Twice: b\r\n\r\n"
)


def handshake(key: str | None = MASTER_KEY, target: str = REALTIME, **headers: str) -> bytes:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return request_bytes("GET", target, key, headers={**HANDSHAKE, **more})


class Gateway:
    """A running gateway.

    Attributes:
        service: the real root service.
        clock: its clock; nothing times out unless the test advances it.
        port: where it listens.
        log_file: where its log goes.
        database_file: where its keys are.
    """

    def __init__(self, reactor: Any, directory: Path, server: Server | None, **settings: Any) -> None:
        self._reactor = reactor
        self._clients: list[Wire] = []
        self._stopped = False
        clocked = ClockedReactor(reactor)
        self.clock = clocked.clock
        self.log_file = directory / "gateway.log"
        self.database_file = directory / DATABASE
        values: dict[str, Any] = {
            "listen": (f"tcp:0:interface={HOST}",),
            "master_key": Secret(MASTER_KEY),
            "allow_anonymous": False,
            "database_url": Secret(f"sqlite:///{self.database_file}"),
            "models": (),
            # whoever advances the clock past the timeouts of checks would find every server dead
            "health": HealthSettings(interval=None),
            "log": LogSettings(format="json", file=str(self.log_file), level="debug"),
        }
        self.settings = Settings(default_server=server, **{**values, **settings})
        self._observer = make_observer(self.settings.log, self.settings.secrets, io.StringIO())
        self.service = GatewayService(clocked, self.settings, self._observer)
        self.service.privilegedStartService()
        self.service.startService()
        self.port: int = self.service.ports[0].getHost().port  # type: ignore[attr-defined]  # a TCP address has one

    @property
    def queued(self) -> int:
        """How many requests wait for a busy server."""
        return len(self.service.wiring.dispatcher)

    @property
    def limiter(self) -> LocalLimiter:
        """What counts requests, tokens and money."""
        limiter = self.service.wiring.accounting.limiter
        assert isinstance(limiter, LocalLimiter)
        return limiter

    def pass_time(self, seconds: float) -> None:
        """Advance the clock, in steps of the deadlines' interval."""
        self.clock.pump([INTERVAL] * int(seconds / INTERVAL + 3))

    async def connect(self) -> Wire:
        """Open a raw connection to the gateway."""
        client = Wire(self._reactor)
        await connectProtocol(TCP4ClientEndpoint(self._reactor, HOST, self.port), client)
        self._clients = [*(each for each in self._clients if each.lost is None), client]
        return client

    async def send(self, raw: bytes) -> Wire:
        """Open a connection and send these bytes."""
        client = await self.connect()
        client.send(raw)
        return client

    async def answer_to(self, raw: bytes) -> Answer:
        """Send a request on a connection of its own; return the answer once it is whole."""
        client = await self.send(raw)
        bodiless = raw.startswith(b"HEAD ")
        await client.until(lambda: client.lost is not None or is_whole(client.received, bodiless))
        client.close()
        return parse_answer(client.received)

    async def ask(self, method: str, target: str, key: str | None = MASTER_KEY, **options: Any) -> Answer:
        """Send the request that `request_bytes` makes; return the answer."""
        return await self.answer_to(request_bytes(method, target, key, **options))

    async def make_key(self, **fields: object) -> str:
        """Make a virtual key and return it."""
        answer = await self.ask("POST", "/key/generate", body=fields)
        assert answer.status == 200, answer.body
        return str(answer.json["key"])

    def log_text(self) -> str:
        """Return the log so far."""
        finish(self._observer)
        return self.log_file.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_text().splitlines()]

    def request_lines(self) -> list[dict[str, Any]]:
        """Return the log's lines about requests."""
        return [line for line in self.log_lines() if "outcome" in line]

    def stop(self) -> Deferred[None]:
        """Begin the drain; fire once the gateway has stopped."""
        self._stopped = True
        stopped: Deferred[None] = self.service.stopService()
        return stopped

    async def clean_up(self) -> None:
        """Stop the gateway, if it runs, and its clients."""
        for client in self._clients:
            if client.lost is None:
                client.cut()
        if not self._stopped:
            await self.stop()
        uninstall(self._observer)


async def begin(
    server: StandIn, gateway: Gateway, raw: bytes = COMPLETION, until: bytes | None = None
) -> tuple[Wire, Wire]:
    """Send a request; return the client and the server's connection, once the request came there.

    Args:
        server: the server, to which nothing came before.
        gateway: the gateway.
        raw: the request, or the beginning of one.
        until: what must have come to the server; None waits for the head, and the body as it stands in `raw`.
    """
    body = raw.partition(b"\r\n\r\n")[2]
    client = await gateway.send(raw)
    upstream = await server.connection()
    if until is None:
        await upstream.until(lambda: b"\r\n\r\n" in upstream.received and upstream.received.endswith(body))
    else:
        await upstream.until_received(until)
    return client, upstream


async def eventually(reactor: Any, is_so: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll until `is_so`: a socket that is not read from has no event for what the kernel knows of it."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"still not so after {seconds:g} seconds"
        await deferLater(reactor, 0.005, lambda: None)


def has_disconnected(connection: Wire) -> bool:
    """Tell whether the other side has closed the connection, without reading from it."""
    poll = select.poll()
    poll.register(connection.transport.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


class EndlessProducer:
    """Produces until it is paused."""

    PIECE = 65536

    def __init__(self, wire: Wire) -> None:
        self.sent = 0
        self._wire = wire
        self._running = False
        self._quiet_turns = 0

    def resumeProducing(self) -> None:
        self._running = True
        self._quiet_turns = 0
        while self._running and self._wire.lost is None and self.sent < 100_000_000:
            self.sent += self.PIECE
            self._wire.send(b"x" * self.PIECE)

    def pauseProducing(self) -> None:
        self._running = False

    def stopProducing(self) -> None:
        self._running = False

    async def until_stuck(self) -> None:
        """Return once nothing was taken for 50 turns of the reactor."""
        while self._quiet_turns < 50:
            self._quiet_turns += 1
            await self._wire.next_turn()
