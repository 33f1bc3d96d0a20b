"""Silent connections of one address lock nobody out: it has a share, and idle connections give way."""

from __future__ import annotations

import time
from typing import Any

import pytest
from twisted.logger import capturedLogs as captured_logs
from twisted.logger import formatEvent

from tests.http.server_harness import Client, SiteHarness, TlsTransport, get, post, reply
from twisted_vllm.client_address import client_of, is_loopback
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.server.request import GatewayRequest

CAP = 20
SHARE = 0.25
MOST_OF_ONE = 5
ATTACKER, OTHER, PROXY = "192.0.2.1", "198.51.100.7", "203.0.113.1"


@pytest.fixture
def harness() -> SiteHarness:
    return limited()


def limited(cap: int | None = CAP, max_refused: int = 128) -> SiteHarness:
    return SiteHarness(
        Limits(max_connections=cap, max_connections_share=SHARE),
        is_exempt=lambda host: host == PROXY,
        max_refused=max_refused,
    )


def fill(harness: SiteHarness, count: int, host: str | None = None) -> list[Client]:
    """Connect so many silent clients, of one address or of one each."""
    return [harness.connect(host=host or f"10.0.{number // 250}.{number % 250}") for number in range(count)]


def is_served(client: Client) -> bool:
    if client.gone:
        return False
    client.send(get())
    return [answer.status for answer in client.answers()] == [200]


def closed(clients: list[Client]) -> int:
    for client in clients:
        client.settle()
    return sum(client.gone for client in clients)


def test_one_address_gets_its_share_and_others_are_let_in(harness: SiteHarness) -> None:
    attack = fill(harness, 500, ATTACKER)
    assert len(harness.site.connections) == MOST_OF_ONE
    assert all(is_served(client) for client in fill(harness, CAP - MOST_OF_ONE))
    attack[MOST_OF_ONE].send(get())
    answer = attack[MOST_OF_ONE].answer()
    assert (answer.status, answer.error()["code"], answer.header(b"retry-after")) == (503, "too_many_connections", b"1")
    assert "your address" in answer.error()["message"]
    assert harness.site.connection_limit.refused == {"address": 495}


def test_the_line_about_an_address_over_its_share_names_what_to_set(harness: SiteHarness) -> None:
    with captured_logs() as events:
        fill(harness, MOST_OF_ONE + 1, ATTACKER)
    [text] = map(formatEvent, events)
    assert f"Over {MOST_OF_ONE} client connections from {ATTACKER}" in text
    assert "passthrough.trusted_proxies" in text
    assert "limits.max_connections_share" in text


def test_the_addresses_of_one_ipv6_network_share_their_part(harness: SiteHarness) -> None:
    for number in range(50):
        harness.connect(host=f"2001:db8::{number:x}")
    assert len(harness.site.connections) == MOST_OF_ONE
    assert is_served(harness.connect(host="2001:db8:0:1::1"))


def test_a_connection_that_ends_gives_its_place_back_to_its_address(harness: SiteHarness) -> None:
    for _ in range(100):
        client = harness.connect(host=ATTACKER)
        assert is_served(client)
        client.leave()
    assert len(harness.site.connection_limit) == 0


def test_an_address_over_its_share_loses_its_own_idle_connection_first(harness: SiteHarness) -> None:
    idle = fill(harness, MOST_OF_ONE, ATTACKER)
    assert is_served(idle[0])
    harness.pass_time(2)
    assert is_served(harness.connect(host=ATTACKER))
    # silent before kept alive, and the oldest of them
    assert [client.gone for client in idle] == [False, *[client.gone for client in idle[1:]]]
    assert closed(idle[1:]) == 1


def test_a_trusted_proxy_may_have_all_connections(harness: SiteHarness) -> None:
    assert all(is_served(client) for client in fill(harness, CAP, PROXY))


def test_silent_connections_of_an_exempt_address_give_way_to_others_at_once(harness: SiteHarness) -> None:
    silent = fill(harness, CAP, PROXY)
    newcomers = fill(harness, 10)
    assert all(is_served(client) for client in newcomers)
    assert closed(silent) == 10
    assert harness.connect(host=PROXY) is not None
    assert harness.site.connection_limit.refused == {"total": 1}


def test_silent_connections_of_many_addresses_give_way_after_a_second(harness: SiteHarness) -> None:
    silent = fill(harness, CAP)
    late = harness.connect(host=OTHER)
    late.send(get())
    assert late.answer().status == 503
    harness.pass_time(1.5)
    assert is_served(harness.connect(host=OTHER))
    assert closed(silent) == 1


def test_what_is_closed_first_silent_then_kept_alive_then_slow_heads_and_never_a_request(harness: SiteHarness) -> None:
    harness.streaming.behaviour = lambda request: reply(request) if request.uri == b"/vllm/a" else None
    served = fill(harness, CAP)
    slow, busy, kept_alive, silent = served[:5], served[5:10], served[10:15], served[15:]
    for client in slow:
        client.send(b"GET /vllm/a HTTP/1.1\r\n")
    for client in busy:
        client.send(get(b"/vllm/b"))
    for client in kept_alive:
        assert is_served(client)
    harness.pass_time(6)
    gone = []
    for number in range(CAP):
        newcomer = harness.connect(host=f"198.51.100.{number}")
        if not newcomer.transport.closing:
            newcomer.send(get(b"/vllm/b"))
        gone.append((closed(silent), closed(kept_alive), closed(slow), closed(busy)))
    assert gone[:15] == [
        *[(number, 0, 0, 0) for number in range(1, 6)],
        *[(5, number, 0, 0) for number in range(1, 6)],
        *[(5, 5, number, 0) for number in range(1, 6)],
    ]
    assert gone[-1] == (5, 5, 5, 0)
    assert harness.site.connection_limit.refused == {"total": 5}


def test_blank_lines_do_not_make_a_connection_less_silent(harness: SiteHarness) -> None:
    silent = fill(harness, CAP)
    for _ in range(4):
        harness.pass_time(0.5)
        for client in silent:
            client.send(b"\r\n")
    assert is_served(harness.connect(host=OTHER))


def test_a_client_with_an_unread_answer_is_not_closed(harness: SiteHarness) -> None:
    served = fill(harness, CAP)
    for client in served:
        client.send(post(b"/vllm/a", b"")[:-4])
        client.channel.pauseProducing()
    harness.pass_time(10)
    late = harness.connect(host=OTHER)
    late.send(get())
    assert late.answer().status == 503


def test_a_tls_connection_that_gives_way_is_aborted(harness: SiteHarness) -> None:
    # its client would have to answer the end of TLS
    silent = [harness.connect(TlsTransport(), host=f"10.0.0.{number}") for number in range(CAP)]
    harness.pass_time(2)
    assert is_served(harness.connect(host=OTHER))
    assert sum(client.transport.aborted for client in silent) == 1


def test_a_client_that_does_not_close_its_side_of_tls_gives_way(harness: SiteHarness) -> None:
    open_ended = [harness.connect(TlsTransport(), host=f"10.0.0.{number}") for number in range(CAP)]
    for client in open_ended:
        # as the reactor would, without the client's own end
        client.channel.dataReceived(get(b"/vllm/a", b"Connection: close"))
        assert client.transport.disconnecting
    harness.pass_time(2)
    late = harness.connect(host=OTHER)
    late.send(get())
    assert late.answer().status == 503
    harness.pass_time(4)
    assert is_served(harness.connect(host=OTHER))
    assert sum(client.transport.aborted for client in open_ended) == 1


def test_connections_that_are_closing_are_bounded(harness: SiteHarness) -> None:
    """Their descriptors are free only in the reactor's next turn."""
    harness = limited(cap=1_000, max_refused=8)
    fill(harness, 1_000)
    harness.pass_time(2)
    for number in range(100):
        harness.connect(host=f"198.51.100.{number}")
    assert len(harness.site.connections) <= 1_000 + 4


def test_connections_that_are_refused_keep_no_idle_one_from_making_room(harness: SiteHarness) -> None:
    harness = limited(max_refused=4)
    silent = fill(harness, CAP)
    refused = fill(harness, 50, OTHER)
    harness.pass_time(1.5)
    assert sum(not client.gone for client in refused) == 4
    assert is_served(harness.connect(host=ATTACKER))
    assert closed(silent) == 1


def test_looking_for_idle_connections_is_cheap_however_many_come(harness: SiteHarness) -> None:
    harness = limited(cap=10_000)

    def never(request: GatewayRequest) -> None:
        """Answer later."""

    harness.streaming.behaviour = never
    busy: list[Any] = fill(harness, 10_000)
    for client in busy:
        client.send(get())
    harness.pass_time(2)
    began = time.process_time()
    for number in range(2_000):
        harness.connect(host=f"198.51.{number // 250}.{number % 250}")
    # one look takes some milliseconds: 2,000 of them would take ten seconds
    assert time.process_time() - began < 1.0
    assert harness.site.connection_limit.refused == {"total": 2_000}


def test_what_is_kept_of_addresses_ends_with_their_connections(harness: SiteHarness) -> None:
    for client in fill(harness, 2_000):
        client.leave()
    assert len(harness.site.connection_limit) == 0
    harness.pass_time(3)
    harness.assert_clean()


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", bytes.fromhex("20010db800010002")),
        ("", ""),
        ("fe80::1%eth0", bytes.fromhex("fe80000000000000")),
        ("no:address", "no:address"),
    ],
)
def test_which_client_an_address_stands_for(address: str, client: str | bytes) -> None:
    assert client_of(address) == client


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False),
        ("", False),
    ],
)
def test_which_addresses_are_this_machine_s_own(address: str, own: bool) -> None:
    assert is_loopback(address) is own
