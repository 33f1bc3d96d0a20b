"""Families that write their own lines say the same as those of `prometheus_client`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as write_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus_text
from prometheus_client.registry import Collector

from twisted_vllm.histogram import Histogram
from twisted_vllm.observability.metrics.families import FastFamily, HistogramFamily, NumberFamily
from twisted_vllm.observability.metrics.registry import Metrics

LABELS = ["model", "server"]
ROWS = st.dictionaries(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))),
    st.lists(st.floats(0, 1e9), max_size=5),
    max_size=4,
)


class Fixed(Collector):
    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> tuple[Metric, ...]:
        return self.families


def written(*families: Metric, accept: str) -> list[Metric]:
    metrics = Metrics()
    metrics.add(Fixed(*families))
    text = metrics.expose(accept)[0].decode()
    read = openmetrics if accept else prometheus_text
    names = {family.name for family in families}
    return sorted((family for family in read(text) if family.name in names), key=lambda family: family.name)


def pairs_of(rows: dict[tuple[str, str], list[float]]) -> tuple[list[FastFamily], list[Metric]]:
    """Return families with the same samples: ours, and those of prometheus_client."""
    ours: list[FastFamily] = []
    theirs: list[Metric] = []
    number = NumberFamily("a_requests", 'Requests with a "quote" and a \\.', LABELS)
    gauge = NumberFamily("b_in_flight", "In flight.", LABELS, "gauge")
    histogram = HistogramFamily("c_seconds", "Seconds.", LABELS)
    their_number = CounterMetricFamily("a_requests", 'Requests with a "quote" and a \\.', labels=LABELS)
    their_gauge = GaugeMetricFamily("b_in_flight", "In flight.", labels=LABELS)
    their_histogram = HistogramMetricFamily("c_seconds", "Seconds.", labels=LABELS)
    for labels, values in rows.items():
        measured = Histogram((0.0001, 0.5, 1.0, 600.0))
        for value in values:
            measured.observe(value)
        number.add(labels, len(values))
        gauge.add(labels, sum(values))
        histogram.add(labels, measured)
        their_number.add_metric(labels, len(values))
        their_gauge.add_metric(labels, sum(values))
        their_histogram.add_metric(labels, buckets=measured.buckets(), sum_value=measured.sum)
    ours += [number, gauge, histogram]
    theirs += [their_number, their_gauge, their_histogram]
    return ours, theirs


@given(ROWS)
def test_both_formats_say_what_prometheus_client_says(rows: dict[tuple[str, str], list[float]]) -> None:
    ours, theirs = pairs_of(rows)
    for accept in ("", "application/openmetrics-text"):
        assert written(*ours, accept=accept) == written(*theirs, accept=accept)


@given(ROWS)
def test_any_other_reader_of_metrics_finds_ordinary_samples(rows: dict[tuple[str, str], list[float]]) -> None:
    ours, theirs = pairs_of(rows)
    registry, other = CollectorRegistry(), CollectorRegistry()
    registry.register(Fixed(*ours))
    other.register(Fixed(*theirs))
    found, wanted = (list(openmetrics(write_openmetrics(each).decode())) for each in (registry, other))
    assert found == wanted


def test_a_family_says_what_was_measured_when_it_was_made() -> None:
    measured, family = Histogram((1.0,)), HistogramFamily("c_seconds", "Seconds.", ["model"])
    family.add(("m",), measured)
    measured.observe(0.5)
    assert [sample.value for sample in family.samples] == [0.0, 0.0, 0.0, 0.0]


def test_a_name_that_is_no_unicode_does_not_break_the_scrape() -> None:
    family = NumberFamily("a_requests", "Requests.", ["model"])
    family.add(("\ud800",), 1)
    [found] = written(family, accept="")
    assert [sample.labels for sample in found.samples] == [{"model": "?"}]
