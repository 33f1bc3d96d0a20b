"""Turns families of `prometheus_client` into messages, and messages into families."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric

from twisted_vllm.observability.metrics.families import HistogramFamily, NumberFamily
from twisted_vllm.observability.metrics.messages import Family, Row


def message_of(metric: Metric, *, is_open: bool) -> Family:
    """Return a family as a message; `is_open` says whether strangers get it."""
    name, documentation, kind = metric.name, metric.documentation, metric.type
    if isinstance(metric, NumberFamily):
        rows: list[Row] = [(tuple(values), 0, [float(number)]) for values, number in metric.rows]
        return Family(name, documentation, kind, is_open, "numbers", metric.label_names, rows)
    if isinstance(metric, HistogramFamily):
        bounds: dict[tuple[str, ...], int] = {}
        rows = []
        for values, buckets, total in metric.rows:
            place = bounds.setdefault(tuple(bound for bound, _ in buckets), len(bounds))
            rows.append((tuple(values), place, [*(count for _, count in buckets), total]))
        return Family(name, documentation, kind, is_open, "histograms", metric.label_names, rows, list(bounds))
    rows = [
        (
            (sample.name, *(piece for label in sample.labels.items() for piece in label)),
            0,
            [float(sample.value)],
        )
        for sample in metric.samples
    ]
    return Family(name, documentation, kind, is_open, "samples", (), rows)


def metrics_of(families: Iterable[Family]) -> list[Metric]:
    """Return the families of messages."""
    return [_metric_of(family) for family in families]


def _metric_of(family: Family) -> Metric:
    if family.form == "numbers":
        numbers = NumberFamily(family.name, family.documentation, family.labels, family.kind)
        for key, _, values in family.rows:
            numbers.add(key, values[0])
        return numbers
    if family.form == "histograms":
        histograms = HistogramFamily(family.name, family.documentation, family.labels)
        for key, place, values in family.rows:
            histograms.add_counts(key, list(zip(family.bounds[place], values, strict=False)), values[-1])
        return histograms
    metric = Metric(family.name, family.documentation, family.kind)
    for key, _, values in family.rows:
        metric.add_sample(key[0], dict(zip(key[1::2], key[2::2], strict=True)), values[0])
    return metric
