"""The caches of servers that publish KV events are followed, and prompts are prepared for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.proxy.gateway_fakes import server
from tests.upstreams.kv_publishing import Publisher, stored
from twisted_vllm.bodies.edits import combined_salt
from twisted_vllm.config.settings import Server
from twisted_vllm.upstreams.kv_caches import KvCaches
from twisted_vllm.upstreams.prefix_table import PrefixTable
from twisted_vllm.upstreams.tokenizing import Question

TEXT = (11, 12, 13)
TOKENS = list(range(12))
SERVERS = ("one:80", "two:80")


class Tokenizer:
    """Answers with `answer`, and keeps who was asked what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answer: Deferred[list[int] | None] = Deferred()

    def ask(self, server: Server, asked: Question) -> Deferred[list[int] | None]:
        self.asked.append((server.name, json.loads(asked.body)))
        return self.answer


class Fleet:
    """Two servers, of which the first publishes events."""

    def __init__(self, reactor: Any, publisher: Publisher) -> None:
        self._reactor = reactor
        self._publisher = publisher
        self.tokenizer = Tokenizer()
        self.caches = KvCaches(reactor, reactor, self.tokenizer)  # type: ignore[arg-type]  # in the real one's place
        source = attrs.evolve(server("one:80"), kv_events=publisher.endpoint, kv_events_replay=publisher.replay)
        self.servers = [source, server("two:80")]
        self.table = self.caches.table(PrefixTable())

    def prepare(self, salt: str | None = None, **members: Any) -> Deferred[None] | None:
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], **members}).encode()
        return self.caches.prepare(self.servers, TEXT, body, "qwen", salt)

    def until(self, holds: Callable[[], bool]) -> Deferred[None]:
        async def until() -> None:
            for _ in range(500):
                self._publisher.serve()
                if holds():
                    return
                await deferLater(self._reactor, 0.01)
            raise AssertionError("it never came to hold")

        return Deferred.fromCoroutine(until())

    def matched(self) -> list[int]:
        return self.table.matched(TEXT, SERVERS)[0]


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    context = zmq.Context()
    publisher = Publisher(context)
    yield publisher
    publisher.stop()
    context.term()


@pytest.fixture
def fleet(reactor: Any, publisher: Publisher) -> Iterator[Fleet]:
    fleet = Fleet(reactor, publisher)
    yield fleet
    fleet.caches.stop()


@pytest_twisted.ensureDeferred
async def test_a_prompt_goes_where_its_tokens_are_cached(publisher: Publisher, fleet: Fleet) -> None:
    fleet.caches.configure(fleet.servers)
    assert len(fleet.caches) == 1
    assert fleet.prepare() is None
    publisher.publish(stored([1, 2, 3], TOKENS))
    await fleet.until(lambda: bool((index := fleet.caches.index_of("one:80")) and len(index)))
    waiting = fleet.prepare()
    assert waiting is not None
    assert not waiting.called
    ((_, asked),) = fleet.tokenizer.asked
    assert asked == {"model": "qwen", "messages": [{"role": "user", "content": "Hi"}]}
    assert fleet.matched() == [0, 0]
    fleet.tokenizer.answer.callback([*TOKENS, 99])
    assert waiting.called
    assert fleet.matched() == [3, 0]
    # its next turn needs no question
    assert fleet.prepare() is None


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("tokens", [None, [], [-1] * 12, [1 << 32] * 12])
async def test_without_tokens_what_was_sent_counts(
    publisher: Publisher, fleet: Fleet, tokens: list[int] | None
) -> None:
    fleet.caches.configure(fleet.servers)
    publisher.publish(stored([1, 2, 3], TOKENS))
    await fleet.until(lambda: fleet.prepare() is not None)
    fleet.tokenizer.answer.callback(tokens)
    fleet.table.learn(TEXT, "two:80")
    assert fleet.matched() == [0, 3]


@pytest_twisted.ensureDeferred
async def test_the_salts_of_key_and_client_are_those_that_the_server_gets(publisher: Publisher, fleet: Fleet) -> None:
    fleet.caches.configure(fleet.servers)
    salt = combined_salt("keys", "clients")
    publisher.publish(stored([1, 2, 3], TOKENS, extra_keys=[[salt], None, None]))
    await fleet.until(lambda: fleet.prepare("keys", cache_salt="clients") is not None)
    fleet.tokenizer.answer.callback(TOKENS)
    assert fleet.matched() == [3, 0]


@pytest_twisted.ensureDeferred
async def test_a_lora_adapter_has_its_own_cache(publisher: Publisher, fleet: Fleet) -> None:
    fleet.caches.configure(fleet.servers)
    publisher.publish(stored([1, 2, 3], TOKENS, lora_name="qwen", extra_keys=[["qwen"]] * 3))
    await fleet.until(lambda: fleet.prepare() is not None)
    fleet.tokenizer.answer.callback(TOKENS)
    assert fleet.matched() == [3, 0]


@pytest_twisted.ensureDeferred
async def test_a_server_that_leaves_is_followed_no_longer(publisher: Publisher, fleet: Fleet) -> None:
    fleet.caches.configure(fleet.servers)
    publisher.publish(stored([1, 2, 3], TOKENS))
    await fleet.until(lambda: fleet.caches.index_of("one:80") is not None)
    kept = fleet.caches.index_of("one:80")
    fleet.caches.configure(fleet.servers)
    assert fleet.caches.index_of("one:80") is kept
    fleet.caches.configure(fleet.servers[1:])
    assert fleet.caches.index_of("one:80") is None
    assert fleet.prepare() is None


def test_without_events_nothing_is_asked(fleet: Fleet) -> None:
    fleet.caches.configure(fleet.servers[1:])
    assert not fleet.caches
    assert fleet.prepare() is None
