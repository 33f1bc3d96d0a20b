"""Exports the metrics by OTLP: Prometheus' families become OpenTelemetry's sums, gauges and histograms.

The mapping is that of the OpenTelemetry specification ("Prometheus and OpenMetrics Compatibility"). Names have no
``_total``, which a receiver that writes to Prometheus adds again.

It imports the OpenTelemetry SDK, so it is imported only where OTLP metrics are configured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from math import inf, isnan

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtlpMetric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample
from zope.interface import implementer

from twisted_vllm.config.otlp_metrics import CUMULATIVE, DELTA
from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.observability.delivery.interfaces import IBlockingDestination
from twisted_vllm.observability.metrics.registry import Snapshot
from twisted_vllm.observability.otlp_exporter import METRICS, OtlpExporter

_SCOPE = InstrumentationScope("twisted_vllm", version("twisted-vllm"))

#: units (UCUM) by the end of a name, which Prometheus' conventions demand
_UNITS = {"_seconds": "s", "_bytes": "By", "_ratio": "1", "_usd": "{USD}"}

_Key = tuple[str, tuple[tuple[str, str], ...]]
_Buckets = tuple[tuple[int, ...], float]


class Conversion:
    """Converts families; for delta temporality it remembers what was exported before.

    What it remembers is as much as the last collection had.
    """

    def __init__(self, temporality: str, started: float) -> None:
        """Set up.

        Args:
            temporality: ``cumulative``, ``delta`` for sums and histograms, or ``lowmemory``: delta for histograms
                alone (OpenTelemetry, "OTLP metrics exporter").
            started: when counters began at 0, in Unix seconds.
        """
        self._sums_are_delta = temporality == DELTA
        self._histograms_are_delta = temporality != CUMULATIVE
        self._started = self._since = started
        self._numbers: dict[_Key, float] = {}
        self._buckets: dict[_Key, _Buckets] = {}
        self._next_numbers: dict[_Key, float] = {}
        self._next_buckets: dict[_Key, _Buckets] = {}
        self._next_since = started

    def convert(self, snapshot: Snapshot) -> list[OtlpMetric]:
        """Convert all families; `exported` makes the next deltas begin here."""
        self._next_numbers, self._next_buckets, self._next_since = {}, {}, snapshot.time
        now = _nanoseconds(snapshot.time)
        return [metric for family in snapshot.families for metric in self._of_family(family, now)]

    def exported(self) -> None:
        """Count the next deltas from what was converted last."""
        self._numbers, self._buckets, self._since = self._next_numbers, self._next_buckets, self._next_since

    def _of_family(self, family: Metric, now: int) -> Iterator[OtlpMetric]:
        if family.type == "histogram":
            yield from self._histogram(family, now)
        elif family.type == "counter":
            points = self._sums(family.name, (each for each in family.samples if each.name.endswith("_total")), now)
            yield from self._sum(family.name, family, points)
        elif family.type == "summary":
            # OpenTelemetry has quantiles only for what comes from elsewhere
            for end in ("_count", "_sum"):
                samples = (each for each in family.samples if each.name == family.name + end)
                yield from self._sum(family.name + end, family, self._sums(family.name + end, samples, now))
        else:
            name = f"{family.name}_info" if family.type == "info" else family.name
            found = [
                NumberDataPoint(each.labels, 0, now, float(each.value))
                for each in family.samples
                if not each.name.endswith("_created") and not isnan(each.value)
            ]
            if found:
                yield OtlpMetric(name, family.documentation, _unit(family), Gauge(found))

    def _sum(self, name: str, family: Metric, points: list[NumberDataPoint]) -> Iterator[OtlpMetric]:
        if points:
            temporality = _temporality(self._sums_are_delta)
            yield OtlpMetric(name, family.documentation, _unit(family), Sum(points, temporality, is_monotonic=True))

    def _sums(self, name: str, samples: Iterable[Sample], now: int) -> list[NumberDataPoint]:
        found: list[NumberDataPoint] = []
        for sample in samples:
            if isnan(sample.value):
                continue
            # always the same type: receivers take a change for another metric
            value, since = float(sample.value), self._started
            if self._sums_are_delta:
                key = _key(name, sample.labels)
                before = self._numbers.get(key, 0.0)
                self._next_numbers[key] = value
                # one that is smaller began anew
                value, since = (value - before if value >= before else value), self._since
            found.append(NumberDataPoint(sample.labels, _nanoseconds(since), now, value))
        return found

    def _histogram(self, family: Metric, now: int) -> Iterator[OtlpMetric]:
        found: list[HistogramDataPoint] = []
        for labels, bounds, cumulative, total in _histograms(family):
            counts = [count - before for count, before in zip(cumulative, [0, *cumulative], strict=False)]
            since = self._started
            if self._histograms_are_delta:
                key = _key(family.name, labels)
                self._next_buckets[key] = (tuple(counts), total)
                old, old_total = self._buckets.get(key, ((), 0.0))
                if len(old) == len(counts) and all(new >= was for new, was in zip(counts, old, strict=True)):
                    counts = [new - was for new, was in zip(counts, old, strict=True)]
                    total -= old_total
                since = self._since
            # minimum and maximum are not known
            unknown: float = None  # type: ignore[assignment]  # the SDK wants a number, its encoder takes None
            count = sum(counts)
            found.append(
                HistogramDataPoint(
                    labels, _nanoseconds(since), now, count, total, counts, bounds, min=unknown, max=unknown
                )
            )
        if found:
            data = Histogram(found, _temporality(self._histograms_are_delta))
            yield OtlpMetric(family.name, family.documentation, _unit(family), data)


def _histograms(family: Metric) -> Iterator[tuple[Mapping[str, str], list[float], list[int], float]]:
    """Yield the labels of each histogram, its upper bounds, its cumulative counts, and its sum."""
    buckets: dict[_Key, list[tuple[float, int]]] = {}
    labels_of: dict[_Key, Mapping[str, str]] = {}
    sums: dict[_Key, float] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        key = _key("", labels)
        if sample.name == f"{family.name}_bucket":
            labels_of.setdefault(key, labels)
            buckets.setdefault(key, []).append((float(sample.labels["le"]), int(sample.value)))
        elif sample.name == f"{family.name}_sum":
            sums[key] = sample.value
    for key, found in buckets.items():
        found.sort()
        bounds = [bound for bound, _ in found if bound != inf]
        yield labels_of[key], bounds, [count for _, count in found], sums.get(key, 0.0)


def _key(name: str, labels: Mapping[str, str]) -> _Key:
    return name, tuple(sorted(labels.items()))


def _unit(family: Metric) -> str:
    return next((unit for end, unit in _UNITS.items() if family.name.endswith(end)), "")


def _temporality(is_delta: bool) -> AggregationTemporality:
    return AggregationTemporality.DELTA if is_delta else AggregationTemporality.CUMULATIVE


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1_000_000) * 1_000


@implementer(IBlockingDestination)
class MetricDestination:
    """Exports snapshots of the metrics."""

    def __init__(
        self,
        destination: TraceDestination,
        resource: Mapping[str, str],
        conversion: Conversion,
    ) -> None:
        """Make the exporter.

        Args:
            destination: where they go; the names of its files are absolute.
            resource: attributes of the gateway.
            conversion: converts the families.
        """
        self._exporter = OtlpExporter(destination, METRICS)
        self._resource = Resource({**resource, **destination.resource})
        self._conversion = conversion

    def deliver(self, batch: Sequence[Snapshot]) -> None:
        """Export the last snapshot of a batch: it says all that the others say.

        Raises:
            DeliveryFailed: the receiver did not take it.
        """
        metrics = self._conversion.convert(batch[-1])
        scope = ScopeMetrics(_SCOPE, metrics, "")
        self._exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], "")]))
        self._conversion.exported()

    def close(self) -> None:
        """Close the connections."""
        self._exporter.close()
