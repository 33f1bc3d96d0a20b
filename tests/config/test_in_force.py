"""The settings in effect: their values without secrets, and where each was written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from twisted_vllm.config.declaration import Section, Setting
from twisted_vllm.config.in_force import (
    MOST_ITEMS,
    MOST_TEXT,
    InForce,
    entry_in_force,
    origin_of_entry,
    settings_in_force,
    shown,
)
from twisted_vllm.config.load import DOCUMENT, load
from twisted_vllm.config.origins import Kind
from twisted_vllm.config.secret import Secret
from twisted_vllm.config.settings import Settings

HUSH = "hush5aFk2"

#: every setting that holds a secret, or a URL that may hold one, with one in it
SECRETS: Mapping[str, str] = {
    "environment_variables.ANY_NAME": f"{HUSH}-variable",
    "general_settings.master_key": f"sk-{HUSH}-master",
    "general_settings.salt_key": f"sk-{HUSH}-salt",
    "general_settings.database_url": f"postgresql://{HUSH}user:{HUSH}word@db/keys?password={HUSH}query",
    "general_settings.alert_to_webhook_url": f"{{budget_alerts: 'https://hooks.example.com/{HUSH}path?x={HUSH}'}}",
    "litellm_settings.s3_callback_params": f"{{s3_bucket_name: bucket, s3_aws_secret_access_key: {HUSH}bucket, "
    f"s3_aws_access_key_id: {HUSH}id}}",
    "callback_settings": f"{{mine: {{callback_type: generic_api, endpoint: 'https://logs.example.com/{HUSH}path', "
    f"headers: {{Authorization: 'Bearer {HUSH}header'}}}}}}",
    "litellm_settings.callbacks": "[mine]",
    "passthrough.api_base": "http://gpu:8000",
    "passthrough.api_key": f"{HUSH}-of-server",
    "passthrough.redis_url": f"redis://{HUSH}user:{HUSH}word@cache/0",
    "passthrough.alerts.slack_webhook_url": f"https://hooks.example.com/{HUSH}slack",
    "passthrough.alerts.webhook_url": f"https://hooks.example.com/{HUSH}hook?token={HUSH}",
    "passthrough.ledger.usage_export.s3": f"{{access_key_id: {HUSH}id, secret_access_key: {HUSH}key, "
    f"session_token: {HUSH}token}}",
    "passthrough.sinks": f"[{{name: hook, type: webhook, url: 'https://e.example.com/{HUSH}path', secret: {HUSH}sign, "
    f"headers: {{x-key: {HUSH}header}}}}, {{name: pail, type: s3, bucket: bucket, access_key_id: {HUSH}id, "
    f"secret_access_key: {HUSH}key, session_token: {HUSH}token}}]",
    "passthrough.tracing.destinations": f"[{{name: t, endpoint: 'http://col.example.com:4318/v1/traces', "
    f"headers: {{authorization: {HUSH}header}}}}]",
    "passthrough.console.oidc": f"{{issuer: 'https://login.example.com', client_id: gateway, "
    f"client_secret: {HUSH}oidc}}",
    "passthrough.otlp_metrics.headers": f"{{authorization: {HUSH}header}}",
}

#: what the checker of a setting returns as a secret has one of these in its name or its kind
_SUSPECT = ("key", "secret", "token", "headers", "password", "redis_url", "database_url", "webhook", "params")

#: settings with such a name that hold none
HARMLESS = frozenset(
    (
        *("general_settings.litellm_jwtauth", "general_settings.enable_jwt_auth", "general_settings.user_header_name"),
        *("litellm_settings.upperbound_key_generate_params", "litellm_settings.default_key_generate_params"),
        *("litellm_settings.default_internal_user_params", "litellm_settings.default_team_params"),
        *("passthrough.litellm_headers", "passthrough.end_users.headers", "passthrough.ledger.usage_headers"),
        *("passthrough.limits", "passthrough.default_prices", "passthrough.jwt_public_key_url"),
        *("passthrough.self_service", "passthrough.otlp_metrics.key_file", "general_settings.enforce_user_param"),
        "passthrough.metrics.key_labels",
    )
)


def written(tmp_path: Path, settings: Mapping[str, str]) -> str:
    """Write a file that has these settings, and return its name."""
    tree: dict[str, Any] = {}
    for path, value in settings.items():
        *above, name = path.split(".")
        at = tree
        for each in above:
            at = at.setdefault(each, {})
        at[name] = value

    def lines(at: Mapping[str, Any], margin: str) -> Iterator[str]:
        for name, value in at.items():
            if isinstance(value, dict):
                yield f"{margin}{name}:"
                yield from lines(value, f"{margin}  ")
            else:
                yield f"{margin}{name}: {value}"

    file = tmp_path / "config.yaml"
    file.write_text("\n".join(lines(tree, "")) + "\n")
    return str(file)


def in_force(settings: Settings) -> dict[str, InForce]:
    return {each.path: each for each in settings_in_force(settings)}


def all_text(settings: Settings) -> str:
    """Return all that is shown."""
    entries = [entry_in_force(settings, entry) for entry in settings.models]
    return json.dumps(
        [[each.path, each.value, each.default, str(each.origin)] for each in in_force(settings).values()] + entries
    )


def declared(section: Section[Any] = DOCUMENT, above: str = "") -> Iterator[tuple[str, Setting]]:
    for each in section.settings:
        path = f"{above}.{each.name}" if above else each.name
        yield path, each
        if isinstance(each.check, Section):
            yield from declared(each.check, path)


def test_no_secret_of_any_setting_is_shown(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        {
            "model_list": f"[{{model_name: m, litellm_params: {{model: hosted_vllm/m, "
            f"api_base: 'http://gpu:8000', api_key: {HUSH}entry}}}}]",
            **SECRETS,
        },
    )
    environ = {
        "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={HUSH}environment",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HUSH}user:{HUSH}word@collector:4318/{HUSH}",
    }
    settings = load(file=file, environ=environ)
    found = in_force(settings)
    for path in SECRETS:
        holders = [at for at in found if f"{path}.".startswith(f"{at}.") or at.startswith(f"{path}.")]
        assert any(found[at].differs for at in holders), path
    text = all_text(settings)
    assert HUSH not in text
    assert "***" in text


def test_every_setting_that_may_hold_a_secret_is_tried() -> None:
    covered = tuple(SECRETS)
    suspects = [
        path
        for path, each in declared()
        if not path.startswith(("model_list", *covered)) and any(word in path.rpartition(".")[2] for word in _SUSPECT)
        if not any(other.startswith(path) for other in covered)
    ]
    left = [path for path in suspects if not path.startswith(tuple(HARMLESS))]
    assert left == []


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (Secret("https://hooks.example.com:8443/T0/B0"), "***"),
        ("https://user:word@example.com/x?token=abc&b=", "https://***@example.com/x?token=***&b="),
        ("http://127.0.0.1:9/path", "http://127.0.0.1:9/path"),
        ({"a": Secret("b")}, {"a": "***"}),
        ((1, None, True, 0.5), [1, None, True, 0.5]),
        (frozenset(("b", "a")), ["a", "b"]),
    ],
)
def test_a_value_is_shown_as_json_can_hold_it(value: object, seen: object) -> None:
    assert shown(value) == seen


def test_of_a_secret_url_the_origin_is_shown() -> None:
    assert shown(Secret("https://u:p@hooks.example.com:8443/T0?x=1"), "URL") == "https://hooks.example.com:8443/***"
    assert shown(Secret("https://[::1]:99999/x"), "URL") == "***"
    assert shown(Secret("word"), "URL") == "***"


def test_what_is_shown_is_of_bounded_size() -> None:
    assert len(shown(tuple(range(10_000)))) == MOST_ITEMS + 1
    assert shown(tuple(range(10_000)))[-1] == f"and {10_000 - MOST_ITEMS} more"
    assert len(shown({str(number): 1 for number in range(10_000)})) == MOST_ITEMS + 1
    assert len(shown("x" * 100_000)) == MOST_TEXT + 1


def test_every_setting_is_there_once_in_the_order_of_the_file() -> None:
    found = [each.path for each in settings_in_force(load(file=None, environ={"HOSTED_VLLM_API_BASE": "http://gpu:1"}))]
    assert len(found) == len(set(found))
    blocks = list(dict.fromkeys(path.partition(".")[0] for path in found))
    assert blocks == [each.name for each in DOCUMENT.settings if each.name != "model_list"]
    for path, each in declared():
        if not isinstance(each.check, Section) and each.block and each.attribute and path.count(".") == 1:
            assert path in found or path.startswith("litellm_settings."), path


def test_the_places_of_settings_are_told(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text(
        "router_settings:\n  routing_strategy: least-busy\nmodel_list:\n"
        "  - {model_name: b, litellm_params: {model: hosted_vllm/b, api_base: 'http://b:1'}}\n"
    )
    file = tmp_path / "config.yaml"
    file.write_text(
        "include: [more.yaml]\n"
        "environment_variables:\n"
        "  HOSTED_VLLM_API_KEY: of-the-file\n"
        "general_settings:\n"
        "  master_key: os.environ/MASTER\n"
        "litellm_settings:\n"
        "  request_timeout: 60\n"
        "passthrough:\n"
        "  limits:\n"
        "    max_head_bytes: 4096\n"
        "  drain_timeout: 30.0\n"
        "model_list:\n"
        "  - {model_name: other, litellm_params: {model: openai/x}}\n"
        "  - model_name: a\n"
        "    litellm_params: {model: hosted_vllm/a, api_base: 'http://a:1'}\n"
    )
    environ = {"MASTER": "sk-master", "HOSTED_VLLM_API_BASE": "http://gpu:8000", "JWT_AUDIENCE": "gateway"}
    settings = load(file=str(file), environ=environ)
    found = {path: str(each.origin) for path, each in in_force(settings).items()}
    assert found["general_settings.master_key"] == f"{file}:5, MASTER"
    assert found["passthrough.api_key"] == f"{file}:3, HOSTED_VLLM_API_KEY"
    assert found["passthrough.api_base"] == "HOSTED_VLLM_API_BASE"
    assert found["passthrough.jwt_audience"] == "JWT_AUDIENCE"
    assert found["passthrough.limits.max_head_bytes"] == f"{file}:10"
    assert found["passthrough.timeouts.total"] == f"{file}:7"
    assert found["router_settings.routing_strategy"] == f"{more}:2"
    # written as it is anyway
    assert found["passthrough.drain_timeout"] == f"{file}:11"
    assert found["passthrough.drain_delay"] == "default"
    assert in_force(settings)["general_settings.master_key"].origin.kind is Kind.ENVIRONMENT
    places = {entry.model_name: str(origin_of_entry(settings, entry)) for entry in settings.models}
    assert places == {"a": f"{file}:14", "b": f"{more}:4"}


def test_a_variable_that_null_defers_to_is_the_place(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("general_settings:\n  master_key: null\n")
    settings = load(file=str(file), environ={"LITELLM_MASTER_KEY": "sk-master", "HOSTED_VLLM_API_BASE": "http://gpu:1"})
    assert str(in_force(settings)["general_settings.master_key"].origin) == "LITELLM_MASTER_KEY"


def test_values_that_variables_of_other_programs_give_name_these(tmp_path: Path) -> None:
    environ = {"HOSTED_VLLM_API_BASE": "http://gpu:1", "OTEL_METRICS_EXPORTER": "otlp"}
    found = in_force(load(file=None, environ=environ))
    assert found["passthrough.otlp_metrics.enabled"].value is True
    assert str(found["passthrough.otlp_metrics.interval"].origin) == "OTEL_METRICS_EXPORTER"
    assert str(found["passthrough.otlp_metrics.compression"].origin) == "default"


def test_settings_are_equal_wherever_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    environ = {"HOSTED_VLLM_API_BASE": "http://gpu:1"}
    file.write_text("passthrough: {drain_delay: 1}\n")
    first = load(file=str(file), environ=environ)
    file.write_text("# a comment\npassthrough: {drain_delay: 1}\n")
    second = load(file=str(file), environ=environ)
    assert first == second
    assert first.origins != second.origins
