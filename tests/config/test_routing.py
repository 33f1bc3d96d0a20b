"""LiteLLM's router settings."""

from __future__ import annotations

import pytest

from tests.config.config_harness import BASE, Loader, Refusal


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
