"""Which entries of ``model_list`` are for vLLM servers."""

from __future__ import annotations

import pytest

from tests.config.config_harness import BASE, Loader, Refusal
from tests.config.test_model_list import entry, listed

GPU = "http://gpu-7:8000/v1"


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"model": "hosted_vllm/qwen"}, "qwen"),
        ({"model": "openai/qwen"}, "qwen"),
        ({"model": "openai/Qwen/Qwen2.5-7B-Instruct"}, "Qwen/Qwen2.5-7B-Instruct"),
        ({"model": "custom_openai/qwen"}, "qwen"),
        ({"model": "text-completion-openai/qwen"}, "qwen"),
        ({"model": "vllm/qwen"}, "qwen"),
        ({"model": "qwen", "custom_llm_provider": "hosted_vllm"}, "qwen"),
        ({"model": "qwen", "custom_llm_provider": "openai"}, "qwen"),
        ({"model": "Qwen/Qwen2.5", "custom_llm_provider": "openai"}, "Qwen/Qwen2.5"),
        ({"model": "openai/gpt-oss-20b", "custom_llm_provider": "hosted_vllm"}, "openai/gpt-oss-20b"),
        ({"model": "openai/qwen", "custom_llm_provider": "openai"}, "qwen"),
        ({"model": "os.environ/MODEL"}, "from-the-environment"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_entry_with_an_address_of_ones_own_is_a_vllm_server(
    load_text: Loader, params: dict[str, str], name: str
) -> None:
    environ = BASE | {"MODEL": "openai/from-the-environment"}
    settings = load_text(listed(entry("ours", **{"api_base": GPU, **params})), environ)
    [model] = settings.models
    assert (model.upstream_model, model.server.name) == (name, "gpu-7:8000")
    assert settings.warnings == ()


def test_base_url_stands_for_an_api_base_that_is_missing(load_text: Loader) -> None:
    settings = load_text(listed(entry("ours", "openai/qwen", base_url=GPU)), BASE)
    assert [model.server.name for model in settings.models] == ["gpu-7:8000"]
    both = load_text(listed(entry("ours", "openai/qwen", base_url="http://other", api_base=GPU)), BASE)
    assert [model.server.name for model in both.models] == ["gpu-7:8000"]


SKIPPED = [
    ("openai/gpt-4o", {}, "of another provider (openai): skipped (write its api_base if it is a vLLM server)"),
    ("gpt-4o", {}, "of another provider: skipped (only hosted_vllm/NAME is served)"),
    ("azure/gpt-4o", {"api_base": GPU}, "of another provider (azure): skipped (only hosted_vllm/NAME is served)"),
    (
        "qwen",
        {"api_base": GPU},
        "of another provider: skipped (write hosted_vllm/ before the model's name if api_base is a vLLM server)",
    ),
    (
        "Qwen/Qwen2.5",
        {"api_base": GPU},
        "of another provider: skipped (write hosted_vllm/ before the model's name if api_base is a vLLM server)",
    ),
    (
        "qwen",
        {"api_base": GPU, "custom_llm_provider": "azure"},
        "of another provider (azure): skipped (only hosted_vllm/NAME is served)",
    ),
    *(
        (
            "openai/gpt-4o",
            {"api_base": base},
            f"of another provider (openai): skipped (its api_base is of {service}; write hosted_vllm/NAME if it is a "
            "vLLM server)",
        )
        for base, service in (
            ("https://api.openai.com/v1", "openai.com"),
            ("https://ours.openai.azure.com/", "azure.com"),
            ("https://openrouter.ai/api/v1", "openrouter.ai"),
            ("HTTPS://API.GROQ.COM/openai/v1", "groq.com"),
        )
    ),
]


@pytest.mark.parametrize(("model", "params", "reason"), SKIPPED, ids=lambda value: str(value)[:50])
def test_an_entry_of_a_service_is_skipped_with_what_to_write(
    load_text: Loader, model: str, params: dict[str, str], reason: str
) -> None:
    settings = load_text(listed(entry("theirs", model, api_key="os.environ/UNSET", **params), entry("ours")), BASE)
    assert [kept.model_name for kept in settings.models] == ["ours"]
    assert settings.warnings == (f"model_list[0]: the entry 'theirs' is {reason}",)


def test_a_host_that_only_ends_alike_is_no_service(load_text: Loader) -> None:
    settings = load_text(listed(entry("ours", "openai/qwen", api_base="http://notopenai.com")), BASE)
    assert [model.server.name for model in settings.models] == ["notopenai.com:80"]


def test_an_address_of_a_variable_that_is_not_set_is_refused_and_not_skipped(problems_of: Refusal) -> None:
    assert problems_of(listed(entry("ours", "openai/qwen", api_base="os.environ/UNSET"))) == [
        "model_list[0].litellm_params.api_base: the environment variable UNSET is not set, or empty (set it, or write "
        "the value here)"
    ]
