"""``python -m benchmarks.streams.watched STREAMS WATCHERS SECONDS``: what it costs to watch the requests in flight.

A gateway in this process has so many open streams, without sockets, as `benchmarks.streams.simulated`. Watchers sign in
to the console and keep its page of the requests in flight open: half of them see the same, the others each filter or
sort in another way.

It prints a JSON object: CPU seconds of a second while nobody watches, while the watchers do, and of one look; how many
messages each watcher got, what the last of each said, and how many of the streams it counted.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Generator
from statistics import median
from typing import Any
from urllib.parse import urlencode

from twisted.internet import reactor  # noqa: TID251 - a program of its own
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from benchmarks.streams.simulated import KEY, Simulation, Transport, simulate
from twisted_vllm.observability.live_requests import LiveQuery
from twisted_vllm.proxy.live_requests import LOOK_SECONDS

#: looks that are measured by themselves
_LOOKS = 3
#: rounds of watching and not watching, in alternation
_ROUNDS = 2

#: what the watchers ask for who do not all ask for the same
_QUERIES = ("sort=-tokens", "limit=500", "state=streaming", "key=master", "sort=age")


class Kept(Transport):
    """A connection that keeps what is sent.

    Attributes:
        received: what was sent.
    """

    def __init__(self, peer: IPv4Address) -> None:
        super().__init__(peer)
        self.received = bytearray()

    def write(self, data: bytes) -> None:
        """Keep it."""
        super().write(data)
        self.received += data

    def writeSequence(self, data: Any) -> None:
        """Keep them."""
        self.write(b"".join(data))


class Browser:
    """A client of the console.

    Attributes:
        received: what came on its connection.
    """

    def __init__(self, simulation: Simulation, number: int) -> None:
        self._site = simulation.service.site
        self._peer = IPv4Address("TCP", f"192.0.2.{number}", 40_000)
        self._cookie = ""
        self._connect()

    def _connect(self) -> None:
        self._client, self._transport = self._site.buildProtocol(self._peer), Kept(self._peer)
        self._client.makeConnection(self._transport)

    @property
    def received(self) -> bytes:
        """What came since the last request."""
        return bytes(self._transport.received)

    def send(self, method: str, path: str, body: str = "", accept: str = "text/html") -> None:
        """Send a request."""
        self._transport.received.clear()
        lines = [
            *(f"{method} {path} HTTP/1.1", "Host: gateway", f"Accept: {accept}", f"Content-Length: {len(body)}"),
            "Content-Type: application/x-www-form-urlencoded",
            *([f"Cookie: {self._cookie}"] if self._cookie else []),
        ]
        self._client.dataReceived("\r\n".join((*lines, "", body)).encode())

    @inlineCallbacks
    def sign_in(self) -> Generator[Deferred[Any], Any, None]:
        """Begin a session."""
        self.send("POST", "/ui/sign-in", urlencode({"key": KEY}))
        while not (found := re.search(rb"(?i)\r\nset-cookie: ([^;]+)", self.received)):
            yield deferLater(reactor, 0.01)
        self._cookie = found[1].decode()
        self._connect()

    def leave(self) -> None:
        """Close the connection, and be ready for the next."""
        self._client.connectionLost(Failure(ConnectionDone()))
        self._connect()

    def messages(self) -> list[bytes]:
        """Return the events that came."""
        return re.findall(rb"data: (\{.*\})\n\n", self.received)


@inlineCallbacks
def _watch(simulation: Simulation, streams: int, watchers: int, seconds: float) -> Generator[Deferred[Any], Any, None]:
    yield simulation.open_all(streams)
    for _ in range(3):
        simulation.send(simulation.servers)
        yield deferLater(reactor, 0.01)
    browsers = [Browser(simulation, number) for number in range(1, watchers + 1)]
    for each in browsers:
        yield each.sign_in()
    looks = []
    for _ in range(_LOOKS):
        yield deferLater(reactor, LOOK_SECONDS + 0.1)
        began = time.process_time()
        yield simulation.service.wiring.live.own.report(LiveQuery())
        looks.append(time.process_time() - began)
    alone, watched, counts, totals = [], [], [], []
    for _ in range(_ROUNDS):
        alone.append((yield _cpu(seconds)))
        for number, each in enumerate(browsers):
            query = _QUERIES[number // 2 % len(_QUERIES)] if number % 2 else ""
            each.send("GET", f"/ui/live/events?{query}", accept="text/event-stream")
        # the first messages are made
        yield deferLater(reactor, 1.0)
        watched.append((yield _cpu(seconds)))
        for each in browsers:
            found = each.messages()
            counts.append(len(found))
            totals.append(json.loads(found[-1])["total"] if found else 0)
            each.leave()
    figures = {
        "streams": streams,
        "watchers": watchers,
        "alone": median(alone),
        "watched": median(watched),
        "look": min(looks),
        "messages": min(counts),
        "total": min(totals),
    }
    print(json.dumps(figures), flush=True)


@inlineCallbacks
def _cpu(seconds: float) -> Generator[Deferred[Any], Any, float]:
    """Return the CPU seconds of a second."""
    began, wall = time.process_time(), time.monotonic()
    yield deferLater(reactor, seconds)
    return (time.process_time() - began) / (time.monotonic() - wall)


def main(streams: int, watchers: int, seconds: float) -> None:
    """Measure, and print the figures."""
    simulate(streams + watchers, lambda simulation: _watch(simulation, streams, watchers, seconds))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
