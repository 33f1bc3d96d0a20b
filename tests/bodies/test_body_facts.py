"""What a JSON body asks for, and the edits to it."""

from __future__ import annotations

import hmac
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_vllm.api_routes import (
    BATCH_FIELDS,
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    GENERATE_FIELDS,
    INVOCATION_FIELDS,
    ITEM_FIELDS,
    PAIR_FIELDS,
    QUESTION_FIELDS,
    RESPONSE_FIELDS,
    BodyFields,
)
from twisted_vllm.bodies.edits import Edit, name_edit, rename_edit, salt_edit, splice, usage_edits
from twisted_vllm.bodies.json_body import UNREAD, BodyFacts, read_body
from twisted_vllm.bodies.pydantic_values import to_bool
from twisted_vllm.errors import InvalidRequest, ModelUndetermined

#: of no route in particular
FIELDS = BodyFields(("max_completion_tokens", "max_tokens"), ("n",), ("prompt",))


def facts(fields: BodyFields = FIELDS, /, **body: Any) -> BodyFacts:
    """Read a body in both ways: quickly, and by scanning, which an escaped key asks for."""
    quick = read_body(json.dumps(body).encode(), fields)
    scanned = read_body(json.dumps({**body, "Q": 1}).replace('"Q"', '"\\u0061q"').encode(), fields)
    assert msgspec.structs.replace(quick, plain=False) == scanned
    return scanned


def test_a_body_without_anything_asks_for_one_answer_at_once() -> None:
    assert facts() == BodyFacts()
    assert UNREAD.include_usage is None


def test_what_clients_usually_send_needs_no_scanning() -> None:
    body = {
        "model": "qwen",
        "messages": [{"role": "user", "content": 'say "model" and "stream"\n\u00e9'}],
        "metadata": {"user_id": "ada"},
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
        "max_completion_tokens": None,
        "n": 1,
        "user": None,
        "prompt": ["a"],
        "cache_salt": "s",
    }
    assert read_body(json.dumps(body).encode(), FIELDS).plain


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", "TRUE", "t", "yes", "y", "on", "On"])
def test_a_stream_is_one_where_vllm_streams(value: object) -> None:
    assert facts(stream=value).stream


@pytest.mark.parametrize("value", [False, None, 0, 0.0, "0", "off", "no", "f", 2, "2", " true", "yess", [], {}, [True]])
def test_another_value_of_stream_is_no_stream(value: object) -> None:
    assert not facts(stream=value).stream


def test_of_two_streams_the_last_counts() -> None:
    assert read_body(b'{"stream":false,"stream":true}', FIELDS).stream
    assert not read_body(b'{"stream":true,"stream":false}', FIELDS).stream
    assert read_body(b'{"stream":"no","str\\u0065am":"yes"}', FIELDS).stream


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({"include_usage": None}, False),
        ({"continuous_usage_stats": True}, False),
        ({"include_usage": 1}, True),
        ({"include_usage": "yes"}, True),
        ({"include_usage": "no"}, False),
        ({"include_usage": 0}, False),
        ({"include_usage": 2}, None),
        ({"include_usage": []}, None),
        ([], None),
        ("x", None),
        (True, None),
    ],
)
def test_whether_the_client_asked_for_usage_is_told_or_not_clear(options: object, asks: bool | None) -> None:
    found = facts(stream=True, stream_options=options)
    assert found.include_usage is asks or (asks is None and not usage_edits(b"{}", found))
    assert found.options


@pytest.mark.parametrize(
    ("value", "most"),
    [
        (5, 5),
        (5.0, 5),
        (1e3, 1000),
        ("5", 5),
        (" 5\n", 5),
        ("+5", 5),
        ("005", 5),
        ("1_000", 1000),
        ("5.00", 5),
        (True, 1),
        (10**30, 2**53),
        (1e300, 2**53),
        ("1" + "0" * 400, 2**53),
        (5.5, None),
        (-1, None),
        (0, None),
        ("5.5", None),
        ("1e2", None),
        ("0x10", None),
        ("0__7", 7),
        ("0" * 5000 + "7", 7),
        ("-5", None),
        ("0", None),
        ("_", None),
        ("", None),
        ("9" * 5000, None),
        ([5], None),
        ({}, None),
        (False, None),
        (None, None),
    ],
)
def test_a_number_is_read_as_pydantic_reads_it(value: object, most: int | None) -> None:
    assert facts(max_tokens=value).max_tokens == most
    assert facts(n=value, max_tokens=1).choices == (most or 1)
    assert facts(min_tokens=value).min_tokens == (most or 0)
    assert facts(stream_interval=value).stream_interval == (most or 1)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_know_is_read_too(number: str) -> None:
    found = read_body(b'{"max_tokens":%b}' % number.encode(), FIELDS)
    assert found.max_tokens in (None, 2**53)


@pytest.mark.parametrize(
    ("fields", "body", "most"),
    [
        (CHAT_FIELDS, {}, None),
        (CHAT_FIELDS, {"max_tokens": 400, "max_completion_tokens": 1}, 400),
        (CHAT_FIELDS, {"max_tokens": 1, "max_completion_tokens": "400"}, 400),
        (CHAT_FIELDS, {"max_tokens": None, "max_completion_tokens": 6}, 6),
        (CHAT_FIELDS, {"max_output_tokens": 7}, None),
        (COMPLETION_FIELDS, {"max_tokens": 400, "max_completion_tokens": 1}, 400),
        (COMPLETION_FIELDS, {"max_completion_tokens": 1, "max_output_tokens": 1}, 16),
        (COMPLETION_FIELDS, {}, 16),
        (COMPLETION_FIELDS, {"max_tokens": None}, None),
        (RESPONSE_FIELDS, {"max_output_tokens": 400, "max_tokens": 1}, 400),
        (RESPONSE_FIELDS, {"max_tokens": 1, "max_completion_tokens": 1}, None),
        (GENERATE_FIELDS, {"max_tokens": 1, "sampling_params": {"max_tokens": 400}}, 400),
        (GENERATE_FIELDS, {"max_tokens": 1, "sampling_params": {"max_tokens": None}}, None),
        (GENERATE_FIELDS, {"max_tokens": 1, "sampling_params": {}}, None),
        (GENERATE_FIELDS, {"max_tokens": 1, "sampling_params": 7}, None),
        (ITEM_FIELDS, {"max_tokens": 50, "items": ["a", "b"]}, 1),
        (INVOCATION_FIELDS, {"prompt": "x", "max_completion_tokens": 7}, 16),
        (INVOCATION_FIELDS, {"prompt": "x", "max_tokens": 400, "max_completion_tokens": 7}, 400),
        (INVOCATION_FIELDS, {"messages": []}, None),
    ],
)
def test_each_route_has_its_own_limit(fields: BodyFields, body: dict[str, Any], most: int | None) -> None:
    assert facts(fields, **body).max_tokens == most


@pytest.mark.parametrize(
    ("fields", "body", "choices"),
    [
        (CHAT_FIELDS, {}, 1),
        (CHAT_FIELDS, {"n": 3}, 3),
        (CHAT_FIELDS, {"n": "40"}, 40),
        (CHAT_FIELDS, {"n": 40.0}, 40),
        (CHAT_FIELDS, {"n": 2, "best_of": 5}, 5),
        (CHAT_FIELDS, {"n": 2, "use_beam_search": True}, 2),
        (CHAT_FIELDS, {"prompt": ["a", "b"]}, 1),
        (CHAT_FIELDS, {"messages": [{"role": "user"}, {"role": "user"}]}, 1),
        (BATCH_FIELDS, {"messages": [[{"role": "user"}], [{"role": "user"}], [{"role": "user"}]]}, 3),
        (BATCH_FIELDS, {"messages": []}, 1),
        (COMPLETION_FIELDS, {"prompt": "a"}, 1),
        (COMPLETION_FIELDS, {"prompt": ["a", "b"]}, 2),
        (COMPLETION_FIELDS, {"prompt": ["a", "b"], "n": 2}, 4),
        (COMPLETION_FIELDS, {"prompt": ["a"] * 40, "messages": None}, 40),
        (COMPLETION_FIELDS, {"prompt": ["a"] * 40, "messages": [[]]}, 40),
        (COMPLETION_FIELDS, {"prompt": [1, 2, 3]}, 1),
        (COMPLETION_FIELDS, {"prompt": [[1, 2], [3]]}, 2),
        (COMPLETION_FIELDS, {"prompt": [-1, 2]}, 1),
        (COMPLETION_FIELDS, {"prompt": []}, 1),
        (COMPLETION_FIELDS, {"prompt": None}, 1),
        (COMPLETION_FIELDS, {"prompt": None, "prompt_embeds": ["AAAA", "BBBB"]}, 2),
        (COMPLETION_FIELDS, {"prompt": ["a", "b"], "prompt_embeds": ["AAAA", "BBBB"]}, 4),
        (GENERATE_FIELDS, {"n": 9, "sampling_params": {"n": "3"}}, 3),
        (ITEM_FIELDS, {"items": ["a", "b"], "n": 9}, 2),
        (INVOCATION_FIELDS, {"prompt": ["a", "b"], "messages": None, "n": "2"}, 4),
        (INVOCATION_FIELDS, {"query": "a", "documents": ["a", "b"]}, 1),
        (QUESTION_FIELDS, {"questions": {"a": {}, "b": {}, "c": {}}}, 3),
    ],
)
def test_how_many_choices_are_requested(fields: BodyFields, body: dict[str, Any], choices: int) -> None:
    assert facts(fields, **body).choices == choices


def test_the_other_numbers_stand_where_the_limit_stands() -> None:
    found = facts(
        GENERATE_FIELDS, min_tokens=5, stream_interval=5, sampling_params={"min_tokens": 1900, "stream_interval": "20"}
    )
    assert (found.min_tokens, found.stream_interval) == (1900, 20)


@pytest.mark.parametrize(
    ("fields", "body", "repeated"),
    [
        (PAIR_FIELDS, {"query": "12345678", "documents": ["a", "b", "c"]}, 20),
        (PAIR_FIELDS, {"query": "12345678", "documents": "a"}, 0),
        (PAIR_FIELDS, {"text_1": ["12345678"], "text_2": ["a", "b", "c"]}, 24),
        (PAIR_FIELDS, {"text_1": ["1", "2", "3"], "text_2": ["a", "b", "c"]}, 0),
        (PAIR_FIELDS, {"documents": ["a", "b", "c"]}, 0),
        (PAIR_FIELDS, {"query": {"a": 1, "b": 2}, "documents": ["a", "b"]}, 16),
        # vLLM ignores what an object has beside its content
        (PAIR_FIELDS, {"text_1": {"a": 1, "b": 2}, "text_2": ["a", "b"]}, 16),
        (PAIR_FIELDS, {"query": ["1", "2"], "documents": ["a", "b"]}, 10),
        (ITEM_FIELDS, {"query": [1, 2], "items": [[1], [2]]}, 6),
        (ITEM_FIELDS, {"query": ["1", 2], "items": [[1], [2]]}, 8),
        (QUESTION_FIELDS, {"state": ["a", "b"], "images": ["c"], "questions": {"x": {}, "y": {}}}, 15),
        (INVOCATION_FIELDS, {"query": "12345678", "documents": ["a", "b", "c"]}, 20),
        (CHAT_FIELDS, {"query": "12345678", "documents": ["a", "b", "c"]}, 0),
    ],
)
def test_a_query_counts_with_each_of_its_documents(fields: BodyFields, body: dict[str, Any], repeated: int) -> None:
    assert facts(fields, **body).repeated_bytes == repeated


@pytest.mark.parametrize(
    ("body", "user"),
    [
        ({}, None),
        ({"user": "ada"}, "ada"),
        ({"safety_identifier": "bob"}, "bob"),
        ({"metadata": {"user_id": "cy"}}, "cy"),
        ({"user": "ada", "safety_identifier": "bob", "metadata": {"user_id": "cy"}}, "ada"),
        ({"user": "", "metadata": {"user_id": "cy"}}, "cy"),
        ({"user": None, "safety_identifier": None}, None),
        ({"user": 7}, None),
        ({"metadata": "x"}, None),
        ({"metadata": {"user_id": 7}}, None),
        ({"messages": [{"user": "eve"}]}, None),
    ],
)
def test_for_whom_the_client_asks(body: dict[str, Any], user: str | None) -> None:
    assert facts(**body).end_user == user


def test_of_two_equal_keys_the_last_counts_as_it_does_for_vllm() -> None:
    found = read_body(b'{"max_tokens":1,"user":"a","max_tokens":2,"user":"b","n":1,"n":4}', FIELDS)
    assert (found.max_tokens, found.end_user, found.choices) == (2, "b", 4)


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(ModelUndetermined):
        read_body(b"[]", FIELDS)


INCLUDED = b'"stream_options":{"include_usage":true}'


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"stream":true,"model":"a"}', b"{" + INCLUDED + b',"stream":true,"model":"a"}'),
        (b' {\n "stream" : true }', b" {" + INCLUDED + b',\n "stream" : true }'),
        (b'{"stream":true,"stream_options":{}}', b'{"stream":true,' + INCLUDED + b"}"),
        (b'{"stream":true,"stream_options": null }', b'{"stream":true,"stream_options": {"include_usage":true} }'),
        (
            b'{"stream":true,"stream_options":{ "x":1.50}}',
            b'{"stream":true,"stream_options":{"include_usage":true, "x":1.50}}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage" : false, "x":1}}',
            b'{"stream":true,"stream_options":{"include_usage" : true, "x":1}}',
        ),
        (
            b'{"stream":true,"stream_options":{"continuous_usage_stats":true}}',
            b'{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":false}}',
        ),
        (
            '{"é":"日","stream":true,"stream_options":{"é":"日","include_usage":null}}'.encode(),
            '{"é":"日","stream":true,"stream_options":{"é":"日","include_usage":true}}'.encode(),
        ),
        (b'{"str\\u0065am":true}', b"{" + INCLUDED + b',"str\\u0065am":true}'),
        (b'{"stream":"yes"}', b"{" + INCLUDED + b',"stream":"yes"}'),
        (b'{"stream":1}', b"{" + INCLUDED + b',"stream":1}'),
        (b'{"stream":false,"stream":true}', b"{" + INCLUDED + b',"stream":false,"stream":true}'),
        (b'{"stream":true,"str\\u0065am":true}', b"{" + INCLUDED + b',"stream":true,"str\\u0065am":true}'),
        (
            b'{"stream":true,"stream_options":null,"stream_options":{}}',
            b'{"stream":true,"stream_options":null,' + INCLUDED + b"}",
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage":"no"}}',
            b'{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage":true,"include_usage":0}}',
            b'{"stream":true,"stream_options":{"include_usage":true,"include_usage":true}}',
        ),
        (
            b'{"tools":[{"stream":1}],"stream":true}',
            b"{" + INCLUDED + b',"tools":[{"stream":1}],"stream":true}',
        ),
    ],
)
def test_usage_is_asked_for_with_the_fewest_bytes(body: bytes, asked: bytes) -> None:
    assert splice(body, usage_edits(body, read_body(body, FIELDS))) == asked
    assert json.loads(asked)["stream_options"]["include_usage"] is True


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a"}',
        b'{"stream":false}',
        b'{"stream":"2"}',
        b'{"stream":true,"stream":false}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":"on"}}',
        b'{"stream":true,"stream_options":{"include_usage":"what"}}',
        b'{"stream":true,"stream_options":[]}',
    ],
)
def test_a_body_that_asks_itself_or_is_not_clear_is_not_changed(body: bytes) -> None:
    assert usage_edits(body, read_body(body, FIELDS)) == ()
    assert splice(body, ()) is body


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"a":1}', b'{"model":"org/m","a":1}'),
        (b"{}", b'{"model":"org/m"}'),
        (b'{"model" : null}', b'{"model" : "org/m"}'),
        (b'{"model":"","a":1}', b'{"model":"org/m","a":1}'),
        (b'{"m\\u006fdel":null}', b'{"m\\u006fdel":"org/m"}'),
    ],
)
def test_a_model_is_named_where_none_is(body: bytes, named: bytes) -> None:
    assert splice(body, (name_edit(body, read_body(body, FIELDS), "org/m"),)) == named


def test_a_salt_is_added_or_takes_the_place_of_null() -> None:
    for body, salted in (
        (b'{"model":"a"}', b'{"cache_salt":"s1","model":"a"}'),
        (b"{ }", b'{"cache_salt":"s1" }'),
        (b'{"model":"a","cache_salt": null}', b'{"model":"a","cache_salt": "s1"}'),
    ):
        assert splice(body, (salt_edit(body, read_body(body, FIELDS), "s1"),)) == salted


def test_a_salt_of_the_clients_own_stays_apart_within_the_keys() -> None:
    body = '{"é":1,"cache_salt":"mine é"}'.encode()
    salted = splice(body, (salt_edit(body, read_body(body, FIELDS), "s1"),))
    expected = hmac.digest(b"s1", "mine é".encode(), "sha256").hex()
    assert json.loads(salted) == {"é": 1, "cache_salt": expected}
    other = splice(body, (salt_edit(body, read_body(body, FIELDS), "s2"),))
    assert json.loads(other)["cache_salt"] != expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"cache_salt":"a","cache_salt":"b"}',
        b'{"cache_salt":"a","cache_s\\u0061lt":"b"}',
        b'{"cache_salt":7}',
        b'{"cache_salt":["a"]}',
    ],
)
def test_a_salt_that_is_not_clear_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="cache_salt"):
        salt_edit(body, read_body(body, FIELDS), "s1")


def test_all_changes_are_made_at_once() -> None:
    body = b'{"messages":[],"model":"a","stream":true,"cache_salt":null}'
    found = read_body(body, FIELDS)
    assert found.model is not None
    edits = (rename_edit(found.model, "org/m"), salt_edit(body, found, "s1"), *usage_edits(body, found))
    assert splice(body, edits) == (
        b'{"stream_options":{"include_usage":true},"messages":[],"model":"org/m","stream":true,"cache_salt":"s1"}'
    )


def test_several_members_are_added_to_an_empty_object() -> None:
    for body in (b"{}", b" { } "):
        found = read_body(body, FIELDS)
        added = splice(body, (name_edit(body, found, "m"), salt_edit(body, found, "s1")))
        assert json.loads(added) == {"model": "m", "cache_salt": "s1"}


def test_edits_at_one_place_come_in_their_order() -> None:
    assert splice(b"ab", (Edit(1, 1, b"x"), Edit(1, 1, b"y"), Edit(1, 2, b"z"))) == b"axyz"


_TEXT = st.text(max_size=6) | st.sampled_from(
    [
        "stream",
        '"stream":true',
        '"stream_options":{',
        "stream_options",
        "include_usage",
        "cache_salt",
        "model",
        "é\U0001f600",
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_OPTIONS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "include_usage": st.sampled_from([True, False, None]),
        "continuous_usage_stats": st.sampled_from([True, False, None]),
        "other": _VALUES,
    },
)


@settings(deadline=None)
@given(
    st.dictionaries(_TEXT, _VALUES, max_size=4),
    st.fixed_dictionaries(
        {"stream": st.booleans() | _VALUES}, optional={"stream_options": _OPTIONS, "cache_salt": st.none() | _TEXT}
    ),
    st.booleans(),
    st.sampled_from([None, 0, 1]),
)
def test_changes_change_what_they_should_and_nothing_else(
    rest: dict[str, Any], known: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    original = {**{key: value for key, value in rest.items() if key not in ("model", "metadata")}, **known}
    body = json.dumps(original, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    seen = json.loads(body)
    found = read_body(body, FIELDS)

    edits = usage_edits(body, found)
    changed = json.loads(splice(body, edits))
    options = seen.get("stream_options")
    if edits:
        assert to_bool(seen["stream"])
        assert not to_bool((options or {}).get("include_usage"))
        wanted = {**(options or {}), "include_usage": True}
        if wanted.get("continuous_usage_stats"):
            wanted["continuous_usage_stats"] = False
        assert json.dumps(changed, sort_keys=True) == json.dumps({**seen, "stream_options": wanted}, sort_keys=True)
        again = read_body(splice(body, edits), FIELDS)
        assert again.include_usage is True
    else:
        assert not to_bool(seen.get("stream")) or found.include_usage is not False

    if found.salted and not isinstance(seen["cache_salt"], (str, type(None))):
        return
    salted = json.loads(splice(body, (salt_edit(body, found, "s1"),)))
    own = seen.get("cache_salt")
    expected = "s1" if own is None else hmac.digest(b"s1", own.encode("utf-8", "surrogatepass"), "sha256").hex()
    assert json.dumps({**seen, "cache_salt": expected}, sort_keys=True) == json.dumps(salted, sort_keys=True)
