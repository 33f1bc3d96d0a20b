"""What a JSON body asks for, and the edits to it."""

from __future__ import annotations

import hmac
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twisted_vllm.bodies.edits import Edit, rename_edit, salt_edit, splice, usage_edits
from twisted_vllm.bodies.json_body import UNREAD, BodyFacts, read_body
from twisted_vllm.errors import InvalidRequest, ModelUndetermined


def facts(**body: Any) -> BodyFacts:
    """Read a body in both ways: quickly, and by scanning, which an escaped key asks for."""
    quick = read_body(json.dumps(body).encode())
    scanned = read_body(json.dumps({**body, "Q": 1}).replace('"Q"', '"\\u0061q"').encode())
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
    assert read_body(json.dumps(body).encode()).plain


def test_a_stream_is_one_where_stream_is_true() -> None:
    assert facts(stream=True).stream
    others: list[Any] = [False, None, 1, "true", [], 1.0]
    assert [facts(stream=value).stream for value in others] == [False] * 6


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": True}, True),
        ({"include_usage": False}, False),
        ({"include_usage": None}, False),
        ({"continuous_usage_stats": True}, False),
        ({"include_usage": 1}, None),
        ({"include_usage": "yes"}, None),
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
    ("body", "most"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": 5.0}, 5),
        ({"max_tokens": 5.5}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 0}, None),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 10**30}, None),
        ({"max_tokens": [5]}, None),
    ],
)
def test_the_most_tokens_of_an_answer(body: dict[str, Any], most: int | None) -> None:
    assert facts(**body).max_tokens == most


def test_another_route_may_limit_its_output_by_other_members() -> None:
    body = b'{"max_tokens":5,"max_length":7}'
    escaped = body.replace(b"max_t", b"m\\u0061x_t")
    for limits, most in (
        (("max_length",), 7),
        (("max_tokens", "max_length"), 5),
        (("max_words", "max_length"), 7),
        ((), None),
    ):
        assert read_body(body, limits).max_tokens == read_body(escaped, limits).max_tokens == most


@pytest.mark.parametrize(
    ("body", "choices"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": None}, 1),
        ({"n": 0}, 1),
        ({"n": "3"}, 1),
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": []}, 1),
        ({"prompt": None}, 1),
        ({"messages": [{"role": "user"}, {"role": "user"}]}, 1),
        ({"messages": [[{"role": "user"}], [{"role": "user"}], [{"role": "user"}]]}, 3),
        ({"messages": []}, 1),
    ],
)
def test_how_many_choices_are_requested(body: dict[str, Any], choices: int) -> None:
    assert facts(**body).choices == choices


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
    found = read_body(b'{"max_tokens":1,"user":"a","max_tokens":2,"user":"b","n":1,"n":4}')
    assert (found.max_tokens, found.end_user, found.choices) == (2, "b", 4)


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(ModelUndetermined):
        read_body(b"[]")


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
        (
            b'{"tools":[{"stream":1}],"stream":true}',
            b"{" + INCLUDED + b',"tools":[{"stream":1}],"stream":true}',
        ),
    ],
)
def test_usage_is_asked_for_with_the_fewest_bytes(body: bytes, asked: bytes) -> None:
    assert splice(body, usage_edits(body, read_body(body))) == asked
    assert json.loads(asked)["stream_options"]["include_usage"] is True


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a"}',
        b'{"stream":false}',
        b'{"stream":"true"}',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
        b'{"stream":true,"stream_options":{"include_usage":"no"}}',
        b'{"stream":true,"stream_options":[]}',
        b'{"stream":false,"stream":true}',
        b'{"stream":true,"stream":true}',
        b'{"stream":true,"str\\u0065am":true}',
        b'{"stream":true,"stream_options":null,"stream_options":{}}',
        b'{"stream":true,"stream_options":{"include_usage":false,"include_usage":false}}',
        b'{"stream":true,"stream_options":{"continuous_usage_stats":1,"continuous_usage_stats":1}}',
    ],
)
def test_a_body_that_asks_itself_or_is_not_clear_is_not_changed(body: bytes) -> None:
    assert usage_edits(body, read_body(body)) == ()
    assert splice(body, ()) is body


def test_a_salt_is_added_or_takes_the_place_of_null() -> None:
    for body, salted in (
        (b'{"model":"a"}', b'{"cache_salt":"s1","model":"a"}'),
        (b"{ }", b'{"cache_salt":"s1" }'),
        (b'{"model":"a","cache_salt": null}', b'{"model":"a","cache_salt": "s1"}'),
    ):
        assert splice(body, (salt_edit(body, read_body(body), "s1"),)) == salted


def test_a_salt_of_the_clients_own_stays_apart_within_the_keys() -> None:
    body = '{"é":1,"cache_salt":"mine é"}'.encode()
    salted = splice(body, (salt_edit(body, read_body(body), "s1"),))
    expected = hmac.digest(b"s1", "mine é".encode(), "sha256").hex()
    assert json.loads(salted) == {"é": 1, "cache_salt": expected}
    other = splice(body, (salt_edit(body, read_body(body), "s2"),))
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
        salt_edit(body, read_body(body), "s1")


def test_all_changes_are_made_at_once() -> None:
    body = b'{"messages":[],"model":"a","stream":true,"cache_salt":null}'
    found = read_body(body)
    assert found.model is not None
    edits = (rename_edit(found.model, "org/m"), salt_edit(body, found, "s1"), *usage_edits(body, found))
    assert splice(body, edits) == (
        b'{"stream_options":{"include_usage":true},"messages":[],"model":"org/m","stream":true,"cache_salt":"s1"}'
    )


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
    found = read_body(body)

    edits = usage_edits(body, found)
    changed = json.loads(splice(body, edits))
    options = seen.get("stream_options")
    if edits:
        assert seen["stream"] is True
        assert not (options or {}).get("include_usage")
        wanted = {**(options or {}), "include_usage": True}
        if wanted.get("continuous_usage_stats"):
            wanted["continuous_usage_stats"] = False
        assert json.dumps(changed, sort_keys=True) == json.dumps({**seen, "stream_options": wanted}, sort_keys=True)
        again = read_body(splice(body, edits))
        assert again.include_usage is True
    else:
        assert seen.get("stream") is not True or found.include_usage is not False

    if found.salted and not isinstance(seen["cache_salt"], (str, type(None))):
        return
    salted = json.loads(splice(body, (salt_edit(body, found, "s1"),)))
    own = seen.get("cache_salt")
    expected = "s1" if own is None else hmac.digest(b"s1", own.encode("utf-8", "surrogatepass"), "sha256").hex()
    assert json.dumps({**seen, "cache_salt": expected}, sort_keys=True) == json.dumps(salted, sort_keys=True)
