"""OTLP metrics: the settings, and OpenTelemetry's variables in their place."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.describe import describe
from twisted_vllm.config.otlp_metrics import OtlpMetricsSettings


def loaded(load_text: Loader, own: str = "", **environ: str) -> OtlpMetricsSettings:
    return load_text(f"passthrough: {{otlp_metrics: {{{own}}}}}", BASE | environ).otlp_metrics


def test_nothing_is_exported_unless_somebody_asks(load_text: Loader) -> None:
    assert not loaded(load_text).active
    # the endpoint of all signals is for traces alone
    assert not loaded(load_text, OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318").active
    assert loaded(load_text).secrets == []


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/v1/metrics"},
    ],
)
def test_opentelemetry_s_variables_are_enough(load_text: Loader, environ: dict[str, str]) -> None:
    found = loaded(
        load_text,
        **environ,
        OTEL_EXPORTER_OTLP_HEADERS="x-key=a-long-secret",
        OTEL_METRIC_EXPORT_INTERVAL="15000",
        OTEL_METRIC_EXPORT_TIMEOUT="3000",
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="DELTA",
        OTEL_SERVICE_NAME="gateway",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=prod",
    )
    assert found.active
    assert found.destination.endpoint == "http://collector:4318/v1/metrics"
    assert found.destination.headers["x-key"].reveal() == "a-long-secret"
    assert found.secrets == ["a-long-secret"]
    assert (found.interval, found.timeout, found.temporality) == (15.0, 3.0, "delta")
    assert (found.service_name, found.resource) == ("gateway", {"deployment.environment.name": "prod"})


def test_the_file_wins_over_the_environment(load_text: Loader) -> None:
    found = loaded(
        load_text,
        'endpoint: "http://other:4317", protocol: grpc, interval: 5, temporality: lowmemory',
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="http://collector:4318/v1/metrics",
        OTEL_EXPORTER_OTLP_HEADERS="x-key=for-the-collector",
        OTEL_METRIC_EXPORT_INTERVAL="15000",
    )
    assert (found.destination.protocol, found.destination.endpoint) == ("grpc", "http://other:4317")
    # a key for one receiver must not go to another
    assert found.destination.headers == {}
    assert (found.interval, found.temporality) == (5.0, "lowmemory")


@pytest.mark.parametrize(
    ("own", "environ"),
    [
        ("enabled: false", {"OTEL_METRICS_EXPORTER": "otlp"}),
        ("", {"OTEL_METRICS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c/v1/metrics"}),
        ("", {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}),
    ],
)
def test_they_are_switched_off(load_text: Loader, own: str, environ: dict[str, str]) -> None:
    assert not loaded(load_text, own, **environ).active


def test_a_variable_that_makes_no_sense_is_warned_of(load_text: Loader) -> None:
    settings = load_text(
        "",
        BASE
        | {
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_METRIC_EXPORT_INTERVAL": "60",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "sometimes",
        },
    )
    assert settings.otlp_metrics.interval == 60.0
    assert settings.otlp_metrics.temporality == "cumulative"
    warned = "\n".join(settings.warnings)
    assert "OTEL_METRIC_EXPORT_INTERVAL: is no number of milliseconds" in warned
    assert "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: must be one of" in warned


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("endpoint: collector", "endpoint: must be a URL"),
        ('endpoint: "http://me:pw@collector"', "endpoint: must not hold a user name or a password"),
        ("protocol: http/json", "protocol: must be one of"),
        ("temporality: both", "temporality: must be one of"),
        ("enabled: true, key_file: k.pem", "key_file: is the key of no certificate"),
        ("intervall: 5", "is not a known setting; did you mean 'interval'?"),
    ],
)
def test_what_cannot_be_used_is_refused(problems_of: Refusal, own: str, message: str) -> None:
    (problem,) = problems_of(f"passthrough: {{otlp_metrics: {{{own}}}}}")
    assert message in problem


def test_it_is_described_without_a_secret(load_text: Loader) -> None:
    settings = load_text(
        'passthrough: {otlp_metrics: {endpoint: "http://c:4318/v1/metrics?key=hidden", headers: {x-key: hidden-too}}}',
        BASE,
    )
    said = "\n".join(describe(settings))
    assert "otlp metrics:   cumulative, every 60 s, as vllm-passthrough to http://c:4318 by http" in said
    assert "hidden" not in said


def test_the_name_of_the_gateway_is_that_of_its_traces(load_text: Loader) -> None:
    own = 'otlp_metrics: {enabled: true}, tracing: {service_name: edge, resource_attributes: {a: "1"}}'
    found: Any = load_text(f"passthrough: {{{own}}}", BASE).otlp_metrics
    assert (found.service_name, found.resource) == ("edge", {"a": "1"})
