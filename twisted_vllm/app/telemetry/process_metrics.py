"""Metrics of the process: event loop, open files, certificates, Redis, reloads, the log."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.app.telemetry.certificates import (
    CertificateCollector,
    CertificateWatch,
    KnownCertificate,
    known_certificates,
)
from twisted_vllm.app.telemetry.part import Surroundings, TelemetryPart
from twisted_vllm.config.settings import Settings
from twisted_vllm.http.net.open_files import open_file_limit
from twisted_vllm.observability.logging.observer import LineObserver
from twisted_vllm.observability.metrics.budgets import BudgetCollector
from twisted_vllm.observability.metrics.event_loop import EventLoopCollector, EventLoopLag
from twisted_vllm.observability.metrics.registry import PREFIX
from twisted_vllm.proxy.budget_watch import SHARES
from twisted_vllm.ratelimit.allowance import KINDS

#: where Linux lists the open files of this process
_OPEN_FILES = "/proc/self/fd"


class ProcessMetrics(TelemetryPart):
    """Adds the metrics, measures the event loop's lag, and watches certificates.

    Attributes:
        lag: the event loop's.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        """Add the metrics; what needs a timer begins at `start`."""
        listeners, servers, agent = surroundings.listeners, surroundings.health, surroundings.agent

        def certificates() -> Iterator[KnownCertificate]:
            return known_certificates(listeners, servers, agent)

        self.lag = EventLoopLag(surroundings.reactor)
        self._certificates = CertificateWatch(certificates, surroundings.reactor)
        # all workers have the same, and the housekeeper has not those of listeners
        self._watches = surroundings.siblings.slot == 1
        metrics = surroundings.metrics
        metrics.add(EventLoopCollector(self.lag))
        metrics.add(
            CertificateCollector(certificates, named=False),
            CertificateCollector(certificates, named=True),
        )
        metrics.add(ProcessCollector(surroundings))
        metrics.add(BudgetCollector(KINDS, SHARES, surroundings.budgets.counts))

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Return what looks at the certificates of other settings once they are in effect."""
        return self._certificates.reloaded if self._watches else lambda: None

    def start(self) -> None:
        """Begin to measure and to watch."""
        self.lag.start()
        if self._watches:
            self._certificates.start()

    def stop(self) -> None:
        """Stop both."""
        self.lag.stop()
        self._certificates.stop()


class ProcessCollector(Collector):
    """Reads the state of the components on each scrape; nothing is counted in between."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Collect from the gateway's components."""
        self._surroundings = surroundings

    def collect(self) -> Iterator[Metric]:
        """Return the current figures."""
        yield from _open_files()
        surroundings = self._surroundings
        yield _gauge("draining", "1 while the gateway drains, 0 before.", surroundings.draining())
        shares_limits = surroundings.accounting.shares_limits
        if shares_limits is not None:
            yield _gauge("limits_redis_up", "1 if limits are counted in Redis at present, 0 if not.", shares_limits)
        observer = surroundings.observer
        yield CounterMetricFamily(
            f"{PREFIX}_log_lines_dropped",
            "Lines of the log that were lost because its disk or pipe was too slow.",
            value=observer.writer.dropped if isinstance(observer, LineObserver) else 0,
        )
        reloader = surroundings.reloader()
        reloads = CounterMetricFamily(f"{PREFIX}_reloads", "Reloads of the configuration.", labels=["result"])
        for result, count in reloader.results.items():
            reloads.add_metric([result], count)
        yield reloads
        yield _gauge("last_reload_failed", "1 if the last reload changed nothing or failed.", reloader.last_failed)
        yield _gauge(
            "last_reload_success_timestamp_seconds",
            "When the settings in effect were read, in Unix seconds.",
            reloader.succeeded_at,
        )
        yield _gauge(
            "restart_needed",
            "Settings that the last reload read and that need a restart to take effect.",
            len(reloader.restart_needed),
        )


def _open_files() -> Iterator[Metric]:
    try:
        # Linux 6.2 tells the number as the size; to list 20,000 takes 10 ms. Less the one that lists.
        count = os.stat(_OPEN_FILES).st_size or len(os.listdir(_OPEN_FILES)) - 1
    except OSError:
        # no Linux
        return
    yield _gauge("open_files", "Files and sockets that the process has open.", count)
    limit = open_file_limit()
    yield _gauge("open_files_limit", "How many it may have open.", float("inf") if limit is None else limit)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)
