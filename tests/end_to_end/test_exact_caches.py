"""A prompt goes to the server that has it in its prefix cache, whoever had it computed there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred

from tests.end_to_end.end_to_end_harness import Gateway, StandIn, eventually, request_bytes, server_at
from tests.end_to_end.messages import whole
from tests.upstreams.kv_publishing import Publisher, stored
from twisted_vllm.config.settings import ModelEntry, RoutingSettings

TOKENS = list(range(64))
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Call me Ishmael. " * 20}]}
ANSWER = whole(b'{"choices":[],"usage":{"prompt_tokens":64,"completion_tokens":2,"total_tokens":66}}')


def answering(server: StandIn, tokens: bytes | None) -> list[bytes]:
    """Have a server answer, to /tokenize with these tokens or never; return the paths that it is asked."""
    asked: list[bytes] = []

    def respond(wire: Any) -> None:
        head, end, body = wire.received.partition(b"\r\n\r\n")
        if not end or not body.endswith(b"}"):
            return
        asked.append(head.split(b" ")[1])
        wire.received = b""
        if asked[-1] != b"/tokenize":
            wire.send(ANSWER)
        elif tokens is not None:
            wire.send(whole(b'{"count": 64, "tokens": %b}' % tokens))

    server.respond = respond
    return asked


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    context = zmq.Context()
    publisher = Publisher(context)
    yield publisher
    publisher.stop()
    context.term()


class Fleet:
    """A gateway with two servers; the second publishes that it has the prompt, which this gateway never sent."""

    def __init__(
        self, reactor: Any, publisher: Publisher, stand_in: Any, gateway_to: Any, tokens: bytes | None
    ) -> None:
        self._reactor = reactor
        self._publisher = publisher
        servers = [stand_in(), stand_in()]
        self.asked = [answering(each, tokens) for each in servers]
        one, two = (server_at(each.port) for each in servers)
        two = attrs.evolve(two, kv_events=publisher.endpoint, kv_events_replay=publisher.replay)
        routing = RoutingSettings(routing_strategy="prefix")
        models = (ModelEntry("m", "m", one), ModelEntry("m", "m", two))
        self.gateway: Gateway = gateway_to(None, models=models, routing=routing)
        self.second = two.name

    async def followed(self) -> None:
        """Wait until the gateway knows what the second server has."""
        self._publisher.publish(stored([1, 2, 3, 4], TOKENS))

        def known() -> bool:
            self._publisher.serve()
            self.gateway.clock.advance(0)
            index = self.gateway.service.wiring.kv_caches.index_of(self.second)
            return index is not None and len(index) == 4

        await eventually(self._reactor, known)

    def answers(self) -> list[int]:
        """How many chats each server answered."""
        return [each.count(b"/v1/chat/completions") for each in self.asked]

    def questions(self) -> int:
        return sum(each.count(b"/tokenize") for each in self.asked)


@pytest_twisted.ensureDeferred
async def test_a_prompt_goes_where_it_is_cached(
    reactor: Any, publisher: Publisher, stand_in: Any, gateway_to: Any
) -> None:
    fleet = Fleet(reactor, publisher, stand_in, gateway_to, str(TOKENS).encode())
    await fleet.followed()
    for _ in range(4):
        answer = await fleet.gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT)
        assert answer.status == 200
    assert fleet.answers() == [0, 4]
    assert fleet.questions() == 1


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_tell_the_tokens_delays_a_request_by_little(
    reactor: Any, publisher: Publisher, stand_in: Any, gateway_to: Any
) -> None:
    fleet = Fleet(reactor, publisher, stand_in, gateway_to, None)
    await fleet.followed()
    asking = Deferred.fromCoroutine(fleet.gateway.ask("POST", "/vllm/v1/chat/completions", body=CHAT))
    await eventually(reactor, lambda: fleet.questions() == 1)
    assert sum(fleet.answers()) == 0
    fleet.gateway.clock.advance(0.3)
    assert (await asking).status == 200
    assert sum(fleet.answers()) == 1


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_while_the_tokens_are_asked_for_sends_nothing(
    reactor: Any, publisher: Publisher, stand_in: Any, gateway_to: Any
) -> None:
    fleet = Fleet(reactor, publisher, stand_in, gateway_to, None)
    await fleet.followed()
    client = await fleet.gateway.send(request_bytes("POST", "/vllm/v1/chat/completions", body=CHAT))
    await eventually(reactor, lambda: fleet.questions() == 1)
    client.cut()
    await eventually(reactor, lambda: fleet.gateway.request_lines())
    assert sum(fleet.answers()) == 0


@pytest_twisted.ensureDeferred
async def test_other_routes_are_placed_without_a_question(
    reactor: Any, publisher: Publisher, stand_in: Any, gateway_to: Any
) -> None:
    fleet = Fleet(reactor, publisher, stand_in, gateway_to, str(TOKENS).encode())
    await fleet.followed()
    body = {**CHAT, "max_tokens": 1}
    assert (await fleet.gateway.ask("POST", "/vllm/v1/messages", body=body)).status == 200
    assert fleet.questions() == 0
