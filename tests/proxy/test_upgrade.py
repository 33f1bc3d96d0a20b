"""The upgrade request to the server, and the handling of its 101."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from tests.proxy.gateway_fakes import FakeRequest, HeaderPairs, server
from twisted_vllm.errors import Draining
from twisted_vllm.http.client.exchange import UpstreamExchange
from twisted_vllm.http.client.response import UpstreamResponse
from twisted_vllm.http.headers import ResponseHead
from twisted_vllm.http.server.request_line import asked_protocols
from twisted_vllm.http.tunnel import SwitchedResponse
from twisted_vllm.proxy.upgrade import UpgradeRelay, acknowledged, upgrade_headers

KEY = b"openai-insecure-api-key.sk-1234"
HEAD = ResponseHead(101, b"Switching Protocols", [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")])


class FakeTunnel:
    """Records the calls of `join` and `cut`."""

    def __init__(self) -> None:
        self.joined: list[tuple[Any, ...]] = []
        self.cuts = 0

    def join(self, *arguments: Any) -> None:
        self.joined.append(arguments)

    def cut(self) -> None:
        self.cuts += 1


def request(*headers: tuple[bytes, bytes]) -> Any:
    return FakeRequest(method=b"GET", uri=b"/vllm/v1/realtime", headers=list(headers))


def switched(tunnel: FakeTunnel) -> SwitchedResponse:
    return SwitchedResponse(HEAD, tunnel)  # type: ignore[arg-type]  # a fake


def relayed(response: UpstreamResponse, asking: Any) -> UpgradeRelay:
    relay = UpgradeRelay(asking)
    relay.await_response(succeed(response))
    return relay


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ([(b"UPGRADE", b"WebSocket")], [(b"Upgrade", b"websocket")]),
        ([(b"Upgrade", b"h2c-14, websocket"), (b"X-A", b"b"), (b"upgrade", b"c")], [(b"Upgrade", b"websocket")]),
        (
            [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Protocol", b"x,y")],
            [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Protocol", b"x,y")],
        ),
        (
            [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Protocol", b"x," + KEY)],
            [(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Protocol", b"x")],
        ),
        ([(b"Upgrade", b"websocket"), (b"Sec-WebSocket-Protocol", KEY)], [(b"Upgrade", b"websocket")]),
    ],
)
def test_the_upgrade_to_websocket_is_forwarded_without_the_key(sent: HeaderPairs, asked: HeaderPairs) -> None:
    head = request(*sent).head
    head.protocols = asked_protocols(b"GET", "1.1", sent)
    assert upgrade_headers(head) == [(b"Connection", b"Upgrade"), *asked]


@pytest.mark.parametrize(
    ("offered", "told"),
    [
        (b"realtime, " + KEY, [b"realtime"]),
        (b"other, " + KEY, []),
        (KEY, []),
        (b"realtime", []),
    ],
)
def test_a_subprotocol_is_confirmed_only_beside_a_key_and_never_the_key(offered: bytes, told: list[bytes]) -> None:
    head = acknowledged(request((b"Sec-WebSocket-Protocol", offered)), HEAD)
    assert [value for name, value in head.headers if name == b"Sec-WebSocket-Protocol"] == told
    assert head.headers[:2] == HEAD.headers


def test_the_subprotocol_that_the_server_chose_stays() -> None:
    chosen = ResponseHead(101, b"", [*HEAD.headers, (b"sec-websocket-protocol", b"other")])
    assert acknowledged(request((b"Sec-WebSocket-Protocol", b"realtime, other, " + KEY)), chosen) is chosen


def test_a_101_joins_the_two_and_the_outcome_is_the_tunnel_s() -> None:
    tunnel, asking = FakeTunnel(), request()
    relay = relayed(switched(tunnel), asking)
    [(joined, head, ended)] = tunnel.joined
    assert (joined, head) == (asking, HEAD)
    assert asking.events == []
    ended("completed")
    relay.cancel()
    assert (relay.context.outcome, tunnel.cuts) == ("completed", 0)


def test_a_101_during_the_drain_gets_an_error_response() -> None:
    tunnel, asking = FakeTunnel(), request()
    asking.site.draining = True
    relayed(switched(tunnel), asking)
    assert tunnel.joined == []
    assert isinstance(asking.answered, Draining)


def test_a_request_that_fails_cuts_its_tunnel_once() -> None:
    tunnel = FakeTunnel()
    relay = relayed(switched(tunnel), request())
    relay.cancel()
    relay.cancel()
    assert (relay.context.outcome, tunnel.cuts) == ("failed", 1)


def test_a_client_that_goes_before_the_101_gives_the_request_up() -> None:
    cancelled: list[object] = []
    relay = UpgradeRelay(request())
    relay.await_response(Deferred(cancelled.append))
    relay.cancel()
    assert (relay.context.outcome, len(cancelled)) == ("client_disconnected", 1)


def test_the_server_may_switch_to_what_the_client_asked_for() -> None:
    exchange = UpstreamExchange(server(), b"GET", b"", None, protocols=frozenset((b"websocket",)))
    assert exchange.allows_switch(HEAD)
    assert not exchange.allows_switch(ResponseHead(101, b"", [(b"Upgrade", b"websocket, other")]))
    assert not exchange.allows_switch(ResponseHead(101, b"", []))
