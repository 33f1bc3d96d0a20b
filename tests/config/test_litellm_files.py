"""Files with the settings of LiteLLM's own examples start, or say what to change."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.config.config_harness import Loader, Refusal
from tests.config.litellm_files import EXAMPLES, Example

ENVIRON = {
    "HOSTED_VLLM_API_BASE": "",
    "KEY": "sk-a-value-for-each-key",
    "LANGFUSE_PUBLIC_KEY": "pk-lf-1",
    "LANGFUSE_SECRET_KEY": "sk-lf-2",
}


def text_of(example: Example) -> str:
    entry: dict[str, Any] = {
        "model_name": "qwen",
        "litellm_params": {"model": "openai/qwen", "api_base": "http://gpu:8000/v1", "api_key": "os.environ/KEY"},
    }
    for path, value in example.entry.items():
        section, _, name = path.rpartition(".")
        (entry.setdefault(section, {}) if section else entry)[name] = value
    return yaml.safe_dump({"model_list": [entry], **example.sections})


def paths_of(example: Example) -> list[str]:
    """The paths of the settings that are not the gateway's own."""
    found = [f"model_list[0].{path}" for path in example.entry]
    for name, value in example.sections.items():
        nested = isinstance(value, dict) and name.endswith("_settings")
        found += [f"{name}.{inner}" for inner in value] if nested else [name]
    return found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_a_file_starts_or_says_what_to_change(example: Example, load_text: Loader, problems_of: Refusal) -> None:
    if example.refused:
        lines = problems_of(text_of(example), ENVIRON)
        assert [line.partition(":")[0] for line in lines] == list(example.refused)
        endings = ("; then take this setting out)", "; then take it out of the list)")
        assert all(line.endswith(endings) for line in lines)
        return
    settings = load_text(text_of(example), ENVIRON)
    assert [(model.model_name, model.server.name) for model in settings.models] == [("qwen", "gpu:8000")]
    known = [*paths_of(example), "a_section_of_tomorrow"]
    for warning in settings.warnings:
        path = warning.partition(":")[0]
        assert any(f"{path}.".startswith(f"{each}.") for each in known)
        assert "not a known setting" not in warning or "tomorrow" in warning
