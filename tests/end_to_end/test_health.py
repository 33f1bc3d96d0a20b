"""Servers that break and come back behind a whole gateway."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.end_to_end_harness import COMPLETION, MASTER_KEY, Gateway, StandIn, Wire, parse_answer, server_at
from twisted_vllm.config.settings import HealthSettings, ModelEntry, PriceList, RoutingSettings, Server

HEALTH = HealthSettings()
assert HEALTH.interval is not None
INTERVAL = HEALTH.interval
#: how long a client of a server that freezes may wait
BOUND = INTERVAL * HEALTH.fall + HEALTH.timeout


def answer_of(status: int, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %d S\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


class Vllm:
    """A server that a test freezes, thaws and breaks.

    Attributes:
        frozen: whether it answers nothing, though the kernel accepts connections.
        status: of its answers to completions.
        health: of its answers to checks.
        asleep: what it answers at ``/is_sleeping``; None is 404.
        checks: the heads of its checks.
        completions: how many requests it got.
    """

    def __init__(self, made: StandIn, name: str) -> None:
        self.made = made
        self.name = name
        self.port = made.port
        self.frozen = False
        self.status = self.health = 200
        self.asleep: bool | None = None
        self.checks: list[bytes] = []
        self.completions = 0
        made.respond = self._respond

    def _respond(self, wire: Wire) -> None:
        head, end, body = wire.received.partition(b"\r\n\r\n")
        if not end or self.frozen or (head.startswith(b"POST") and not body.endswith(b"}")):
            return
        wire.received = b""
        path = head.split(b" ")[1]
        if path == b"/v1/completions":
            self.completions += 1
            wire.send(answer_of(self.status, b'{"by": "%b"}' % self.name.encode()))
        elif path == b"/health":
            self.checks.append(head)
            wire.send(answer_of(self.health))
        elif self.asleep is None:
            wire.send(answer_of(404))
        else:
            wire.send(answer_of(200, b'{"is_sleeping": %b}' % (b"true" if self.asleep else b"false")))


class Fleet:
    """A gateway in front of servers of one model."""

    def __init__(self, reactor: Any, gateway: Gateway, servers: list[Vllm]) -> None:
        self._reactor = reactor
        self.gateway = gateway
        self.servers = servers

    async def turns(self, count: int = 10) -> None:
        for _ in range(count):
            await deferLater(self._reactor, 0.001, lambda: None)

    async def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass; return how much did."""
        clock = self.gateway.clock
        began = clock.seconds()
        while clock.seconds() - began < seconds and not until():
            clock.advance(0.25)
            await self.turns()
        return float(clock.seconds() - began)

    async def complete(self) -> tuple[int, str]:
        """Send a request; return the status, and who answered or the error's code."""
        answer = await self.gateway.answer_to(COMPLETION)
        return answer.status, answer.json.get("by") or answer.json["error"]["code"]

    async def health(self) -> dict[str, Any]:
        answer = await self.gateway.ask("GET", "/health")
        assert answer.status == 200
        return dict(answer.json)

    async def metrics(self, key: str | None = MASTER_KEY) -> str:
        return (await self.gateway.ask("GET", "/metrics", key, headers={"Host": "localhost"})).body.decode()


@pytest.fixture
def fleet_of(reactor: Any, stand_in: Any, gateway_to: Any) -> Callable[..., Fleet]:
    def make(count: int, *, health: HealthSettings = HEALTH, api_key: str | None = None, **settings: Any) -> Fleet:
        servers = [Vllm(stand_in(), f"gpu-{number}") for number in range(1, count + 1)]
        models = tuple(ModelEntry("m", "m", server_at(each.port, api_key=api_key), 1, PriceList()) for each in servers)
        routing = RoutingSettings(routing_strategy="round-robin")
        options = {"models": models, "health": health, "routing": routing, **settings}
        return Fleet(reactor, gateway_to(None, **options), servers)

    return make


@pytest_twisted.ensureDeferred
async def test_a_client_of_a_server_that_freezes_is_answered_by_another_in_time(fleet_of: Any) -> None:
    fleet = fleet_of(2)
    first = fleet.servers[0]
    assert [await fleet.complete() for _ in range(2)] == [(200, "gpu-1"), (200, "gpu-2")]
    first.frozen = True
    clients = [await fleet.gateway.send(COMPLETION) for _ in range(10)]
    await fleet.turns()
    waited = await fleet.wait(2 * BOUND, until=lambda: all(client.received for client in clients))
    assert waited <= BOUND + 0.5
    answers = [parse_answer(client.received) for client in clients]
    assert [(answer.status, answer.json.get("by", answer.json)) for answer in answers] == [(200, "gpu-2")] * 10
    assert [await fleet.complete() for _ in range(4)] == [(200, "gpu-2")] * 4
    report = await fleet.health()
    [down] = report["unhealthy_endpoints"]
    assert (down["state"], down["reason"], down["in_flight"]) == ("dead", "timeout", 0)
    first.frozen = False
    # a check may just be waiting for an answer that does not come any more
    await fleet.wait(HEALTH.timeout + 2.0)
    assert (await fleet.health())["healthy_count"] == 2
    assert "gpu-1" in {(await fleet.complete())[1] for _ in range(40)}


@pytest_twisted.ensureDeferred
async def test_a_lone_server_that_comes_back_is_used_as_soon_as_its_checks_pass(fleet_of: Any) -> None:
    fleet = fleet_of(1)
    [server] = fleet.servers
    server.frozen = True
    await fleet.wait(BOUND + 1)
    answer = await fleet.gateway.answer_to(COMPLETION)
    assert (answer.status, answer.error["code"]) == (503, "no_healthy_upstream")
    retry_after = float(answer.header("retry-after") or 0)
    assert 1 <= retry_after <= 3
    server.frozen = False
    # a check may just be waiting for an answer that does not come any more
    await fleet.wait(retry_after + HEALTH.timeout)
    assert await fleet.complete() == (200, "gpu-1")


@pytest_twisted.ensureDeferred
async def test_a_lone_server_that_answers_errors_is_never_shut(fleet_of: Any) -> None:
    """One tenant's requests that crash in the server must not take it from all others."""
    fleet = fleet_of(1)
    [server] = fleet.servers
    server.status = 500
    assert [(await fleet.complete())[0] for _ in range(20)] == [500] * 20
    assert (await fleet.health())["unhealthy_endpoints"][0]["state"] == "open"
    server.status = 200
    assert await fleet.complete() == (200, "gpu-1")


@pytest_twisted.ensureDeferred
async def test_a_server_that_answers_503_is_left_alone_while_there_is_another(fleet_of: Any) -> None:
    fleet = fleet_of(2)
    first, _ = fleet.servers
    first.status = 503
    assert {await fleet.complete() for _ in range(20)} == {(200, "gpu-2")}
    assert first.completions == 4, "allowed_fails and one more"
    # only trials reach it now, one for each cool-down
    await fleet.wait(6.0)
    assert {await fleet.complete() for _ in range(20)} == {(200, "gpu-2")}
    assert first.completions == 5
    first.status = 200
    await fleet.wait(11.0)
    assert "gpu-1" in {(await fleet.complete())[1] for _ in range(20)}
    assert (await fleet.health())["healthy_count"] == 2


@pytest_twisted.ensureDeferred
async def test_a_server_whose_health_is_503_gets_nothing(fleet_of: Any) -> None:
    fleet = fleet_of(2)
    fleet.servers[0].health = 503
    await fleet.wait(INTERVAL * HEALTH.fall + 1)
    assert {await fleet.complete() for _ in range(10)} == {(200, "gpu-2")}
    [down] = (await fleet.health())["unhealthy_endpoints"]
    assert (down["state"], down["reason"]) == ("dead", "status_503")


@pytest_twisted.ensureDeferred
async def test_a_server_that_sleeps_gets_nothing(fleet_of: Any) -> None:
    fleet = fleet_of(2)
    before = (await fleet.health())["healthy_endpoints"][0]["since"]
    fleet.servers[0].asleep = True
    await fleet.wait(INTERVAL + 1)
    assert {await fleet.complete() for _ in range(10)} == {(200, "gpu-2")}
    [down] = (await fleet.health())["unhealthy_endpoints"]
    assert (down["state"], down["reason"]) == ("sleeping", "sleeping")
    assert down["since"] > before
    fleet.servers[0].asleep = False
    await fleet.wait(2.0)
    assert {(await fleet.complete())[1] for _ in range(10)} == {"gpu-1", "gpu-2"}


@pytest_twisted.ensureDeferred
async def test_checks_carry_the_servers_own_key_and_keep_no_connection(fleet_of: Any) -> None:
    fleet = fleet_of(1, api_key="sk-of-the-server")
    await fleet.wait(3 * INTERVAL)
    [server] = fleet.servers
    assert len(server.checks) == 3
    for head in server.checks:
        assert b"Authorization: Bearer sk-of-the-server" in head
    assert all(wire.lost is not None for wire in server.made.connections)
    assert len(fleet.gateway.service.wiring.agent.connections) == 0


@pytest_twisted.ensureDeferred
async def test_a_busy_server_is_not_checked(fleet_of: Any) -> None:
    fleet = fleet_of(1)
    for _ in range(10):
        await fleet.complete()
        await fleet.wait(INTERVAL / 2)
    assert fleet.servers[0].checks == []


@pytest_twisted.ensureDeferred
async def test_the_health_of_servers_is_for_administrators(fleet_of: Any) -> None:
    fleet = fleet_of(2)
    refused = await fleet.gateway.ask("GET", "/health", None)
    assert (refused.status, refused.error["code"]) == (401, "missing_api_key")
    refused = await fleet.gateway.ask("GET", "/health", await fleet.gateway.make_key())
    assert (refused.status, refused.error["code"]) == (403, "route_not_allowed")
    report = await fleet.health()
    assert {name: len(value) if isinstance(value, list) else value for name, value in report.items()} == {
        "healthy_endpoints": 2,
        "unhealthy_endpoints": 0,
        "healthy_count": 2,
        "unhealthy_count": 0,
    }
    first = report["healthy_endpoints"][0]
    since = first.pop("since")
    assert since.startswith("1970-01-01T00:00:0"), "the gateway's clock"
    assert first == {
        "model_name": "m",
        "model": "hosted_vllm/m",
        "api_base": f"http://127.0.0.1:{fleet.servers[0].port}",
        "state": "closed",
        "reason": "",
        "in_flight": 0,
    }
    other = await fleet.gateway.ask("GET", "/health?model=another")
    assert other.json.get("healthy_count") == 0, other


@pytest_twisted.ensureDeferred
async def test_strangers_get_the_metrics_of_servers_without_their_names(fleet_of: Any) -> None:
    fleet = fleet_of(2)
    name = f"127.0.0.1:{fleet.servers[0].port}"
    fleet.servers[0].health = 503
    fleet.servers[0].status = 503
    await fleet.complete()
    await fleet.wait(2 * BOUND)
    told = await fleet.metrics()
    for line in (
        f'vllm_passthrough_upstream_healthy{{server="{name}"}} 0.0',
        f'vllm_passthrough_upstream_state{{server="{name}",state="dead"}} 1.0',
        f'vllm_passthrough_upstream_state{{server="{name}",state="closed"}} 0.0',
        f'vllm_passthrough_upstream_failures_total{{reason="status_503",server="{name}"}} 1.0',
        f'vllm_passthrough_health_checks_total{{result="failed",server="{name}"}}',
    ):
        assert line in told
    strange = await fleet.metrics(None)
    assert "127.0.0.1" not in strange
    assert 'vllm_passthrough_upstream_healthy{server="1"} 0.0' in strange
    assert 'vllm_passthrough_upstream_healthy{server="2"} 1.0' in strange
    assert "127.0.0.1" not in await fleet.metrics(await fleet.gateway.make_key())
    assert "127.0.0.1" not in await fleet.metrics("sk-wrong-0123456789")


@pytest_twisted.ensureDeferred
async def test_the_log_tells_each_change_once(fleet_of: Any) -> None:
    fleet = fleet_of(2)
    fleet.servers[0].health = 503
    await fleet.wait(4 * BOUND)
    fleet.servers[0].health = 200
    await fleet.wait(3.0)
    name = f"127.0.0.1:{fleet.servers[0].port}"
    told = [line["message"] for line in fleet.gateway.log_lines() if f"Server {name}" in line.get("message", "")]
    assert [re.sub(r"after \d+ s", "after N s", line) for line in told] == [
        f"Server {name} gets no requests (dead, was closed): status_503",
        f"Server {name} gets requests again, after N s without (closed, was dead): checks_passed",
    ]


@pytest_twisted.ensureDeferred
async def test_an_address_where_nobody_listens_is_dead_and_says_so_once(reactor: Any, gateway_to: Any) -> None:
    nobody = attrs.evolve(server_at(1), port=1)
    assert isinstance(nobody, Server)
    fleet = Fleet(reactor, gateway_to(nobody, health=HEALTH), [])
    await fleet.wait(2 * BOUND)
    answer = await fleet.gateway.answer_to(COMPLETION)
    assert (answer.status, answer.error["code"]) == (503, "no_healthy_upstream")
    assert answer.header("retry-after") in ("1", "2", "3")
    lines = [line["message"] for line in fleet.gateway.log_lines() if "127.0.0.1:1" in line.get("message", "")]
    # the first says that it is served
    assert [line.partition(",")[0] for line in lines[1:]] == ["Server 127.0.0.1:1 gets no requests (dead"]
    assert "connection_refused" in lines[1] and "nothing listens on its port 1" in lines[1]
