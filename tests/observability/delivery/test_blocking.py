"""Destinations that block, in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twisted_vllm.observability.delivery import blocking as blocking_module
from twisted_vllm.observability.delivery.blocking import ThreadedDestination
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed, IBlockingDestination, IDestination


@implementer(IBlockingDestination)
class Blocking:
    def __init__(self) -> None:
        self.got: list[tuple[str, list[Any]]] = []
        self.error: BaseException | None = None
        self.go = threading.Event()
        self.go.set()
        self.closed = threading.Event()

    def deliver(self, batch: Sequence[Any]) -> None:
        self.go.wait(10)
        if self.error is not None:
            raise self.error
        self.got.append((threading.current_thread().name, list(batch)))

    def close(self) -> None:
        self.closed.set()


def test_it_is_a_destination(reactor: Any) -> None:
    verifyObject(IDestination, ThreadedDestination("a", Blocking, reactor))
    verifyObject(IBlockingDestination, Blocking())


@pytest_twisted.ensureDeferred
async def test_batches_are_delivered_in_its_thread(reactor: Any) -> None:
    blocking = Blocking()
    destination = ThreadedDestination("sink-a", lambda: blocking, reactor)
    await destination.deliver([1, 2])
    await destination.deliver([3])
    assert blocking.got == [("sink-a", [1, 2]), ("sink-a", [3])]
    destination.close()
    assert blocking.closed.wait(10)


@pytest_twisted.ensureDeferred
async def test_errors_are_passed_on(reactor: Any) -> None:
    blocking = Blocking()
    blocking.error = DeliveryFailed("away", retryable=True)
    destination = ThreadedDestination("sink-a", lambda: blocking, reactor)
    with pytest.raises(DeliveryFailed, match="away"):
        await destination.deliver([1])
    blocking.error = None
    await destination.deliver([1])
    destination.close()


@pytest_twisted.ensureDeferred
async def test_a_thread_outlives_code_that_wants_to_end_the_process(reactor: Any) -> None:
    blocking = Blocking()
    blocking.error = SystemExit(1)
    destination = ThreadedDestination("sink-a", lambda: blocking, reactor)
    with pytest.raises(SystemExit):
        await destination.deliver([1])
    blocking.error = None
    await destination.deliver([2])
    assert blocking.got == [("sink-a", [2])]
    destination.close()


@pytest_twisted.ensureDeferred
async def test_a_destination_that_cannot_be_made_fails_the_delivery_and_is_made_again(reactor: Any) -> None:
    blocking, errors = Blocking(), [DeliveryFailed("no such bucket", retryable=True)]

    def make() -> IBlockingDestination:
        if errors:
            raise errors.pop()
        return blocking

    destination = ThreadedDestination("sink-a", make, reactor)
    with pytest.raises(DeliveryFailed, match="no such bucket"):
        await destination.deliver([1])
    await destination.deliver([2])
    destination.close()


@pytest_twisted.ensureDeferred
async def test_a_call_that_hangs_fails_further_deliveries_until_it_returns(reactor: Any) -> None:
    blocking = Blocking()
    blocking.go.clear()
    destination = ThreadedDestination("sink-a", lambda: blocking, reactor)
    hanging: Deferred[None] = destination.deliver([1])
    hanging.addErrback(lambda _: None)
    hanging.cancel()
    with pytest.raises(DeliveryFailed, match="hangs"):
        await destination.deliver([1])
    blocking.go.set()
    while not blocking.got:
        await deferLater(reactor, 0.01)
    await deferLater(reactor, 0.01)
    await destination.deliver([2])
    destination.close()
    with pytest.raises(DeliveryFailed, match="closed"):
        await destination.deliver([3])


@pytest_twisted.ensureDeferred
async def test_calls_that_hang_for_ever_leave_a_bounded_number_of_threads(
    reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # threads of other tests may end meanwhile
    monkeypatch.setattr(blocking_module, "_running", set())
    monkeypatch.setattr(blocking_module, "MOST_THREADS", 3)
    hanging = Blocking()
    hanging.go.clear()
    destinations = [ThreadedDestination(f"sink-{number}", lambda: hanging, reactor) for number in range(5)]
    waiting = [each.deliver([1]) for each in destinations]
    for refused in waiting[3:]:
        with pytest.raises(DeliveryFailed, match="too many earlier deliveries hang: restart the gateway"):
            await refused
    hanging.go.set()
    for taken in waiting[:3]:
        await taken
    for destination in destinations:
        destination.close()
    while any(thread.name.startswith("sink-") for thread in blocking_module._running):
        await deferLater(reactor, 0.01)
    another = ThreadedDestination("another", lambda: hanging, reactor)
    await another.deliver([2])
    another.close()
