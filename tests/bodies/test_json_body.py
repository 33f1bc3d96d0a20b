"""The model is found where `json.loads` finds it, or the body is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bodies.json_texts import held
from twisted_vllm.api_routes import CHAT_FIELDS
from twisted_vllm.bodies.edits import rename_edit, splice
from twisted_vllm.bodies.json_body import ModelField, read_body
from twisted_vllm.errors import ModelNotFound, ModelUndetermined


def find_model(body: bytes) -> ModelField | None:
    return read_body(body, CHAT_FIELDS).model


def rename(body: bytes, field: ModelField, new: str) -> bytes:
    return splice(body, (rename_edit(field, new),))


UNDETERMINED = {
    "empty": b"",
    "not JSON": b"model=qwen",
    "trailing comma": b'{"model": "qwen",}',
    "trailing comma in a nested object": b'{"model": "qwen", "a": {"b": 1,}}',
    "cut off": b'{"model": "qwen"',
    "something after it": b'{"model": "a"} {"model": "b"}',
    "a comment": b'{"model": "a" /* "b" */}',
    "single quotes": b"{'model': 'a'}",
    "a key without quotes": b'{model: "a"}',
    "no colon": b'{"model" "a"}',
    "an array": b'["model", "a"]',
    "an array of objects": b'[{"model": "a"}]',
    "a string": b'"model"',
    "a number for a model": b'{"model": 1}',
    "a list for a model": b'{"model": ["a"]}',
    "an object for a model": b'{"model": {"model": "a"}}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "a"}',
    "UTF-16": '{"model": "a"}'.encode("utf-16"),
    "UTF-16 without a mark": '{"model": "a"}'.encode("utf-16-le"),
    "UTF-32": '{"model": "a"}'.encode("utf-32-be"),
    "Latin-1": '{"a": "é", "model": "a"}'.encode("latin-1"),
    "invalid UTF-8 in the model": b'{"model": "a\xff"}',
    "an encoded surrogate": b'{"a": "\xed\xa0\x80", "model": "a"}',
    "an overlong character": b'{"a": "\xc1\xad", "model": "a"}',
    "half a character": b'{"model": "\\ud800"}',
    "a control character in a string": b'{"model": "a\nb"}',
    "a NUL in front": b'\x00{"model": "a"}',
    # Python 3.14 takes what its stack holds, some hundred thousand
    "nested too deeply": b'{"a": ' + b"[" * 2_000_000 + b"]" * 2_000_000 + b', "model": "a"}',
    "nested too deeply with a second one": b'{"a": ' + b'{"model":' * 200_000 + b"1" + b"}" * 200_001,
}

REPEATED = {
    "the model twice": b'{"model": "a", "model": "b"}',
    "the model twice and alike": b'{"model": "a", "model": "a"}',
    "the model twice, once escaped": b'{"model": "a", "m\\u006fdel": "b"}',
    "the model twice, first escaped": b'{"\\u006dodel": "a", "model": "b"}',
    "the model twice, both escaped": b'{"\\u006Dodel": "a", "mo\\u0064el": "b"}',
    "the model twice, once null": b'{"model": "a", "model": null}',
}


@pytest.mark.parametrize("body", UNDETERMINED.values(), ids=UNDETERMINED.keys())
def test_a_body_with_more_than_one_reading_is_refused(body: bytes) -> None:
    with pytest.raises(ModelUndetermined, match='Send one JSON object in UTF-8 with one "model"') as caught:
        find_model(body)
    assert caught.value.status == 400
    assert caught.value.param == "model"


@pytest.mark.parametrize("body", REPEATED.values(), ids=REPEATED.keys())
def test_of_several_models_the_last_is_read_and_they_are_told(body: bytes) -> None:
    found = read_body(body, CHAT_FIELDS)
    assert found.model_repeated
    assert found.model is not None
    assert found.model.name == (json.loads(body)["model"] or "")


@pytest.mark.parametrize("key", [b'"model"', b'"mod\\u0065l"'])
@pytest.mark.parametrize("spelled", ["m" * 4096, "ü" * 2048, '\\"' * 2048, "\\u006d" * 682])
def test_a_body_in_one_piece_and_a_large_one_have_names_of_the_same_length(key: bytes, spelled: str) -> None:
    for more, refused in ("", False), ("mmmmm", True):
        body = b'{"stream":true, %b:"%b"}' % (key, (spelled + more).encode())
        for each in (body, held([body[:50], body[50:]])):
            if refused:
                with pytest.raises(ModelNotFound, match="4,096 bytes"):
                    read_body(each, CHAT_FIELDS)
            else:
                assert read_body(each, CHAT_FIELDS).model is not None


@pytest.mark.parametrize("body", [b'{"model": null}', b'{"a": 1, "m\\u006fdel":null}', b'{"model": ""}'])
def test_null_and_the_empty_name_name_none(body: bytes) -> None:
    field = find_model(body)
    assert field is not None
    assert field.name == ""
    assert body[field.start : field.end] in (b"null", b'""')


@pytest.mark.parametrize(
    ("body", "name", "spelt"),
    [
        (b'{"model":"qwen"}', "qwen", b'"qwen"'),
        (b' \t\r\n{ "a" : [ ] , "model"\n:\t"qwen" } \n', "qwen", b'"qwen"'),
        (b'{"model": ""}', "", b'""'),
        (b'{"messages": [{"model": "x"}], "model": "qwen"}', "qwen", b'"qwen"'),
        (b'{"model": "qwen", "tools": [{"model": 1}]}', "qwen", b'"qwen"'),
        (b'{"a": "\\"model\\": \\"x\\"", "model": "qwen"}', "qwen", b'"qwen"'),
        (b'{"a": ",\\"model", "model": "qwen"}', "qwen", b'"qwen"'),
        (b'{"model": "model"}', "model", b'"model"'),
        (b'{"a": "model", "model": "b"}', "b", b'"b"'),
        (b'{"model": "a\\/b"}', "a/b", b'"a\\/b"'),
        (b'{"model": "a\\"b\\\\"}', 'a"b\\', b'"a\\"b\\\\"'),
        (b'{"model": "\\u0061\\ud83d\\ude00"}', "a\N{GRINNING FACE}", b'"\\u0061\\ud83d\\ude00"'),
        (b'{"m\\u006Fdel": "qwen"}', "qwen", b'"qwen"'),
        ('{"é": "日本", "model": "日本"}'.encode(), "日本", '"日本"'.encode()),
        ('{"é": {"model": "日"}, "model": "日本"}'.encode(), "日本", '"日本"'.encode()),
        (b'{"a": NaN, "b": -Infinity, "model": "qwen"}', "qwen", b'"qwen"'),
        (b'{"a": "\\ud800", "model": "qwen"}', "qwen", b'"qwen"'),
        (b'{"a": 1e999, "b": 123456789012345678901234567890, "model": "qwen"}', "qwen", b'"qwen"'),
        (b'{"Model": "x", "model ": "y", "model": "qwen"}', "qwen", b'"qwen"'),
    ],
)
def test_the_model_is_found_with_its_place(body: bytes, name: str, spelt: bytes) -> None:
    field = find_model(body)
    assert field is not None
    assert field.name == name == json.loads(body)["model"]
    assert body[field.start : field.end] == spelt


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b" { } ",
        b'{"a": 1}',
        b'{"a": "model"}',
        b'{"a": {"model": "x"}}',
        b'{"a": {"model": "x"}, "b": [{"model": "y"}]}',
        b'{"Model": "x"}',
        b'{"a": "\\u006d"}',
    ],
)
def test_an_object_without_a_model_has_none(body: bytes) -> None:
    assert find_model(body) is None


def test_renaming_changes_the_model_and_no_other_byte() -> None:
    body = b'{ "messages":[{"model":"x"}],"model" : "qwen" ,"x":1.50}\n'
    field = find_model(body)
    assert field is not None
    assert rename(body, field, "Qwen/Qwen2.5") == b'{ "messages":[{"model":"x"}],"model" : "Qwen/Qwen2.5" ,"x":1.50}\n'


def test_a_new_name_is_escaped() -> None:
    body = b'{"model":"a"}'
    assert json.loads(rename(body, ModelField("a", 9, 12), 'x","model":"\\é\n'))["model"] == 'x","model":"\\é\n'


_TEXT = st.text(max_size=8) | st.sampled_from(
    ["model", '"model":"x"', '\\"model\\":', "m\\u006fdel", "{", '"', "é日\U0001f600"]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=10,
)
_SPELLING = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, "\t"]),
        "separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\r\n: ")]),
    }
)


def _escaped_keys(text: str, escape: bool) -> str:
    return text.replace('"model"', '"mode\\u006c"') if escape else text


@given(st.dictionaries(_TEXT, _VALUES, max_size=5), _TEXT, _TEXT, _SPELLING, st.booleans(), st.data())
def test_what_is_found_is_what_json_loads_sees_and_renaming_changes_only_that(
    rest: dict[str, Any], name: str, new: str, spelling: dict[str, Any], escape: bool, data: st.DataObject
) -> None:
    pairs = [(key, value) for key, value in rest.items() if key != "model"]
    pairs.insert(data.draw(st.integers(0, len(pairs))), ("model", name))
    body = _escaped_keys(json.dumps(dict(pairs), **spelling), escape).encode()

    field = find_model(body)

    assert field is not None
    assert field.name == json.loads(body)["model"]
    renamed = rename(body, field, new)
    assert renamed[: field.start] == body[: field.start]
    assert renamed[len(renamed) - len(body) + field.end :] == body[field.end :]
    # by their text, because NaN is not equal to itself
    assert json.dumps(json.loads(renamed)) == json.dumps({**json.loads(body), "model": new})


_FRAGMENTS = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"',
        "\\",
        '"model"',
        '"model":"a"',
        '"m\\u006fdel":"b"',
        '"a"',
        "1",
        " ",
        "\n",
        "\\u006",
        "é",
        "NaN",
    ]
)


@given(
    st.lists(_FRAGMENTS, max_size=14).map("".join)
    | st.lists(_FRAGMENTS, max_size=8).map(lambda s: "{" + "".join(s) + "}")
)
def test_no_text_is_read_in_another_way_than_json_loads_reads_it(text: str) -> None:
    body = text.encode()
    try:
        field = find_model(body)
    except ModelUndetermined:
        return
    whole = json.loads(body, object_pairs_hook=lambda pairs: pairs)
    models = [value for key, value in whole if key == "model"]
    assert models == ([] if field is None else [field.name])
    if field is not None:
        assert json.loads(body[field.start : field.end]) == field.name


@given(st.binary(max_size=40))
def test_no_bytes_raise_anything_but_a_refusal(body: bytes) -> None:
    try:
        find_model(b"{" + body + b"}")
    except ModelUndetermined:
        return
    json.loads(b"{" + body + b"}")
