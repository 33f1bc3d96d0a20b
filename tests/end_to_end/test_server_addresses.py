"""A server whose name has several addresses, some of them dead, or others after a while."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList, ensureDeferred

from tests.end_to_end.conftest import MakeGateway, MakeStandIn
from tests.end_to_end.end_to_end_harness import HOST, Gateway, StandIn, Wire, begin, eventually, server_at
from tests.end_to_end.messages import whole
from tests.http.fake_resolver import FakeResolver
from twisted_vllm.config.settings import Server

NAME = "gpu.example"
#: loopback addresses, all of this machine on Linux
FIRST, SECOND, DEAD = HOST, "127.0.0.2", "127.0.0.3"


@pytest.fixture
def resolver(reactor: Any) -> Iterator[FakeResolver]:
    """Resolves all names of this process."""
    fake = FakeResolver(FIRST)
    before = reactor.installNameResolver(fake)
    yield fake
    reactor.installNameResolver(before)


class Machines:
    """Servers on one port of several addresses; each answers with its address.

    Attributes:
        port: the port.
        answered: how many requests each answered.
        open: the connections of each.
    """

    def __init__(self, reactor: Any, stand_in: MakeStandIn) -> None:
        first = stand_in()
        self.port = first.port
        self.answered: Counter[str] = Counter()
        self.standins = {FIRST: first, SECOND: stand_in()}
        self._port = reactor.listenTCP(self.port, self.standins[SECOND], interface=SECOND)
        for address, each in self.standins.items():
            each.respond = lambda wire, address=address: self._respond(wire, address)  # type: ignore[misc]

    def _respond(self, wire: Wire, address: str) -> None:
        if b"\r\n\r\n" in wire.received:
            wire.received = b""
            self.answered[address] += 1
            wire.send(whole(b'{"object": "%b"}' % address.encode()))

    def server(self) -> Server:
        return attrs.evolve(server_at(self.port), name=f"{NAME}:{self.port}", host=NAME)

    async def stop(self) -> None:
        await self._port.stopListening()


@pytest.fixture
def machines(reactor: Any, stand_in: MakeStandIn) -> Iterator[Machines]:
    try:
        found = Machines(reactor, stand_in)
    except OSError as error:
        pytest.skip(f"{SECOND} is no address of this machine: {error}")
    yield found
    pytest_twisted.blockon(ensureDeferred(found.stop()))


async def ask_together(gateway: Gateway, count: int) -> Counter[int]:
    """Send requests at the same time; return how often each status came."""
    asked = [ensureDeferred(gateway.ask("GET", "/vllm/v1/models")) for _ in range(count)]
    results: Any = await DeferredList(asked)
    return Counter(answer.status for _, answer in results)


@pytest_twisted.ensureDeferred
async def test_requests_at_the_same_time_go_to_all_addresses(
    gateway_to: MakeGateway, machines: Machines, resolver: FakeResolver
) -> None:
    resolver.addresses = (FIRST, SECOND)
    gateway = gateway_to(machines.server())
    assert await ask_together(gateway, 20) == {200: 20}
    assert min(machines.answered[FIRST], machines.answered[SECOND]) >= 8


@pytest_twisted.ensureDeferred
async def test_one_dead_address_of_two_costs_no_request(
    gateway_to: MakeGateway, machines: Machines, resolver: FakeResolver
) -> None:
    resolver.addresses = (DEAD, FIRST)
    gateway = gateway_to(machines.server())
    for _ in range(3):
        assert await ask_together(gateway, 10) == {200: 10}
    assert machines.answered == {FIRST: 30}
    passed_over = [line for line in gateway.log_text().splitlines() if "is passed over at" in line]
    assert len(passed_over) == 1
    assert f"{NAME}:{machines.port} is passed over at {DEAD}: it refuses connections" in passed_over[0]


@pytest_twisted.ensureDeferred
async def test_a_name_that_changes_is_followed_without_a_restart(
    gateway_to: MakeGateway, machines: Machines, resolver: FakeResolver, reactor: Any
) -> None:
    gateway = gateway_to(machines.server())
    assert await ask_together(gateway, 4) == {200: 4}
    resolver.addresses = (SECOND,)
    gateway.pass_time(3)
    assert await ask_together(gateway, 4) == {200: 4}, "the old address is still used"
    assert machines.answered == {FIRST: 8}
    for _ in range(10):
        gateway.pass_time(3)
        assert await ask_together(gateway, 4) == {200: 4}
    assert machines.answered[SECOND] >= 4
    before = machines.answered[FIRST]
    assert await ask_together(gateway, 8) == {200: 8}
    assert machines.answered[FIRST] == before
    first = machines.standins[FIRST]
    await eventually(reactor, lambda: all(each.lost is not None for each in first.connections))


@pytest_twisted.ensureDeferred
async def test_a_stream_to_an_address_that_is_gone_goes_on(
    gateway_to: MakeGateway, stand_in: MakeStandIn, resolver: FakeResolver
) -> None:
    server: StandIn = stand_in()
    gateway = gateway_to(attrs.evolve(server_at(server.port), host=NAME))
    client, upstream = await begin(server, gateway)
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 12\r\n\r\ndata: ")
    await client.until_received(b"data: ")
    resolver.addresses = (SECOND,)
    gateway.service.wiring.agent.reconfigure(gateway.settings.servers, None, {})
    upstream.send(b"hello\n")
    await client.until_received(b"hello\n")
    assert upstream.lost is None or upstream.received
