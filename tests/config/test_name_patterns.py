"""What model names with wildcards match, and what servers and callers call such a model."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.name_patterns import MAX_WILDCARDS, NamePattern, callers_name, filled, specificity

NAMES = st.text(alphabet="ab-/*", max_size=12)
PATTERNS = st.lists(st.text(alphabet="ab-/", max_size=3), min_size=2, max_size=5).map("*".join)


@pytest.mark.parametrize(
    ("pattern", "name", "segments"),
    [
        ("*", "anything/at.all", ("anything/at.all",)),
        ("*", "", ("",)),
        ("qwen*", "qwen-7b", ("-7b",)),
        ("qwen*", "Qwen-7b", None),
        ("qwen*", "my-qwen", None),
        ("*-instruct", "qwen-instruct", ("qwen",)),
        ("*-instruct", "qwen-instruct-2", None),
        ("org/*", "org/a/b", ("a/b",)),
        ("a*a", "a", None),
        ("fo::*::static::*", "fo::bar::static::baz", ("bar", "baz")),
        # the first takes as much as it can
        ("*-*", "a-b-c", ("a-b", "c")),
        ("*.*", "a+b", None),
    ],
)
def test_a_wildcard_stands_for_any_text(pattern: str, name: str, segments: tuple[str, ...] | None) -> None:
    assert NamePattern(pattern).match(name) == segments


@given(PATTERNS, NAMES)
def test_a_match_is_that_of_a_greedy_regular_expression(pattern: str, name: str) -> None:
    expression = re.fullmatch(re.escape(pattern).replace(r"\*", "(.*)"), name)
    assert NamePattern(pattern).match(name) == (None if expression is None else expression.groups())


def test_no_name_takes_long_to_match() -> None:
    pattern, name = NamePattern("*".join("a" * (MAX_WILDCARDS + 1)) + "b"), "a" * 4_096
    began = time.thread_time()
    for _ in range(100):
        assert pattern.match(name) is None
    assert time.thread_time() - began < 0.1


@pytest.mark.parametrize(
    ("template", "pattern", "name", "served"),
    [
        ("*", "*", "a", "a"),
        ("*", "org/*", "org/a", "a"),
        ("qwen*", "qwen*", "qwen-7b", "qwen-7b"),
        ("Qwen/*-Instruct", "*", "7B", "Qwen/7B-Instruct"),
        ("fixed", "gpt-*", "gpt-4", "fixed"),
        ("*/*", "*--*", "org--a", "org/a"),
        # as in LiteLLM, the name as it came
        ("llama3*", "*llama3*", "my-llama3-70b", "my-llama3-70b"),
        # what a caller writes is text
        ("x-*", "*", "*", "x-*"),
    ],
)
def test_the_server_gets_what_the_wildcards_stand_for(template: str, pattern: str, name: str, served: str) -> None:
    segments = NamePattern(pattern).match(name)
    assert segments is not None
    assert filled(template, segments, name) == served


@pytest.mark.parametrize(
    ("pattern", "template", "served", "name"),
    [
        ("org/*", "*", "a", "org/a"),
        ("qwen*", "qwen*", "qwen-7b", "qwen-7b"),
        ("qwen*", "qwen*", "llama", None),
        ("gpt-*", "fixed", "fixed", None),
        ("chat", "qwen", "qwen", "chat"),
        ("chat", "qwen", "llama", None),
        ("*llama3*", "llama3*", "llama3-70b", "llama3-70b"),
    ],
)
def test_callers_ask_for_a_servers_model_by_the_name_that_leads_there(
    pattern: str, template: str, served: str, name: str | None
) -> None:
    assert callers_name(pattern, template, served) == name


@given(PATTERNS, PATTERNS, NAMES)
def test_a_callers_name_leads_to_the_servers_model(pattern: str, template: str, served: str) -> None:
    if template.count("*") > pattern.count("*"):
        pattern, template = template, pattern
    name = callers_name(pattern, template, served)
    if name is not None:
        segments = NamePattern(pattern).match(name)
        assert segments is not None
        assert filled(template, segments, name) == served


def test_the_longest_pattern_is_the_most_specific() -> None:
    patterns = ["*", "qwen*", "qwen-2*", "*qwen-2*"]
    assert sorted({*patterns}, key=specificity) == patterns
