"""``python -m benchmarks.streams.simulated COUNTS RATE SECONDS``: a whole gateway in one process, without sockets.

Clients and the server are objects of this process, so that there may be more streams than descriptors. Everything
between them is the gateway's own: connections, requests, relays, usage readers, the ledger, deadlines, timers. What the
kernel and Twisted's transports need for two sockets is missing.

It prints a JSON object: for each of the counts, when so many streams are open, the resident memory, and the CPU
seconds of a second in which nothing comes, and of one in which each stream gets its share of events.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet import reactor  # noqa: TID251 - a program of its own
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IConnector, ITCPTransport
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver
from zope.interface import implementer, provider

from benchmarks.measure import PROC, parse_memory
from twisted_vllm.app import wiring
from twisted_vllm.app.service import GatewayService
from twisted_vllm.config.load import load

_MODEL, KEY = "bench", "sk-of-the-benchmark-alone"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"chatcmpl-5f0c8e1f6a7b4d21","object":"chat.completion.chunk","created":1795439504,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" river"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_BODY = json.dumps(
    {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "I am going to Paris, what should I see?"}],
        "max_tokens": 512,
        "stream": True,
    }
).encode()
_REQUEST = (
    b"POST /vllm/v1/chat/completions HTTP/1.1\r\nHost: gateway:4000\r\nAuthorization: Bearer %b\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
)
#: streams that are opened in one turn
_OPENING = 50
#: how long things may settle before they are measured, in seconds
_SETTLE_SECONDS = 1.5


@implementer(ITCPTransport)
class Transport(StringTransport):
    """A connection that counts what is sent, and drops it.

    Attributes:
        sent: the bytes that were sent.
    """

    def __init__(self, peer: IPv4Address) -> None:
        super().__init__(peerAddress=peer)
        self.sent = 0

    def write(self, data: bytes) -> None:
        """Count."""
        self.sent += len(data)

    def writeSequence(self, data: Any) -> None:
        """Count."""
        self.sent += sum(map(len, data))

    def abortConnection(self) -> None:
        """Nobody is there."""

    def loseWriteConnection(self) -> None:
        """Nobody is there."""

    def getTcpNoDelay(self) -> bool:
        """Everything goes at once."""
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Everything goes at once."""

    def getTcpKeepAlive(self) -> bool:
        """There is no network."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """There is no network."""


@implementer(IConnector)
class Connector:
    """What a connection that exists at once began with."""

    def stopConnecting(self) -> None:
        """It is connected."""

    def disconnect(self) -> None:
        """Nobody is there."""

    def connect(self) -> None:
        """It is connected."""

    def getDestination(self) -> IPv4Address:
        """Return the server's address."""
        return IPv4Address("TCP", "127.0.0.1", 8000)


class MemoryReactor:
    """The real reactor, whose TCP connections lead to a server in this process.

    Attributes:
        servers: the gateway's connections to it, which are protocols of the gateway's.
    """

    def __init__(self) -> None:
        self.servers: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # what it provides is less: sockets would be watched by the gateway's own epoll
            raise AttributeError(name)
        return getattr(reactor, name)

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None
    ) -> IConnector:
        """Connect at once."""
        connector = Connector()
        address = connector.getDestination()
        factory.doStart()
        factory.startedConnecting(connector)
        protocol = factory.buildProtocol(address)
        protocol.makeConnection(Transport(address))
        self.servers.append(protocol)
        return connector


@provider(ILogObserver)
def _quiet(event: Any) -> None:
    if event.get("log_level") is not None and event["log_level"].name in ("error", "critical"):
        print(event.get("log_format"), event.get("log_failure"), file=sys.stderr)


class Simulation:
    """Streams of a gateway that has no sockets.

    Attributes:
        service: the gateway.
    """

    def __init__(self, service: GatewayService, memory: MemoryReactor) -> None:
        self.service = service
        self._memory = memory
        self._clients: list[tuple[Any, Transport]] = []

    def open(self, count: int) -> None:
        """Open streams, up to so many."""
        for number in range(len(self._clients), count):
            # each of another address: one address may have a share of all connections
            peer = IPv4Address("TCP", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 40_000)
            client, transport = self.service.site.buildProtocol(peer), Transport(peer)
            client.makeConnection(transport)
            client.dataReceived(_REQUEST % (KEY.encode(), len(_BODY), _BODY))
            self._clients.append((client, transport))

    @inlineCallbacks
    def open_all(self, count: int) -> Generator[Deferred[Any], Any, None]:
        """Open streams, up to so many, and begin their answers.

        Raises:
            RuntimeError: the gateway refuses some.
        """
        while (opened := len(self.servers)) < count:
            self.open(min(opened + _OPENING, count))
            yield deferLater(reactor, 0)
            if len(self.servers) == opened:
                raise RuntimeError(f"the gateway refuses more than {opened:,} streams")
            self.begin(opened)

    def begin(self, first: int) -> None:
        """Begin the answers of the streams from `first` on."""
        for server in self._memory.servers[first:]:
            server.dataReceived(_HEAD + _CHUNK)

    def send(self, servers: Sequence[Any]) -> None:
        """Send an event on each of these connections, as one turn of the reactor would find them."""
        for server in servers:
            server.dataReceived(_CHUNK)

    @property
    def servers(self) -> list[Any]:
        """The connections to the server."""
        return self._memory.servers

    def answered(self) -> int:
        """Return how many clients have got something."""
        return sum(transport.sent > 0 for _, transport in self._clients)


def _resident() -> int:
    return parse_memory((PROC / "self" / "status").read_text(), "VmRSS") or 0


@inlineCallbacks
def _measure(
    simulation: Simulation, counts: Sequence[int], rate: float, seconds: float
) -> Generator[Deferred[Any], Any, None]:
    steps = []
    for count in [0, *counts]:
        began = time.process_time()
        before = len(simulation.servers)
        yield simulation.open_all(count)
        opening = (time.process_time() - began) / max(count - before, 1)
        yield deferLater(reactor, _SETTLE_SECONDS)
        gc.collect()
        resident, began, wall = _resident(), time.process_time(), time.monotonic()
        yield deferLater(reactor, seconds)
        idle = (time.process_time() - began) / (time.monotonic() - wall)
        began, wall, sent = time.process_time(), time.monotonic(), 0
        while (passed := time.monotonic() - wall) < seconds:
            due = int(passed * rate * count)
            servers = [simulation.servers[number % count] for number in range(sent, due)]
            simulation.send(servers)
            sent += len(servers)
            yield deferLater(reactor, 0.01)
        steps.append(
            {
                "streams": simulation.answered(),
                "failed": count - simulation.answered(),
                "resident": resident,
                "largest": resident,
                "idle": idle,
                "busy": (time.process_time() - began) / (time.monotonic() - wall),
                "opening": opening,
            }
        )
    print(json.dumps(steps), flush=True)


def simulate(most: int, measure: Callable[[Simulation], Deferred[Any]]) -> None:
    """Run a gateway until `measure` is done with it.

    Args:
        most: the most streams that will be opened.
        measure: opens streams and measures.
    """
    # there are no descriptors to share out
    wiring.open_file_limit = lambda: None  # type: ignore[attr-defined]  # a name that it imports
    with TemporaryDirectory(prefix="benchmarks-streams-") as place:
        file = Path(place) / "gateway.yaml"
        config = {
            "general_settings": {"master_key": KEY, "database_url": f"sqlite:///{place}/gateway.sqlite"},
            "passthrough": {
                "api_base": "http://127.0.0.1:8000",
                "listen": [f"unix:{place}/gateway.sock"],
                "health": {"interval": None},
                "limits": {"max_connections": 2 * most},
            },
        }
        file.write_text(json.dumps(config))
        memory = MemoryReactor()
        service = GatewayService(memory, load(file=str(file), environ={}), _quiet)
        service.privilegedStartService()
        service.startService()
        simulation = Simulation(service, memory)
        failed: list[Any] = []

        def ended(result: Any) -> None:
            if result is not None:
                failed.append(result)
            reactor.stop()

        reactor.callWhenRunning(lambda: measure(simulation).addBoth(ended))
        reactor.run()
        for failure in failed:
            failure.printTraceback(file=sys.stderr)
    if failed:
        raise SystemExit(1)


def main(counts: Sequence[int], rate: float, seconds: float) -> None:
    """Measure, and print the figures."""
    simulate(max(counts), lambda simulation: _measure(simulation, counts, rate, seconds))


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1].split(",")], float(sys.argv[2]), float(sys.argv[3]))
