"""Names are resolved by a DNS server over TCP, as the C library would resolve them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, ensureDeferred
from twisted.internet.protocol import Factory, Protocol

from tests.upstreams.dns_server import HOST, DnsServer
from twisted_vllm.config.settings import DiscoverySettings
from twisted_vllm.config.urls import ResolverAddress
from twisted_vllm.upstreams.discovered import Answer, Found, ServiceName
from twisted_vllm.upstreams.discovery import LookupFailed
from twisted_vllm.upstreams.name_lookup import HOSTS, RESOLV_CONF, NameLookup

PODS = "vllm.default.svc"
SRV_NAME = f"_http._tcp.{PODS}"


@pytest.fixture
def server(reactor: Any) -> Iterator[DnsServer]:
    server = DnsServer(reactor)
    yield server
    pytest_twisted.blockon(ensureDeferred(server.stop()))


@pytest.fixture
def settings(server: DnsServer) -> DiscoverySettings:
    return DiscoverySettings(resolver=server.address)


@pytest.fixture
def lookup(reactor: Any) -> NameLookup:
    return NameLookup(reactor, lambda path: "")


async def addresses(lookup: NameLookup, settings: DiscoverySettings, name: str = PODS) -> list[str]:
    return [found.address for found in (await lookup.look_up(ServiceName("dns", name), settings)).found]


@pytest_twisted.ensureDeferred
async def test_every_address_of_a_name_is_found_with_the_time_that_it_is_valid(
    server: DnsServer, lookup: NameLookup, settings: DiscoverySettings
) -> None:
    server.addresses(PODS, "10.0.0.2", "10.0.0.1", "10.0.0.2", ttl=5)
    answer = await lookup.look_up(ServiceName("dns", PODS), settings)
    assert answer == Answer((Found(0, "10.0.0.1"), Found(0, "10.0.0.2")), ttl=5.0)


@pytest_twisted.ensureDeferred
async def test_a_pod_with_both_kinds_of_addresses_is_one_server_and_one_with_ipv6_alone_is_found(
    server: DnsServer, lookup: NameLookup, settings: DiscoverySettings
) -> None:
    server.addresses(PODS, "fd00::1", "10.0.0.1")
    assert await addresses(lookup, settings) == ["10.0.0.1"]
    server.addresses(PODS, "fd00::1", "fd00::2")
    assert await addresses(lookup, settings) == ["fd00::1", "fd00::2"]


@pytest_twisted.ensureDeferred
async def test_an_alias_is_followed(server: DnsServer, lookup: NameLookup, settings: DiscoverySettings) -> None:
    server.alias(PODS, "elsewhere.example", "10.0.0.7", ttl=9)
    answer = await lookup.look_up(ServiceName("dns", PODS), settings)
    assert (answer.found, answer.ttl) == ((Found(0, "10.0.0.7"),), 9.0)


@pytest_twisted.ensureDeferred
async def test_an_answer_larger_than_a_datagram_is_whole_and_one_over_the_limit_is_cut(
    server: DnsServer, lookup: NameLookup, settings: DiscoverySettings
) -> None:
    pods = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(300)]
    server.addresses(PODS, *pods)
    answer = await lookup.look_up(ServiceName("dns", PODS), settings)
    assert (len(answer.found), answer.left_out) == (256, 44)
    answer = await lookup.look_up(ServiceName("dns", PODS), attrs.evolve(settings, max_servers=1000))
    assert sorted(found.address for found in answer.found) == sorted(pods)


@pytest_twisted.ensureDeferred
async def test_an_unknown_name_has_no_servers_and_an_error_is_one(
    server: DnsServer, lookup: NameLookup, settings: DiscoverySettings
) -> None:
    assert await addresses(lookup, settings) == []
    server.fail()
    with pytest.raises(LookupFailed, match="error 2"):
        await addresses(lookup, settings)


@pytest_twisted.ensureDeferred
async def test_srv_records_give_ports_priorities_and_weights(
    server: DnsServer, lookup: NameLookup, settings: DiscoverySettings
) -> None:
    server.services(SRV_NAME, (20, 0, 8001, "a." + PODS), (10, 5, 8000, "b." + PODS), (10, 1, 8000, "gone." + PODS))
    server.addresses("a." + PODS, "10.0.0.1")
    server.tell_address(SRV_NAME, "b." + PODS, "10.0.0.2")
    answer = await lookup.look_up(ServiceName("srv", SRV_NAME), settings)
    assert answer.found == (Found(0, "10.0.0.2", 8000, 5), Found(1, "10.0.0.1", 8001, 1))
    # what came with the answer is not asked for
    assert server.asked["b." + PODS] == 0


@pytest_twisted.ensureDeferred
async def test_a_service_that_says_that_it_is_not_there_has_no_servers(
    server: DnsServer, lookup: NameLookup, settings: DiscoverySettings
) -> None:
    server.services(SRV_NAME, (0, 0, 0, ""))
    assert (await lookup.look_up(ServiceName("srv", SRV_NAME), settings)).found == ()


@pytest_twisted.ensureDeferred
async def test_a_hundred_targets_are_all_asked_for(
    server: DnsServer, lookup: NameLookup, settings: DiscoverySettings
) -> None:
    pods = {f"pod-{number}.{PODS}": f"10.0.1.{number}" for number in range(100)}
    server.services(SRV_NAME, *((0, 1, 8000, name) for name in pods))
    for name, address in pods.items():
        server.addresses(name, address)
    answer = await lookup.look_up(ServiceName("srv", SRV_NAME), settings)
    assert {found.address for found in answer.found} == set(pods.values())


@pytest_twisted.ensureDeferred
async def test_a_short_name_is_found_in_the_domains_of_resolv_conf(reactor: Any, server: DnsServer) -> None:
    server.addresses("vllm.default.svc.cluster.local", "10.0.0.1")
    conf = "nameserver 192.0.2.1\nsearch default.svc.cluster.local svc.cluster.local\noptions ndots:5\n"
    lookup = NameLookup(reactor, {RESOLV_CONF: conf}.__getitem__)
    settings = DiscoverySettings(resolver=server.address)
    assert await addresses(lookup, settings, "vllm.default") == ["10.0.0.1"]
    assert server.asked["vllm.default.default.svc.cluster.local"] > 0


@pytest_twisted.ensureDeferred
async def test_etc_hosts_comes_first(reactor: Any) -> None:
    files = {RESOLV_CONF: "nameserver 192.0.2.1", HOSTS: "127.0.0.9 gpu GPU-1.example # a comment\n127.0.0.8 other\n"}
    lookup = NameLookup(reactor, files.__getitem__)
    assert await addresses(lookup, DiscoverySettings(), "gpu-1.example") == ["127.0.0.9"]


@pytest_twisted.ensureDeferred
async def test_a_server_that_nobody_runs_is_an_error(reactor: Any, server: DnsServer, lookup: NameLookup) -> None:
    settings = DiscoverySettings(resolver=ResolverAddress(HOST, 1))
    with pytest.raises(LookupFailed, match=r"127\.0\.0\.1 does not answer"):
        await addresses(lookup, settings)


class Silent(Protocol):
    """Takes a connection and says nothing; or hangs up as soon as it is asked."""

    def __init__(self, hangs_up: bool) -> None:
        self._hangs_up = hangs_up

    def dataReceived(self, data: bytes) -> None:
        if self._hangs_up and self.transport is not None:
            self.transport.loseConnection()


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_silent_or_hangs_up_is_an_error(reactor: Any, lookup: NameLookup) -> None:
    for hangs_up, seconds in ((True, 30.0), (False, 0.1)):
        factory: Any = Factory.forProtocol(partial(Silent, hangs_up))
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface=HOST)
        settings = DiscoverySettings(resolver=ResolverAddress(HOST, port.getHost().port), timeout=seconds)
        with pytest.raises(LookupFailed):
            await addresses(lookup, settings)
        with pytest.raises(LookupFailed):
            await lookup.look_up(ServiceName("srv", SRV_NAME), settings)
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_look_up_can_be_given_up(server: DnsServer, lookup: NameLookup, settings: DiscoverySettings) -> None:
    asked = lookup.look_up(ServiceName("dns", PODS), settings)
    asked.cancel()
    with pytest.raises(CancelledError):
        await asked


def test_the_files_are_those_of_the_system() -> None:
    assert (Path("/etc/resolv.conf"), Path("/etc/hosts")) == (RESOLV_CONF, HOSTS)
