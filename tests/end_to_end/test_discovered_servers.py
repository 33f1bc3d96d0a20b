"""Servers that DNS finds: each address is a server, and changes take effect without dropping a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred

from tests.end_to_end.end_to_end_harness import HOST, Answer, StandIn, eventually, parse_answer, request_bytes
from tests.end_to_end.messages import LAST, OK, STREAM, chunk
from tests.upstreams.dns_server import DnsServer
from twisted_vllm.config.settings import (
    DiscoverySettings,
    HealthSettings,
    ModelEntry,
    RoutingSettings,
    Server,
    Timeouts,
)
from twisted_vllm.upstreams.discovered import EMPTY_ANSWERS

SERVICE = "vllm.default.svc"
SRV_NAME = f"_http._tcp.{SERVICE}"
INTERVAL = 10.0


@pytest.fixture
def dns(reactor: Any) -> Iterator[DnsServer]:
    server = DnsServer(reactor)
    yield server
    pytest_twisted.blockon(ensureDeferred(server.stop()))


def entry(discovery: str, host: str, port: int) -> ModelEntry:
    server = Server(f"{host}:{port}", host, port, False, b"", f"{host}:{port}".encode(), None, Timeouts())
    return ModelEntry("m", "m", server, discovery=discovery)


class Lab:
    """A gateway in front of a service that DNS knows."""

    def __init__(self, reactor: Any, dns: DnsServer, gateway_to: Any, found: ModelEntry) -> None:
        self.dns = dns
        self._reactor = reactor
        self.gateway = gateway_to(
            None,
            models=(found,),
            routing=RoutingSettings(routing_strategy="round-robin", num_retries=0),
            health=HealthSettings(interval=None),
            discovery=DiscoverySettings(interval=INTERVAL, resolver=dns.address),
        )

    def servers(self) -> list[str]:
        return sorted(state.name for state in self.gateway.service.wiring.servers)

    async def until_known(self, *names: str) -> None:
        """Let the gateway resolve names until it has these servers."""
        await eventually(self._reactor, lambda: self.servers() == sorted(names), 10)

    async def look_again(self) -> None:
        """Let the gateway resolve the name once more."""
        before = self.dns.asked.total()
        self.gateway.clock.advance(INTERVAL)
        await eventually(self._reactor, lambda: self.dns.asked.total() > before)
        # its answer arrives in a later turn
        await eventually(self._reactor, lambda: not self.asking)

    @property
    def asking(self) -> bool:
        return any(connection.transport.connected for connection in self.dns.factory.connections)

    async def ask(self) -> Answer:
        answer: Answer = await self.gateway.ask("POST", "/vllm/v1/completions", body={"model": "m"})
        return answer


@pytest_twisted.ensureDeferred
async def test_every_server_of_an_srv_record_gets_its_share_and_its_name(
    reactor: Any, dns: DnsServer, gateway_to: Any, stand_in: Any
) -> None:
    one, other = stand_in(OK), stand_in(OK)
    dns.services(SRV_NAME, (0, 1, one.port, "a." + SERVICE), (0, 1, other.port, "b." + SERVICE))
    dns.addresses("a." + SERVICE, HOST)
    dns.addresses("b." + SERVICE, HOST)
    lab = Lab(reactor, dns, gateway_to, entry("srv", SRV_NAME, 80))
    names = [f"{SERVICE}:{each.port}/{HOST}" for each in (one, other)]
    await lab.until_known(*names)
    for _ in range(6):
        assert (await lab.ask()).status == 200
    lines = [line for line in lab.gateway.request_lines() if line["model"] == "m"]
    assert Counter(line["server"] for line in lines) == Counter(dict.fromkeys(names, 3))
    # the servers are asked for the service, not for their addresses
    assert f"\r\nHost: {SERVICE}:{one.port}\r\n".encode() in one.received


@pytest_twisted.ensureDeferred
async def test_a_server_that_leaves_ends_what_it_began_and_one_that_comes_is_used(
    reactor: Any, dns: DnsServer, gateway_to: Any, stand_in: Any
) -> None:
    one, other = stand_in(STREAM), stand_in(OK)
    name, target = f"{SERVICE}:{one.port}/{HOST}", "pod." + SERVICE
    dns.services(SRV_NAME, (0, 1, one.port, target))
    dns.addresses(target, HOST)
    lab = Lab(reactor, dns, gateway_to, entry("srv", SRV_NAME, 80))
    await lab.until_known(name)
    running = await lab.gateway.send(request_bytes("POST", "/vllm/v1/completions", body={"model": "m", "stream": True}))
    await running.until_received(b"abc")

    dns.services(SRV_NAME, (0, 1, other.port, target))
    lab.gateway.clock.advance(INTERVAL)
    await lab.until_known(f"{SERVICE}:{other.port}/{HOST}")
    assert (await lab.ask()).body == b"ok"
    assert len(one.connections) == 1
    one.connections[0].send(chunk(b"def") + LAST)
    await running.until_received(b"0\r\n\r\n")
    assert parse_answer(running.received).body == b"abcdef"

    dns.services(SRV_NAME, (0, 1, one.port, target), (0, 1, other.port, target))
    lab.gateway.clock.advance(INTERVAL)
    await lab.until_known(name, f"{SERVICE}:{other.port}/{HOST}")


@pytest_twisted.ensureDeferred
async def test_while_dns_fails_or_says_nothing_for_a_moment_the_servers_stay(
    reactor: Any, dns: DnsServer, gateway_to: Any, stand_in: Any
) -> None:
    server = stand_in(OK)
    dns.addresses(SERVICE, HOST)
    lab = Lab(reactor, dns, gateway_to, entry("dns", SERVICE, server.port))
    name = f"{SERVICE}:{server.port}/{HOST}"
    await lab.until_known(name)
    dns.fail()
    for _ in range(3):
        await lab.look_again()
    dns.fail(False)
    dns.forget(SERVICE)
    for _ in range(EMPTY_ANSWERS - 1):
        await lab.look_again()
    assert (await lab.ask()).status == 200
    assert lab.servers() == [name]
    said = [line for line in lab.gateway.log_lines() if "cannot be resolved" in str(line)]
    assert len(said) == 1
    await lab.look_again()
    await lab.until_known(f"{SERVICE}:{server.port}")
    # nothing is there any more: an answer of the gateway's own, not a wait
    assert (await lab.ask()).status in (502, 503)


@pytest_twisted.ensureDeferred
async def test_every_address_of_a_name_is_a_server(
    reactor: Any, dns: DnsServer, gateway_to: Any, stand_in: Any
) -> None:
    server: StandIn = stand_in(OK)
    second = reactor.listenTCP(server.port, server, interface="127.0.0.2")
    dns.addresses(SERVICE, HOST, "127.0.0.2")
    lab = Lab(reactor, dns, gateway_to, entry("dns", SERVICE, server.port))
    names = [f"{SERVICE}:{server.port}/{address}" for address in (HOST, "127.0.0.2")]
    await lab.until_known(*names)
    for _ in range(4):
        assert (await lab.ask()).status == 200
    lines = [line for line in lab.gateway.request_lines() if line["model"] == "m"]
    assert Counter(line["server"] for line in lines) == Counter(dict.fromkeys(names, 2))
    await second.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_name_of_a_file_that_was_read_again_is_resolved(
    reactor: Any, dns: DnsServer, gateway_to: Any, stand_in: Any
) -> None:
    server = stand_in(OK)
    dns.addresses(SERVICE, HOST)
    dns.addresses("other." + SERVICE, HOST)
    lab = Lab(reactor, dns, gateway_to, entry("dns", SERVICE, server.port))
    await lab.until_known(f"{SERVICE}:{server.port}/{HOST}")
    changed = attrs.evolve(lab.gateway.settings, models=(entry("dns", "other." + SERVICE, server.port),))
    lab.gateway.service.wiring.models.set_configured(changed)
    await lab.until_known(f"other.{SERVICE}:{server.port}/{HOST}")
    assert (await lab.ask()).status == 200
