"""Media, fields, patterns and secrets are taken out of prompts and answers."""

from __future__ import annotations

import copy
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.observability.contents.redaction import TEXT_IN_STEP, Redaction, Secrets, pieces_of, without_media
from twisted_vllm.observability.logging.redaction import Redactor

MEDIUM = b64encode(bytes(range(256)) * 8).decode()
KEY = "sk-0123456789abcdefghij"


def no_secrets() -> Secrets:
    return Secrets(str, lambda text: False, ())


def cleaned(value: Any, redaction: Redaction | None = None, secrets: Secrets | None = None) -> Any:
    """Return a value after it was cleaned."""
    value = copy.deepcopy(value)
    steps: Iterator[None] = (redaction or Redaction()).clean(value, secrets or no_secrets())
    for _ in steps:
        pass
    return value


def struck(body: dict[str, Any], *fields: str) -> dict[str, Any]:
    body = copy.deepcopy(body)
    Redaction(fields).strike_body(body)
    return body


BODY = {
    "metadata": {"secret": "x", "public": "y"},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "user", "content": "plain"},
    ],
    "tools": [{"function": {"name": "f"}}],
}


def test_fields_are_taken_out_by_path() -> None:
    assert struck(BODY, "metadata.secret")["metadata"] == {"secret": "[redacted]", "public": "y"}
    assert struck(BODY, "metadata.*")["metadata"] == {"secret": "[redacted]", "public": "[redacted]"}
    [first, second] = struck(BODY, "messages[].content[type=image_url]")["messages"]
    assert first["content"] == [{"type": "text", "text": "hi"}, {"type": "image_url", "text": "[redacted]"}]
    assert second["content"] == "plain"
    assert struck(BODY, "messages[].content[].text")["messages"][0]["content"][0]["text"] == "[redacted]"
    assert struck(BODY, "tools[].function.name")["tools"] == [{"function": {"name": "[redacted]"}}]
    assert struck(BODY, "messages[role=user]")["messages"] == [{"role": "user", "text": "[redacted]"}] * 2
    assert struck(BODY, "absent.path", "metadata.secret.deeper", "output.text") == BODY


def test_fields_of_the_answer_are_taken_out_of_all_choices() -> None:
    answer = {"text": "a", "choices": [{"text": "a"}, {"text": "b"}], "tool_calls": [{"name": "f", "arguments": "x"}]}
    redaction = Redaction(["output.text", "output.tool_calls[].arguments", "text"])
    redaction.strike_answer(answer)
    assert answer == {
        "text": "[redacted]",
        "choices": [{"text": "[redacted]"}] * 2,
        "tool_calls": [{"name": "f", "arguments": "[redacted]"}],
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "b", "type"]), inner),
    max_leaves=20,
)
PATHS = st.lists(st.sampled_from(["a", "b", "*", "a[]", "b[type=x]"]), min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(st.sampled_from(["a", "b"]), JSON), PATHS)
def test_a_path_fails_on_no_body(body: dict[str, Any], path: str) -> None:
    struck(body, path)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"url": f"data:image/png;base64,{MEDIUM}"}, {"url": f"[image/png: {len(MEDIUM) + 22} bytes, not kept]"}),
        ({"input_audio": {"data": MEDIUM}}, {"input_audio": {"data": f"[base64: {len(MEDIUM)} bytes, not kept]"}}),
        ({"data": MEDIUM[:80]}, {"data": "[base64: 80 bytes, not kept]"}),
        (
            {"text": f"see ![x](data:image/gif;base64,{MEDIUM}) there"},
            {"text": "see ![x]([image/gif: 2754 bytes, not kept]) there"},
        ),
        ({"text": "DATA:,hello%20world" + "x" * 60}, {"text": "[data: 79 bytes, not kept]"}),
        ({"text": "a" * 5000}, {"text": "a" * 5000}),
        ({"text": "Some words that are no base64, " * 50}, {"text": "Some words that are no base64, " * 50}),
        ({"prompt": list(range(100))}, {"prompt": "[100 numbers, not kept]"}),
        ({"prompt": [1, 2, 3]}, {"prompt": [1, 2, 3]}),
    ],
)
def test_of_media_only_type_and_size_are_kept(value: Any, kept: Any) -> None:
    assert cleaned(value) == kept


def test_patterns_are_struck_out_of_all_texts() -> None:
    redaction = Redaction((), ("email", "PROJ-[0-9]{1,8}"))
    value = {"messages": [{"content": "ada@example.org on PROJ-17"}], "output": {"text": "to ada@example.org"}}
    assert cleaned(value, redaction) == {
        "messages": [{"content": "[redacted] on [redacted]"}],
        "output": {"text": "to [redacted]"},
    }


def secrets() -> Secrets:
    redactor = Redactor(["the-master-key-itself"])
    return Secrets(redactor, redactor.may_change, ("a-caller's-own-key",))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"my key is {KEY}, is it?", "my key is ***, is it?"),
        ("use the-master-key-itself", "use ***"),
        ("mine is a-caller's-own-key", "mine is ***"),
        ("Authorization: Basic c2VjcmV0OnNlY3JldA==", "Authorization: Basic ***"),
        ("postgresql://user:hidden@host/name", "postgresql://user:***@host/name"),
        ("a task-force", "a task-force"),
    ],
)
def test_secrets_are_struck_out(text: str, kept: str) -> None:
    assert cleaned({"a": [text]}, secrets=secrets()) == {"a": [kept]}
    assert cleaned({text: 1}, secrets=secrets()) == {kept: 1}


def test_members_that_hold_keys_are_struck_out() -> None:
    assert cleaned({"headers": {"Authorization": "hush", "x-api-key": "hush"}, "authorization": "hush"}) == {
        "headers": {"Authorization": "[redacted]", "x-api-key": "[redacted]"},
        "authorization": "[redacted]",
    }


@pytest.mark.parametrize("before", [0, 1, 3, 8, 20])
def test_a_secret_at_the_end_of_a_step_is_found(before: int) -> None:
    for words in (f"Bearer {KEY} ", f"authorization:  Basic {KEY[3:]} ", f"{KEY} ", "the-master-key-itself "):
        text = ("word " * TEXT_IN_STEP)[: TEXT_IN_STEP - before] + " " + words + "end " * 5000
        kept = cleaned({"a": text}, secrets=secrets())["a"]
        assert KEY[3:] not in kept
        assert "the-master-key" not in kept
        assert kept.endswith("end end ")


@given(st.text(st.sampled_from("ab \n:=bearer"), max_size=50_000))
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    assert "".join(pieces_of(text)) == text


def test_what_is_nested_too_deeply_is_left_out() -> None:
    value: Any = "x"
    for _ in range(100):
        value = [value]
    assert "nested too deeply" in str(cleaned([value]))


@given(st.text())
def test_a_short_text_is_no_medium(text: str) -> None:
    assert without_media(text) == text or "data:" in text.lower()
