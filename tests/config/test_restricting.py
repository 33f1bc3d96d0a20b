"""LiteLLM's settings that restrict somebody: none of them is passed over."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import yaml

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config import litellm, restricting
from twisted_vllm.config.declaration import Section
from twisted_vllm.config.describe import describe
from twisted_vllm.config.load import DOCUMENT
from twisted_vllm.config.restricting import Restriction, asks_for_something
from twisted_vllm.config.settings import NO_BOUNDS

#: where each table's settings stand, and the names there that the gateway ignores
BLOCKS = {
    "": (restricting.BLOCKS, litellm.BLOCKS),
    "general_settings": (restricting.GENERAL_SETTINGS, litellm.GENERAL_SETTINGS),
    "litellm_settings": (restricting.LITELLM_SETTINGS, litellm.LITELLM_SETTINGS),
    "router_settings": (restricting.ROUTER_SETTINGS, litellm.ROUTER_SETTINGS),
    "model_list[0].litellm_params": (restricting.ENTRY_PARAMS, litellm.ENTRY_PARAMS),
    "model_list[0].model_info": (restricting.MODEL_INFO, litellm.MODEL_INFO),
}
EVERY = [
    pytest.param(block, name, restrictions[name], id=f"{block}.{name}")
    for block, (restrictions, _) in BLOCKS.items()
    for name in sorted(restrictions)
]
#: values that restrict, where not each value does
VALUES: dict[str, Any] = {
    "default_team_settings": [{"team_id": "x", "max_budget": 3}],
    "missing_session_id": "reject",
    "optional_pre_call_checks": ["session_affinity", "router_budget_limiting"],
    "standard_logging_payload_excluded_fields": ["messages", "metadata"],
}
#: values of the same settings that restrict nobody
HARMLESS: dict[str, list[Any]] = {
    "default_team_settings": [[{"team_id": "x", "success_callback": ["langfuse"], "max_budget": None}]],
    "missing_session_id": ["generate"],
    "optional_pre_call_checks": [["session_affinity"]],
    "standard_logging_payload_excluded_fields": [["messages"], ["response", "messages"]],
}


def written(block: str, name: str, value: Any) -> str:
    """A file with one setting."""
    if not block.startswith("model_list"):
        return yaml.safe_dump({block: {name: value}} if block else {name: value})
    entry: dict[str, Any] = {"model_name": "a", "litellm_params": {"model": "hosted_vllm/m"}, "model_info": {}}
    _, _, part = block.partition(".")
    (entry[part] if part else entry)[name] = value
    return yaml.safe_dump({"model_list": [entry]})


def path_of(block: str, name: str) -> str:
    return f"{block}.{name}" if block else name


@pytest.mark.parametrize(("block", "name", "restriction"), EVERY)
def test_a_setting_that_restricts_keeps_the_gateway_from_starting(
    problems_of: Refusal, block: str, name: str, restriction: Restriction
) -> None:
    for value in [VALUES[name]] if name in VALUES else [True, 1, "x", ["x"], {"a": 1}]:
        (line,) = problems_of(written(block, name, value))
        assert line == (
            f"{path_of(block, name)}: would {restriction.effect}, which this gateway does not do "
            f"({restriction.instead}; then take this setting out)"
        )


@pytest.mark.parametrize("value", [None, False, "", [], {}, {"a": None, "b": []}], ids=str)
@pytest.mark.parametrize(("block", "name", "restriction"), EVERY)
def test_a_value_that_restricts_nobody_is_taken_in_silence(
    load_text: Loader, block: str, name: str, restriction: Restriction, value: Any
) -> None:
    assert load_text(written(block, name, value), BASE).warnings == ()


@pytest.mark.parametrize(
    ("block", "name", "value"),
    [
        (block, name, value)
        for block, (restrictions, _) in BLOCKS.items()
        for name in sorted(restrictions)
        for value in HARMLESS.get(name, ())
        if restrictions[name].when
    ],
)
def test_a_setting_with_a_value_that_restricts_nobody_is_warned_of(
    load_text: Loader, block: str, name: str, value: Any
) -> None:
    assert load_text(written(block, name, value), BASE).warnings == (
        f"{path_of(block, name)}: not implemented yet: ignored",
    )


@pytest.mark.parametrize(
    ("value", "restricts"), [("true", True), ("5", True), ("false", False), ("No", False), ("null", False)]
)
def test_a_value_from_the_environment_counts_by_what_it_says(
    load_text: Loader, problems_of: Refusal, value: str, restricts: bool
) -> None:
    text = "general_settings: {enable_oauth2_auth: os.environ/OAUTH}"
    if restricts:
        assert problems_of(text, {"OAUTH": value})[0].startswith(
            "general_settings.enable_oauth2_auth: would authenticate"
        )
    else:
        assert load_text(text, BASE | {"OAUTH": value}).warnings == ()


def test_a_variable_that_is_not_set_may_restrict(problems_of: Refusal) -> None:
    (line,) = problems_of("general_settings: {enable_oauth2_auth: os.environ/UNSET}")
    assert line.startswith("general_settings.enable_oauth2_auth: would authenticate")


@pytest.mark.parametrize(
    "name", ["retry_policy", "allowed_fails_policy", "enable_pre_call_checks", "routing_strategy_args"]
)
def test_what_only_chooses_servers_is_a_warning(load_text: Loader, name: str) -> None:
    settings = load_text(f"router_settings: {{{name}: 3}}", BASE)
    (warning,) = settings.warnings
    assert warning.startswith(f"router_settings.{name}: not implemented yet: ignored")


def test_every_problem_is_told_at_once_and_repeats_no_value(problems_of: Refusal) -> None:
    lines = problems_of(
        """
        guardrails: [{guardrail_name: hush}]
        general_settings: {custom_auth: hush.hush, allowed_routes: [/hush]}
        litellm_settings: {max_user_budget: 7}
        """
    )
    assert [line.partition(":")[0] for line in lines] == [
        "guardrails",
        "general_settings.custom_auth",
        "general_settings.allowed_routes",
        "litellm_settings.max_user_budget",
    ]
    assert "hush" not in "".join(lines)


@pytest.mark.parametrize(("restrictions", "ignored"), BLOCKS.values(), ids=BLOCKS)
def test_a_name_is_in_one_table(restrictions: restricting.Restrictions, ignored: frozenset[str]) -> None:
    assert not ignored & set(restrictions)


def test_what_is_implemented_is_in_no_table() -> None:
    for each in DOCUMENT.settings:
        if each.name in BLOCKS and isinstance(each.check, Section):
            restrictions, ignored = BLOCKS[each.name]
            assert not {*restrictions, *ignored} & set(each.check.names)


@pytest.mark.parametrize("value", [0, 0.0, True, "x", [0], {"a": 0}, "false"])
def test_a_limit_of_zero_restricts(value: object) -> None:
    assert asks_for_something(value)


def test_addresses_behind_a_proxy_need_the_proxys_name(load_text: Loader, problems_of: Refusal) -> None:
    text = "general_settings: {allowed_ips: [10.0.0.1], use_x_forwarded_for: true}\n"
    assert problems_of(text) == [
        "general_settings.use_x_forwarded_for: says that clients come through a proxy, whose address allowed_ips would "
        "be compared with (name the proxy in passthrough.trusted_proxies)"
    ]
    warning = ("general_settings.use_x_forwarded_for: not implemented yet: ignored (see passthrough.trusted_proxies)",)
    assert load_text(text + "passthrough: {trusted_proxies: [10.0.0.1]}", BASE).warnings == warning
    assert load_text(text.replace("[10.0.0.1]", "[]"), BASE).warnings == warning
    assert load_text(text.replace("true", "false"), BASE).warnings == warning


def test_what_is_implemented_loads_by_litellms_names(load_text: Loader) -> None:
    settings = load_text(
        """
        general_settings: {allowed_ips: [10.0.0.0/8, "2001:db8::1"], enforce_user_param: true, user_header_name: X-User}
        litellm_settings: {upperbound_key_generate_params: {max_budget: 0.5, duration: 1mo, rpm_limit: 0}}
        """,
        BASE,
    )
    assert [str(each) for each in settings.allowed_ips] == ["10.0.0.0/8", "2001:db8::1/128"]
    assert (settings.enforce_user_param, settings.end_user_headers) == (True, ("x-litellm-end-user-id", "x-user"))
    bounds = settings.upperbound_key_generate_params
    assert (bounds.max_budget, bounds.duration, bounds.rpm_limit, bounds.tpm_limit) == (Decimal("0.5"), "1mo", 0, None)
    assert settings.warnings == ()
    assert "served address: 10.0.0.0/8" in describe(settings)


@pytest.mark.parametrize("nothing", ["null", "{}"])
def test_null_means_nothing_there_too(load_text: Loader, nothing: str) -> None:
    settings = load_text(
        f"""
        general_settings: {{allowed_ips: null, enforce_user_param: null, user_header_name: null}}
        litellm_settings: {{upperbound_key_generate_params: {nothing}}}
        """,
        BASE,
    )
    assert (settings.allowed_ips, bool(settings.enforce_user_param), settings.user_header_name) == ((), False, None)
    assert settings.upperbound_key_generate_params == NO_BOUNDS


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "general_settings: {allowed_ips: [gpu-1]}",
            "general_settings.allowed_ips[0]: must be an address or a network (such as 10.0.0.0/8 or fd00::/8)",
        ),
        (
            "litellm_settings: {upperbound_key_generate_params: {duration: -1}}",
            "litellm_settings.upperbound_key_generate_params.duration: must be a whole number and a unit, one of s, m, "
            "h, d, w and mo (as in 30d)",
        ),
        (
            "litellm_settings: {upperbound_key_generate_params: {max_budget: 9000001}}",
            "litellm_settings.upperbound_key_generate_params.max_budget: must not be more than 9000000 US dollars",
        ),
        (
            "litellm_settings: {upperbound_key_generate_params: {models: [good]}}",
            "litellm_settings.upperbound_key_generate_params.models: is not a known setting",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(problems_of: Refusal, text: str, line: str) -> None:
    assert problems_of(text) == [line]
