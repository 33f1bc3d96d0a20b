"""The supervisor's own metrics. It has no `prometheus_client`."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable

from twisted_vllm.histogram import Histogram
from twisted_vllm.observability.metrics.messages import Family, Row
from twisted_vllm.observability.metrics.names import PREFIX
from twisted_vllm.ratelimit.supervised.server import LimitServer
from twisted_vllm.workers.hub import Hub
from twisted_vllm.workers.processes import Processes

_OPEN_FILES = "/proc/self/fd"
_STATM = "/proc/self/statm"


class SupervisorMetrics:
    """Reads the state of the supervisor at each scrape."""

    def __init__(
        self,
        hub: Hub,
        processes: Processes,
        limits: LimitServer,
        workers: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Read these.

        Args:
            hub: counts messages.
            processes: those that run, and the ends of others.
            limits: counts what workers ask.
            workers: how many workers there should be.
            now: returns the time in Unix seconds.
        """
        self._hub = hub
        self._processes = processes
        self._limits = limits
        self._workers = workers
        self._started = now()

    def families(self, answered: int, ready: int) -> list[Family]:
        """Return the families.

        Args:
            answered: how many processes told their metrics.
            ready: how many were asked.
        """
        hub, running = self._hub, self._processes.running.values()
        ready_workers = len({each.slot for each in running if each.is_ready and each.slot})
        found = [
            _number("workers_configured", "Workers that there should be.", self._workers),
            _number("workers_running", "Workers that serve.", ready_workers),
            _number("processes_running", "Processes that are ready: workers and the housekeeper.", ready),
            _number("processes_answered", "Processes whose figures of now are in this answer.", answered),
            _numbers(
                "process_ends",
                "Processes that have ended, by how.",
                ("process", "reason"),
                self._processes.ends.items(),
            ),
            _number("messages_relayed", "Messages from one process to another.", hub.relayed, "counter"),
            _number(
                "limit_operations", "What workers had counted by the supervisor.", self._limits.operations, "counter"
            ),
            _histogram(
                "supervisor_message_seconds",
                "Seconds that the supervisor took for a message with all that is in it.",
                hub.seconds,
            ),
        ]
        return [*found, *_of_process(self._started)]


def _of_process(started: float) -> list[Family]:
    """Return what `prometheus_client` says of other processes."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures: list[tuple[str, str, str, float]] = [
        (
            "process_cpu_seconds",
            "counter",
            "Total user and system CPU time spent in seconds.",
            usage.ru_utime + usage.ru_stime,
        ),
        ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", started),
    ]
    try:
        with open(_STATM, "rb") as file:
            pages = int(file.read().split()[1])
        files = os.stat(_OPEN_FILES).st_size or len(os.listdir(_OPEN_FILES)) - 1
    except OSError:
        # no Linux
        return [_sample(*figure) for figure in figures]
    resident = float(pages * resource.getpagesize())
    figures += [
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident),
        ("process_open_fds", "gauge", "Number of open file descriptors.", float(files)),
    ]
    return [_sample(*figure) for figure in figures]


def _sample(name: str, kind: str, text: str, value: float) -> Family:
    shown = f"{name}_total" if kind == "counter" else name
    return Family(name, text, kind, is_open=True, form="samples", labels=(), rows=[((shown,), 0, [value])])


def _number(name: str, text: str, value: float, kind: str = "gauge") -> Family:
    return _family(name, text, kind, (), [((), 0, [float(value)])])


def _numbers(name: str, text: str, labels: tuple[str, ...], counts: Iterable[tuple[tuple[str, ...], int]]) -> Family:
    return _family(name, text, "counter", labels, [(key, 0, [float(count)]) for key, count in counts])


def _histogram(name: str, text: str, histogram: Histogram) -> Family:
    buckets = histogram.buckets()
    row: Row = ((), 0, [*(count for _, count in buckets), histogram.sum])
    family = _family(name, text, "histogram", (), [row])
    family.form = "histograms"
    family.bounds = [tuple(bound for bound, _ in buckets)]
    return family


def _family(name: str, text: str, kind: str, labels: tuple[str, ...], rows: list[Row]) -> Family:
    return Family(f"{PREFIX}_{name}", text, kind, is_open=True, form="numbers", labels=labels, rows=rows)
