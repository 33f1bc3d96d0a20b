"""Which entries of LiteLLM's ``model_list`` are for vLLM servers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from twisted_vllm.config.problems import Place, Rejected, nearest

#: LiteLLM's name of vLLM servers
PROVIDER = "hosted_vllm"

#: LiteLLM's names of servers with OpenAI's API at an address of one's own. Without an api_base each is a service.
_COMPATIBLE = frozenset(("custom_openai", "openai", "openai_like", "text-completion-openai", "vllm"))

#: services with OpenAI's API, by the ends of their host names
_SERVICES = (
    *("anthropic.com", "anyscale.com", "azure.com", "azure-api.net", "cerebras.ai", "cohere.ai", "cohere.com"),
    *("databricks.com", "deepinfra.com", "deepseek.com", "fireworks.ai", "googleapis.com", "groq.com"),
    *("mistral.ai", "moonshot.ai", "moonshot.cn", "nebius.ai", "nebius.com", "openai.com", "openrouter.ai"),
    *("perplexity.ai", "sambanova.ai", "together.ai", "together.xyz", "x.ai", "z.ai", "api.nvidia.com"),
    *("aliyuncs.com", "githubcopilot.com", "models.github.ai", "ollama.com", "llama.com"),
)

_PROVIDER_NAME = re.compile(r"[a-z0-9_.-]{1,40}")


@attrs.frozen
class Skipped:
    """An entry that is not for a vLLM server.

    Attributes:
        reason: why, to follow "the entry 'NAME' is".
    """

    reason: str


def as_vllm(value: object, place: Place) -> object | Skipped:
    """Return an entry as one of ``hosted_vllm``, or why it is skipped. An entry that must be checked is unchanged.

    As in LiteLLM, ``custom_llm_provider`` wins over the provider before the slash, and ``base_url`` stands for an
    ``api_base`` that is missing. ``openai/NAME`` with an api_base is a vLLM server, unless the api_base is that of a
    known service.
    """
    params = value.get("litellm_params") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(params, Mapping):
        return value
    try:
        model, declared = place.resolve(params.get("model")), place.resolve(params.get("custom_llm_provider"))
    except Rejected:
        return value
    if not isinstance(model, str) or not model.strip():
        return value
    provider, name = _provider_of(model, declared)
    if provider != PROVIDER:
        if nearest(provider, [PROVIDER], cutoff=0.8):
            return value
        reason = _other(provider, model, params, place)
        if reason is not None:
            return Skipped(reason)
    written = {each: content for each, content in params.items() if each != "custom_llm_provider"}
    written["model"] = f"{PROVIDER}/{name}"
    base_url = written.pop("base_url", None)
    if base_url is not None and not written.get("api_base"):
        written["api_base"] = base_url
    return {**value, "litellm_params": written}


def _provider_of(model: str, declared: object) -> tuple[str, str]:
    """Return the provider of an entry, and the model's name there."""
    provider, slash, name = model.partition("/")
    if isinstance(declared, str) and declared:
        return declared, name if slash and provider == declared else model
    return (provider, name) if slash else ("", model)


def _other(provider: str, model: str, params: Mapping[Any, Any], place: Place) -> str | None:
    """Return why an entry is not for a vLLM server; None if it is, or if its api_base must be checked."""
    named = f" ({provider})" if _PROVIDER_NAME.fullmatch(provider) else ""
    other = f"of another provider{named}: skipped"
    base = params.get("api_base") or params.get("base_url")
    if provider not in _COMPATIBLE:
        if base and (not provider or not _PROVIDER_NAME.fullmatch(provider)):
            # such as Qwen/Qwen2.5-7B-Instruct, which LiteLLM refuses
            return f"{other} (write {PROVIDER}/ before the model's name if api_base is a vLLM server)"
        return f"{other} (only {PROVIDER}/NAME is served)"
    if not base:
        return f"{other} (write its api_base if it is a vLLM server)"
    try:
        service = _service_of(str(place.resolve(base)))
    except Rejected:
        return None
    if service is not None:
        return f"{other} (its api_base is of {service}; write {PROVIDER}/NAME if it is a vLLM server)"
    return None


def _service_of(base: str) -> str | None:
    try:
        host = urlsplit(base).hostname or ""
    except ValueError:
        return None
    return next((service for service in _SERVICES if f".{host}".endswith(f".{service}")), None)
