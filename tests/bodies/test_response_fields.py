"""What a body of ``POST /v1/responses`` says about stored responses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.bodies.edits import request_id_edit, splice
from twisted_vllm.bodies.response_fields import (
    MAX_DEPTH,
    NO_FIELDS,
    ResponseFields,
    check_repeatable,
    read_response_fields,
)
from twisted_vllm.errors import InvalidRequest

KEYS = ["request_id", "previous_response_id", "background", "store", "input"]
VALUES: list[Any] = [None, True, False, 0, 1, "on", "Off", "resp_1", "é", ["previous_response_id"], {"request_id": "x"}]


def escaped(text: str, every: int) -> str:
    return "".join(f"\\u{ord(each):04x}" if number % every == 0 else each for number, each in enumerate(text))


def written(members: list[tuple[str, Any]], every: int) -> bytes:
    """Return an object whose keys have some letters escaped."""
    parts = [f'"{escaped(key, every) if every else key}" : {json.dumps(value)}' for key, value in members]
    return ("{" + " , ".join(parts) + "}").encode()


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=5), st.integers(0, 4))
def test_it_is_read_and_edited_as_json_loads_reads_it(members: list[tuple[str, Any]], every: int) -> None:
    body = written(members, every)
    means = json.loads(body)
    repeated = sum(key == "request_id" for key, _ in members) > 1
    background = means.get("background") in (True, 1, "on")
    unstored = background and "store" in means and means["store"] not in (True, 1, "on")
    null = "background" in means and means["background"] is None
    if repeated or unstored or null:
        with pytest.raises(InvalidRequest):
            read_response_fields(body)
        return
    fields = read_response_fields(body)
    previous = means.get("previous_response_id")
    assert fields.previous == (previous if isinstance(previous, str) else None)
    assert fields.background == background
    edited = splice(body, [request_id_edit(body, fields, "resp_new")])
    assert json.loads(edited) == {**means, "request_id": "resp_new"}
    assert edited.count(b"resp_new") == 1


@pytest.mark.parametrize(
    ("value", "background"),
    [
        ("true", True),
        ("1", True),
        ("1.0", True),
        ('"true"', True),
        ('"T"', True),
        ('"yes"', True),
        ('"ON"', True),
        ("false", False),
        ("0", False),
        ("0.0", False),
        ('"false"', False),
        ('"N"', False),
        ('"off"', False),
    ],
)
def test_background_is_what_pydantic_takes_for_true(value: str, background: bool) -> None:
    assert read_response_fields(b'{"background":%b}' % value.encode()).background == background
    assert read_response_fields(b'{"background":1,"background":%b}' % value.encode()).background == background


@pytest.mark.parametrize(
    "body",
    [
        b'{"input":"say \\"background\\" and \\"request_id\\""}',
        b'{"input":[{"background":true,"previous_response_id":"x","request_id":"y"}]}',
        b"{}",
    ],
)
def test_what_stands_deeper_or_in_a_text_says_nothing(body: bytes) -> None:
    assert read_response_fields(body) == NO_FIELDS
    edited = json.loads(splice(body, [request_id_edit(body, NO_FIELDS, "resp_1")]))
    assert edited == {**json.loads(body), "request_id": "resp_1"}


def test_an_id_is_replaced_where_it_stands() -> None:
    body = '{"input":"é", "request_id" :  null }'.encode()
    fields = read_response_fields(body)
    assert fields == ResponseFields(own_id=(31, 35))
    assert splice(body, [request_id_edit(body, fields, "resp_1")]) == body.replace(b"null", b'"resp_1"')


@pytest.mark.parametrize(
    "body", [b'{"background":true,"x":' + b"[" * 100_000, b'{"background":1,"x":%b}' % (b"1" * 5000)]
)
def test_what_json_loads_does_not_read_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_response_fields(body)


def nested(depth: int) -> str:
    return '{"tools":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    "body",
    [
        '{"user":"\\ud800"}',
        '{"user":"\\\\\\uDBFF"}',
        '{"user":"\\udc00\\ud800"}',
        '{"user":"\\ud83d\\n\\ude00"}',
        '{"tools":[{"parameters":{"x":"\\ud83d\\ud83d\\ude00"}}]}',
        '{"metadata":{"\\uDfff":"x"}}',
        nested(MAX_DEPTH + 1),
        '{"a":"[{",' + '"tools":' + '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH + "}",
    ],
)
def test_what_vllm_cannot_write_into_its_answer_is_refused(body: str) -> None:
    json.loads(body)
    with pytest.raises(InvalidRequest):
        check_repeatable(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"input":"\\ud83d\\ude00","user":"\\uD83D\\uDE00\\u00e9"}',
        '{"input":"C:\\\\ud800 and \\\\\\\\udfff"}',
        nested(MAX_DEPTH),
        json.dumps({"input": '"[{\\' * MAX_DEPTH}),
        json.dumps({"tools": [{"parameters": {"properties": {}}}] * MAX_DEPTH}),
    ],
)
def test_what_vllm_can_write_into_its_answer_passes(body: str) -> None:
    check_repeatable(body.encode())


@given(st.lists(st.sampled_from(["\\ud83d", "\\ude00", "\\\\", "\\n", "u", "d8", "x"]), max_size=8).map("".join))
def test_half_a_character_is_found_as_json_loads_finds_it(text: str) -> None:
    means = json.loads(f'"{text}"')
    try:
        means.encode()
    except UnicodeEncodeError:
        with pytest.raises(InvalidRequest):
            check_repeatable(f'{{"user":"{text}"}}'.encode())
    else:
        check_repeatable(f'{{"user":"{text}"}}'.encode())


@pytest.mark.parametrize("name", ["background", "truncation"])
def test_what_vllm_cannot_answer_as_null_is_refused(name: str) -> None:
    for every in (0, 1):
        with pytest.raises(InvalidRequest) as error:
            read_response_fields(written([("input", "a"), (name, "auto"), (name, None)], every))
        assert error.value.param == name
    read_response_fields(written([(name, None), (name, False)], 0))
    read_response_fields(written([("truncation", "auto"), ("user", None)], 0))
