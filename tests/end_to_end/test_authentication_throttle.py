"""Failed authentication is throttled per client address; valid keys are not."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.end_to_end.end_to_end_harness import request_bytes
from tests.end_to_end.messages import OK
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.header_cache import MOST_HEADS
from twisted_vllm.identification.inquiry import MOST_QUESTIONS

GUESSES, CLIENTS = 1_000, 50


@pytest_twisted.ensureDeferred
async def test_failed_authentication_is_throttled_on_every_route_and_valid_keys_are_served(
    stand_in: Any, gateway_to: Any
) -> None:
    gateway = gateway_to(stand_in(OK).port, limits=Limits(max_failed_authentications=3))
    key = await gateway.make_key()
    for path in ("/vllm/v1/models", "/key/info", "/vllm/v1/models"):
        assert (await gateway.ask("GET", path, "sk-guess")).status == 401
    for path in ("/vllm/v1/models", "/key/info"):
        refused = await gateway.ask("GET", path, "sk-guess")
        assert (refused.status, refused.error["code"]) == (429, "too_many_failures")
        assert 1 <= int(refused.header("retry-after")) <= 60
        assert (await gateway.ask("GET", path, key)).status == 200
    assert (await gateway.ask("GET", "/vllm/v1/models", None)).status == 401


@pytest.mark.parametrize("limit", [None, 60], ids=["as unknown", "as too many"])
@pytest.mark.parametrize("path", ["/vllm/v1/models", "/key/info", "/key/list"])
@pytest_twisted.ensureDeferred
async def test_a_flood_of_invalid_keys_asks_the_database_seldom_and_fills_no_memory(
    reactor: Any, stand_in: Any, gateway_to: Any, path: str, limit: int | None
) -> None:
    gateway = gateway_to(stand_in(OK).port, limits=Limits(max_failed_authentications=limit))
    await gateway.make_key()
    inquiry = gateway.service.wiring.inquiry
    clients = [await gateway.connect() for _ in range(CLIENTS)]
    really_began = reactor.seconds()
    for number in range(GUESSES):
        clients[number % CLIENTS].send(request_bytes("GET", path, f"sk-guess-{number:032d}"))

    def answered() -> int:
        return sum(client.received.count(b"HTTP/1.1 4") for client in clients)

    began, patience = gateway.clock.seconds(), really_began + 20
    while answered() < GUESSES:
        assert reactor.seconds() < patience, f"{answered()} of {GUESSES} were answered"
        gateway.clock.advance(0.01)
        await deferLater(reactor, 0.001, lambda: None)
    # the pause between two questions takes real time, or ends when the clock has gone on so far (`ClockedReactor`)
    passed = gateway.clock.seconds() - began + reactor.seconds() - really_began
    assert 0 < inquiry.asked <= 1 + MOST_QUESTIONS * passed
    site = gateway.service.site
    assert len(site.header_cache) <= MOST_HEADS
    assert not site.running()
    assert len(site.ids) == 0
    assert len(gateway.service.wiring.index) == 1
    assert "waiting=0" in repr(inquiry)


@pytest.mark.parametrize("key", ["guess-0123456789abcdef", "sk-short", "Basic"])
@pytest_twisted.ensureDeferred
async def test_what_can_be_no_key_is_refused_without_a_question(stand_in: Any, gateway_to: Any, key: str) -> None:
    gateway = gateway_to(stand_in(OK).port)
    for path in ("/vllm/v1/models", "/key/info"):
        assert (await gateway.ask("GET", path, key)).status == 401
    assert gateway.service.wiring.inquiry.asked == 0


@pytest_twisted.ensureDeferred
async def test_an_open_gateway_asks_nothing(stand_in: Any, gateway_to: Any) -> None:
    gateway = gateway_to(stand_in(OK).port, master_key=None)
    assert (
        await gateway.ask("GET", "/vllm/v1/models", "sk-whatever-0123456789", headers={"Host": "localhost"})
    ).status == 200
    assert gateway.service.wiring.inquiry.asked == 0
