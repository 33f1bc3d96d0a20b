"""The queue in front of a destination."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.conftest import LoggedFailures
from tests.observability.delivery.fakes import RecordingDestination, ThreadsClock
from twisted_vllm.observability.delivery.interfaces import Bounds, DeliveryFailed, IDestination
from twisted_vllm.observability.delivery.metrics import Deliveries
from twisted_vllm.observability.delivery.queue import DeliveryQueue
from twisted_vllm.observability.metrics.registry import Metrics

AWAY = DeliveryFailed("it is away", retryable=True)


class Setup:
    def __init__(self, *answers: DeliveryFailed | Exception | Deferred[None], bounds: Bounds | None = None) -> None:
        self.clock = ThreadsClock()
        self.destination = RecordingDestination(*answers)
        self.queue = DeliveryQueue[str]("sink a", self.destination, self.clock, bounds or Bounds(), lambda: 0.5)
        self.queue.start()

    def put(self, *items: str) -> list[bool]:
        return [self.queue.put(item, len(item)) for item in items]


@implementer(ILogObserver)
class Lines:
    """Keeps what the queues log."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if "delivery" in str(event.get("log_namespace")):
            self.found.append(f"{event['log_level'].name}: {formatEvent(event)}")


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> list[str]:
    observer = Lines()
    globalLogPublisher.addObserver(observer)
    request.addfinalizer(lambda: globalLogPublisher.removeObserver(observer))
    return observer.found


def test_the_recording_destination_is_a_destination() -> None:
    verifyObject(IDestination, RecordingDestination())


def test_items_are_collected_for_the_linger_time() -> None:
    setup = Setup()
    setup.put("a", "b")
    setup.clock.pass_time(0.5)
    setup.put("c")
    assert not setup.destination.batches
    setup.clock.pass_time(0.6)
    assert setup.destination.batches == [["a", "b", "c"]]
    assert (setup.queue.queued, setup.queue.delivered, setup.queue.dropped) == (0, 3, 0)


def test_a_full_batch_does_not_wait() -> None:
    setup = Setup(bounds=Bounds(batch_items=2))
    setup.put("a", "b", "c")
    setup.clock.pass_time(0)
    setup.clock.advance(0)
    assert setup.destination.batches[0] == ["a", "b"]
    setup.clock.pass_time(1.2)
    assert setup.destination.items == ["a", "b", "c"]


def test_a_batch_is_bounded_in_bytes_but_for_one_large_item() -> None:
    setup = Setup(bounds=Bounds(batch_bytes=4))
    setup.put("aaa", "bbb", "c", "ddddddd")
    setup.clock.pass_time(2)
    assert setup.destination.batches == [["aaa"], ["bbb", "c"], ["ddddddd"]]


def test_what_does_not_fit_is_dropped_and_counted_and_what_came_first_stays() -> None:
    setup = Setup(bounds=Bounds(max_items=2, batch_items=8))
    assert setup.put("a", "b", "c") == [True, True, False]
    setup.clock.pass_time(2)
    assert setup.destination.items == ["a", "b"]
    assert setup.queue.dropped == 1


def test_memory_is_bounded_in_bytes_while_a_delivery_runs() -> None:
    running: Deferred[None] = Deferred()
    setup = Setup(running, bounds=Bounds(max_bytes=8, batch_items=1))
    setup.put("aaaaaa")
    setup.clock.pass_time(0)
    assert setup.put("bbbbbb", "cc") == [False, True]
    running.callback(None)
    setup.clock.pass_time(2)
    assert setup.destination.items == ["aaaaaa", "cc"]


def test_a_failed_batch_is_tried_again_with_growing_waits() -> None:
    setup = Setup(AWAY, AWAY, AWAY)
    setup.put("a")
    failures = []
    for _ in range(8):
        setup.clock.pass_time(1, step=0.01)
        setup.clock.advance(0.01)
        failures.append(setup.queue.failures)
    assert failures == [1, 2, 2, 3, 3, 3, 3, 3]
    assert setup.destination.items == ["a"]


def test_items_that_are_put_do_not_shorten_a_back_off() -> None:
    setup = Setup(DeliveryFailed("busy", retryable=True, retry_after=20.0), bounds=Bounds(batch_items=1))
    setup.put("a")
    setup.clock.pass_time(1)
    setup.put("b", "c")
    setup.clock.pass_time(18)
    assert not setup.destination.batches
    setup.clock.pass_time(2)
    assert setup.destination.items == ["a", "b", "c"]


def test_a_destination_cannot_ask_for_a_wait_without_end() -> None:
    setup = Setup(DeliveryFailed("busy", retryable=True, retry_after=1e9))
    setup.put("a")
    setup.clock.pass_time(63)
    assert setup.destination.items == ["a"]


def test_a_batch_that_is_refused_for_good_is_dropped_and_the_next_goes_on(lines: list[str]) -> None:
    setup = Setup(DeliveryFailed("HTTP 400", retryable=False))
    setup.put("a", "b")
    setup.clock.pass_time(1.2)
    setup.put("c")
    setup.clock.pass_time(1.2)
    assert setup.destination.items == ["c"]
    assert (setup.queue.dropped, setup.queue.failures, setup.queue.queued) == (2, 1, 0)
    assert lines == ["warn: 2 items for sink a were dropped: HTTP 400"]


def test_a_batch_that_is_too_large_is_halved() -> None:
    large = DeliveryFailed("HTTP 413", retryable=False, too_large=True)
    setup = Setup(large, large, large)
    setup.put("a", "b", "c", "d")
    setup.clock.pass_time(3)
    assert setup.destination.items == ["b", "c", "d"]
    assert setup.queue.dropped == 1


def test_a_delivery_that_takes_too_long_is_cancelled_and_tried_again(lines: list[str]) -> None:
    setup = Setup(Deferred(), bounds=Bounds(timeout=5.0))
    setup.put("a")
    setup.clock.pass_time(8)
    assert setup.destination.batches == [["a"], ["a"]]
    assert "it took longer than 5 s" in lines[0]


def test_a_mistake_of_a_destination_drops_the_batch_and_harms_nothing_else(logged_failures: LoggedFailures) -> None:
    setup = Setup(KeyError("oops"))
    setup.put("a")
    setup.clock.pass_time(1.2)
    setup.put("b")
    setup.clock.pass_time(1.2)
    assert setup.destination.items == ["b"]
    assert setup.queue.dropped == 1
    assert logged_failures.flush(KeyError)


@implementer(IDestination)
class Particular:
    """Makes a mistake with one item."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def deliver(self, batch: Sequence[str]) -> Deferred[None]:
        if "poison" in batch:
            raise KeyError("poison")
        self.items.extend(batch)
        return succeed(None)

    def close(self) -> None:
        pass


def test_one_item_that_cannot_be_delivered_takes_no_other_with_it(logged_failures: LoggedFailures) -> None:
    setup = Setup()
    particular = Particular()
    setup.queue.reconfigure(particular, Bounds())
    items = [f"item {number}" for number in range(100)]
    setup.put(*items[:70], "poison", *items[70:], "poison")
    setup.clock.pass_time(5)
    assert particular.items == items
    assert (setup.queue.dropped, setup.queue.queued) == (2, 0)
    assert logged_failures.flush(KeyError)


def test_the_log_names_a_destination_that_is_away_once_a_minute_and_when_it_is_back(lines: list[str]) -> None:
    setup = Setup(*[AWAY] * 9, bounds=Bounds(max_backoff=30.0))
    setup.put("a")
    setup.clock.pass_time(200)
    assert len(lines) == 4
    assert lines[0] == (
        "warn: sink a does not take what is delivered: it is away; for 0.0 s so far, 1 items wait, 0 were dropped "
        "since the start"
    )
    assert "for 61.2 s so far" in lines[1]
    assert lines[3].startswith("info: sink a takes what is delivered again, after 151.5 s")


def test_items_that_are_too_old_are_not_delivered() -> None:
    setup = Setup(*[AWAY] * 3, bounds=Bounds(max_age=5.0))
    setup.put("old")
    setup.clock.pass_time(4)
    setup.put("new")
    setup.clock.pass_time(6)
    assert setup.destination.items == ["new"]
    assert setup.queue.dropped == 1


def test_stop_delivers_what_waits_and_closes_the_destination() -> None:
    setup = Setup(bounds=Bounds(batch_items=2))
    setup.put("a", "b", "c")
    stopped: list[None] = []
    setup.queue.stop(5.0).addCallback(stopped.append)
    setup.clock.pass_time(0.5)
    assert setup.destination.items == ["a", "b", "c"]
    assert setup.destination.is_closed
    assert stopped == [None]
    assert not setup.put("late")[0]
    assert not setup.clock.getDelayedCalls()


def test_stop_does_not_wait_longer_than_its_timeout_for_a_destination_that_hangs(lines: list[str]) -> None:
    setup = Setup(Deferred())
    setup.put("a", "b")
    setup.clock.pass_time(1.1)
    setup.put("c")
    stopped: list[None] = []
    setup.queue.stop(5.0).addCallback(stopped.append)
    setup.clock.pass_time(4.8)
    assert not stopped
    setup.clock.pass_time(0.3)
    assert stopped == [None]
    assert setup.queue.dropped == 3
    assert lines == ["warn: 3 items for sink a are lost: the gateway stopped"]
    assert not setup.clock.getDelayedCalls()


def test_stop_gives_up_soon_where_the_destination_is_away() -> None:
    setup = Setup(*[AWAY] * 9)
    setup.put("a")
    setup.clock.pass_time(4)
    stopped: list[None] = []
    setup.queue.stop(60.0).addCallback(stopped.append)
    setup.clock.pass_time(0.2)
    assert stopped == [None]


def test_items_put_before_the_start_are_delivered_after_it() -> None:
    clock, destination = ThreadsClock(), RecordingDestination()
    queue = DeliveryQueue[str]("sink a", destination, clock, Bounds(), lambda: 0.5)
    queue.put("a", 1)
    clock.pass_time(5)
    assert not destination.batches
    queue.start()
    clock.pass_time(0)
    assert destination.items == ["a"]


def test_what_waits_goes_to_the_next_destination_after_a_reload() -> None:
    setup = Setup(*[AWAY] * 9)
    setup.put("a")
    setup.clock.pass_time(20)
    after = RecordingDestination()
    setup.queue.reconfigure(after, Bounds())
    setup.clock.pass_time(0)
    assert after.items == ["a"]
    assert setup.destination.is_closed
    assert not after.is_closed


def test_a_reload_lets_a_running_delivery_end_before_it_closes_the_destination() -> None:
    running: Deferred[None] = Deferred()
    setup = Setup(running)
    setup.put("a")
    setup.clock.pass_time(1.2)
    setup.queue.reconfigure(RecordingDestination(), Bounds())
    assert not setup.destination.is_closed
    running.callback(None)
    assert setup.destination.is_closed
    assert setup.queue.delivered == 1


def test_any_thread_may_put() -> None:
    setup = Setup(bounds=Bounds(batch_items=100))
    threads = [threading.Thread(target=setup.put, args=[str(number)] * 50) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    setup.clock.pass_time(3)
    assert sorted(setup.destination.items) == sorted(["0"] * 50 + ["1"] * 50 + ["2"] * 50 + ["3"] * 50)


def test_metrics_count_and_go_on_after_a_queue_was_replaced() -> None:
    setup, deliveries, metrics = Setup(AWAY, bounds=Bounds(max_items=1)), Deliveries(), Metrics()
    metrics.add(deliveries)
    deliveries.add(setup.queue)
    setup.put("a", "b")
    setup.clock.pass_time(1.5)
    text = metrics.expose("")[0].decode()
    for line in ("queued{", "oldest_seconds{", "delivered_total{", "dropped_total{", "failures_total{"):
        assert f'vllm_passthrough_delivery_{line}sink="sink a"}}' in text
    setup.clock.pass_time(2)
    deliveries.remove(setup.queue)
    other = Setup()
    deliveries.add(other.queue)
    other.put("c")
    other.clock.pass_time(2)
    text = metrics.expose("")[0].decode()
    assert 'vllm_passthrough_delivery_delivered_total{sink="sink a"} 2.0' in text
    assert 'vllm_passthrough_delivery_dropped_total{sink="sink a"} 1.0' in text
