"""The settings of traces, and what the ``OTEL_*`` variables say in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from twisted_vllm.config import tracing
from twisted_vllm.config.describe import describe
from twisted_vllm.config.otel_environment import OtelEnvironment
from twisted_vllm.config.problems import ConfigError, Place, Report
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.tracing import is_installed

Loader = Callable[..., Settings]
BASE = {"HOSTED_VLLM_API_BASE": "http://127.0.0.1:8000"}

ONE = """
passthrough:
  tracing:
    destinations:
      - name: tempo
        endpoint: http://tempo:4318/v1/traces
"""


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "is_installed", lambda: False)


def test_nothing_is_traced_by_default(load_text: Loader) -> None:
    found = load_text("", BASE)
    assert not found.tracing.active
    assert [line for line in describe(found) if line.startswith("traces")] == []


def test_a_destination_switches_traces_on(load_text: Loader) -> None:
    found = load_text(ONE, BASE).tracing
    assert found.active
    [destination] = found.destinations
    assert (destination.name, destination.protocol, destination.endpoint) == (
        "tempo",
        "http",
        "http://tempo:4318/v1/traces",
    )
    assert (found.sampler, found.sample_ratio, found.service_name) == (
        "parentbased_traceidratio",
        1.0,
        "vllm-passthrough",
    )
    assert (found.propagate, found.trust_incoming, found.trust_sampled) == (True, "keys", "administrators")


def test_traces_can_be_switched_off(load_text: Loader) -> None:
    assert not load_text(ONE + "    enabled: false\n", BASE).tracing.active


@pytest.mark.parametrize(
    ("variables", "protocol", "endpoint"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http", "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/base/"}, "http", "http://c:4318/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/own"}, "http", "http://c:4318/own"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "grpc",
            "http://c:4317",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:2/x",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http",
            "http://b:2/x",
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http", "http://localhost:4318/v1/traces"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "grpc",
            "http://localhost:4317",
        ),
    ],
)
def test_the_variables_of_opentelemetry_name_a_destination(
    load_text: Loader, variables: dict[str, str], protocol: str, endpoint: str
) -> None:
    found = load_text("", {**BASE, **variables}).tracing
    assert found.active
    [destination] = found.destinations
    assert (destination.protocol, destination.endpoint) == (protocol, endpoint)


@pytest.mark.parametrize("more", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_the_variables_switch_traces_off(load_text: Loader, more: dict[str, str]) -> None:
    assert not load_text("", {**BASE, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", **more}).tracing.active


def test_the_other_variables_are_read(load_text: Loader) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://c:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20token-of-the-collector, X-Scope=a",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "cert.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "key.pem",
        "OTEL_SERVICE_NAME": "gateway-eu",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,deployment.environment.name=prod%20eu",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
    }
    settings = load_text("", {**BASE, **variables})
    found = settings.tracing
    [destination] = found.destinations
    assert destination.headers == {"authorization": Secret("Bearer token-of-the-collector"), "x-scope": Secret("a")}
    assert (destination.timeout, destination.compression) == (2.5, "none")
    assert (destination.ca_file, destination.certificate_file, destination.key_file) == (
        "ca.pem",
        "cert.pem",
        "key.pem",
    )
    assert found.service_name == "gateway-eu"
    assert found.resource_attributes["deployment.environment.name"] == "prod eu"
    assert (found.sampler, found.sample_ratio) == ("parentbased_traceidratio", 0.25)
    assert settings.warnings == ()
    assert "token-of-the-collector" in settings.secrets
    assert "token-of-the-collector" not in repr(settings) + "".join(describe(settings))


def test_the_file_wins_over_the_variables(load_text: Loader) -> None:
    text = ONE + "    service_name: mine\n    sampler: always_off\n"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SERVICE_NAME": "theirs"}
    found = load_text(text, {**BASE, **variables, "OTEL_TRACES_SAMPLER": "always_on"}).tracing
    assert [each.name for each in found.destinations] == ["tempo"]
    assert (found.service_name, found.sampler) == ("mine", "always_off")


def test_the_headers_of_the_environment_go_to_no_destination_of_the_file(load_text: Loader) -> None:
    found = load_text(ONE, {**BASE, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret"}).tracing
    assert found.destinations[0].headers == {}


@pytest.mark.parametrize(
    ("propagators", "propagates", "trusted"),
    [("tracecontext,baggage", True, "keys"), ("none", False, "nobody"), ("baggage", False, "nobody")],
)
def test_propagators(load_text: Loader, propagators: str, propagates: bool, trusted: str) -> None:
    found = load_text(ONE, {**BASE, "OTEL_PROPAGATORS": propagators}).tracing
    assert (found.propagate, found.trust_incoming) == (propagates, trusted)


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "15"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "no-equals"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "x=a%0d%0ab"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "brotli"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:password@c:4318"},
        {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
        {"OTEL_TRACES_SAMPLER_ARG": "2"},
        {"OTEL_RESOURCE_ATTRIBUTES": "nothing"},
        {"OTEL_PROPAGATORS": "tracecontext,b3"},
    ],
)
def test_a_variable_that_cannot_be_used_is_one_warning_without_its_value(
    load_text: Loader, variables: dict[str, str]
) -> None:
    found = load_text("", {**BASE, "OTEL_TRACES_EXPORTER": "otlp", **variables})
    assert found.tracing.active
    [warning] = found.warnings
    [(name, value)] = variables.items()
    assert warning.startswith(f"{name}: ")
    assert value not in warning
    assert "password" not in warning


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("tracing: {enabeld: true}", "passthrough.tracing.enabeld", "did you mean 'enabled'?"),
        ("tracing: {destinations: [{endpoint: 'http://x'}]}", "destinations[0].name", "is missing"),
        ("tracing: {destinations: [{name: a, endpoint: 'x:4317'}]}", "destinations[0].endpoint", "http://"),
        ("tracing: {destinations: [{name: a, endpoint: 'http://u:p@x'}]}", "destinations[0].endpoint", "password"),
        ("tracing: {destinations: [{name: a}, {name: a}]}", "destinations[1].name", "stands twice"),
        ("tracing: {destinations: [{name: a, protocol: http/json}]}", "destinations[0].protocol", "one of"),
        ('tracing: {destinations: [{name: a, headers: {x: "a\\nb"}}]}', "destinations[0].headers[0]", "line break"),
        ("tracing: {destinations: [{name: a, headers: {'sk-1 2': b}}]}", "destinations[0].headers[0]", "no header"),
        ("tracing: {destinations: [{name: a, key_file: k}]}", "destinations[0].key_file", "certificate_file"),
        ("tracing: {destinations: [{name: a, conventions: [otel]}]}", "destinations[0].conventions[0]", "gen_ai"),
        ("tracing: {destinations: {name: a}}", "passthrough.tracing.destinations", "must be a list"),
        ("tracing: {sample_ratio: 1.5}", "passthrough.tracing.sample_ratio", "at most 1"),
        ("tracing: {sampler: always}", "passthrough.tracing.sampler", "one of"),
        ("tracing: {trust_incoming: all}", "passthrough.tracing.trust_incoming", "everybody"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(load_text: Loader, text: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(f"passthrough: {{{text}}}", BASE)
    [problem] = [each for each in caught.value.problems if each.path.endswith(path)]
    assert message in problem.message
    assert "sk-1" not in str(caught.value)


def test_a_ratio_with_a_sampler_that_goes_by_none_is_a_warning(load_text: Loader) -> None:
    found = load_text(ONE + "    sampler: always_on\n    sample_ratio: 0.1\n", BASE)
    assert "has no effect" in found.warnings[0]


def test_no_more_destinations_than_threads_are_good_for(load_text: Loader) -> None:
    many = ", ".join(f"{{name: d{number}}}" for number in range(17))
    with pytest.raises(ConfigError, match="16 destinations at most"):
        load_text(f"passthrough: {{tracing: {{destinations: [{many}]}}}}", BASE)


def test_without_the_extra_a_file_that_asks_for_traces_is_refused(load_text: Loader, not_installed: None) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(ONE, BASE)
    assert "pip install 'twisted-vllm[otel]'" in str(caught.value)
    with pytest.raises(ConfigError):
        load_text("passthrough: {tracing: {enabled: true}}", BASE)


def test_without_the_extra_a_callback_is_refused_where_it_was_written(load_text: Loader, not_installed: None) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("litellm_settings: {callbacks: [otel]}", BASE)
    (problem,) = caught.value.problems
    assert problem.path == "litellm_settings.callbacks"
    assert "pip install 'twisted-vllm[otel]'" in problem.message


def test_without_the_extra_a_variable_is_a_warning(load_text: Loader, not_installed: None) -> None:
    """It may be meant for another program."""
    found = load_text("", {**BASE, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"})
    assert not found.tracing.active
    assert "pip install 'twisted-vllm[otel]'" in found.warnings[0]


def test_the_extra_is_looked_for_without_importing_it() -> None:
    looked_for: list[str] = []

    def find(name: str) -> Any:
        looked_for.append(name)
        raise ModuleNotFoundError

    assert is_installed(find) is False
    assert looked_for == ["opentelemetry.sdk"]
    assert is_installed()


def test_another_signal_has_variables_of_its_own() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318",
        "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x=logs",
        "OTEL_EXPORTER_OTLP_HEADERS": "x=all",
        "OTEL_METRICS_EXPORTER": "otlp, prometheus",
    }
    root = Place("", Report(), environ)
    logs, metrics = OtelEnvironment(root, "LOGS"), OtelEnvironment(root, "METRICS")
    assert logs.endpoint("http") == "http://c:4318/v1/logs"
    assert (logs.headers(), metrics.headers()) == ({"x": Secret("logs")}, {"x": Secret("all")})
    assert metrics.exporters == {"otlp", "prometheus"}
