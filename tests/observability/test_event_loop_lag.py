"""How late the event loop is: measured once for each stall, and told without flooding the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from twisted_vllm.observability.metrics.event_loop import INTERVAL, QUIET_SECONDS, EventLoopCollector, EventLoopLag


class Loop:
    """An event loop that a test stalls.

    Attributes:
        seconds: the time.
        cpu: the CPU time.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.seconds = self.cpu = 0.0
        self.lag = EventLoopLag(self.clock, lambda: self.seconds, lambda: self.cpu)
        self.registry = CollectorRegistry()
        self.registry.register(EventLoopCollector(self.lag))
        self.lag.start()

    def turn(self, late: float = 0.0, cpu: float = 0.0) -> None:
        """Let the timer fire, so many seconds late."""
        self.seconds += INTERVAL + late
        self.cpu += cpu
        self.clock.advance(INTERVAL)

    def turns(self, seconds: float) -> None:
        for _ in range(int(seconds / INTERVAL)):
            self.turn()

    def bucket(self, le: str) -> float | None:
        return self.registry.get_sample_value("vllm_passthrough_event_loop_lag_seconds_bucket", {"le": le})


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.lag.stop()
    assert made.clock.getDelayedCalls() == []


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []

    def note(event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).endswith("EventLoopLag"):
            found.append(formatEvent(event))

    observer = cast(ILogObserver, note)
    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)


def test_a_loop_that_is_in_time_is_not_late(loop: Loop, lines: list[str]) -> None:
    loop.turns(60.0)
    assert (loop.bucket("0.005"), loop.lag.seconds.count) == (240, 240)
    assert lines == []


def test_a_stall_is_one_measurement_of_its_whole_length(loop: Loop) -> None:
    loop.turn(3.0)
    loop.turns(15.0)
    assert (loop.bucket("2.5"), loop.bucket("5.0")) == (60, 61)
    assert loop.lag.seconds.sum == pytest.approx(3.0)


def test_a_clock_that_was_set_back_is_no_lag(loop: Loop) -> None:
    loop.turn(-5.0)
    assert loop.lag.seconds.sum == 0.0


def test_the_log_says_for_how_long_and_whether_the_gateway_computed(loop: Loop, lines: list[str]) -> None:
    loop.turn(4.0, cpu=3.9)
    [told] = lines
    assert "stood still for 4.0 s" in told
    assert "3.9 s of it were CPU time" in told
    assert "the gateway computed" in told


def test_the_log_says_if_the_process_did_not_run(loop: Loop, lines: list[str]) -> None:
    loop.turn(4.0, cpu=0.01)
    [told] = lines
    assert "the process did not run or waited" in told


def test_more_stalls_of_a_minute_are_told_together(loop: Loop, lines: list[str]) -> None:
    loop.turn(1.5)
    for late in (1.2, 2.5, 1.1):
        loop.turn(late)
    assert len(lines) == 1
    loop.turns(QUIET_SECONDS)
    [_, others] = lines
    assert others == "The event loop stood still 3 times more, for 2.5 s at most"
    # and then the next one at once
    loop.turns(QUIET_SECONDS)
    loop.turn(1.7)
    assert "stood still for 1.7 s" in lines[-1]
    assert len(lines) == 3


def test_a_short_lag_has_no_line(loop: Loop, lines: list[str]) -> None:
    loop.turn(0.9)
    assert lines == []
