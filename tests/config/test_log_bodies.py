"""The settings of prompts and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twisted_vllm.config.load import load
from twisted_vllm.config.log_bodies import OFF, keep_opt_out, opts_out
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.settings import Settings

FILE = """
general_settings: {master_key: sk-0123456789abcdef}
model_list:
- model_name: qwen
  litellm_params: {model: hosted_vllm/qwen, api_base: "http://127.0.0.1:8000"}
  model_info: {log_bodies: metadata}
"""


def settings(directory: Path, text: str) -> Settings:
    file = directory / "config.yaml"
    file.write_text(FILE + text)
    return load(file=str(file), environ={})


def test_they_are_read(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        "litellm_settings: {turn_off_message_logging: true, global_disable_no_log_param: true}\n"
        "passthrough: {log_bodies: {mode: full, models: {'a*': off, b: full}, redact_fields: ['metadata.secret'], "
        "redact_patterns: [email, 'PROJ-[0-9]{1,8}']}}",
    )
    assert (found.log_bodies.mode, found.log_bodies.models) == ("full", {"a*": "off", "b": "full"})
    assert (found.turn_off_message_logging, found.global_disable_no_log_param) == (True, True)
    assert found.models[0].log_bodies == "metadata"


def test_nothing_is_kept_by_default(tmp_path: Path) -> None:
    assert settings(tmp_path, "").log_bodies.mode == OFF


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("mode: on", "must be one of off, metadata, full"),
        ("models: {x: all}", "must be one of off, metadata, full"),
        ("models: [x]", "must be a mapping"),
        ("redact_fields: ['a[']", "names of members"),
        ("redact_patterns: ['(a+)+b']", "may take long"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, written: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings(tmp_path, f"passthrough: {{log_bodies: {{{written}}}}}")


@pytest.mark.parametrize(
    "metadata",
    [
        {"turn_off_message_logging": True},
        {"turn_off_message_logging": "true"},
        {"logging": [{"callback_name": "x", "callback_vars": {"turn_off_message_logging": True}}]},
        {"callback_settings": {"callback_vars": {"turn_off_message_logging": "True"}}},
    ],
)
def test_litellm_s_opt_outs_are_kept_whatever_else_is_said(metadata: dict[str, Any]) -> None:
    assert opts_out(metadata)
    values: dict[str, Any] = {"metadata": metadata, "log_bodies": "full"}
    keep_opt_out(values, None)
    assert values["log_bodies"] == OFF
    values = {"log_bodies": "full"}
    keep_opt_out(values, metadata)
    assert values["log_bodies"] == OFF


@pytest.mark.parametrize("metadata", [{}, {"turn_off_message_logging": False}, {"logging": "x"}, {"logging": [1]}])
def test_other_metadata_says_nothing(metadata: dict[str, Any]) -> None:
    values: dict[str, Any] = {"metadata": metadata}
    keep_opt_out(values, {"turn_off_message_logging": True})
    assert "log_bodies" not in values
