"""The root service: how it starts, what it logs, and in which order it stops."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent, globalLogPublisher
from twisted.web.client import Agent
from twisted.web.http_headers import Headers
from zope.interface import implementer

from twisted_vllm.app.service import GatewayService
from twisted_vllm.app.start_error import StartError
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import ModelEntry, Server, Settings, Timeouts

LOOPBACK = "tcp:0:interface=127.0.0.1"


def server(name: str, api_key: str | None = None) -> Server:
    secret = None if api_key is None else Secret(api_key)
    return Server(name, "127.0.0.1", 9, False, b"", name.encode(), secret, Timeouts())


@implementer(ILogObserver)
class Events:
    """Everything that was logged, as text."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        self.texts.append(formatEvent(event))


@pytest.fixture
def log() -> Iterator[list[str]]:
    events = Events()
    globalLogPublisher.addObserver(events)
    yield events.texts
    globalLogPublisher.removeObserver(events)


Make = Callable[..., GatewayService]


@pytest.fixture
def make(reactor: Any, tmp_path: Path) -> Iterator[Make]:
    """Makes services, and stops those that run at the end."""
    made: list[GatewayService] = []

    def make(companions: Any = (), **changes: Any) -> GatewayService:
        values: dict[str, Any] = {
            "listen": (LOOPBACK,),
            "master_key": Secret("sk-master"),
            "allow_anonymous": False,
            "database_url": Secret(f"sqlite:///{tmp_path}/keys.sqlite3"),
            "default_server": server("gpu-1:8000"),
            "models": (),
        }
        made.append(GatewayService(reactor, Settings(**{**values, **changes}), Events(), companions))
        return made[-1]

    yield make
    for each in made:
        if each.running:
            pytest_twisted.blockon(each.stopService())


def start(service: GatewayService) -> None:
    service.privilegedStartService()
    service.startService()


async def get(reactor: Any, service: GatewayService, path: str) -> tuple[int, Any]:
    """Send a request that closes its connection; return status and JSON."""
    port = service.ports[0].getHost().port  # type: ignore[attr-defined]  # a TCP address has one
    closing = Headers({"Connection": ["close"]})
    response = await treq.get(f"http://127.0.0.1:{port}{path}", agent=Agent(reactor), headers=closing)
    return response.code, await response.json()


def test_it_says_where_it_listens_and_what_it_serves(make: Make, log: list[str]) -> None:
    entries = (ModelEntry("m", "m", server("gpu-2:8000")), ModelEntry("n", "n", server("gpu-1:8000")))
    service = make(models=entries, warnings=("router_settings: is not used",))
    start(service)
    port = service.ports[0].getHost().port  # type: ignore[attr-defined]  # a TCP address has one
    assert "router_settings: is not used" in log
    assert f"Listening on 127.0.0.1:{port}" in log
    assert "Serving gpu-1:8000, gpu-2:8000 with 0 virtual keys, master key set" in log


def test_an_open_gateway_says_that_it_is_open(make: Make, log: list[str]) -> None:
    start(make(master_key=None))
    assert log[-1] == "Serving gpu-1:8000 with 0 virtual keys, open to anybody: no master key is set"


def test_it_listens_on_every_address_that_it_was_given(make: Make, tmp_path: Path) -> None:
    service = make(listen=(LOOPBACK, f"unix:{tmp_path}/gateway.sock", "tcp6:0:interface=\\:\\:1"))
    start(service)
    assert len(service.ports) == 3


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_serves_and_is_named_in_the_log(
    make: Make, tmp_path: Path, reactor: Any, log: list[str]
) -> None:
    start(make(listen=(f"unix:{tmp_path}/gateway.sock",)))
    assert f"Listening on {tmp_path}/gateway.sock" in log
    ended: Deferred[bytes] = Deferred()

    class Asks(Protocol):
        received = b""

        def connectionMade(self) -> None:
            assert self.transport is not None
            self.transport.write(b"GET /health/liveliness HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

        def dataReceived(self, data: bytes) -> None:
            self.received += data

        def connectionLost(self, reason: object = None) -> None:
            ended.callback(self.received)

    await connectProtocol(UNIXClientEndpoint(reactor, f"{tmp_path}/gateway.sock"), Asks())
    assert (await ended).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_port_in_use_is_told_and_nothing_stays_open(make: Make, logged_failures: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service = make(listen=(LOOPBACK, f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"))
        with pytest.raises(StartError, match=r"Couldn't listen on 127\.0\.0\.1:.*choose another address with --listen"):
            service.privilegedStartService()
    assert service.ports == []
    assert logged_failures.flush() == [None]


def test_a_database_that_cannot_be_used_is_told_and_nothing_stays_open(
    make: Make, logged_failures: Any, log: list[str]
) -> None:
    service = make(database_url=Secret("sqlite:////missing/keys.sqlite3"))
    service.privilegedStartService()
    with pytest.raises(StartError, match="The directory of the database, /missing, does not exist"):
        service.startService()
    assert service.ports == []
    assert log[-1].startswith("The gateway cannot start: The directory of the database")
    assert logged_failures.flush() == [None]
    service.running = 0


@pytest_twisted.ensureDeferred
async def test_it_is_ready_once_it_started(make: Make, reactor: Any) -> None:
    service = make()
    start(service)
    status, body = await get(reactor, service, "/health/readiness")
    assert (status, body["status"]) == (200, "healthy")


class Companion(Service):
    """Records its starts and stops."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen
        self.gateway: GatewayService | None = None

    def privilegedStartService(self) -> None:
        self._seen.append("privileged")

    def startService(self) -> None:
        super().startService()
        self._seen.append("start")

    def stopService(self) -> None:
        assert self.gateway is not None
        self._seen.append(f"stop while the gateway has {len(self.gateway.ports)} ports")


@pytest_twisted.ensureDeferred
async def test_companions_start_before_the_gateway_listens_and_stop_after_it(make: Make) -> None:
    seen: list[str] = []
    companion = Companion(seen)
    service = make([companion])
    companion.gateway = service
    service.privilegedStartService()
    service.startService()
    await service.stopService()
    assert seen == ["privileged", "start", "stop while the gateway has 0 ports"]


@pytest_twisted.ensureDeferred
async def test_a_stop_of_what_never_started_ends(make: Make, reactor: Any) -> None:
    await make().stopService()
    await deferLater(reactor, 0, lambda: None)


@pytest_twisted.ensureDeferred
async def test_what_is_logged_in_the_end_names_no_secret(make: Make, log: list[str]) -> None:
    service = make(default_server=server("gpu-1:8000", "servers-own-key"))
    start(service)
    Logger().info("{service!r}", service=vars(service))
    await service.stopService()
    assert log[-1].startswith("Drained in 0.")
    assert not any("servers-own-key" in text or "sk-master" in text for text in log)
