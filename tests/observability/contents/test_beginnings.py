"""The beginning of a long JSON text is JSON, and has no media."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.observability.contents.beginnings import beginning_of, completed

LEAF = st.none() | st.booleans() | st.integers() | st.text()
JSON = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(JSON.filter(lambda value: isinstance(value, (dict, list))), st.data(), st.booleans())
def test_any_cut_json_is_completed(value: Any, data: st.DataObject, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    cut = text[: data.draw(st.integers(1, len(text)))]
    found = completed(cut)
    try:
        decoded = msgspec.json.decode(found)
    except msgspec.DecodeError as error:
        # of the client's own
        assert "surrogate" in str(error)
    else:
        assert type(decoded) is type(value)


def test_the_beginning_of_a_last_text_is_kept() -> None:
    assert completed(b'{"a": [1, {"b": "Hel') == b'{"a": [1, {"b": "Hel"}]}'
    assert completed(b'{"a": "x\\') == b'{"a": "x"}'
    assert completed(b'{"a": "x\\u00') == b'{"a": "x"}'
    assert completed('{"a": "ö'.encode()[:-1]) == b'{"a": ""}'
    assert completed(b'{"a": "x\\ud83d') == b'{"a": "x"}'
    assert completed(b'{"a": "x\\ud83d\\ude') == b'{"a": "x"}'
    assert completed(b'{"a": "x\\\\ud83d') == b'{"a": "x\\\\ud83d"}'
    assert completed(b'{"a": "x\\\\') == b'{"a": "x\\\\"}'
    assert completed(b'{"a": 1, "b') == b'{"a": 1}'
    assert completed(b'{"a": 1, "b":') == b'{"a": 1}'
    assert completed(b'{"a": 1, "b": 12') == b'{"a": 1}'
    assert completed(b'{"a": "\\\\"') == b'{"a": "\\\\"}'
    assert completed(b'{"a": "\\\\\\"') == b'{"a": "\\\\\\""}'


MEDIUM = b64encode(bytes(range(256)) * 40).decode()


@pytest.mark.parametrize(
    ("medium", "instead"),
    [
        (f"data:image/png;base64,{MEDIUM}", f"[image/png: {len(MEDIUM) + 22} bytes, not kept]"),
        (MEDIUM, f"[base64: {len(MEDIUM)} bytes, not kept]"),
    ],
)
def test_what_stands_after_a_medium_is_kept(medium: str, instead: str) -> None:
    text = json.dumps({"image": medium, "text": "after it"}).encode()
    assert json.loads(completed(beginning_of(text, 1000))) == {"image": instead, "text": "after it"}


def test_a_long_text_is_cut() -> None:
    text = json.dumps({"a": "b" * 100, "c": "words " * 1000}).encode()
    found = beginning_of(text, 300)
    assert len(found) == 300
    assert json.loads(completed(found))["c"].startswith("words words")


@given(st.binary(max_size=2000), st.integers(1, 500))
def test_it_is_never_longer_than_asked(data: bytes, most: int) -> None:
    assert len(beginning_of(data, most)) <= most


@given(JSON, st.integers(1, 500))
def test_without_media_it_is_the_beginning(value: Any, most: int) -> None:
    text = json.dumps(value).encode()
    found = beginning_of(text, most)
    assert text.startswith(found)
    # but for a backslash that was cut off what it escapes
    assert len(found) >= min(most, len(text)) - 1
