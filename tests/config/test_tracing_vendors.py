"""Which receiver of traces a callback of LiteLLM means."""

from __future__ import annotations

from base64 import b64decode

import pytest

from twisted_vllm.config.problems import Place, Report
from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.config.tracing_vendors import VENDORS, vendor_destination, with_path

LANGFUSE = {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": "sk-lf-2"}
#: variables that suffice, by callback
ENOUGH: dict[str, dict[str, str]] = {
    "otel": {},
    "langfuse": LANGFUSE,
    "langfuse_otel": LANGFUSE,
    "arize_phoenix": {},
    "arize": {"ARIZE_SPACE_ID": "space", "ARIZE_API_KEY": "key"},
    "mlflow": {"MLFLOW_TRACKING_URI": "http://mlflow:5000/"},
    "datadog": {"DD_API_KEY": "key", "DD_SITE": "us3.datadoghq.com"},
    "datadog_llm_observability": {"DD_API_KEY": "key", "DD_SITE": "datadoghq.eu"},
    "logfire": {"LOGFIRE_TOKEN": "token"},
    "weave_otel": {"WANDB_API_KEY": "key", "WANDB_PROJECT_ID": "us/gateway"},
    "braintrust": {"BRAINTRUST_API_KEY": "key"},
    "langsmith": {"LANGSMITH_API_KEY": "key"},
    "traceloop": {"TRACELOOP_API_KEY": "key"},
    "newrelic": {"NEW_RELIC_LICENSE_KEY": "key", "NEW_RELIC_REGION": "EU"},
    "opik": {"OPIK_API_KEY": "key"},
    "levo": {
        "LEVOAI_COLLECTOR_URL": "https://c.levo.ai/x",
        "LEVOAI_API_KEY": "key",
        "LEVOAI_ORG_ID": "o",
        "LEVOAI_WORKSPACE_ID": "w",
    },
    "langtrace": {"LANGTRACE_API_KEY": "key"},
    "signoz": {"SIGNOZ_INGESTION_ENDPOINT": "https://ingest.us.signoz.cloud:443"},
}
ENDPOINTS = {
    "otel": "http://localhost:4318/v1/traces",
    "langfuse": "https://cloud.langfuse.com/api/public/otel/v1/traces",
    "langfuse_otel": "https://us.cloud.langfuse.com/api/public/otel/v1/traces",
    "arize_phoenix": "http://localhost:6006/v1/traces",
    "arize": "https://otlp.arize.com",
    "mlflow": "http://mlflow:5000/v1/traces",
    "datadog": "https://otlp.us3.datadoghq.com/v1/traces",
    "datadog_llm_observability": "https://otlp.datadoghq.eu/v1/traces",
    "logfire": "https://logfire-api.pydantic.dev/v1/traces",
    "weave_otel": "https://trace.wandb.ai/otel/v1/traces",
    "braintrust": "https://api.braintrust.dev/otel/v1/traces",
    "langsmith": "https://api.smith.langchain.com/otel/v1/traces",
    "traceloop": "https://api.traceloop.com/v1/traces",
    "newrelic": "https://otlp.eu01.nr-data.net/v1/traces",
    "opik": "https://www.comet.com/opik/api/v1/private/otel/v1/traces",
    "levo": "https://c.levo.ai/x",
    "langtrace": "https://app.langtrace.ai/api/trace",
    "signoz": "https://ingest.us.signoz.cloud:443/v1/traces",
}


def meant(callback: str, environ: dict[str, str]) -> tuple[TraceDestination | None, Report]:
    report = Report()
    return vendor_destination(callback, Place("", report, environ)), report


def destination(callback: str, **environ: str) -> TraceDestination:
    found, report = meant(callback, environ)
    assert report.problems == []
    assert found is not None
    return found


def headers(found: TraceDestination) -> dict[str, str]:
    return {name: value.reveal() for name, value in found.headers.items()}


@pytest.mark.parametrize("callback", VENDORS)
def test_a_callback_means_the_endpoint_of_its_vendor(callback: str) -> None:
    found = destination(callback, **ENOUGH[callback])
    assert found.name == callback
    assert found.endpoint == ENDPOINTS[callback]
    assert found.protocol == ("grpc" if callback == "arize" else "http")
    assert found.conventions


@pytest.mark.parametrize(("callback", "name"), [(each, name) for each, needed in ENOUGH.items() for name in needed])
def test_a_missing_variable_is_refused_by_its_name(callback: str, name: str) -> None:
    if name == "NEW_RELIC_REGION":
        pytest.skip("it has a default")
    found, report = meant(callback, {other: value for other, value in ENOUGH[callback].items() if other != name})
    assert found is None
    (problem,) = report.problems
    assert problem.path == name
    assert f"the callback {callback} needs it" in problem.message


def test_all_missing_variables_are_refused_at_once() -> None:
    _, report = meant("langfuse", {"LANGFUSE_HOST": "https://lf"})
    assert [problem.path for problem in report.problems] == ["LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"]


@pytest.mark.parametrize("callback", VENDORS)
def test_no_credential_is_shown(callback: str) -> None:
    credentials = ("KEY", "TOKEN")
    given = {name: f"hidden-{name}" for name in ENOUGH[callback] if name.endswith(credentials)}
    found = destination(callback, **ENOUGH[callback] | given)
    assert "hidden-" not in repr(found)
    assert bool(found.headers) or not given


def test_langfuse_gets_both_keys_as_basic_and_the_version_of_its_intake() -> None:
    found = destination(
        "langfuse_otel", **LANGFUSE, LANGFUSE_HOST="lf.example.com/", LANGFUSE_TRACING_ENVIRONMENT="prod"
    )
    assert found.endpoint == "https://lf.example.com/api/public/otel/v1/traces"
    sent = headers(found)
    scheme, _, credential = sent["authorization"].partition(" ")
    assert scheme == "Basic"
    assert b64decode(credential) == b"pk-lf-1:sk-lf-2"
    assert sent["x-langfuse-ingestion-version"] == "4"
    assert found.resource == {"langfuse.environment": "prod"}
    assert "langfuse" in found.conventions


def test_langfuse_s_host_of_its_own_for_otlp_wins() -> None:
    found = destination("langfuse", **LANGFUSE, LANGFUSE_HOST="https://a", LANGFUSE_OTEL_HOST="http://b:3000")
    assert found.endpoint == "http://b:3000/api/public/otel/v1/traces"


@pytest.mark.parametrize(
    ("endpoint", "protocol", "url"),
    [
        ("http://phoenix:6006", "http", "http://phoenix:6006/v1/traces"),
        ("http://phoenix:6006/v1/traces/", "http", "http://phoenix:6006/v1/traces"),
        ("http://phoenix:6006/v1", "http", "http://phoenix:6006/v1/traces"),
        ("http://phoenix:4317", "grpc", "http://phoenix:4317"),
    ],
)
def test_phoenix_is_found_by_any_form_of_its_endpoint(endpoint: str, protocol: str, url: str) -> None:
    found = destination("arize_phoenix", PHOENIX_COLLECTOR_ENDPOINT=endpoint, PHOENIX_PROJECT_NAME="gateway")
    assert (found.protocol, found.endpoint) == (protocol, url)
    assert found.resource == {"openinference.project.name": "gateway"}
    assert headers(found) == {}


def test_phoenix_cloud_needs_a_key() -> None:
    environ = {"PHOENIX_COLLECTOR_HTTP_ENDPOINT": "https://app.phoenix.arize.com/s/me"}
    _, report = meant("arize_phoenix", environ)
    assert [problem.path for problem in report.problems] == ["PHOENIX_API_KEY"]
    assert headers(destination("arize_phoenix", **environ, PHOENIX_API_KEY="k")) == {"authorization": "Bearer k"}


def test_arize_gets_http_where_that_is_named() -> None:
    found = destination("arize", **ENOUGH["arize"], ARIZE_HTTP_ENDPOINT="https://otlp.eu-west-1a.arize.com/v1")
    assert (found.protocol, found.endpoint) == ("http", "https://otlp.eu-west-1a.arize.com/v1/traces")
    assert headers(found) == {"space_id": "space", "arize-space-id": "space", "api_key": "key"}


def test_mlflow_gets_its_experiment_and_a_credential() -> None:
    found = destination("mlflow", MLFLOW_TRACKING_URI="https://ml", MLFLOW_EXPERIMENT_ID="7", MLFLOW_TRACKING_TOKEN="t")
    assert headers(found) == {"x-mlflow-experiment-id": "7", "authorization": "Bearer t"}
    plain = destination("mlflow", MLFLOW_TRACKING_URI="https://ml")
    assert headers(plain) == {"x-mlflow-experiment-id": "0"}


def test_mlflow_s_name_of_an_experiment_is_no_id() -> None:
    _, report = meant("mlflow", {"MLFLOW_TRACKING_URI": "http://ml", "MLFLOW_EXPERIMENT_NAME": "x"})
    assert "MLFLOW_EXPERIMENT_ID" in report.warnings()[0]


def test_mlflow_without_http_is_refused() -> None:
    _, report = meant("mlflow", {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"})
    assert report.problems[0].path == "MLFLOW_TRACKING_URI"
    assert "must be a URL" in report.problems[0].message


def test_datadog_is_reached_through_its_agent_where_one_is_named() -> None:
    found = destination("datadog", LITELLM_DD_AGENT_HOST="dd-agent", DD_API_KEY="key")
    assert found.endpoint == "http://dd-agent:4318/v1/traces"
    assert headers(found) == {}


def test_datadog_s_intake_gets_its_key_and_source() -> None:
    assert headers(destination("datadog", **ENOUGH["datadog"])) == {"dd-api-key": "key", "dd-otlp-source": "llmobs"}


@pytest.mark.parametrize("site", ["https://datadoghq.com", "evil.example/x?", "a b"])
def test_a_site_of_datadog_is_a_host_alone(site: str) -> None:
    found, report = meant("datadog", {"DD_API_KEY": "key", "DD_SITE": site})
    assert found is None
    assert report.problems[0].path == "DD_SITE"


def test_weave_and_opik_get_their_projects() -> None:
    assert headers(destination("weave_otel", **ENOUGH["weave_otel"]))["project_id"] == "us/gateway"
    local = destination("opik", OPIK_URL_OVERRIDE="http://localhost:5173/api", OPIK_PROJECT_NAME="p")
    assert local.endpoint == "http://localhost:5173/api/v1/private/otel/v1/traces"
    assert headers(local) == {"comet-workspace": "default", "projectname": "p"}


def test_otel_reads_opentelemetry_s_variables_and_litellm_s_older_ones() -> None:
    found = destination(
        "otel", OTEL_EXPORTER="otlp_grpc", OTEL_ENDPOINT="http://tempo:4317", OTEL_HEADERS="x-key=v%20w"
    )
    assert (found.protocol, found.endpoint, headers(found)) == ("grpc", "http://tempo:4317", {"x-key": "v w"})
    older = destination("otel", OTEL_EXPORTER="otlp_http", OTEL_ENDPOINT="https://api.honeycomb.io/v1/traces")
    assert older.endpoint == "https://api.honeycomb.io/v1/traces"
    newer = destination("otel", OTEL_ENDPOINT="http://old", OTEL_EXPORTER_OTLP_ENDPOINT="http://new:4318")
    assert newer.endpoint == "http://new:4318/v1/traces"


@pytest.mark.parametrize("callback", [each for each in VENDORS if each != "otel"])
def test_a_key_with_a_line_break_is_refused_without_being_shown(callback: str) -> None:
    for name in ENOUGH[callback]:
        if not name.endswith(("KEY", "TOKEN")):
            continue
        found, report = meant(callback, {**ENOUGH[callback], name: "secret\r\nx-evil: 1"})
        if found is None:
            assert "secret" not in str(report.problems)
        else:
            # it is encoded
            assert all("\n" not in value for value in headers(found).values())


@pytest.mark.parametrize("base", ["http://c", "http://c/", "http://c/v1", "http://c/v1/traces", "http://c/v1/traces/"])
def test_any_form_of_a_base_leads_to_its_traces(base: str) -> None:
    assert with_path(base) == "http://c/v1/traces"
