"""The metrics of prompts and answers for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twisted_vllm.observability.metrics.registry import PREFIX

#: what became of the prompt and the answer of a request: all of them is kept, a part, or nothing by a fault
WHOLE, TRUNCATED, FAILED = "whole", "truncated", "failed"


class ContentsMetrics(Collector):
    """What was kept of prompts and answers, read on each scrape.

    Attributes:
        kept: requests of which something was kept or was to be kept, by what became of it.
        used: tells how many bytes are kept of the requests in flight.
    """

    def __init__(self) -> None:
        """Begin at zero."""
        self.kept: Counter[str] = Counter({WHOLE: 0, TRUNCATED: 0, FAILED: 0})
        self.used: Callable[[], int] = int

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics."""
        kept = CounterMetricFamily(
            f"{PREFIX}_contents", "Requests whose prompt and answer were kept for traces and sinks.", labels=["result"]
        )
        for result, count in self.kept.items():
            kept.add_metric([result], count)
        yield kept
        yield GaugeMetricFamily(
            f"{PREFIX}_contents_bytes", "Bytes of prompts and answers that are kept of requests in flight.", self.used()
        )
