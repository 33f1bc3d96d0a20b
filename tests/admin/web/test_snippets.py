"""What is given to copy: nothing in it is taken apart, and the documentation has the same."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.admin.web.snippets import CLIENTS, PAGE, PLACEHOLDER, Target, client_named, document

#: what callers may name a model or a key
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(model=NAMES, key=NAMES)
def test_a_name_is_one_word_in_every_language(model: str, key: str) -> None:
    at = Target("https://gateway.example.com", key, model)
    for client in CLIENTS:
        for part in client.parts(at):
            if part.language == "python":
                compile(part.text, client.id, "exec")
            elif part.language == "toml":
                assert tomllib.loads(part.text)["model"] == model
            elif part.language == "json":
                assert json.loads(part.text)["env"]["ANTHROPIC_AUTH_TOKEN"] == key
            else:
                said = shlex.split(part.text)
                assert part.label == "Install it" or any(key in word for word in said)


def test_without_a_key_a_placeholder_stands_there() -> None:
    at = Target("https://gateway.example.com")
    for client in CLIENTS:
        assert any(PLACEHOLDER in part.text for part in client.parts(at)), client.id


def test_an_unknown_client_is_the_first_one() -> None:
    assert client_named("nonsense") is CLIENTS[0]
    assert client_named("codex").name == "Codex"


def test_the_documentation_is_up_to_date() -> None:
    assert Path(PAGE).read_text("utf-8") == document(), "run make reference"
