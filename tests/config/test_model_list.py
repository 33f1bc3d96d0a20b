"""``model_list`` as LiteLLM's users write it."""

from __future__ import annotations

import pytest

from tests.config.config_harness import BASE as SERVER
from tests.config.config_harness import Loader, Refusal, default_server
from twisted_vllm.config.secret import Secret

BASE = SERVER | {"HOSTED_VLLM_API_KEY": "default-key"}


def entry(name: str = "a", model: str = "hosted_vllm/m", info: str = "{}", **params: object) -> str:
    written = "".join(f", {key}: {value!r}" for key, value in params.items())
    return f"  - {{model_name: {name}, litellm_params: {{model: '{model}'{written}}}, model_info: {info}}}\n"


def listed(*entries: str) -> str:
    return "model_list:\n" + "".join(entries)


def test_the_guides_example_loads(load_text: Loader) -> None:
    settings = load_text(
        """
        model_list:
          - model_name: "my-vllm-model"
            litellm_params:
              model: hosted_vllm/vllm-1.72
              api_base: https://my-vllm-server.com
        """
    )
    (model,) = settings.models
    assert (model.model_name, model.upstream_model, model.weight) == ("my-vllm-model", "vllm-1.72", 1)
    assert (model.server.name, model.server.tls, model.server.api_key) == ("my-vllm-server.com:443", True, None)
    assert settings.default_server is None
    assert settings.warnings == ()


def test_a_models_own_name_may_hold_slashes(load_text: Loader) -> None:
    assert load_text(listed(entry(model="hosted_vllm/org/m")), BASE).models[0].upstream_model == "org/m"


def test_entries_of_one_name_stay_in_order_with_their_weights(load_text: Loader) -> None:
    settings = load_text(listed(entry(api_base="http://one", weight=3), entry(api_base="http://two", weight=1.0)))
    assert [(model.server.name, model.weight) for model in settings.models] == [("one:80", 3), ("two:80", 1)]


def test_an_entry_without_api_base_runs_on_the_default_server_with_its_key(load_text: Loader) -> None:
    settings = load_text(listed(entry(), entry(api_key="own")), BASE)
    assert settings.models[0].server == settings.default_server
    assert settings.models[0].server.api_key == Secret("default-key")
    assert settings.models[1].server.api_key == Secret("own")


def test_the_default_servers_key_goes_to_no_other_server(load_text: Loader) -> None:
    settings = load_text(listed(entry(api_base="http://gpu:8000/v1"), entry(api_base="http://elsewhere")), BASE)
    assert settings.models[0].server == settings.default_server
    assert settings.models[1].server.api_key is None


def test_a_key_without_a_default_server_is_warned_of(load_text: Loader) -> None:
    settings = load_text(listed(entry(api_base="http://elsewhere")), {"HOSTED_VLLM_API_KEY": "k"})
    assert settings.models[0].server.api_key is None
    (warning,) = settings.warnings
    assert warning.startswith("HOSTED_VLLM_API_KEY: is not used")


def test_every_spelling_of_one_server_is_the_same_server(load_text: Loader) -> None:
    spellings = ["http://GPU", "http://gpu:80", "http://gpu/", "http://gpu/v1", "HTTP://gpu:80/v1/"]
    settings = load_text(listed(*(entry(api_base=base, api_key="k") for base in spellings)))
    assert len({model.server for model in settings.models}) == 1


def test_another_key_makes_another_server(load_text: Loader) -> None:
    settings = load_text(listed(entry(api_base="http://gpu", api_key="k"), entry(api_base="http://gpu")))
    assert len({model.server for model in settings.models}) == 2


def test_a_timeout_is_the_servers_and_the_longest_of_several_holds(load_text: Loader) -> None:
    text = listed(entry("a", timeout=10), entry("b"), entry("c", timeout=20.5), entry("d", api_base="http://x"))
    settings = load_text(text, BASE)
    assert [model.server.timeouts.total for model in settings.models] == [20.5, 20.5, 20.5, None]
    assert default_server(settings).timeouts.total == 20.5
    assert settings.warnings == (
        "model_list[2].litellm_params.timeout: differs from another entry's of the same server: "
        "the longest is used for both",
    )


def test_overrides_of_a_server_win_over_entries_and_over_the_general_timeouts(load_text: Loader) -> None:
    settings = load_text(
        listed(entry("a", timeout=10), entry("b", api_base="http://x"))
        + "passthrough: {timeouts: {idle: 7, total: 8}, servers: {'http://gpu:8000/v1': {timeouts: {total: null}}}}",
        BASE,
    )
    overridden, other = (model.server.timeouts for model in settings.models)
    assert (overridden.idle, overridden.total) == (7, None)
    assert (other.idle, other.total) == (7, 8)
    assert (settings.timeouts.idle, settings.timeouts.total) == (7, 8)


def test_each_skipped_entry_is_named_and_so_is_a_list_of_nothing_else(load_text: Loader) -> None:
    settings = load_text(listed(entry("x", "openai/x"), entry("openai/*", "openai/*")), BASE)
    assert [warning.split(":")[0] for warning in settings.warnings] == ["model_list[0]", "model_list[1]", "model_list"]
    assert settings.warnings[2] == "model_list: every entry was skipped, so that no model of the list is served"


def test_a_list_of_skipped_entries_alone_is_no_server(problems_of: Refusal) -> None:
    assert problems_of(listed(entry("x", "openai/x")), {"HOSTED_VLLM_API_BASE": ""}) == [
        "no entry of model_list is for a vLLM server, so that nothing would be served (write model: hosted_vllm/NAME "
        "and api_base for each model of a vLLM server, or set HOSTED_VLLM_API_BASE)"
    ]


def test_settings_that_are_not_implemented_are_warned_of_once_for_all_entries(load_text: Loader) -> None:
    info = "{output_cost_per_second: 1, mode: chat, own: x}"
    text = listed(*(entry(name, info=info, seed=3, n=4) for name in "abc"))
    assert load_text(text, BASE).warnings == (
        "model_list[0].litellm_params.seed: not implemented yet: ignored (and in 2 more)",
        "model_list[0].litellm_params.n: not implemented yet: ignored (and in 2 more)",
        "model_list[0].model_info.output_cost_per_second: not implemented yet: ignored (and in 2 more)",
    )


ADVISED = {
    "stream_timeout": " (see passthrough.timeouts.response_head and idle)",
    "max_retries": " (see router_settings.num_retries)",
}


@pytest.mark.parametrize("name", ["seed", "stream_timeout", "max_retries", "output_cost_per_second", "tags"])
def test_an_entrys_litellm_setting_is_accepted_and_warned_of(load_text: Loader, name: str) -> None:
    assert load_text(listed(entry("a", "hosted_vllm/m", "{}", **{name: 1})), BASE).warnings == (
        f"model_list[0].litellm_params.{name}: not implemented yet: ignored{ADVISED.get(name, '')}",
    )


def test_litellms_sections_are_accepted_with_one_warning_for_each_setting(load_text: Loader) -> None:
    settings = load_text(
        """
        general_settings: {block_robots: true, custom_ss: []}
        litellm_settings: {drop_params: true, modify_parms: 3}
        router_settings: {retry_policy: {}, caching_groups: null, zzzzzz: 1}
        agent_list: {}
        """,
        BASE,
    )
    assert settings.warnings == (
        "general_settings.block_robots: not implemented yet: ignored",
        "general_settings.custom_ss: not a known setting: ignored; did you mean 'custom_sso'?",
        "litellm_settings.drop_params: not implemented yet: ignored",
        "litellm_settings.modify_parms: not a known setting: ignored; did you mean 'modify_params'?",
        "router_settings.retry_policy: not implemented yet: ignored (see passthrough.retry.statuses)",
        "router_settings.zzzzzz: not a known setting: ignored",
        "agent_list: not implemented yet: ignored",
    )


WRONG = {
    listed(entry("'gpt-?'")): ("model_list[0].model_name: must not have a question mark (the only wildcard is *)"),
    listed(entry(f"'{'*a' * 9}'")): "model_list[0].model_name: has over 8 wildcards",
    listed(entry(model="hosted_vllm/*")): (
        "model_list[0].litellm_params.model: has a wildcard, and model_name has none (write the server's name of the "
        "model, or a * in model_name)"
    ),
    listed(entry("'a*'", model="hosted_vllm/*b*")): (
        "model_list[0].litellm_params.model: has 2 wildcards, and model_name has 1 (it fills in no more)"
    ),
    listed(entry(model="hosted_vllm/")): (
        "model_list[0].litellm_params.model: names no model after hosted_vllm/ (write the name that the server uses)"
    ),
    listed(entry(model="hosted-vllm/m")): (
        "model_list[0].litellm_params.model: must be hosted_vllm/NAME (NAME is the name that the server uses)"
    ),
    listed(entry(model="hosted_vlm/m")): (
        "model_list[0].litellm_params.model: must be hosted_vllm/NAME (NAME is the name that the server uses)"
    ),
    listed(entry(weight=0)): "model_list[0].litellm_params.weight: must be 1 or more",
    listed(entry(weight=0.5)): (
        "model_list[0].litellm_params.weight: must be a whole number, 1 or more, not a fraction"
    ),
    listed(entry(timeout="soon")): (
        "model_list[0].litellm_params.timeout: must be a number of seconds above 0, not text"
    ),
    listed(entry(info="[]")): "model_list[0].model_info: must be a mapping, not a list",
    "model_list: [{model_name: a}]": (
        "model_list[0].litellm_params: is missing (write model: hosted_vllm/NAME and api_base below it)"
    ),
    "model_list: [{model_name: a, litellm_params: {}}]": (
        "model_list[0].litellm_params.model: is missing (write hosted_vllm/NAME)"
    ),
    "model_list: [a]": "model_list[0]: must be a mapping, not text",
    "model_list: {model_name: a}": (
        "model_list: must be a list, not a mapping (write each piece on its own line after '- ')"
    ),
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[12:70])
def test_a_wrong_entry_is_refused_in_one_clear_line(problems_of: Refusal, text: str) -> None:
    assert problems_of(text) == [WRONG[text]]


def test_an_entry_needs_an_api_base_where_there_is_no_default_server(problems_of: Refusal) -> None:
    text = listed(entry(api_base="http://x"), entry())
    assert problems_of(text, {"HOSTED_VLLM_API_BASE": ""}) == [
        "model_list[1].litellm_params.api_base: is missing "
        "(write it, or set HOSTED_VLLM_API_BASE for all entries without one)"
    ]


def test_a_refused_default_server_is_one_problem_and_not_one_for_each_entry(problems_of: Refusal) -> None:
    assert problems_of(listed(entry(), entry()), {"HOSTED_VLLM_API_BASE": "gpu:8000"}) == [
        "HOSTED_VLLM_API_BASE: must begin with http://, https:// or unix: (such as http://gpu-1:8000 or "
        "unix:/run/vllm.sock)"
    ]


@pytest.mark.parametrize(
    ("section", "is_open"),
    [
        ("", True),
        ("litellm_settings:", True),
        ("litellm_settings: {require_auth_for_metrics_endpoint: false}", True),
        ("litellm_settings: {require_auth_for_metrics_endpoint: true}", False),
        ("litellm_settings: {require_auth_for_metrics_endpoint: os.environ/CLOSED}", False),
    ],
)
def test_litellms_setting_says_who_may_read_the_metrics(load_text: Loader, section: str, is_open: bool) -> None:
    settings = load_text(section, BASE | {"CLOSED": "true"})
    assert (settings.metrics_are_open, settings.warnings) == (is_open, ())


def test_who_may_read_the_metrics_is_not_guessed(problems_of: Refusal) -> None:
    assert problems_of("litellm_settings: {require_auth_for_metrics_endpoint: maybe}") == [
        "litellm_settings.require_auth_for_metrics_endpoint: must be true or false, not text"
    ]
