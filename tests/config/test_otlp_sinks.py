"""The log by OTLP: sinks of type ``otlp``, and OpenTelemetry's variables in their place."""

from __future__ import annotations

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.otlp_sinks import log_destination
from twisted_vllm.config.sinks import SinkSettings


def loaded(load_text: Loader, own: str = "", **environ: str) -> tuple[SinkSettings, ...]:
    return load_text(f"passthrough: {{sinks: [{own}]}}", BASE | environ).sinks


def test_a_sink_without_a_url_sends_to_the_collector_of_this_machine(load_text: Loader) -> None:
    (sink,) = loaded(load_text, "{name: logs, type: otlp}")
    found = log_destination(sink)
    assert (found.name, found.protocol, found.endpoint) == ("logs", "http", "http://localhost:4318/v1/logs")
    assert sink.service_name == "vllm-passthrough"


def test_the_variables_count_where_the_file_says_nothing(load_text: Loader) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://collector:4318/v1/logs",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a-long-secret",
        "OTEL_SERVICE_NAME": "edge",
    }
    (sink,) = loaded(load_text, "{name: logs, type: otlp}", **variables)
    found = log_destination(sink)
    assert found.endpoint == "http://collector:4318/v1/logs"
    assert found.headers["x-key"].reveal() == "a-long-secret"
    assert sink.service_name == "edge"
    assert "a-long-secret" in sink.secrets
    (own,) = loaded(load_text, '{name: logs, type: otlp, protocol: grpc, url: "http://other:4317"}', **variables)
    other = log_destination(own)
    assert (other.protocol, other.endpoint, other.headers) == ("grpc", "http://other:4317", {})


@pytest.mark.parametrize(
    "environ",
    [{"OTEL_LOGS_EXPORTER": "otlp"}, {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://collector:4318/v1/logs"}],
)
def test_the_variables_alone_ask_for_a_sink(load_text: Loader, environ: dict[str, str]) -> None:
    (sink,) = loaded(load_text, **environ)
    assert (sink.name, sink.type, sink.format) == ("otlp", "otlp", "event")
    # one of the file is enough
    assert [each.name for each in loaded(load_text, "{name: logs, type: otlp}", **environ)] == ["logs"]


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        {"OTEL_LOGS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://collector/v1/logs"},
        {"OTEL_LOGS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_sent_that_nobody_asked_for(load_text: Loader, environ: dict[str, str]) -> None:
    assert loaded(load_text, **environ) == ()


def test_a_name_that_is_taken_is_warned_of(load_text: Loader) -> None:
    settings = load_text("passthrough: {sinks: [{name: otlp, type: stdout}]}", BASE | {"OTEL_LOGS_EXPORTER": "otlp"})
    assert [sink.type for sink in settings.sinks] == ["stdout"]
    assert "a sink of another type is named otlp" in settings.warnings[0]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("{name: a, type: otlp, format: text}", "format: must be one of json, event for a sink of type otlp"),
        ("{name: a, type: otlp, path: x}", "path: does not belong to a sink of type otlp"),
        ("{name: a, type: otlp, protocol: udp}", "protocol: must be one of"),
        ("{name: a, type: stdout, protocol: grpc}", "protocol: does not belong to a sink of type stdout"),
    ],
)
def test_what_cannot_be_used_is_refused(problems_of: Refusal, own: str, message: str) -> None:
    (problem,) = problems_of(f"passthrough: {{sinks: [{own}]}}")
    assert message in problem
