"""All servers are asked for their metrics, and none can hold up or break the others'."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock, Cooperator
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from tests.proxy.gateway_fakes import server
from twisted_vllm.config.settings import Server
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.upstreams.metrics_of_servers import AT_ONCE, FRESH, MAX_SIZE, TIMEOUT, MetricsOfServers

A, B = server("a:80"), server("b:80")


class Response:
    """A response that the test sends in pieces."""

    def __init__(self, status: int = 200, media_type: bytes = b"text/plain; version=0.0.4") -> None:
        self.code = status
        self.head = ResponseHead(status, b"OK", [(b"Content-Type", media_type)])
        self.stopped = False
        self.protocol: Any = None

    def deliverBody(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self)

    def stopProducing(self) -> None:
        self.stopped = True

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)
        self.protocol.connectionLost(Failure(ResponseDone()))


class Lab:
    """Servers whose answers the test gives.

    Attributes:
        asked: the requests that no answer was given to, by the server's name.
        paths: the URLs and Accept headers that were asked for.
    """

    def __init__(self, *servers: Server) -> None:
        self.clock = Clock()
        self.asked: dict[str, Deferred[Any]] = {}
        self.paths: list[tuple[bytes, bytes]] = []
        self.steps = 0
        self.metrics = MetricsOfServers(
            self,  # type: ignore[arg-type]  # only `request` is called
            self.clock,
            self._cooperate,
            lambda: servers,
        )

    def _cooperate(self, steps: Iterator[Any]) -> Any:
        def at_once(call: Callable[[], None]) -> Any:
            return self.clock.callLater(0, call)

        return Cooperator(lambda: lambda: False, at_once).cooperate(steps)

    def request(self, method: bytes, url: bytes, *, headers: Any, server: Server, **more: Any) -> Deferred[Any]:
        self.paths.append((url, headers.getRawHeaders(b"accept")[0]))
        asked: Deferred[Any] = Deferred()
        self.asked[server.name] = asked
        return asked

    def answer(self, name: str, text: bytes, **head: Any) -> Response:
        response = self.begin_answer(name, **head)
        response.send(text)
        return response

    def begin_answer(self, name: str, **head: Any) -> Response:
        response = Response(**head)
        self.asked.pop(name).callback(response)
        return response

    def expose(self) -> list[Any]:
        found: list[Any] = []
        self.metrics.expose().addBoth(found.append)
        return found

    def turn(self) -> None:
        self.clock.pump([0.0] * 20)


def ups(text: bytes) -> list[str]:
    return [line.partition("{")[2] for line in text.decode().splitlines() if line.startswith("vllm_passthrough_up")]


def test_every_server_is_asked_with_its_own_path() -> None:
    lab = Lab(A, server("b:80", base_path=b"/prefix"))
    found = lab.expose()
    assert lab.paths == [
        (b"http://a:80/metrics", b"text/plain;version=0.0.4"),
        (b"http://b:80/prefix/metrics", b"text/plain;version=0.0.4"),
    ]
    # in the order of the configuration, whoever answers first
    lab.answer("b:80", b"x_total 2\n# EOF\n", media_type=b"application/openmetrics-text; version=1.0.0")
    lab.answer("a:80", b"x 1\n")
    lab.turn()
    assert found[0].endswith(
        b'# TYPE x untyped\nx{server="a:80"} 1\n# TYPE x_total untyped\nx_total{server="b:80"} 2\n'
    )
    assert ups(found[0]) == ['server="a:80"} 1', 'server="b:80"} 1']


@pytest.mark.parametrize("how", ["refused", "silent", "status", "nonsense", "large", "slow"])
def test_a_server_that_fails_hides_only_its_own(how: str) -> None:
    lab = Lab(A, B)
    found = lab.expose()
    lab.answer("a:80", b"x 1\n")
    if how == "refused":
        lab.asked["b:80"].errback(ConnectionRefusedError())
    elif how == "status":
        assert lab.begin_answer("b:80", status=503).stopped
    elif how == "nonsense":
        lab.answer("b:80", b"<html>\n")
    elif how == "large":
        assert lab.answer("b:80", b"#" * (MAX_SIZE + 1)).stopped
    elif how == "slow":
        response = lab.begin_answer("b:80")
        response.protocol.dataReceived(b"x 2\n")
        lab.clock.advance(TIMEOUT)
        assert response.stopped
    else:
        lab.clock.advance(TIMEOUT)
    lab.turn()
    assert ups(found[0]) == ['server="a:80"} 1', 'server="b:80"} 0']
    assert b'x{server="a:80"} 1\n' in found[0]


def test_whoever_asks_at_the_same_time_shares_a_collection() -> None:
    lab = Lab(A)
    first, second = lab.expose(), lab.expose()
    lab.answer("a:80", b"x 1\n")
    lab.turn()
    assert first == second == lab.expose()
    assert len(lab.paths) == 1
    lab.clock.advance(FRESH)
    lab.expose()
    assert len(lab.paths) == 2


def test_a_client_that_leaves_stops_nothing_for_others() -> None:
    lab = Lab(A)
    left = lab.metrics.expose()
    found = lab.expose()
    left.cancel()
    left.addErrback(lambda failure: failure.trap(CancelledError) and None)
    lab.answer("a:80", b"x 1\n")
    lab.turn()
    assert b'x{server="a:80"} 1\n' in found[0]


def test_a_large_fleet_is_asked_in_turn() -> None:
    lab = Lab(*(server(f"s{index}:80") for index in range(AT_ONCE + 5)))
    found = lab.expose()
    assert len(lab.asked) == AT_ONCE
    lab.clock.advance(TIMEOUT)
    assert len(lab.paths) == AT_ONCE + 5
    lab.clock.advance(TIMEOUT)
    lab.turn()
    assert len(ups(found[0])) == AT_ONCE + 5


def test_without_a_server_there_is_an_empty_exposition() -> None:
    lab = Lab()
    found = lab.expose()
    lab.turn()
    assert ups(found[0]) == []


def test_a_server_that_is_away_for_the_night_has_one_line_and_one_when_it_is_back() -> None:
    lab = Lab(A, B)
    lines: list[tuple[str, str]] = []

    def note(event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).endswith("metrics_of_servers.MetricsOfServers"):
            lines.append((event["log_level"].name, formatEvent(event)))

    def scrape(refused: bool) -> None:
        found = lab.expose()
        if refused:
            lab.asked.pop("a:80").errback(Failure(ConnectionRefusedError()))
        else:
            lab.answer("a:80", b"x 1\n")
        lab.answer("b:80", b"x 1\n")
        lab.clock.pump([0.1] * 20)
        assert b"x{" in found[0]

    observer = cast(ILogObserver, note)
    globalLogPublisher.addObserver(observer)
    try:
        for _ in range(20):
            scrape(refused=True)
        scrape(refused=False)
        scrape(refused=True)
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [level for level, _ in lines] == ["warn", "info", "warn"]
    assert lines[0][1].startswith("The metrics of a:80 are missing in /metrics/upstreams: ")
    assert lab.metrics.missing.keys() == {"a:80"}
