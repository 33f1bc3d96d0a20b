"""Limits and budgets across a restart, across an outage of Redis, and with several processes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.limits_harness import GatedServer, LimitingGateway
from tests.end_to_end.process_harness import ThreadedServer, served
from tests.end_to_end.twistd_harness import MASTER_KEY, ask, wait_until


@pytest.fixture
def server() -> Iterator[ThreadedServer]:
    with served(GatedServer().serve) as running:
        yield running


@pytest.fixture
def private_redis() -> Iterator[Any]:
    from tests.services.private_redis import PrivateRedis, find_redis

    binary = find_redis()
    if binary is None:
        pytest.skip("Redis' server program (redis-server) is not installed")
    redis = PrivateRedis(binary)
    redis.start()
    yield redis
    redis.remove()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_budget_is_after_a_restart_what_it_was(tmp_path: Path, server: ThreadedServer, end: signal.Signals) -> None:
    with LimitingGateway(tmp_path, server.port) as gateway:
        key = gateway.make_key(max_budget=100)
        admitted = 0
        while gateway.chat(key)[0] == 200:
            admitted += 1
            assert admitted < 20
        # what the last ones spent is not in the database yet
        gateway.signal(end)
        gateway.wait()
    with LimitingGateway(tmp_path, server.port) as gateway:
        assert gateway.chat(key) == (429, "budget_exceeded")
        info = json.loads(ask(gateway.port, f"/key/info?key={key}", MASTER_KEY)[1])["info"]
        assert info["spend"] == admitted * 7


@pytest.mark.parametrize("loss", ["local", "refuse"])
def test_redis_goes_and_comes_back(tmp_path: Path, server: ThreadedServer, private_redis: Any, loss: str) -> None:
    settings = f"  limits_on_redis_loss: {loss}\n"
    with LimitingGateway(
        tmp_path, server.port, settings=settings, VLLM_PASSTHROUGH_REDIS_URL=private_redis.url
    ) as gateway:
        limited, free = gateway.make_key(rpm_limit=2), gateway.make_key()
        assert [gateway.chat(limited)[0] for _ in range(3)] == [200, 200, 429]

        private_redis.stop()
        wait_until(lambda: gateway.messages("does not count limits"))
        if loss == "local":
            # this process counts for itself, from nothing
            assert [gateway.chat(limited)[0] for _ in range(3)] == [200, 200, 429]
        else:
            assert [gateway.chat(limited) for _ in range(3)] == 3 * [(503, "limits_unavailable")]
        assert gateway.chat(free) == (200, "")

        private_redis.start()
        wait_until(lambda: gateway.messages("counts limits again"))
        # it restarted empty
        assert [gateway.chat(limited)[0] for _ in range(3)] == [200, 200, 429]
        assert len(gateway.messages("does not count limits")) == 1
        assert len(gateway.messages("counts limits again")) == 1


def test_a_silent_redis_delays_no_request(tmp_path: Path, server: ThreadedServer, private_redis: Any) -> None:
    with LimitingGateway(
        tmp_path,
        server.port,
        settings="  timeouts: {redis: 0.5}\n",
        VLLM_PASSTHROUGH_REDIS_URL=private_redis.url,
    ) as gateway:
        key = gateway.make_key(max_parallel_requests=1)
        assert gateway.chat(key) == (200, "")
        private_redis.pause()
        try:
            assert [gateway.chat(key) for _ in range(3)] == 3 * [(200, "")]
        finally:
            private_redis.resume()
        wait_until(lambda: gateway.messages("counts limits again"))
        # nothing that it did meanwhile stays counted; a place is given back a moment after its answer
        wait_until(lambda: gateway.chat(key) == (200, ""))
        assert [gateway.chat(key) for _ in range(3)] == 3 * [(200, "")]


def test_the_second_process_on_a_database_says_that_each_counts_for_itself(
    tmp_path: Path, server: ThreadedServer
) -> None:
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    words = "Each counts limits for itself"
    with LimitingGateway(tmp_path / "one", server.port, DATABASE_URL=url) as first:
        wait_until(lambda: first.messages("virtual keys"))
        assert first.messages(words) == []
        with LimitingGateway(tmp_path / "two", server.port, DATABASE_URL=url) as second:
            wait_until(lambda: second.messages(words))
            [said] = second.messages(words)
            assert ", 1 processes at present" in said
            assert "passthrough.redis_url" in said
    # stopped processes do not count
    with LimitingGateway(tmp_path / "three", server.port, DATABASE_URL=url) as third:
        wait_until(lambda: third.messages("virtual keys"))
        assert third.messages(words) == []
