"""The metrics as OTLP, read by the official protobuf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

pytest.importorskip("opentelemetry.sdk")

from tests.otlp_receiver import OtlpReceiver, grpc_receiver, http_receiver, plain
from twisted_vllm.config.otlp_metrics import CUMULATIVE, DELTA, LOW_MEMORY
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.observability.delivery.interfaces import DeliveryFailed
from twisted_vllm.observability.metrics.otlp import Conversion, MetricDestination
from twisted_vllm.observability.metrics.registry import Metrics, Snapshot

STARTED, NOW = 1_000.0, 1_060.0
CUMULATIVE_NUMBER, DELTA_NUMBER = 2, 1


def counter(value: float, **labels: str) -> Metric:
    family = CounterMetricFamily("gw_requests", "Requests.", labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def histogram(counts: tuple[int, int, int], total: float) -> Metric:
    family = HistogramMetricFamily("gw_duration_seconds", "Durations.", labels=["model"])
    cumulative = [counts[0], counts[0] + counts[1], sum(counts)]
    family.add_metric(["llama"], list(zip(["0.1", "1.0", "+Inf"], cumulative, strict=True)), total)
    return family


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with http_receiver() as found:
        yield found


def destination(found: OtlpReceiver, protocol: str = "http", **more: Any) -> TraceDestination:
    path = "/v1/metrics" if protocol == "http" else ""
    return TraceDestination("otlp", protocol, f"{found.url}{path}", {"x-key": Secret("k")}, (), timeout=2.0, **more)


def export(
    found: OtlpReceiver, *families: Metric, temporality: str = CUMULATIVE, conversion: Conversion | None = None
) -> dict[str, Any]:
    exporter = MetricDestination(
        destination(found), {"service.name": "gw"}, conversion or Conversion(temporality, STARTED)
    )
    try:
        exporter.deliver([Snapshot(NOW, list(families))])
    finally:
        exporter.close()
    return found.metrics()


def test_a_counter_is_a_monotonic_sum_since_the_start(receiver: OtlpReceiver) -> None:
    metric = export(receiver, counter(7, model="llama"))["gw_requests"]
    assert metric.sum.is_monotonic
    assert metric.sum.aggregation_temporality == CUMULATIVE_NUMBER
    (point,) = metric.sum.data_points
    assert point.as_double == 7
    assert plain(point) == {"model": "llama"}
    assert point.start_time_unix_nano == STARTED * 1e9
    assert point.time_unix_nano == NOW * 1e9
    assert metric.description == "Requests."


def test_a_gauge_is_a_gauge_and_information_a_gauge_of_1(receiver: OtlpReceiver) -> None:
    found = export(
        receiver,
        GaugeMetricFamily("gw_open_files", "Files.", value=12),
        InfoMetricFamily("gw", "The gateway", value={"version": "1"}),
    )
    assert found["gw_open_files"].gauge.data_points[0].as_double == 12
    (point,) = found["gw_info"].gauge.data_points
    assert (point.as_double, plain(point)) == (1, {"version": "1"})


def test_a_histogram_has_counts_of_each_bucket_and_its_bounds(receiver: OtlpReceiver) -> None:
    metric = export(receiver, histogram((2, 3, 1), 4.5))["gw_duration_seconds"]
    assert metric.unit == "s"
    assert metric.histogram.aggregation_temporality == CUMULATIVE_NUMBER
    (point,) = metric.histogram.data_points
    assert list(point.bucket_counts) == [2, 3, 1]
    assert list(point.explicit_bounds) == [0.1, 1.0]
    assert (point.count, point.sum) == (6, 4.5)
    assert not point.HasField("min")
    assert plain(point) == {"model": "llama"}


def test_deltas_count_from_the_last_export(receiver: OtlpReceiver) -> None:
    conversion = Conversion(DELTA, STARTED)
    export(receiver, counter(7, model="llama"), histogram((2, 3, 1), 4.5), conversion=conversion)
    first = receiver.metrics()
    assert first["gw_requests"].sum.aggregation_temporality == DELTA_NUMBER
    assert first["gw_requests"].sum.data_points[0].as_double == 7
    export(receiver, counter(9, model="llama"), histogram((2, 4, 1), 5.0), conversion=conversion)
    second = receiver.metrics()
    point = second["gw_requests"].sum.data_points[0]
    assert (point.as_double, point.start_time_unix_nano) == (2, NOW * 1e9)
    durations = second["gw_duration_seconds"].histogram
    assert durations.aggregation_temporality == DELTA_NUMBER
    assert list(durations.data_points[0].bucket_counts) == [0, 1, 0]
    assert durations.data_points[0].sum == 0.5


def test_low_memory_has_deltas_of_histograms_alone(receiver: OtlpReceiver) -> None:
    found = export(receiver, counter(7), histogram((1, 0, 0), 0.1), temporality=LOW_MEMORY)
    assert found["gw_requests"].sum.aggregation_temporality == CUMULATIVE_NUMBER
    assert found["gw_duration_seconds"].histogram.aggregation_temporality == DELTA_NUMBER


def test_what_was_not_taken_is_in_the_next_delta(receiver: OtlpReceiver) -> None:
    conversion = Conversion(DELTA, STARTED)
    receiver.status = 400
    with pytest.raises(DeliveryFailed):
        export(receiver, counter(7), conversion=conversion)
    receiver.status = 200
    found = export(receiver, counter(9), conversion=conversion)
    assert found["gw_requests"].sum.data_points[0].as_double == 9


def test_a_counter_that_began_anew_is_no_negative_delta(receiver: OtlpReceiver) -> None:
    conversion = Conversion(DELTA, STARTED)
    export(receiver, counter(7), histogram((5, 0, 0), 1.0), conversion=conversion)
    found = export(receiver, counter(2), histogram((1, 0, 0), 0.2), conversion=conversion)
    assert found["gw_requests"].sum.data_points[0].as_double == 2
    assert list(found["gw_duration_seconds"].histogram.data_points[0].bucket_counts) == [1, 0, 0]


def test_prometheus_client_s_own_metrics_are_understood(receiver: OtlpReceiver) -> None:
    registry = CollectorRegistry()
    Counter("gw_things", "Things.", ["kind"], registry=registry).labels("a").inc(3)
    Histogram("gw_size_bytes", "Sizes.", buckets=(1, 2), registry=registry).observe(1.5)
    Summary("gw_work_seconds", "Work.", registry=registry).observe(2)
    found = export(receiver, *registry.collect())
    assert set(found) == {"gw_things", "gw_size_bytes", "gw_work_seconds_count", "gw_work_seconds_sum"}
    assert found["gw_things"].sum.data_points[0].as_double == 3
    assert list(found["gw_size_bytes"].histogram.data_points[0].bucket_counts) == [0, 1, 0]
    assert found["gw_work_seconds_sum"].sum.data_points[0].as_double == 2


def test_a_number_that_is_none_is_left_out(receiver: OtlpReceiver) -> None:
    found = export(receiver, GaugeMetricFamily("gw_a", "A.", value=float("nan")), counter(1))
    assert set(found) == {"gw_requests"}


class _Named(Collector):
    def __init__(self, server: str) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        yield counter(1, server=self._server)


def test_the_gateway_s_metrics_are_exported_with_the_names_that_administrators_see(receiver: OtlpReceiver) -> None:
    metrics = Metrics()
    metrics.add(_Named("1"), _Named("gpu-1:8000"))
    snapshot = metrics.snapshot(NOW)
    assert 0 < snapshot.size < 200_000
    found = export(receiver, *snapshot.families)
    assert plain(found["gw_requests"].sum.data_points[0]) == {"server": "gpu-1:8000"}
    assert "vllm_passthrough_info" in found
    assert "process_cpu_seconds" in found


@pytest.mark.parametrize(("running", "protocol"), [(http_receiver, "http"), (grpc_receiver, "grpc")])
def test_they_go_over_http_and_over_grpc(
    running: Callable[[], AbstractContextManager[OtlpReceiver]], protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-other=secret-of-another")
    with running() as found:
        exporter = MetricDestination(destination(found, protocol), {"service.name": "gw"}, Conversion(CUMULATIVE, 0))
        exporter.deliver([Snapshot(NOW, [counter(3)])])
        exporter.close()
        (export,) = found.exports
        assert export.headers["x-key"] == "k"
        assert "x-other" not in export.headers
        assert export.path == ("/v1/metrics" if protocol == "http" else "")
        assert plain(export.data.resource_metrics[0].resource)["service.name"] == "gw"
        assert found.metrics()["gw_requests"].sum.data_points[0].as_double == 3


def test_a_receiver_that_refuses_is_told_from_one_that_is_busy(receiver: OtlpReceiver) -> None:
    for status, retryable in ((401, False), (413, False), (307, False)):
        receiver.status = status
        with pytest.raises(DeliveryFailed) as caught:
            export(receiver, counter(1))
        assert caught.value.retryable is retryable
        assert str(status) in caught.value.message


def test_a_receiver_over_grpc_that_refuses_says_so_by_its_code() -> None:
    import grpc

    with grpc_receiver() as found:
        found.code = grpc.StatusCode.UNAUTHENTICATED
        exporter = MetricDestination(destination(found, "grpc"), {}, Conversion(CUMULATIVE, 0))
        with pytest.raises(DeliveryFailed) as caught:
            exporter.deliver([Snapshot(NOW, [counter(3)])])
        exporter.close()
    assert caught.value.message == "it answered UNAUTHENTICATED"
    assert not caught.value.retryable


def test_only_the_last_of_several_collections_is_exported(receiver: OtlpReceiver) -> None:
    exporter = MetricDestination(destination(receiver), {}, Conversion(CUMULATIVE, 0))
    exporter.deliver([Snapshot(NOW, [counter(1)]), Snapshot(NOW + 1, [counter(2)])])
    exporter.close()
    assert len(receiver.exports) == 1
    assert receiver.metrics()["gw_requests"].sum.data_points[0].as_double == 2
