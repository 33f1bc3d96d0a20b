"""What LiteLLM's ``callbacks``, ``success_callback`` and ``failure_callback`` mean here: sinks, traces and metrics.

Names, settings and variables are LiteLLM 1.108's (``litellm/integrations``, ``litellm/proxy/common_utils``). A callback
without an equivalent keeps the gateway from starting: its operator would miss what it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import attrs

from twisted_vllm.config.callbacks import Callbacks, mapping_of
from twisted_vllm.config.checks import checker, text
from twisted_vllm.config.litellm import names
from twisted_vllm.config.problems import Place, shown, suggestion
from twisted_vllm.config.s3 import bucket_name, check_s3_installed, s3_endpoint
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.sinks import (
    FAILURES,
    REQUESTS,
    SUCCESSES,
    SinkQueue,
    SinkSettings,
    dotted_name,
    secret_url,
)
from twisted_vllm.config.tracing_destinations import TraceDestination
from twisted_vllm.config.tracing_vendors import VENDORS, vendor_destination

PROMETHEUS = "prometheus"
GENERIC_API = "generic_api"
S3 = ("s3_v2", "s3")

#: what may refuse or change requests: guardrails, limiters and hooks
_GUARDS = names(
    """
    aim aporia aporia_prompt_injection azure_content_safety banned_keywords bedrock_guardrails blocked_user_check
    cache_control_check detect_prompt_injection dynamic_rate_limiter dynamic_rate_limiter_v3 google_text_moderation
    guardrails_ai hide_secrets lakera_prompt_injection llamaguard_moderations llmguard_moderations max_budget_limiter
    openai_moderations parallel_request_limiter parallel_request_limiter_v3 presidio
    """
)
#: what changes requests or answers: prompts of a library, tools of the proxy's own
_HOOKS = names(
    """
    anthropic_cache_control_hook bitbucket code_interpreter_interception compression_interception dotprompt
    generic_prompt_management gitlab humanloop litellm_agent vector_store_pre_call_hook websearch_interception
    """
)

_OTLP = "name a receiver of OTLP in passthrough.tracing.destinations, or write otel"
_WEBHOOK = "write a sink of type webhook in passthrough.sinks, or generic_api"
_REPORTS = "its figures are in the ledger and its reports, GET /spend/logs, and in /metrics"

_TAKE_OUT = "then take it out of the list"

#: what to use in place of callbacks that have no equivalent
INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(names("slack"), "write general_settings.alerting: [slack]"),
    **dict.fromkeys(
        names("resend_email sendgrid_email smtp_email pagerduty"),
        "write general_settings.alerting: [slack], or let Prometheus' Alertmanager send it",
    ),
    **dict.fromkeys(names("datadog_metrics"), "let Datadog's agent scrape /metrics, or write passthrough.metrics"),
    **dict.fromkeys(
        names("gcs_bucket"),
        "write a sink of type s3 in passthrough.sinks with endpoint_url: https://storage.googleapis.com and HMAC keys",
    ),
    **dict.fromkeys(
        names("azure_storage dynamodb aws_sqs gcs_pubsub azure_sentinel clickhouse pointfive zerobus supabase"),
        "write a sink of type webhook or s3 in passthrough.sinks, and load from there",
    ),
    "focus": "write passthrough.ledger.usage_export: parquet, whose files hold each request with its cost",
    **dict.fromkeys(names("lago openmeter cloudzero vantage ternary mavvrik"), f"{_WEBHOOK}; {_REPORTS}"),
    **dict.fromkeys(
        names("galileo argilla deepeval literalai agentops athina lunary posthog sentry wandb promptlayer"), _OTLP
    ),
    **dict.fromkeys(names("helicone greenscale"), _WEBHOOK),
}

#: callbacks that are a webhook with settings of their own: LiteLLM's generic_api_compatible_callbacks.json
_COMPATIBLE: Mapping[str, Mapping[str, object]] = {
    "rubrik": {
        "endpoint": "RUBRIK_WEBHOOK_URL",
        "headers": {"authorization": ("Bearer ", "RUBRIK_API_KEY")},
        "events": SUCCESSES,
    },
    "sumologic": {"endpoint": "SUMOLOGIC_WEBHOOK_URL", "body": "lines"},
    "qualifire_eval": {
        "endpoint": "QUALIFIRE_WEBHOOK_URL",
        "headers": {"x-qualifire-api-key": ("", "QUALIFIRE_API_KEY")},
        "events": SUCCESSES,
    },
    "ramp": {
        "url": "https://api.ramp.com/developer/v1/ai-usage/litellm",
        "headers": {"authorization": ("Bearer ", "RAMP_API_KEY")},
    },
}

#: generic_api's formats of the body
_BODIES = {"json_array": "array", "ndjson": "lines", "single": "single"}
_EVENT_TYPES = {"llm_api_success": SUCCESSES, "llm_api_failure": FAILURES}
_GENERIC_SETTINGS = names("callback_type endpoint headers event_types log_format max_retries retry_delay timeout")

_S3_SETTINGS = names(
    """
    s3_bucket_name s3_region_name s3_path s3_endpoint_url s3_aws_access_key_id s3_aws_secret_access_key
    s3_aws_session_token s3_flush_interval s3_batch_size s3_verify
    """
)
#: those whose meaning is another one here, or that this gateway does without
_S3_IGNORED = names(
    """
    s3_adaptive_concurrency s3_api_version s3_batch_file_upload s3_config s3_drop_on_terminal_error
    s3_max_adaptive_concurrency s3_max_concurrent_uploads s3_max_queue_size s3_max_retry_age_seconds
    s3_partition_granularity s3_use_key_prefix s3_use_ssl s3_use_team_prefix s3_use_virtual_hosted_style
    """
)
#: those that would change what is kept, or who may read it
_S3_REFUSED = names(
    """
    s3_aws_profile_name s3_aws_role_name s3_aws_session_name s3_aws_sts_endpoint s3_aws_web_identity_token
    s3_log_prompts_only s3_server_side_encryption s3_sse_kms_key_id s3_strip_base64_files
    """
)
_VARIABLE = re.compile(r"\{\{environment_variables\.([A-Z_]+)\}\}|\$\{?([A-Z][A-Z0-9_]*)\}?")


def read_callbacks(
    both: Iterable[str],
    successes: Iterable[str],
    failures: Iterable[str],
    settings: Mapping[str, object],
    s3: Mapping[str, object],
    root: Place,
) -> Callbacks:
    """Return what callbacks ask for. Problems are reported where the callback or its setting stands.

    Args:
        both: the names in ``litellm_settings.callbacks``.
        successes: those in ``success_callback``.
        failures: those in ``failure_callback``.
        settings: ``callback_settings``.
        s3: ``litellm_settings.s3_callback_params``.
        root: the place of the whole file.
    """
    at = root.at("litellm_settings")
    places: dict[str, Place] = {}
    events: dict[str, str] = {}
    for setting, listed, event in (
        ("callbacks", both, REQUESTS),
        ("success_callback", successes, SUCCESSES),
        ("failure_callback", failures, FAILURES),
    ):
        for name in listed:
            places.setdefault(name, at.key(setting))
            known = events.get(name, event)
            events[name] = event if known == event else REQUESTS
    reader = _Reader(settings, s3, root)
    for name, event in events.items():
        reader.read(name, event, places[name])
    return Callbacks(tuple(reader.sinks.values()), reader.litellm_metrics, tuple(reader.traces))


class _Reader:
    """Reads one callback after the other."""

    def __init__(self, settings: Mapping[str, object], s3: Mapping[str, object], root: Place) -> None:
        self.sinks: dict[str, SinkSettings] = {}
        self.traces: list[TraceDestination] = []
        self.litellm_metrics = False
        self._settings = settings
        self._s3 = s3
        self._root = root

    def read(self, name: str, event: str, place: Place) -> None:
        """Read a callback."""
        own = self._settings.get(name)
        if isinstance(own, dict) and own.get("callback_type") == GENERIC_API:
            self._generic(name, event, own, self._root.at("callback_settings").key(name))
        elif name == PROMETHEUS:
            self.litellm_metrics = True
        elif name == GENERIC_API:
            self._generic(name, event, {}, place)
        elif name in _COMPATIBLE:
            self._compatible(name, event)
        elif name in S3:
            self._object_storage(event)
        elif name in VENDORS:
            destination = vendor_destination(name, self._root)
            if destination is not None:
                outcomes = {SUCCESSES: ("success",), FAILURES: ("failure",)}.get(event, ("success", "failure"))
                self.traces.append(attrs.evolve(destination, outcomes=outcomes))
        elif "." in name:
            self._python(name, event, place)
        else:
            place.refuse(_refusal(name))

    def _add(self, sink: SinkSettings) -> None:
        # one that stands twice by two names, as s3 and s3_v2, is one
        known = self.sinks.get(sink.name)
        if known is not None and known.events != sink.events:
            sink = attrs.evolve(sink, events=(REQUESTS,))
        self.sinks[sink.name] = sink

    def _python(self, name: str, event: str, place: Place) -> None:
        path = place.attempt(dotted_name, name)
        if path is not None:
            self._add(SinkSettings(name=_sink_name(path), type="python", events=(event,), format="json", object=path))

    def _generic(self, name: str, event: str, own: Mapping[str, object], place: Place) -> None:
        environ = self._root.environ
        for unknown in sorted(str(each) for each in own.keys() - _GENERIC_SETTINGS):
            place.key(unknown).warn(f"not a known setting: ignored{suggestion(unknown, _GENERIC_SETTINGS)}")
        written = own.get("endpoint")
        if written is not None:
            url = place.key("endpoint").attempt(secret_url, written)
        else:
            variable = self._root.at("GENERIC_LOGGER_ENDPOINT")
            url = None
            if not environ.get("GENERIC_LOGGER_ENDPOINT"):
                variable.refuse(f"is not set: the callback {shown(name)} needs it (the URL to post to)")
            else:
                url = variable.attempt(secret_url, environ["GENERIC_LOGGER_ENDPOINT"])
        headers = _header_list(environ.get("GENERIC_LOGGER_HEADERS", ""))
        given = own.get("headers")
        if given is not None:
            headers |= place.key("headers").attempt(_headers, given) or {}
        events = _events_of(own.get("event_types"), event, place.key("event_types"))
        body = own.get("log_format")
        if body is not None and body not in _BODIES:
            place.key("log_format").refuse(f"must be one of {', '.join(_BODIES)}")
        timeout = own.get("timeout")
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0):
            place.key("timeout").refuse("must be a number of seconds above 0")
            timeout = None
        if url is None or events is None:
            return
        self._add(
            SinkSettings(
                name=_sink_name(name),
                type="webhook",
                events=events,
                format="litellm",
                url=url,
                headers=headers,
                body=_BODIES.get(str(body), "array"),
                # LiteLLM's interval
                queue=SinkQueue(linger=5.0, timeout=30.0 if timeout is None else float(timeout)),
            )
        )

    def _compatible(self, name: str, event: str) -> None:
        known = _COMPATIBLE[name]
        events = _narrowed(event, known.get("events"))
        url = secret_url(known["url"], self._root) if "url" in known else self._variable(name, str(known["endpoint"]))
        headers: dict[str, Secret] = {}
        wanted = known.get("headers", {})
        assert isinstance(wanted, dict)
        for header, (before, variable) in wanted.items():
            value = self._root.environ.get(variable, "")
            if not value:
                self._root.at(variable).refuse(f"is not set: the callback {name} needs it")
            headers[header] = Secret(before + value)
        if url is None:
            return
        if not events:
            self._root.at("litellm_settings.failure_callback").refuse(
                f"names {name}, which takes successes alone (write it into success_callback)"
            )
            return
        self._add(
            SinkSettings(
                name=name,
                type="webhook",
                events=events,
                format="litellm",
                url=url,
                headers=headers,
                body=str(known.get("body", "array")),
                queue=SinkQueue(linger=5.0),
            )
        )

    def _variable(self, name: str, variable: str) -> Secret | None:
        value = self._root.environ.get(variable, "")
        if not value:
            self._root.at(variable).refuse(f"is not set: the callback {name} needs it")
            return None
        return self._root.at(variable).attempt(secret_url, value)

    def _object_storage(self, event: str) -> None:
        place = self._root.at("litellm_settings.s3_callback_params")
        values: dict[str, object] = {}
        for name, hidden in self._s3.items():
            content = hidden.reveal() if isinstance(hidden, Secret) else hidden
            here = place.key(name)
            if name in _S3_SETTINGS:
                found = here.attempt(_any_value, content)
                if found not in (None, ""):
                    values[str(name)] = found
            elif name in _S3_IGNORED:
                if content not in (None, False, "", {}):
                    here.warn("has no effect: a batch is one object of JSON lines here (see docs/sinks.md)")
            elif name in _S3_REFUSED:
                if content not in (None, False, ""):
                    here.refuse(
                        "has no equivalent (write a sink of type s3 in passthrough.sinks in place of the callback; "
                        "boto3 reads AWS_PROFILE, AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE by itself)"
                    )
            else:
                here.warn(f"not a known setting: ignored{suggestion(name, _S3_SETTINGS)}")
        check_s3_installed(self._root.at("litellm_settings.callbacks"))
        bucket = values.get("s3_bucket_name")
        if bucket is None:
            if not place.report.refused_below(f"{place.path}.s3_bucket_name"):
                place.key("s3_bucket_name").refuse("is missing (the callback s3_v2 needs it)")
            return
        checked = place.key("s3_bucket_name").attempt(bucket_name, bucket)
        endpoint = values.get("s3_endpoint_url")
        if endpoint is not None:
            endpoint = place.key("s3_endpoint_url").attempt(s3_endpoint, endpoint)
        verify = values.get("s3_verify")
        if verify is False:
            place.key("s3_verify").refuse("would send what is logged to anybody (name the file of the authority)")
        access, secret = values.get("s3_aws_access_key_id"), values.get("s3_aws_secret_access_key")
        if (access is None) != (secret is None):
            place.refuse("needs s3_aws_access_key_id and s3_aws_secret_access_key together, or none of them")
        if checked is None:
            return
        token = values.get("s3_aws_session_token")
        path = str(values.get("s3_path", "")).strip("/")
        self._add(
            SinkSettings(
                name="s3_v2",
                type="s3",
                events=(event,),
                format="litellm",
                bucket=checked,
                prefix=f"{path}/" if path else "",
                endpoint_url=None if endpoint is None else str(endpoint),
                region=None if (region := values.get("s3_region_name")) is None else str(region),
                access_key_id=None if access is None else Secret(str(access)),
                secret_access_key=None if secret is None else Secret(str(secret)),
                session_token=None if token is None else Secret(str(token)),
                path_style=endpoint is not None,
                ca_file=verify if isinstance(verify, str) else None,
                queue=SinkQueue(
                    linger=_number(values.get("s3_flush_interval"), 10.0),
                    batch_items=int(_number(values.get("s3_batch_size"), 512)),
                ),
            )
        )


@checker("value")
def _any_value(value: object, place: Place) -> object:
    return value


def _number(value: object, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        return default
    return float(value)


@checker("mapping of header names to values")
def _headers(value: object, place: Place) -> dict[str, Secret]:
    """Check for headers, whose values may name variables as LiteLLM has them."""
    found = {}
    for index, (name, content) in enumerate(mapping_of(value).items()):
        # a key that was written in place of a name must not be shown
        here = place.item(index)
        resolved = here.attempt(text, content)
        if resolved is not None:
            found[str(name).lower()] = Secret(_VARIABLE.sub(lambda each: _value_of(each, place), resolved))
    return found


def _value_of(match: re.Match[str], place: Place) -> str:
    return place.environ.get(match[1] or match[2], "")


def _header_list(said: str) -> dict[str, Secret]:
    """Read ``GENERIC_LOGGER_HEADERS``: ``name=value,name=value``."""
    found = {}
    for item in said.split(","):
        name, separator, value = item.partition("=")
        if separator and name.strip():
            found[name.strip().lower()] = Secret(value.strip())
    return found


def _events_of(types: object, event: str, place: Place) -> tuple[str, ...] | None:
    """Return the events of generic_api's ``event_types``, of those that its list stands for."""
    if types is None:
        return (event,)
    listed = types if isinstance(types, list) else [types]
    wanted = [_EVENT_TYPES[each] for each in listed if isinstance(each, str) and each in _EVENT_TYPES]
    if len(wanted) != len(listed):
        place.refuse(f"must be a list of {' and '.join(_EVENT_TYPES)}")
        return None
    found = tuple(dict.fromkeys(each for type_ in wanted for each in _narrowed(event, type_)))
    if not found:
        place.refuse("leaves nothing of what the callback is for (see success_callback and failure_callback)")
        return None
    return (REQUESTS,) if len(found) == 2 else found


def _narrowed(event: str, only: object) -> tuple[str, ...]:
    """Return the events of a list that a callback takes."""
    if only is None or only == event:
        return (event,)
    return (str(only),) if event == REQUESTS else ()


def _sink_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:64]


def _refusal(name: str) -> str:
    here = shown(name)
    if name in _GUARDS:
        return (
            f"would run the guardrail or limiter {here}, which this gateway does not do (check requests in a proxy "
            f"before the gateway, and give keys their limits; {_TAKE_OUT})"
        )
    if name in _HOOKS:
        return (
            f"would have {here} change requests or answers, which this gateway does not do: what vLLM gets and says "
            f"passes unchanged (do it in the client, or in vLLM; {_TAKE_OUT})"
        )
    if name in INSTEAD:
        return f"{here} has no equivalent here ({INSTEAD[name]}; {_TAKE_OUT})"
    known = (PROMETHEUS, GENERIC_API, *S3, *_COMPATIBLE, *VENDORS)
    return (
        f"{here} is not a known callback{suggestion(name, known)} (known are {', '.join(known)}, the callbacks of "
        "callback_settings, and the import path of a logger of your own)"
    )
