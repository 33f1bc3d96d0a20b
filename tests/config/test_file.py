"""The file itself: unreadable, not YAML, ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.sources import parse, read


def refusal_of(text: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        parse(text, "f.yaml")
    return str(refusal.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml: cannot be read: No such file or directory"):
        read(str(tmp_path / "absent.yaml"))


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(str(tmp_path))


def test_a_name_that_no_file_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="not the name of a file"):
        read("a\0b")


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"a: b\nc: \xff\n")
    with pytest.raises(ConfigError, match="line 2: is not UTF-8 text"):
        read(str(file))


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: b\n")
    assert read(str(file)) == {"a": "b"}


def test_a_syntax_error_is_told_with_line_and_column() -> None:
    assert refusal_of("a: b\nc: [1,\n").startswith("f.yaml: line 3, column 1: expected the node content")


def test_a_tab_is_named() -> None:
    assert refusal_of("a:\n\t- b\n") == "f.yaml: line 2, column 1: a tab (write spaces in its place)"


def test_a_name_that_stands_twice_is_refused_with_both_lines() -> None:
    assert refusal_of("a:\n  key: 1\n  other: 2\n  'key': 3\n").startswith(
        "f.yaml: line 4, column 3: key stands twice in one mapping, first in line 2 (keep one)"
    )


def test_one_line_with_a_name_twice_is_refused_too() -> None:
    assert "stands twice" in refusal_of("{a: 1, a: 2}")


def test_a_merged_mapping_may_be_overridden() -> None:
    text = "base: &base {x: 1, y: 2}\nuse: {<<: *base, y: 3}\n"
    assert parse(text, "f.yaml")["use"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["a", "- a", "7", "true"])
def test_anything_but_a_mapping_is_refused(text: str) -> None:
    assert refusal_of(text).startswith("f.yaml: must be a mapping of settings")


@pytest.mark.parametrize("text", ["a: 2001-99-99", "a: 2026-01-01"])
def test_what_looks_like_a_date_is_text(text: str) -> None:
    assert isinstance(parse(text, "f.yaml")["a"], str)


@pytest.mark.parametrize(
    "text",
    [
        "a: *hush",
        "a: !hush x",
        "a: !!int hush",
        "a: !!bool hush",
        "a: !!timestamp hush",
        "a: !!python/object:os.system hush",
        "a: 'hush",
        "a: hush: hush",
        "a: @hush",
        "%YAML hush\n---\na: b",
        "a: &hush 1\nb: &hush 2\nc: *husk",
        "a: hush\x07",
        "[" * 1500 + "hush",
        "a: b\n---\nhush: hush",
        "? [a]\n: hush",
    ],
)
def test_what_yaml_refuses_is_told_without_repeating_a_value(text: str) -> None:
    assert "hush" not in refusal_of(text)


@given(st.one_of(st.text(), st.text(st.sampled_from("ab:-{}[]&*!|>'\"%@#?,\n 01~<=."))))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        assert isinstance(parse(text, "f.yaml"), dict)
    except ConfigError as refusal:
        assert str(refusal).startswith("f.yaml: ")
