"""A subscriber follows a publisher over real ZMQ sockets, whatever becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.proxy.gateway_fakes import server
from tests.upstreams.kv_publishing import CLEARED, Publisher, removed, stored
from twisted_vllm.upstreams.kv_events import KvEventSubscriber
from twisted_vllm.upstreams.kv_index import chain

PROMPT = list(range(12))
KEYS = chain(PROMPT, 4)


@pytest.fixture
def context() -> Iterator[Any]:
    context = zmq.Context()
    yield context
    context.term()


@pytest.fixture
def publisher(context: Any) -> Iterator[Publisher]:
    publisher = Publisher(context)
    yield publisher
    publisher.stop()


@pytest.fixture
def until(reactor: Any, publisher: Publisher) -> Callable[..., Deferred[None]]:
    """Lets the reactor run until something holds."""

    async def until(holds: Callable[[], bool], *, serving: bool = True) -> None:
        for _ in range(500):
            if serving:
                publisher.serve()
            if holds():
                return
            await deferLater(reactor, 0.01)
        raise AssertionError("it never came to hold")

    return lambda *holds, **options: Deferred.fromCoroutine(until(*holds, **options))


@pytest.fixture
def follow(context: Any, reactor: Any, publisher: Publisher) -> Iterator[Callable[..., KvEventSubscriber]]:
    started: list[KvEventSubscriber] = []

    def follow(*, replay: bool = True) -> KvEventSubscriber:
        source = attrs.evolve(
            server("one:80"), kv_events=publisher.endpoint, kv_events_replay=publisher.replay if replay else None
        )
        started.append(KvEventSubscriber(source, context, reactor))
        return started[-1]

    yield follow
    for each in started:
        each.stop()


def leading(subscriber: KvEventSubscriber) -> int:
    return -1 if subscriber.index is None else subscriber.index.leading(KEYS)


@pytest_twisted.ensureDeferred
async def test_what_was_stored_before_and_after_is_known(publisher: Publisher, follow: Any, until: Any) -> None:
    publisher.publish(CLEARED, stored([1, 2], PROMPT[:8]))
    subscriber = follow()
    assert subscriber.index is None
    await until(lambda: leading(subscriber) == 2)
    publisher.publish(stored([3], PROMPT[8:], parent_block_hash=2))
    await until(lambda: leading(subscriber) == 3)
    publisher.publish(removed([3]))
    await until(lambda: leading(subscriber) == 2)
    assert publisher.replays == 1


@pytest_twisted.ensureDeferred
async def test_a_lost_message_is_fetched(publisher: Publisher, follow: Any, until: Any) -> None:
    subscriber = follow()
    await until(lambda: leading(subscriber) == 0)
    publisher.publish(stored([1, 2], PROMPT[:8]), lost=True)
    publisher.publish(stored([3], PROMPT[8:], parent_block_hash=2))
    await until(lambda: leading(subscriber) == 3)
    assert publisher.replays == 2


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_started_again_has_an_empty_cache(publisher: Publisher, follow: Any, until: Any) -> None:
    publisher.publish(stored([1, 2, 3], PROMPT))
    subscriber = follow()
    await until(lambda: leading(subscriber) == 3)
    publisher.stop()
    await until(lambda: subscriber.index is None, serving=False)
    publisher.start()
    await until(lambda: leading(subscriber) == 0)
    publisher.publish(stored([1], PROMPT[:4]))
    await until(lambda: leading(subscriber) == 1)


@pytest_twisted.ensureDeferred
async def test_without_a_replay_what_comes_is_known(publisher: Publisher, follow: Any, until: Any) -> None:
    subscriber = follow(replay=False)

    def known() -> bool:
        # the first messages come before the subscription does
        publisher.publish(stored([1], PROMPT[:4]))
        return leading(subscriber) == 1

    await until(known)
    publisher.publish(stored([2], PROMPT[4:8], parent_block_hash=1))
    await until(lambda: leading(subscriber) == 2)
    publisher.publish(CLEARED, lost=True)
    publisher.publish(stored([1], PROMPT[:4]))
    await until(lambda: leading(subscriber) == 1)


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_read_is_told_and_the_next_is_followed(
    publisher: Publisher, follow: Any, until: Any
) -> None:
    publisher.publish(stored([1, 2, 3], PROMPT))
    subscriber = follow()
    await until(lambda: leading(subscriber) == 3)
    publisher.publish_bytes(b"\xc1 no MessagePack")
    await until(lambda: subscriber.index is None)
    publisher.publish(stored([1], PROMPT[:4]))
    await until(lambda: leading(subscriber) == 1)


@pytest_twisted.ensureDeferred
async def test_many_messages_are_read_in_several_turns(publisher: Publisher, follow: Any, until: Any) -> None:
    subscriber = follow()
    await until(lambda: leading(subscriber) == 0)
    for number in range(300):
        publisher.publish(stored([number], [number] * 4))
    await until(lambda: subscriber.index is not None and len(subscriber.index) == 300)
