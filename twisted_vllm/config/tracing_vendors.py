"""Which receiver of traces a callback of LiteLLM means, from the variables that the vendor names.

Names of callbacks and variables are LiteLLM 1.108's (``litellm/integrations``); where LiteLLM has a client of the
vendor's own in place of OTLP, the endpoint and the headers are of the vendor's documentation, named at each function.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping

import attrs

from twisted_vllm.config.otel_environment import OtelEnvironment, is_endpoint, is_header
from twisted_vllm.config.problems import Place
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.tracing_destinations import GRPC, HTTP, TraceDestination

#: the path of traces below a receiver's base (OTLP/HTTP)
_TRACES = "/v1/traces"


@attrs.frozen
class _Variables:
    """The variables of one callback; what is missing or cannot be used is reported with its name.

    Attributes:
        callback: the callback, for messages.
        root: the place of the environment.
        problems: what was reported so far.
    """

    callback: str
    root: Place
    problems: list[str] = attrs.field(factory=list)

    def get(self, *names: str, default: str = "") -> str:
        """Return the first variable that is set and not empty."""
        return next((value for name in names if (value := self.root.environ.get(name, "").strip())), default)

    def need(self, *names: str, what: str) -> str:
        """Return the first variable that is set; report the first name if none is."""
        found = self.get(*names)
        if not found:
            self.refuse(names[0], f"is not set: the callback {self.callback} needs it ({what})")
        return found

    def url(self, *names: str, default: str) -> str:
        """Return the base URL that a variable names, without a last slash; a host alone means https."""
        name = next((each for each in names if self.get(each)), names[0])
        found = self.get(name, default=default)
        found = (found if "://" in found else f"https://{found}").rstrip("/")
        if found and not is_endpoint(found):
            self.refuse(name, "must be a URL that begins with http:// or https://, without a user name or a password")
        return found

    def headers(self, **values: tuple[str, str]) -> Mapping[str, Secret]:
        """Return headers, each of a variable, which messages name, and a value. Empty ones are left out.

        Args:
            **values: by the header's name, with ``_`` for ``-``.
        """
        return self.named_headers({name.replace("_", "-"): value for name, value in values.items()})

    def named_headers(self, values: Mapping[str, tuple[str, str]]) -> Mapping[str, Secret]:
        """Return headers by their exact names; otherwise as `headers`."""
        found: dict[str, Secret] = {}
        for name, (variable, value) in values.items():
            if value and not is_header(name, value):
                self.refuse(variable, "holds a character that no header may hold (write ASCII, without line breaks)")
            elif value:
                found[name] = Secret(value)
        return found

    def refuse(self, name: str, message: str) -> None:
        """Report a problem of a variable."""
        self.problems.append(name)
        self.root.at(name).refuse(message)


def basic(user: str, password: str) -> str:
    """Return the value of ``Authorization`` for a user name and a password (RFC 7617)."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def _otel(found: _Variables) -> TraceDestination:
    """OpenTelemetry's variables; LiteLLM's older names stand for them where they are not set."""
    environ = dict(found.root.environ)
    protocol = found.get("OTEL_EXPORTER").removeprefix("otlp_")
    for name, value in (
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol if protocol in ("http", "grpc") else ""),
        ("OTEL_EXPORTER_OTLP_HEADERS", found.get("OTEL_HEADERS")),
    ):
        if value:
            environ[name] = environ.get(name) or value
    # LiteLLM takes any endpoint with or without the path
    older = found.get("OTEL_ENDPOINT").rstrip("/").removesuffix(_TRACES)
    if older:
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or older
    said = OtelEnvironment(attrs.evolve(found.root, environ=environ))
    named = said.protocol()
    return TraceDestination("otel", named, said.endpoint(named), said.headers(), ("gen_ai", "litellm"))


def _langfuse(found: _Variables) -> TraceDestination:
    """https://langfuse.com/integrations/native/opentelemetry: Basic, and the version of the intake."""
    public = found.need("LANGFUSE_PUBLIC_KEY", what="the public key of the project, pk-lf-…")
    secret = found.need("LANGFUSE_SECRET_KEY", what="the secret key of the project, sk-lf-…")
    # the callbacks differ in their region, as LiteLLM's two clients do
    region = "https://us.cloud.langfuse.com" if found.callback == "langfuse_otel" else "https://cloud.langfuse.com"
    host = found.url("LANGFUSE_OTEL_HOST", "LANGFUSE_HOST", "LANGFUSE_BASE_URL", default=region)
    resource = {
        "langfuse.environment": found.get("LANGFUSE_TRACING_ENVIRONMENT"),
        "langfuse.release": found.get("LANGFUSE_RELEASE"),
    }
    return TraceDestination(
        found.callback,
        HTTP,
        f"{host}/api/public/otel{_TRACES}",
        found.headers(
            authorization=("LANGFUSE_SECRET_KEY", basic(public, secret)), x_langfuse_ingestion_version=("", "4")
        ),
        ("gen_ai", "langfuse"),
        {name: value for name, value in resource.items() if value},
    )


def _phoenix(found: _Variables) -> TraceDestination:
    """https://arize.com/docs/phoenix: ``PHOENIX_*``; port 4317 is gRPC."""
    base = found.url("PHOENIX_COLLECTOR_HTTP_ENDPOINT", "PHOENIX_COLLECTOR_ENDPOINT", default="http://localhost:6006")
    key = found.get("PHOENIX_API_KEY")
    if "app.phoenix.arize.com" in base:
        key = found.need("PHOENIX_API_KEY", what="Phoenix Cloud takes no traces without a key")
    grpc = base.endswith(":4317") and not found.get("PHOENIX_COLLECTOR_HTTP_ENDPOINT")
    return TraceDestination(
        found.callback,
        GRPC if grpc else HTTP,
        base if grpc else with_path(base),
        found.headers(authorization=("PHOENIX_API_KEY", f"Bearer {key}" if key else "")),
        ("gen_ai", "openinference"),
        {"openinference.project.name": found.get("PHOENIX_PROJECT_NAME", default="default")},
    )


def _arize(found: _Variables) -> TraceDestination:
    """https://arize.com/docs/ax/integrations/opentelemetry: the space and the key; gRPC unless HTTP is named."""
    space = found.need("ARIZE_SPACE_ID", "ARIZE_SPACE_KEY", what="the id of the space")
    key = found.need("ARIZE_API_KEY", what="the key of the space")
    over_http = bool(found.get("ARIZE_HTTP_ENDPOINT")) and not found.get("ARIZE_ENDPOINT")
    base = found.url("ARIZE_HTTP_ENDPOINT" if over_http else "ARIZE_ENDPOINT", default="https://otlp.arize.com/v1")
    project = found.get("ARIZE_PROJECT_NAME", default="default")
    return TraceDestination(
        found.callback,
        HTTP if over_http else GRPC,
        with_path(base) if over_http else base.removesuffix("/v1"),
        found.named_headers(
            {
                "space_id": ("ARIZE_SPACE_ID", space),
                "arize-space-id": ("ARIZE_SPACE_ID", space),
                "api_key": ("ARIZE_API_KEY", key),
            }
        ),
        ("gen_ai", "openinference"),
        {"openinference.project.name": project, "model_id": project},
    )


def _mlflow(found: _Variables) -> TraceDestination:
    """https://mlflow.org/docs/latest/genai/tracing/opentelemetry/ingest: the experiment is a header."""
    found.need("MLFLOW_TRACKING_URI", what="the URL of the tracking server, which must store in a SQL database")
    base = found.url("MLFLOW_TRACKING_URI", default="http://localhost:5000")
    experiment = found.get("MLFLOW_EXPERIMENT_ID")
    if not experiment and found.get("MLFLOW_EXPERIMENT_NAME"):
        found.root.at("MLFLOW_EXPERIMENT_NAME").warn("ignored: OTLP names an experiment by MLFLOW_EXPERIMENT_ID")
    user, password = found.get("MLFLOW_TRACKING_USERNAME"), found.get("MLFLOW_TRACKING_PASSWORD")
    token = found.get("MLFLOW_TRACKING_TOKEN")
    authorization = f"Bearer {token}" if token else basic(user, password) if user and password else ""
    return TraceDestination(
        found.callback,
        HTTP,
        f"{base}{_TRACES}",
        found.headers(
            x_mlflow_experiment_id=("MLFLOW_EXPERIMENT_ID", experiment or "0"),
            x_mlflow_workspace=("MLFLOW_WORKSPACE", found.get("MLFLOW_WORKSPACE")),
            authorization=("MLFLOW_TRACKING_TOKEN", authorization),
        ),
        ("gen_ai", "mlflow"),
    )


def _datadog(found: _Variables) -> TraceDestination:
    """https://docs.datadoghq.com/llm_observability/instrumentation/otel_instrumentation: the agent, or the intake.

    The agent takes OTLP on port 4318, where its ``otlp_config`` says so. The intake takes GenAI spans with the source
    ``llmobs``; another source is what Datadog named for plain traces.
    """
    agent = found.get("LITELLM_DD_AGENT_HOST", "DD_AGENT_HOST")
    if agent:
        base = agent if "://" in agent else f"http://{agent}:4318"
        if not is_endpoint(base):
            found.refuse("LITELLM_DD_AGENT_HOST", "must be a host, or a URL that begins with http://")
        return TraceDestination(found.callback, HTTP, f"{base.rstrip('/')}{_TRACES}", {}, ("gen_ai", "litellm"))
    key = found.need("DD_API_KEY", what="or LITELLM_DD_AGENT_HOST, the host of an agent that takes OTLP")
    site = found.need("DD_SITE", what="such as datadoghq.com or us3.datadoghq.com")
    endpoint = f"https://otlp.{site}{_TRACES}"
    if site and (not is_endpoint(endpoint) or "/" in site):
        found.refuse("DD_SITE", "must be a site alone, such as datadoghq.com")
    return TraceDestination(
        found.callback,
        HTTP,
        endpoint,
        found.headers(
            dd_api_key=("DD_API_KEY", key),
            dd_otlp_source=("DD_OTLP_SOURCE", found.get("DD_OTLP_SOURCE", default="llmobs")),
        ),
        ("gen_ai", "litellm"),
    )


def _logfire(found: _Variables) -> TraceDestination:
    """https://logfire.pydantic.dev/docs/how-to-guides/alternative-clients: the token alone."""
    token = found.need("LOGFIRE_TOKEN", what="a write token of the project")
    base = found.url("LOGFIRE_BASE_URL", default="https://logfire-api.pydantic.dev")
    return TraceDestination(
        found.callback, HTTP, with_path(base), found.headers(authorization=("LOGFIRE_TOKEN", token)), ("gen_ai",)
    )


def _weave(found: _Variables) -> TraceDestination:
    """https://docs.wandb.ai/weave/guides/tracking/otel: Basic with the user ``api``, and the project."""
    key = found.need("WANDB_API_KEY", what="a key of Weights & Biases")
    project = found.need("WANDB_PROJECT_ID", what="ENTITY/PROJECT")
    base = found.url("WANDB_HOST", default="https://trace.wandb.ai")
    return TraceDestination(
        found.callback,
        HTTP,
        f"{base}/otel{_TRACES}",
        found.named_headers(
            {
                "authorization": ("WANDB_API_KEY", basic("api", key) if key else ""),
                "project_id": ("WANDB_PROJECT_ID", project),
            }
        ),
        ("gen_ai", "openinference"),
    )


def _braintrust(found: _Variables) -> TraceDestination:
    """https://www.braintrust.dev/docs/integrations/opentelemetry: the key, and the parent of the spans."""
    key = found.need("BRAINTRUST_API_KEY", what="a key of the organization")
    base = found.url("BRAINTRUST_API_URL", "BRAINTRUST_API_BASE", default="https://api.braintrust.dev")
    # LiteLLM's own base ends in the version of its API; its hosts are one and the same
    base = base.removesuffix("/v1").replace("//api.braintrustdata.com", "//api.braintrust.dev")
    return TraceDestination(
        found.callback,
        HTTP,
        f"{base}/otel{_TRACES}",
        found.headers(
            authorization=("BRAINTRUST_API_KEY", f"Bearer {key}"),
            x_bt_parent=("BRAINTRUST_PARENT", found.get("BRAINTRUST_PARENT", default="project_name:litellm")),
        ),
        ("gen_ai",),
    )


def _langsmith(found: _Variables) -> TraceDestination:
    """https://docs.langchain.com/langsmith/trace-with-opentelemetry: the key, and the project."""
    key = found.need("LANGSMITH_API_KEY", what="a key of the workspace")
    base = found.url("LANGSMITH_BASE_URL", "LANGSMITH_ENDPOINT", default="https://api.smith.langchain.com")
    return TraceDestination(
        found.callback,
        HTTP,
        f"{base}/otel{_TRACES}",
        found.headers(
            x_api_key=("LANGSMITH_API_KEY", key),
            langsmith_project=("LANGSMITH_PROJECT", found.get("LANGSMITH_PROJECT", default="litellm-completion")),
            x_tenant_id=("LANGSMITH_TENANT_ID", found.get("LANGSMITH_TENANT_ID")),
        ),
        ("gen_ai", "gen_ai_legacy"),
    )


def _traceloop(found: _Variables) -> TraceDestination:
    """https://www.traceloop.com/docs/openllmetry: ``TRACELOOP_BASE_URL`` takes OTLP over HTTP, with the key."""
    key = found.need("TRACELOOP_API_KEY", what="a key of the project")
    base = found.url("TRACELOOP_BASE_URL", default="https://api.traceloop.com")
    return TraceDestination(
        found.callback,
        HTTP,
        with_path(base),
        found.headers(authorization=("TRACELOOP_API_KEY", f"Bearer {key}")),
        ("gen_ai", "gen_ai_legacy"),
    )


_NEW_RELIC = {"us": "https://otlp.nr-data.net", "eu": "https://otlp.eu01.nr-data.net"}


def _newrelic(found: _Variables) -> TraceDestination:
    """https://docs.newrelic.com/docs/opentelemetry/best-practices/opentelemetry-otlp: a host for each region."""
    key = found.need("NEW_RELIC_LICENSE_KEY", what="the license key of the account")
    region = found.get("NEW_RELIC_REGION", default="us").lower()
    if region not in _NEW_RELIC:
        found.refuse("NEW_RELIC_REGION", f"must be one of {', '.join(_NEW_RELIC)}")
    base = _NEW_RELIC.get(region, "")
    headers = found.headers(api_key=("NEW_RELIC_LICENSE_KEY", key))
    return TraceDestination(found.callback, HTTP, f"{base}{_TRACES}", headers, ("gen_ai", "litellm"))


def _opik(found: _Variables) -> TraceDestination:
    """https://www.comet.com/docs/opik/integrations/opentelemetry: the key, the workspace, and the project."""
    base = found.url("OPIK_URL_OVERRIDE", default="https://www.comet.com/opik/api")
    key = found.get("OPIK_API_KEY")
    if "comet.com" in base:
        key = found.need("OPIK_API_KEY", what="or OPIK_URL_OVERRIDE, the URL of a server of your own")
    return TraceDestination(
        found.callback,
        HTTP,
        f"{base}/v1/private/otel{_TRACES}",
        found.named_headers(
            {
                "authorization": ("OPIK_API_KEY", key),
                "comet-workspace": ("OPIK_WORKSPACE", found.get("OPIK_WORKSPACE", default="default")),
                "projectname": ("OPIK_PROJECT_NAME", found.get("OPIK_PROJECT_NAME", default="Default Project")),
            }
        ),
        ("gen_ai", "openinference"),
    )


def _levo(found: _Variables) -> TraceDestination:
    """LiteLLM's ``levo``: the URL as it is, the key, organization and workspace."""
    endpoint = found.need("LEVOAI_COLLECTOR_URL", what="the URL of the collector, which Levo's support names")
    key = found.need("LEVOAI_API_KEY", what="a key of Levo")
    organization = found.need("LEVOAI_ORG_ID", what="the id of the organization")
    workspace = found.need("LEVOAI_WORKSPACE_ID", what="the id of the workspace")
    if endpoint and not is_endpoint(endpoint):
        found.refuse("LEVOAI_COLLECTOR_URL", "must be a URL that begins with http:// or https://")
    return TraceDestination(
        found.callback,
        HTTP,
        endpoint,
        found.headers(
            authorization=("LEVOAI_API_KEY", f"Bearer {key}"),
            x_levo_organization_id=("LEVOAI_ORG_ID", organization),
            x_levo_workspace_id=("LEVOAI_WORKSPACE_ID", workspace),
        ),
        ("gen_ai", "openinference"),
    )


def _langtrace(found: _Variables) -> TraceDestination:
    """LiteLLM's ``langtrace``: the key, and a path of its own."""
    key = found.need("LANGTRACE_API_KEY", what="a key of Langtrace")
    base = found.url("LANGTRACE_API_HOST", default="https://app.langtrace.ai").removesuffix("/api/trace")
    headers = found.headers(x_api_key=("LANGTRACE_API_KEY", key))
    return TraceDestination(found.callback, HTTP, f"{base}/api/trace", headers, ("gen_ai", "gen_ai_legacy"))


def _signoz(found: _Variables) -> TraceDestination:
    """https://signoz.io/docs/ingestion: the URL of the region or of the collector; the key for SigNoz Cloud."""
    found.need("SIGNOZ_INGESTION_ENDPOINT", what="such as https://ingest.us.signoz.cloud:443")
    base = found.url("SIGNOZ_INGESTION_ENDPOINT", default="http://localhost:4318")
    headers = found.headers(signoz_ingestion_key=("SIGNOZ_INGESTION_KEY", found.get("SIGNOZ_INGESTION_KEY")))
    return TraceDestination(found.callback, HTTP, with_path(base), headers, ("gen_ai", "litellm"))


def with_path(base: str) -> str:
    """Return the URL of traces of a receiver that was named with the whole path, a part of it, or none."""
    base = base.rstrip("/")
    return base if base.endswith(_TRACES) else f"{base.removesuffix('/v1')}{_TRACES}"


#: the callbacks that are receivers of traces
VENDORS: Mapping[str, Callable[[_Variables], TraceDestination]] = {
    "otel": _otel,
    "langfuse": _langfuse,
    "langfuse_otel": _langfuse,
    "arize_phoenix": _phoenix,
    "arize": _arize,
    "mlflow": _mlflow,
    "datadog": _datadog,
    "datadog_llm_observability": _datadog,
    "logfire": _logfire,
    "weave_otel": _weave,
    "braintrust": _braintrust,
    "langsmith": _langsmith,
    "traceloop": _traceloop,
    "newrelic": _newrelic,
    "opik": _opik,
    "levo": _levo,
    "langtrace": _langtrace,
    "signoz": _signoz,
}


def vendor_destination(callback: str, root: Place) -> TraceDestination | None:
    """Return the receiver of traces that a callback means.

    Args:
        callback: a name of `VENDORS`.
        root: the place of the environment. What is missing or wrong is reported below it, by the variable's name.

    Returns:
        None if something was reported.
    """
    variables = _Variables(callback, root)
    found = VENDORS[callback](variables)
    return None if variables.problems else found
