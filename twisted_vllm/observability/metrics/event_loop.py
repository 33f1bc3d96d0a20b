"""How late the event loop is: while it works on one thing, it serves nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.logger import Logger

from twisted_vllm.histogram import Histogram
from twisted_vllm.observability.metrics.registry import PREFIX

#: seconds between two measurements
INTERVAL = 0.25
#: upper bounds of the seconds that the loop was late
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: a stall of so many seconds has a line in the log; `config/prometheus/alerts.yml` has the same bound
STALL_SECONDS = 1.0
#: seconds in which further stalls are counted, and told together
QUIET_SECONDS = 60.0

#: above this share of CPU time, the loop computed; below it, it waited or the process did not run
_COMPUTED = 0.5


class EventLoopLag:
    """Measures with one timer how late the loop calls it.

    A stall is one measurement of its whole length, so that a scrape sees it however long after.

    Attributes:
        seconds: the measurements.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        monotonic: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        """Set up; `start` begins to measure.

        Args:
            clock: a provider of IReactorTime.
            monotonic: seconds, from any start, that go on while the process does not run.
            cpu: the seconds of CPU time of the loop's thread.
        """
        self.seconds = Histogram(BUCKETS)
        self._clock = clock
        self._monotonic = monotonic
        self._cpu = cpu
        self._due = self._cpu_before = 0.0
        self._quiet_until = float("-inf")
        # stalls since the last line
        self._untold = 0
        self._longest = 0.0
        self._call: Any = None

    def start(self) -> None:
        """Begin to measure."""
        self._plan(self._monotonic())

    def stop(self) -> None:
        """Measure no more. Idempotent."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _plan(self, now: float) -> None:
        self._due = now + INTERVAL
        self._cpu_before = self._cpu()
        self._call = self._clock.callLater(INTERVAL, self._measure)

    def _measure(self) -> None:
        now = self._monotonic()
        lag = max(now - self._due, 0.0)
        self.seconds.observe(lag)
        if lag >= STALL_SECONDS:
            self._stalled(lag, now)
        elif self._untold and now >= self._quiet_until:
            self._tell_of_others(now)
        self._plan(now)

    def _stalled(self, lag: float, now: float) -> None:
        if now < self._quiet_until:
            self._untold += 1
            self._longest = max(self._longest, lag)
            return
        if self._untold:
            self._tell_of_others(now)
        self._quiet_until = now + QUIET_SECONDS
        computed = self._cpu() - self._cpu_before
        cause = (
            "the gateway computed all the time: look for very large requests, or for code of your own that it calls"
            if computed > lag * _COMPUTED
            else "the process did not run or waited: it was paused or swapped out, the disk hangs, or the machine is "
            "overloaded"
        )
        self._log.warn(
            "The event loop stood still for {seconds:.1f} s and served nobody; {computed:.1f} s of it were CPU time: "
            "{cause}",
            seconds=lag,
            computed=computed,
            cause=cause,
        )

    def _tell_of_others(self, now: float) -> None:
        self._log.warn(
            "The event loop stood still {count} times more, for {seconds:.1f} s at most",
            count=self._untold,
            seconds=self._longest,
        )
        self._untold, self._longest = 0, 0.0
        self._quiet_until = now + QUIET_SECONDS


class EventLoopCollector(Collector):
    """Reads the measurements on each scrape."""

    def __init__(self, lag: EventLoopLag) -> None:
        """Collect from what measures."""
        self._lag = lag

    def collect(self) -> Iterator[Metric]:
        """Return the histogram."""
        seconds = self._lag.seconds
        yield HistogramMetricFamily(
            f"{PREFIX}_event_loop_lag_seconds",
            "Seconds that the event loop was late, measured four times a second.",
            seconds.buckets(),
            seconds.sum,
        )
