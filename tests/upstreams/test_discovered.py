"""What the answers of DNS make of the entries of the model list."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.settings import ModelEntry, Server, Timeouts
from twisted_vllm.upstreams.discovered import (
    EMPTY_ANSWERS,
    SHORTEST,
    Answer,
    Expansion,
    Found,
    Knowledge,
    ServiceName,
    make_answer,
    seconds_until_next,
    services_of,
)

PODS = "vllm.default.svc"
SRV_NAME = f"_http._tcp.{PODS}"


def entry(host: str = PODS, discovery: str | None = "dns", *, tls: bool = False, base: bytes = b"") -> ModelEntry:
    server = Server(
        f"{host}:8000{base.decode()}", host, 8000, tls, base, f"{host}:8000".encode(), None, Timeouts(connect=2)
    )
    return ModelEntry("qwen", "Qwen", server, weight=3, discovery=discovery)


addresses = st.ip_addresses().map(str)
found = st.builds(
    Found,
    order=st.integers(0, 65_535),
    address=addresses,
    port=st.integers(0, 65_535),
    weight=st.integers(1, 65_535),
)


def test_each_address_is_a_server_of_its_own_with_the_name_of_the_service() -> None:
    one, other = Expansion().expand(
        [entry(base=b"/base")], {ServiceName("dns", PODS): (Found(0, "10.0.0.1"), Found(0, "10.0.0.2"))}
    )
    assert one.server.name == f"{PODS}:8000/base/10.0.0.1"
    assert (one.server.address, one.server.host, one.server.port) == ("10.0.0.1", PODS, 8000)
    assert one.server.host_header == f"{PODS}:8000".encode()
    assert one.server.url == b"http://10.0.0.1:8000/base"
    assert other.server.url == b"http://10.0.0.2:8000/base"
    assert (one.weight, one.model_name, one.server.timeouts.connect) == (3, "qwen", 2)


def test_an_srv_record_gives_the_port_and_its_domain_the_host() -> None:
    service = entry(SRV_NAME, "srv", tls=True)
    service = attrs.evolve(service, server=attrs.evolve(service.server, port=443))
    known = {ServiceName("srv", SRV_NAME): (Found(0, "fd00::1", 8443, 5), Found(1, "10.0.0.2", 443))}
    one, other = Expansion().expand([service], known)
    assert (one.server.port, one.server.host, one.weight) == (8443, PODS, 15)
    assert (one.order, other.order) == (1, 2)
    assert one.server.name == f"{PODS}:8443/fd00::1"
    assert one.server.url == b"https://[fd00::1]:8443"
    assert one.server.host_header == f"{PODS}:8443".encode()
    assert other.server.host_header == PODS.encode()


def test_events_of_prefix_caches_come_from_each_server_itself() -> None:
    service = entry()
    events: dict[str, Any] = {"kv_events": f"tcp://{PODS}:5557", "kv_events_replay": "tcp://elsewhere:5558"}
    service = attrs.evolve(service, server=attrs.evolve(service.server, **events))
    one, other = Expansion().expand([service], {ServiceName("dns", PODS): (Found(0, "10.0.0.1"), Found(0, "fd00::1"))})
    assert (one.server.kv_events, other.server.kv_events) == ("tcp://10.0.0.1:5557", "tcp://[fd00::1]:5557")
    assert one.server.kv_events_replay == "tcp://elsewhere:5558"


def test_an_entry_without_known_servers_and_one_without_discovery_stay_as_they_are() -> None:
    plain, unknown = entry("gpu-1", None), entry()
    assert Expansion().expand([plain, unknown], {}) == (plain, unknown)
    assert services_of([plain, unknown, unknown]) == {ServiceName("dns", PODS)}


@given(st.lists(found, max_size=20))
def test_no_two_servers_have_the_same_url_or_name(each: list[Found]) -> None:
    answer = make_answer(each, None, 1000)
    entries = Expansion().expand([entry(SRV_NAME, "srv")], {ServiceName("srv", SRV_NAME): answer.found})
    if each:
        places = {(one.address, one.port or 8000) for one in each}
        assert {one.server.url for one in entries} == {
            f"http://{f'[{address}]' if ':' in address else address}:{port}".encode() for address, port in places
        }


@given(st.lists(found, max_size=20), st.integers(1, 10))
def test_an_answer_has_each_server_once_in_one_order_and_no_more_than_the_limit(each: list[Found], most: int) -> None:
    answer = make_answer(each, 5.0, most)
    assert answer == make_answer(reversed(each), 5.0, most)
    assert len(answer.found) <= most
    assert len(answer.found) + answer.left_out == len({(one.address, one.port) for one in each})
    orders = [one.order for one in answer.found]
    assert orders == sorted(orders)
    assert set(orders) == set(range(len(set(orders))))


@given(st.floats(0, 1e9), st.floats(1, 1e6))
def test_a_name_is_resolved_again_when_its_answer_ends_but_not_later_than_the_interval(ttl: float, most: float) -> None:
    seconds = seconds_until_next(Answer(ttl=ttl), most)
    assert SHORTEST <= seconds <= most
    assert seconds == most or seconds == max(ttl, SHORTEST)
    assert seconds_until_next(None, most) == seconds_until_next(Answer(), most) == most


def test_empty_answers_are_believed_when_they_go_on() -> None:
    knowledge = Knowledge()
    servers = (Found(0, "10.0.0.1"),)
    assert knowledge.answered(Answer(servers))
    assert not knowledge.answered(Answer(servers))
    for _ in range(EMPTY_ANSWERS - 1):
        assert not knowledge.answered(Answer())
    assert not knowledge.answered(Answer(servers))
    assert [knowledge.answered(Answer()) for _ in range(EMPTY_ANSWERS)] == [False] * (EMPTY_ANSWERS - 1) + [True]
    assert knowledge.found == ()


@given(st.lists(st.one_of(st.none(), st.lists(addresses, min_size=1, max_size=3)), max_size=20))
def test_failures_change_no_server_and_are_told_once(events: list[list[str] | None]) -> None:
    knowledge, failing = Knowledge(), False
    last: tuple[Found, ...] = ()
    for event in events:
        if event is None:
            assert knowledge.failed() is not failing
        else:
            answer = make_answer((Found(0, address) for address in event), None, 10)
            assert knowledge.answered(answer) == (answer.found != last)
            last = answer.found
        failing = event is None
        assert knowledge.found == last


def test_when_one_of_many_servers_changes_no_other_is_made_anew() -> None:
    services = [entry(f"s{number}.default.svc", "dns") for number in range(4)]
    found = [tuple(Found(0, f"10.0.{number}.{host}") for host in range(256)) for number in range(4)]
    names = [ServiceName("dns", service.server.host) for service in services]
    expansion = Expansion()
    before = expansion.expand(services, dict(zip(names, found, strict=True)))
    found[1] = (*found[1][1:], Found(0, "10.9.9.9"))
    after = expansion.expand(services, dict(zip(names, found, strict=True)))
    made = {id(each) for each in after} - {id(each) for each in before}
    assert (len(before), len(after), len(made)) == (1024, 1024, 1)
    assert after == Expansion().expand(services, dict(zip(names, found, strict=True)))


def test_a_service_that_changed_has_other_entries() -> None:
    found = {ServiceName("dns", PODS): (Found(0, "10.0.0.1"),)}
    expansion = Expansion()
    (before,) = expansion.expand([entry(PODS, "dns")], found)
    (after,) = expansion.expand([attrs.evolve(entry(PODS, "dns"), weight=7)], found)
    assert (before.weight, after.weight) == (3, 7)
