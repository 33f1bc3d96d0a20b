"""LiteLLM's router settings."""

from __future__ import annotations

import re

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from twisted_vllm.config.declaration import settings_of, values_of
from twisted_vllm.config.litellm import ADVICE
from twisted_vllm.config.settings import RoutingSettings, Settings


def test_the_router_settings_are_read(load_text: Loader) -> None:
    routing = load_text(
        """
        router_settings:
          routing_strategy: least-busy
          num_retries: 4
          allowed_fails: 0
          cooldown_time: 30
          retry_after: 0.5
          fallbacks: [{qwen: [small, other]}, {phi: [small]}]
          context_window_fallbacks: [{qwen: [long]}]
          default_fallbacks: [small]
          model_group_alias: {gpt-4o: qwen, old: {model: phi, hidden: true}}
        """,
        BASE,
    ).routing
    assert (routing.routing_strategy, routing.num_retries, routing.allowed_fails) == ("least-busy", 4, 0)
    assert (routing.cooldown_time, routing.retry_after) == (30.0, 0.5)
    assert routing.fallbacks == {"qwen": ("small", "other"), "phi": ("small",)}
    assert routing.context_window_fallbacks == {"qwen": ("long",)}
    assert routing.default_fallbacks == ("small",)
    assert routing.model_group_alias == {"gpt-4o": "qwen", "old": "phi"}


def test_litellm_settings_give_them_too_and_router_settings_win(load_text: Loader) -> None:
    routing = load_text(
        """
        litellm_settings: {num_retries: 5, allowed_fails: 7, fallbacks: [{a: [b]}]}
        router_settings: {num_retries: 1}
        """,
        BASE,
    ).routing
    assert (routing.num_retries, routing.allowed_fails, routing.fallbacks) == (1, 7, {"a": ("b",)})


def test_settings_that_are_named_in_the_advice_exist() -> None:
    paths = [path for holder in (Settings(), RoutingSettings()) for path, _, _ in values_of(holder)]
    for advice in set(ADVICE.values()):
        named = re.findall(r"(?:passthrough|router_settings)[a-z_.]+", advice)
        assert all(any(f"{path}.".startswith(f"{name}.") for path in paths) for name in named), advice


@pytest.mark.parametrize("name", ["usage-based-routing", "usage-based-routing-v2", "cost-based-routing"])
def test_litellms_other_strategies_are_a_warning(load_text: Loader, name: str) -> None:
    settings = load_text(f"router_settings: {{routing_strategy: {name}}}", BASE)
    assert settings.routing.routing_strategy == "prefix"
    assert settings.warnings == ("router_settings.routing_strategy: is not implemented: prefix is used",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("routing_strategy: least-bussy", "router_settings.routing_strategy: must be one of "),
        (
            "fallbacks: [qwen]",
            "router_settings.fallbacks[0]: must be a mapping of a model to a list of models, not text",
        ),
        ("fallbacks: [{a: [a]}]", "router_settings.fallbacks[0].a: names itself"),
        ("fallbacks: [{a: [b]}, {a: [c]}]", "router_settings.fallbacks[1].a: stands twice (keep one)"),
        ("fallbacks: 3", "router_settings.fallbacks: must be a list of mappings of a model to a list of models"),
        (
            "model_group_alias: [a]",
            "router_settings.model_group_alias: must be a mapping of names to models, not a list",
        ),
        ("cooldown_time: 0", "router_settings.cooldown_time: must be"),
    ],
)
def test_a_bad_value_is_refused_by_its_place(problems_of: Refusal, text: str, problem: str) -> None:
    (line,) = problems_of(f"router_settings: {{{text}}}", BASE)
    assert line.startswith(problem)


def test_the_timeout_holds_for_every_server_that_has_no_other(load_text: Loader) -> None:
    settings = load_text("router_settings: {timeout: 40}", BASE)
    assert settings.default_server is not None
    assert settings.default_server.timeouts.total == settings.timeouts.total == 40.0
    settings = load_text("{router_settings: {timeout: 40}, passthrough: {timeouts: {total: 50}}}", BASE)
    assert settings.timeouts.total == 50.0


def test_entries_of_a_model_agree_on_its_strategy(load_text: Loader, problems_of: Refusal) -> None:
    text = """
        model_list:
          - model_name: a
            litellm_params: {model: hosted_vllm/m, api_base: http://h1:1, order: 2, rpm: 5, tpm: 70}
            model_info: {routing_strategy: session}
          - {model_name: a, litellm_params: {model: hosted_vllm/m, api_base: http://h2:1}%s}
    """
    first, second = load_text(text % "", BASE).models
    assert (first.order, first.rpm, first.tpm, first.strategy) == (2, 5, 70, "session")
    assert (second.order, second.rpm, second.tpm, second.strategy) == (1, None, None, "session")
    (line,) = problems_of(text % ", model_info: {routing_strategy: prefix}", BASE)
    assert line == (
        "model_list[1].model_info.routing_strategy: differs from another entry's of the same model_name: session"
    )


def test_null_is_the_default_as_in_litellm(load_text: Loader) -> None:
    names = [each.name for each in settings_of(RoutingSettings)]
    text = "router_settings: {" + ", ".join(f"{name}: null" for name in names) + "}"
    assert load_text(text, BASE).routing == RoutingSettings()
    both = load_text("{litellm_settings: {num_retries: 5}, router_settings: {num_retries: null}}", BASE)
    assert both.routing.num_retries == 5


def test_a_server_that_stands_twice_in_a_model_is_a_warning(load_text: Loader) -> None:
    entry = '{model_name: a, litellm_params: {model: hosted_vllm/m, api_base: "http://one"}}'
    assert load_text(f"model_list: [{entry}, {entry}]").warnings == (
        "model_list[1].litellm_params: is the same model of the same server as model_list[0] "
        "(was another api_base meant?)",
    )


def test_a_misspelt_setting_of_model_info_is_a_warning(load_text: Loader) -> None:
    info = "{routing_stategy: session, mode: chat, input_cost_per_token_flex: 1}"
    text = f"model_list: [{{model_name: a, litellm_params: {{model: hosted_vllm/m}}, model_info: {info}}}]"
    assert load_text(text, BASE).warnings == (
        "model_list[0].model_info.routing_stategy: not a known setting: ignored; did you mean 'routing_strategy'?",
    )


MODELS = """
model_list:
  - {model_name: qwen, litellm_params: {model: hosted_vllm/q, api_base: "http://one"}}
  - {model_name: small, litellm_params: {model: hosted_vllm/s, api_base: "http://two"}}
"""


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            "fallbacks: [{qwenn: [small]}]",
            "router_settings.fallbacks.qwenn: no entry of model_list is named qwenn; did you mean 'qwen'?",
        ),
        (
            "fallbacks: [{qwen: [smal]}]",
            "router_settings.fallbacks.qwen: no entry of model_list is named smal; did you mean 'small'?",
        ),
        (
            "context_window_fallbacks: [{qwen: [other]}]",
            "router_settings.context_window_fallbacks.qwen: no entry of model_list is named other",
        ),
        ("default_fallbacks: [other]", "router_settings.default_fallbacks: no entry of model_list is named other"),
        (
            "model_group_alias: {gpt-4o: other}",
            "router_settings.model_group_alias.gpt-4o: no entry of model_list is named other",
        ),
        (
            "model_group_alias: {small: qwen}",
            "router_settings.model_group_alias.small: a model of model_list has this name: ignored",
        ),
        (
            "fallbacks: [{'*': [small]}]",
            "router_settings.fallbacks: * stands for no model: ignored (write default_fallbacks)",
        ),
        (
            "{model_group_alias: {gpt-4o: qwen}, fallbacks: [{gpt-4o: [small]}]}",
            "router_settings.fallbacks.gpt-4o: is an alias: ignored (write the name of the model)",
        ),
    ],
)
def test_a_name_that_is_no_model_is_a_warning(load_text: Loader, text: str, warning: str) -> None:
    assert load_text(f"{MODELS}\nrouter_settings: {text if text[0] == '{' else f'{{{text}}}'}").warnings == (warning,)


def test_the_warning_names_the_block_of_the_list(load_text: Loader) -> None:
    assert load_text(f"{MODELS}\nlitellm_settings: {{default_fallbacks: [other]}}").warnings == (
        "litellm_settings.default_fallbacks: no entry of model_list is named other",
    )


def test_aliases_and_what_the_default_server_may_have_are_no_warning(load_text: Loader) -> None:
    with_alias = "router_settings: {fallbacks: [{qwen: [gpt-4o]}], model_group_alias: {gpt-4o: small}}"
    assert load_text(f"{MODELS}\n{with_alias}").warnings == ()
    assert load_text(f"{MODELS}\nrouter_settings: {{fallbacks: [{{qwen: [other]}}]}}", BASE).warnings == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("passthrough: {num_retries: 3}", "passthrough.num_retries: does not belong here (move it to router_settings)"),
        (
            "general_settings: {routing_strategy: session}",
            "general_settings.routing_strategy: does not belong here (move it to router_settings)",
        ),
        ("fallbacks: []", "fallbacks: does not belong here (move it to router_settings)"),
        (
            'model_list: [{model_name: a, order: 2, litellm_params: {model: hosted_vllm/a, api_base: "http://a"}}]',
            "model_list[0].order: does not belong here (move it to litellm_params)",
        ),
        (
            "model_list: [{model_name: a, litellm_params: "
            '{model: hosted_vllm/a, api_base: "http://a", routing_strategy: session}}]',
            "model_list[0].litellm_params.routing_strategy: does not belong here (move it to model_info)",
        ),
    ],
)
def test_a_setting_of_routing_in_the_wrong_block_is_refused(problems_of: Refusal, text: str, problem: str) -> None:
    assert problem in problems_of(text, BASE)
