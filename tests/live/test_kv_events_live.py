"""What a real vLLM publishes of its prefix cache is what it has in it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
import pytest_twisted
import treq
import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.web.http_headers import Headers

from tests.live.live_servers import served_model, server_from
from tests.proxy.gateway_fakes import server
from twisted_vllm.upstreams.kv_events import KvEventSubscriber
from twisted_vllm.upstreams.kv_index import chain

_JSON = {"Content-Type": ["application/json"]}


@pytest.fixture(scope="session")
def events_url() -> str:
    """A vLLM that publishes KV events."""
    return server_from("VLLM_EVENTS_URL", "this test needs a vLLM that publishes KV events")


class Followed:
    """A server and the subscriber that follows it."""

    def __init__(self, url: str, reactor: Any) -> None:
        self._url = url
        self._reactor = reactor
        self._model = served_model(url)
        self._context = zmq.Context()
        self.subscriber: KvEventSubscriber

    async def start(self) -> None:
        """Follow the server at the endpoints that it names."""
        sources = await treq.json_content(await treq.get(f"{self._url}/kv_event_sources", persistent=False))
        host = urlsplit(self._url).hostname or ""
        events, replay = (sources["0"][name].replace("*", host) for name in ("endpoint", "replay_endpoint"))
        source = attrs.evolve(server("live:80"), kv_events=events, kv_events_replay=replay)
        self.subscriber = KvEventSubscriber(source, self._context, self._reactor)

    def stop(self) -> None:
        self.subscriber.stop()
        self._context.term()

    async def post(self, path: str, **members: Any) -> Any:
        body = json.dumps({"model": self._model, **members}).encode()
        response = await treq.post(self._url + path, body, headers=Headers(_JSON), persistent=False)
        assert response.code == 200
        return await treq.json_content(response)

    def leading(self, tokens: list[int], *first: str) -> int | None:
        index = self.subscriber.index
        return (
            None if index is None else index.leading(chain(tokens, index.block_size, first)) if index.block_size else 0
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(1_000):
            if holds():
                return
            await deferLater(self._reactor, 0.01)
        raise AssertionError("it never came to hold")


@pytest.fixture
def followed(events_url: str, reactor: Any) -> Iterator[Followed]:
    followed = Followed(events_url, reactor)
    pytest_twisted.blockon(Deferred.fromCoroutine(followed.start()))
    yield followed
    followed.stop()


@pytest_twisted.ensureDeferred
async def test_the_tokens_of_a_prompt_are_found_in_the_cache(followed: Followed) -> None:
    messages = [{"role": "user", "content": " ".join(uuid.uuid4().hex for _ in range(30))}]
    tokens = (await followed.post("/tokenize", messages=messages))["tokens"]
    await followed.until(lambda: followed.leading(tokens) == 0)
    await followed.post("/v1/chat/completions", messages=messages, max_tokens=1)
    index = followed.subscriber.index
    assert index is not None
    await followed.until(lambda: index.block_size > 0 and followed.leading(tokens) == len(tokens) // index.block_size)
    assert followed.leading(tokens, "salt") == 0
    await followed.post("/v1/chat/completions", messages=messages, max_tokens=1, cache_salt="salt")
    await followed.until(lambda: followed.leading(tokens, "salt") == len(tokens) // index.block_size)


@pytest_twisted.ensureDeferred
async def test_what_was_cached_before_is_replayed(followed: Followed) -> None:
    messages = [{"role": "user", "content": " ".join(uuid.uuid4().hex for _ in range(30))}]
    tokens = (await followed.post("/tokenize", messages=messages))["tokens"]
    await followed.post("/v1/chat/completions", messages=messages, max_tokens=1)
    await followed.until(lambda: bool(followed.leading(tokens)))
    followed.subscriber.stop()
    await followed.start()
    await followed.until(lambda: bool(followed.leading(tokens)))
