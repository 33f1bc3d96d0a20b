"""The vLLM servers that the environment names, and the configuration of a gateway for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from tests.live.live_gateway import LiveGateway, ask

#: the names that the guide's examples use, whatever the servers call their models
GUIDE_CHAT_MODEL = "qwen2.5-7b-instruct"
GUIDE_SCORE_MODEL = "my-vllm-model"
#: a name that only the gateway knows
ALIAS = "live-alias"

StartGateway = Callable[..., LiveGateway]


def server_from(variable: str, what: str) -> str:
    """Return the base URL in a variable, or skip."""
    url = os.environ.get(variable, "").rstrip("/").removesuffix("/v1")
    if not url:
        pytest.skip(f"{what}: set {variable}")
    return url


def served_model(url: str) -> str:
    """Return what a server calls its first model."""
    answer = ask(url, "GET", "/v1/models")
    assert answer.status == 200, f"{url} does not list its models: {answer}"
    return str(answer.json["data"][0]["id"])


def model_list(rows: list[tuple[str, str, str]]) -> str:
    """Return a configuration file with these rows: the callers' name, the server's name, the server. JSON is YAML."""
    entries = {
        name: {"model_name": name, "litellm_params": {"model": f"hosted_vllm/{served}", "api_base": url}}
        for name, served, url in rows
    }
    return json.dumps({"model_list": list(entries.values()), "passthrough": {"log": {"format": "json"}}}, indent=2)
