"""The page about LiteLLM says of each setting whether it is used or refused, and says it truly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from twisted_vllm.config import restricting
from twisted_vllm.config.declaration import Section
from twisted_vllm.config.load import DOCUMENT
from twisted_vllm.config.restricting import Restrictions

PAGE = Path(__file__).parents[2] / "docs" / "migrate-from-litellm.md"

#: the settings that keep the gateway from starting, by the name of their block on the page
REFUSED: dict[str, Restrictions] = {
    "general_settings": restricting.GENERAL_SETTINGS,
    "litellm_settings": restricting.LITELLM_SETTINGS,
    "router_settings": restricting.ROUTER_SETTINGS,
    "litellm_params": restricting.ENTRY_PARAMS,
    "model_info": restricting.MODEL_INFO,
}
BLOCKS = ("general_settings", "litellm_settings", "router_settings")


def said() -> dict[tuple[str, str], list[str]]:
    """What the page says of settings: by block and name, the second cells of their rows."""
    section = re.split(r"^## ", PAGE.read_text("utf-8").partition("\n## Settings\n")[2], flags=re.MULTILINE)[0]
    found: dict[tuple[str, str], list[str]] = {}
    for first, second in re.findall(r"^\| (.*?) \| (.*) \|$", section, re.MULTILINE):
        block = ""
        for text in re.findall(r"`([^`]+)`", first):
            named = re.match(rf"({'|'.join(REFUSED)})\.(\w+)", text)
            block, name = named.groups() if named else (block, re.split(r"\W", text)[0])
            for each in (block, *(("litellm_settings",) if "below `litellm_settings` too" in second else ())):
                found.setdefault((each, name), []).append(second)
    return found


SAID = said()


@pytest.mark.parametrize("name", [pytest.param((block, name), id=name) for block in REFUSED for name in REFUSED[block]])
def test_what_is_refused_is_said_to_be(name: tuple[str, str]) -> None:
    assert any(each.startswith("refused") for each in SAID[name])


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_used_is_said_to_be_and_not_refused(block: str) -> None:
    section = next(each.check for each in DOCUMENT.settings if each.name == block)
    assert isinstance(section, Section)
    for name in section.names:
        assert any("used" in each for each in SAID[block, name]), name
        assert not any(each.startswith("refused") for each in SAID[block, name]), name


@pytest.mark.parametrize(("block", "name"), [key for key in SAID if key[0] in BLOCKS])
def test_what_is_said_to_be_refused_is(block: str, name: str) -> None:
    if all(each.startswith("refused") for each in SAID[block, name]):
        assert name in REFUSED[block] or name in ("router_budget_limiting", "enforce_model_rate_limits")
