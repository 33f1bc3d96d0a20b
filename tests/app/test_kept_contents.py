"""The sink of type ``database``: what it writes, what it says when it cannot, and when it looks for what is old."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.storage.contents_contract import numbers
from tests.storage.retention_contract import Store, at
from twisted_vllm.app.telemetry.kept_contents import TRIM_SECONDS, ContentsDestination, TrimmedDestination
from twisted_vllm.config.secret import Secret
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination, IDestination

NOON = at("2026-06-15T12:00:00")
DAY = 86_400.0


def item(number: int, time: int = NOON) -> bytes:
    return msgspec.json.encode([f"{number:032x}", time, {"input": f"prompt {number}"}])


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = Store(f"sqlite:///{tmp_path}/keys.sqlite")
    yield store
    store.close()


def destination(store: Store) -> ContentsDestination:
    return ContentsDestination(Secret(store.url), DAY, 10**9, lambda: NOON / 1e6)


def test_a_batch_is_written_and_what_is_old_goes_when_it_is_asked_to(store: Store) -> None:
    target = destination(store)
    verifyObject(IBlockingDestination, target)
    target.deliver([item(1), item(2, NOON - int(2 * DAY * 1e6))])
    target.deliver([item(1)])
    assert numbers(store) == [1, 2]
    target.deliver([])
    assert numbers(store) == [1]
    target.close()


def test_a_database_that_fails_is_asked_again_and_shows_no_secret(store: Store, tmp_path: Path) -> None:
    target = destination(store)
    target.deliver([item(1)])
    with closing(sqlite3.connect(tmp_path / "keys.sqlite")) as connection:
        connection.execute("DROP TABLE vllm_passthrough_request_contents")
        connection.commit()
    with pytest.raises(DeliveryFailed) as failed:
        target.deliver([item(2)])
    assert failed.value.retryable
    assert "no such table" in failed.value.message
    assert "prompt" not in failed.value.message
    target.close()


@implementer(IDestination)
class Slow:
    """Takes batches when a test says so."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.pending: list[Deferred[None]] = []
        self.closed = 0

    def deliver(self, batch: Any) -> Deferred[None]:
        self.batches.append(list(batch))
        self.pending.append(Deferred())
        return self.pending[-1]

    def close(self) -> None:
        self.closed += 1

    def finish(self, error: DeliveryFailed | None = None) -> None:
        done = self.pending.pop(0)
        done.callback(None) if error is None else done.errback(error)


def test_what_is_old_is_looked_for_once_a_minute_and_never_beside_a_delivery() -> None:
    clock, inner = Clock(), Slow()
    trimmed = TrimmedDestination(inner, clock)
    verifyObject(IDestination, trimmed)
    clock.advance(TRIM_SECONDS)
    assert inner.batches == [[]]
    done: list[object] = []
    trimmed.deliver([b"a"]).addCallback(done.append)
    # it waits for what is on its way
    assert (inner.batches, done) == ([[]], [])
    inner.finish()
    assert inner.batches == [[], [b"a"]]
    clock.advance(TRIM_SECONDS)
    assert inner.batches == [[], [b"a"]]
    inner.finish()
    assert (inner.batches, done) == ([[], [b"a"], []], [None])
    # a failure concerns nobody, and the next round tries again
    inner.finish(DeliveryFailed("no database", retryable=True))
    clock.advance(TRIM_SECONDS)
    assert inner.batches == [[], [b"a"], [], []]
    trimmed.close()
    trimmed.close()
    clock.advance(10 * TRIM_SECONDS)
    assert (len(inner.batches), inner.closed) == (4, 2)
    assert clock.getDelayedCalls() == []


def test_a_delivery_that_fails_after_a_look_is_told() -> None:
    clock, inner = Clock(), Slow()
    trimmed = TrimmedDestination(inner, clock)
    clock.advance(TRIM_SECONDS)
    failed: list[Any] = []
    trimmed.deliver([b"a"]).addErrback(lambda failure: failed.append(failure.value))
    inner.finish()
    error = DeliveryFailed("no database", retryable=True)
    inner.finish(error)
    assert failed == [error]
    trimmed.close()
