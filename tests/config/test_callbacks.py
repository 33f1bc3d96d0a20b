"""What LiteLLM's callbacks mean."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import pytest
import yaml

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config import callback_reading as module
from twisted_vllm.config.callback_reading import INSTEAD
from twisted_vllm.config.describe import describe
from twisted_vllm.config.litellm import names
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.sinks import SinkSettings
from twisted_vllm.config.tracing_vendors import VENDORS

HOOK = {"GENERIC_LOGGER_ENDPOINT": "https://logs.example.com/in/0123456789abcdef0123"}
LANGFUSE = {"LANGFUSE_PUBLIC_KEY": "pk-lf-1", "LANGFUSE_SECRET_KEY": "sk-lf-secret-2"}


def written(callbacks: Any = None, success: Any = None, failure: Any = None, **more: Any) -> str:
    named = {"callbacks": callbacks, "success_callback": success, "failure_callback": failure}
    settings = {name: value for name, value in named.items() if value is not None}
    own = more.pop("callback_settings", None)
    text: dict[str, Any] = {"litellm_settings": settings | more}
    if own is not None:
        text["callback_settings"] = own
    return yaml.safe_dump(text)


@pytest.fixture
def sink(load_text: Loader) -> Any:
    def load(text: str, environ: dict[str, str]) -> SinkSettings:
        settings: Settings = load_text(text, BASE | environ)
        assert settings.warnings == ()
        (found,) = settings.callbacks.sinks
        assert settings.all_sinks[-1] is found
        return found

    return load


def test_generic_api_is_a_webhook_with_litellms_payload(sink: Any) -> None:
    headers = {"GENERIC_LOGGER_HEADERS": "Authorization=Bearer t=1,x-team = blue ,junk"}
    found = sink(written(["generic_api"]), HOOK | headers)
    assert (found.name, found.type, found.format, found.body) == ("generic_api", "webhook", "litellm", "array")
    assert found.events == ("requests",)
    assert found.url.reveal() == HOOK["GENERIC_LOGGER_ENDPOINT"]
    assert {name: value.reveal() for name, value in found.headers.items()} == {
        "authorization": "Bearer t=1",
        "x-team": "blue",
    }


def test_one_name_needs_no_list(sink: Any) -> None:
    assert sink(written("generic_api"), HOOK).type == "webhook"


@pytest.mark.parametrize(
    ("callbacks", "success", "failure", "events"),
    [
        (["generic_api"], None, None, ("requests",)),
        (None, ["generic_api"], None, ("successes",)),
        (None, None, ["generic_api"], ("failures",)),
        (None, ["generic_api"], ["generic_api"], ("requests",)),
        (["generic_api"], ["generic_api"], None, ("requests",)),
    ],
)
def test_success_alone_and_failure_alone_are_honoured(
    sink: Any, callbacks: Any, success: Any, failure: Any, events: tuple[str, ...]
) -> None:
    assert sink(written(callbacks, success, failure), HOOK).events == events


def test_a_callback_of_callback_settings_is_a_webhook_of_its_own(sink: Any) -> None:
    own = {
        "my_logger": {
            "callback_type": "generic_api",
            "endpoint": "os.environ/MY_URL",
            "headers": {"Authorization": "Bearer $MY_TOKEN", "X-Key": "{{environment_variables.MY_TOKEN}}"},
            "event_types": ["llm_api_failure"],
            "log_format": "ndjson",
            "timeout": 3,
        }
    }
    found = sink(
        written(["my_logger"], callback_settings=own), {"MY_URL": "http://127.0.0.1:9/x", "MY_TOKEN": "token-1"}
    )
    assert (found.name, found.events, found.body, found.queue.timeout) == ("my_logger", ("failures",), "lines", 3.0)
    assert found.url.reveal() == "http://127.0.0.1:9/x"
    assert {name: value.reveal() for name, value in found.headers.items()} == {
        "authorization": "Bearer token-1",
        "x-key": "token-1",
    }


@pytest.mark.parametrize(
    ("name", "environ", "url", "events"),
    [
        ("rubrik", {"RUBRIK_WEBHOOK_URL": "https://r/x", "RUBRIK_API_KEY": "k"}, "https://r/x", ("successes",)),
        ("sumologic", {"SUMOLOGIC_WEBHOOK_URL": "https://s/x"}, "https://s/x", ("requests",)),
        (
            "qualifire_eval",
            {"QUALIFIRE_WEBHOOK_URL": "https://q/", "QUALIFIRE_API_KEY": "k"},
            "https://q/",
            ("successes",),
        ),
        (
            "ramp",
            {"RAMP_API_KEY": "k"},
            "https://api.ramp.com/developer/v1/ai-usage/litellm",
            ("requests",),
        ),
    ],
)
def test_webhooks_that_litellm_knows_have_its_variables(
    sink: Any, problems_of: Refusal, name: str, environ: dict[str, str], url: str, events: tuple[str, ...]
) -> None:
    found = sink(written([name]), environ)
    assert (found.url.reveal(), found.events, found.type) == (url, events, "webhook")
    lines = problems_of(written([name]))
    assert sorted(line.partition(":")[0] for line in lines) == sorted(environ)


@pytest.mark.parametrize("name", ["s3", "s3_v2"])
def test_s3_writes_where_its_params_say(sink: Any, name: str) -> None:
    params = {
        "s3_bucket_name": "logs",
        "s3_path": "gateway/eu",
        "s3_region_name": "eu-west-1",
        "s3_endpoint_url": "http://minio:9000",
        "s3_aws_access_key_id": "os.environ/ID",
        "s3_aws_secret_access_key": "os.environ/KEY",
        "s3_flush_interval": 3,
        "s3_batch_size": 7,
    }
    found = sink(written([name], s3_callback_params=params), {"ID": "access-id", "KEY": "secret-access-key"})
    assert (found.type, found.bucket, found.prefix, found.region) == ("s3", "logs", "gateway/eu/", "eu-west-1")
    assert (found.endpoint_url, found.path_style, found.format) == ("http://minio:9000", True, "litellm")
    assert (found.queue.linger, found.queue.batch_items) == (3.0, 7)
    assert found.secret_access_key.reveal() == "secret-access-key"
    assert "secret-access-key" in found.secrets


def test_keys_of_s3_are_never_shown(load_text: Loader) -> None:
    params = {
        "s3_bucket_name": "logs",
        "s3_aws_access_key_id": "shown-never-1",
        "s3_aws_secret_access_key": "shown-never-2",
    }
    settings = load_text(
        written(["s3_v2"], s3_callback_params=params | {"s3_aws_secret_acces_key": "shown-never-3"}), BASE
    )
    assert "shown-never" not in repr(settings) + "\n".join(describe(settings)) + "\n".join(settings.warnings)
    assert {"shown-never-1", "shown-never-2"} <= set(settings.secrets)


def test_check_says_where_requests_go(load_text: Loader) -> None:
    own = """
    passthrough:
      sinks:
        - {name: a, type: file, path: a.log, events: [failures], spool: {enabled: true}}
        - {name: b, type: syslog, address: "udp://logs"}
    """
    text = written(["generic_api", "prometheus"]) + dedent(own)
    told = [
        line.partition(":")[2].strip() for line in describe(load_text(text, BASE | HOOK)) if line.startswith("sink:")
    ]
    assert told == [
        "a: failures to file a.log (json, also on disk)",
        "b: requests, log to syslog udp:logs:514 (json)",
        "generic_api: requests to webhook https://logs.example.com (litellm)",
        "prometheus: LiteLLM's names in /metrics",
    ]


def test_prometheus_asks_for_litellms_names(load_text: Loader) -> None:
    assert load_text(written(["prometheus"]), BASE).callbacks.litellm_metrics
    assert not load_text("", BASE).callbacks.litellm_metrics


def test_receivers_of_traces_are_destinations(load_text: Loader) -> None:
    settings = load_text(written(["otel"], ["langfuse"]), BASE | LANGFUSE)
    assert [(each.name, each.outcomes) for each in settings.callbacks.traces] == [
        ("otel", ("success", "failure")),
        ("langfuse", ("success",)),
    ]
    assert [each.name for each in settings.tracing.destinations] == ["otel", "langfuse"]
    assert settings.tracing.active


def test_an_import_path_is_a_sink_of_type_python_for_its_events(sink: Any) -> None:
    found = sink(written(success="my_loggers.audit"), {})
    assert (found.type, found.object, found.events) == ("python", "my_loggers.audit", ("successes",))


@pytest.mark.parametrize(
    "name", ["presidio", "lakera_prompt_injection", "dynamic_rate_limiter_v3", "websearch_interception", "dotprompt"]
)
@pytest.mark.parametrize("setting", ["callbacks", "success_callback"])
def test_guardrails_limiters_and_hooks_keep_the_gateway_from_starting(
    problems_of: Refusal, name: str, setting: str
) -> None:
    (line,) = problems_of(yaml.safe_dump({"litellm_settings": {setting: ["prometheus", name]}}))
    assert line.startswith(f"litellm_settings.{setting}: would ")
    assert name in line


@pytest.mark.parametrize("name", INSTEAD)
def test_a_callback_without_an_equivalent_says_what_to_use(problems_of: Refusal, name: str) -> None:
    (line,) = problems_of(written([name]))
    assert line.startswith(f"litellm_settings.callbacks: {name} has no equivalent here (")
    assert INSTEAD[name] in line


def test_an_unknown_callback_names_the_nearest(problems_of: Refusal) -> None:
    (line,) = problems_of(written(["langfues"]))
    assert "did you mean 'langfuse'?" in line


@pytest.mark.parametrize(
    ("text", "environ", "path", "says"),
    [
        (written(["generic_api"]), {}, "GENERIC_LOGGER_ENDPOINT", "is not set"),
        (
            written(["generic_api"]),
            {"GENERIC_LOGGER_ENDPOINT": "ftp://x"},
            "GENERIC_LOGGER_ENDPOINT",
            "must begin with",
        ),
        (written(["s3_v2"]), {}, "litellm_settings.s3_callback_params.s3_bucket_name", "is missing"),
        (
            written(["s3_v2"], s3_callback_params={"s3_bucket_name": "logs", "s3_sse_kms_key_id": "k"}),
            {},
            "litellm_settings.s3_callback_params.s3_sse_kms_key_id",
            "has no equivalent",
        ),
        (
            written(["s3_v2"], s3_callback_params={"s3_bucket_name": "logs", "s3_verify": False}),
            {},
            "litellm_settings.s3_callback_params.s3_verify",
            "to anybody",
        ),
        (
            written(["s3_v2"], s3_callback_params={"s3_bucket_name": "logs", "s3_aws_access_key_id": "x"}),
            {},
            "litellm_settings.s3_callback_params",
            "together",
        ),
        (
            written(
                ["x"],
                callback_settings={"x": {"callback_type": "generic_api", "endpoint": "http://x/", "log_format": "xml"}},
            ),
            {},
            "callback_settings.x.log_format",
            "must be one of",
        ),
        (
            written(
                failure=["x"],
                callback_settings={
                    "x": {"callback_type": "generic_api", "endpoint": "http://x/", "event_types": ["llm_api_success"]}
                },
            ),
            {},
            "callback_settings.x.event_types",
            "leaves nothing",
        ),
        (written(["not..a.path"]), {}, "litellm_settings.callbacks", "must be an importable module"),
        (written(["langfuse"]), {"LANGFUSE_PUBLIC_KEY": "pk"}, "LANGFUSE_SECRET_KEY", "is not set"),
    ],
)
def test_what_a_callback_lacks_is_told_at_its_place(
    problems_of: Refusal, text: str, environ: dict[str, str], path: str, says: str
) -> None:
    (line,) = problems_of(text, environ)
    assert line.startswith(f"{path}: ")
    assert says in line


def test_a_sink_of_the_same_name_is_refused(problems_of: Refusal) -> None:
    text = written(["generic_api"]) + "passthrough: {sinks: [{name: generic_api, type: stdout}]}"
    (line,) = problems_of(text, HOOK)
    assert line.startswith("passthrough.sinks[0].name: is the name of a callback's sink")


def test_settings_of_s3_without_effect_are_a_warning(load_text: Loader) -> None:
    params = {"s3_bucket_name": "logs", "s3_max_concurrent_uploads": 4, "s3_bukcet": 1}
    settings = load_text(written(["s3_v2"], s3_callback_params=params), BASE)
    assert [line.partition(":")[0].rpartition(".")[2] for line in settings.warnings] == [
        "s3_bukcet",
        "s3_max_concurrent_uploads",
    ]


def test_no_secret_of_a_callback_is_shown(load_text: Loader) -> None:
    settings = load_text(
        written(["generic_api"]), BASE | HOOK | {"GENERIC_LOGGER_HEADERS": "authorization=Bearer sk-hidden-token"}
    )
    assert "hidden" not in repr(settings)
    assert "0123456789abcdef0123" not in repr(settings)
    assert {"sk-hidden-token", "0123456789abcdef0123"} <= set(settings.secrets)


#: what the receivers of traces need
_KEYS = """
LANGFUSE_PUBLIC_KEY LANGFUSE_SECRET_KEY ARIZE_SPACE_ID ARIZE_API_KEY DD_API_KEY LOGFIRE_TOKEN WANDB_API_KEY
WANDB_PROJECT_ID BRAINTRUST_API_KEY LANGSMITH_API_KEY TRACELOOP_API_KEY NEW_RELIC_LICENSE_KEY OPIK_API_KEY
LEVOAI_API_KEY LEVOAI_ORG_ID LEVOAI_WORKSPACE_ID LANGTRACE_API_KEY
"""
ALL_VARIABLES = {
    **HOOK,
    **dict.fromkeys(_KEYS.split(), "a-key-of-the-vendor"),
    **dict.fromkeys(("MLFLOW_TRACKING_URI", "LEVOAI_COLLECTOR_URL", "SIGNOZ_INGESTION_ENDPOINT"), "https://a.example"),
    "DD_SITE": "datadoghq.com",
}

#: what LiteLLM 1.108 takes in `callbacks` (its `_custom_logger_compatible_callbacks_literal`)
LITELLMS = names(
    """
    lago openmeter logfire literalai litellm_agent dynamic_rate_limiter dynamic_rate_limiter_v3 langsmith
    prometheus otel datadog datadog_metrics datadog_llm_observability galileo braintrust arize arize_phoenix
    langtrace gcs_bucket azure_storage opik argilla mlflow langfuse langfuse_otel weave_otel pagerduty
    humanloop azure_sentinel gcs_pubsub agentops anthropic_cache_control_hook generic_api resend_email
    sendgrid_email smtp_email deepeval s3_v2 clickhouse pointfive zerobus aws_sqs vector_store_pre_call_hook
    dotprompt bitbucket gitlab cloudzero focus mavvrik vantage ternary posthog levo compression_interception
    newrelic signoz
    """
)


@pytest.mark.parametrize("name", sorted(LITELLMS))
def test_each_callback_of_litellm_is_used_or_refused_with_words(load_text: Loader, name: str) -> None:
    """None is unknown, and none is passed over."""
    text = written([name], s3_callback_params={"s3_bucket_name": "logs"} if name == "s3_v2" else {})
    try:
        settings = load_text(text, BASE | ALL_VARIABLES)
    except ConfigError as error:
        (problem,) = error.problems
        assert problem.path == "litellm_settings.callbacks"
        assert re.fullmatch(
            rf"(?!.*is not a known callback).*\b{name}\b.* \(.+; then take it out of the list\)", problem.message
        )
    else:
        found = settings.callbacks
        assert found.sinks or found.traces or found.litellm_metrics
        assert settings.warnings == ()


def test_every_name_is_in_one_list() -> None:
    lists = [module._GUARDS, module._HOOKS, INSTEAD.keys(), module._COMPATIBLE.keys(), VENDORS.keys()]
    assert sum(map(len, lists)) == len(frozenset().union(*lists))
