"""A large body is read as `json.loads` reads it, in whatever pieces it arrives, and within its bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bodies.json_texts import json_bodies, pieces_of
from twisted_vllm.bodies.json_reader import (
    MAX_DEPTH,
    MAX_KEY,
    MAX_KEYS,
    MAX_NUMBER_SIZE,
    MAX_VALUES,
    JsonReader,
    MalformedJson,
)
from twisted_vllm.bodies.members import MAX_MEMBERS
from twisted_vllm.errors import BodyTooComplex
from twisted_vllm.field_policy.media import Repeated, pairs
from twisted_vllm.field_policy.shortened import KEPT, KEPT_NUMBERS, ShortenedList, ShortenedText


def read(*pieces: bytes) -> JsonReader:
    whole = b"".join(pieces)
    reader = JsonReader(lambda start, end: whole[start:end])
    for piece in pieces:
        for _ in reader.feed(piece):
            pass
    reader.finish()
    return reader


def steps(body: bytes) -> int:
    return sum(1 for _ in JsonReader(lambda start, end: body[start:end]).feed(body))


def check_same(found: Any, expected: Any) -> None:
    """Check that a value is the expected one, or its beginning with its size."""
    if isinstance(found, ShortenedText):
        assert expected.startswith(str(found))
        assert len(found) > 64 or not found.isascii()
        assert found.size == len(expected.encode("utf-8", "surrogatepass"))
        assert found.beginning(1 << 30) == expected
    elif isinstance(found, ShortenedList):
        assert found.size == len(expected) > len(found) >= KEPT_NUMBERS
        assert repr(found[:KEPT_NUMBERS]) == repr(expected[:KEPT_NUMBERS])
    elif isinstance(found, list):
        assert len(found) == len(expected)
        assert isinstance(found, Repeated) == isinstance(expected, Repeated)
        for each, other in zip(found, expected, strict=True):
            check_same(each, other)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for name, value in found.items():
            check_same(value, expected[name])
    else:
        # NaN is not equal to itself
        assert repr(found) == repr(expected)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, (dict, list)) + max(map(depth_of, inner), default=0)


def texts_in(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for each in value for text in texts_in(each)]
    return (
        [text for pair in value.items() for each in pair for text in texts_in(each)] if isinstance(value, dict) else []
    )


@settings(deadline=None)
@given(st.data(), json_bodies)
def test_any_body_in_any_pieces_is_read_as_json_loads_reads_it(data: st.DataObject, text: str) -> None:
    body = text.encode()
    reader = read(*data.draw(pieces_of(body)))
    top = json.loads(body, object_pairs_hook=lambda members: members)
    assert [member.key for member in reader.members] == [name for name, _ in top]
    for member in reader.members:
        check_same(member.value, json.loads(body[member.start : member.end], object_pairs_hook=pairs))
    assert body[reader.opened - 1 : reader.opened] == b"{"
    assert reader.commas == body.count(b",")


@settings(deadline=None)
@given(st.data(), json_bodies)
def test_depth_and_half_characters_are_found_in_any_pieces(data: st.DataObject, text: str) -> None:
    body = text.encode()
    reader = read(*data.draw(pieces_of(body)))
    members: list[Any] = []

    def keep(found: list[tuple[str, Any]]) -> list[Any]:
        members.extend(found)
        return [value for _, value in found]

    whole = json.loads(body, object_pairs_hook=keep)
    assert reader.depth == depth_of(whole)
    texts = texts_in(whole) + texts_in([[name, value] for name, value in members])
    assert reader.has_half == any(not text.isascii() and max(text) >= "\ud800" and is_half(text) for text in texts)


def is_half(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


@settings(deadline=None)
@given(st.data(), json_bodies)
def test_what_is_refused_is_refused_by_json_loads_and_the_other_way_round(data: st.DataObject, text: str) -> None:
    at = data.draw(st.integers(0, len(text)))
    what = data.draw(st.sampled_from(("", ",", '"', "\\", "}", "]", "{", "[", ":", "0", "u", "-", "e", "n", "x")))
    body = (text[:at] + what + text[at + data.draw(st.integers(0, 1)) :]).encode()
    try:
        expected = json.loads(body)
    except ValueError as error:
        expected = error
    try:
        read(*data.draw(pieces_of(body)))
    except MalformedJson as error:
        assert error.certain
        assert not isinstance(expected, dict)
    except BodyTooComplex:
        # a text became a key
        assert "z" * MAX_KEY in text
    else:
        assert isinstance(expected, dict) or "control character" in str(expected)


@pytest.mark.parametrize(
    ("body", "certain"),
    [
        (b"", True),
        (b"[1]", True),
        (b"null", True),
        (b'{"a":1}{', True),
        (b'{"a":"\\x"}', True),
        (b'{"a":"\\ud83d\\u12"}', True),
        (b'{"a":tru}', True),
        (b'{"a":01}', True),
        (b'{"a":1.}', True),
        (b'{"a":"\xff"}', False),
        (b'{"a":"\xe6\x97', False),
        (b'\xef\xbb\xbf{"a":1}', False),
        ('{"a":1}'.encode("utf-16"), False),
        ('{"a":1}'.encode("utf-16-le"), False),
        ('{"a":1}'.encode("utf-32-be"), False),
    ],
)
def test_only_what_json_loads_surely_refuses_is_certain(body: bytes, certain: bool) -> None:
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        with pytest.raises(MalformedJson) as caught:
            read(*pieces)
        assert caught.value.certain is certain


TOO_COMPLEX = {
    "members": b'{"a":1' + b',"":0' * MAX_MEMBERS + b"}",
    "values": b'{"a":[' + b"[]," * MAX_VALUES + b"1]}",
    "short texts": b'{"a":[' + b'"",' * MAX_VALUES + b"1]}",
    "long texts": b'{"a":[' + (b'"%b",' % (b"a" * (KEPT + 1))) * MAX_VALUES + b"1]}",
    "levels": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "a key": b'{"%b":1}' % (b"k" * (MAX_KEY + 1)),
    "an escaped key": b'{"%b":1}' % (b"\\n" * MAX_KEY),
    "keys": b'{"a":{' + (b'"%b":1,' % (b"k" * MAX_KEY)) * (MAX_KEYS // MAX_KEY + 1) + b'"z":1}}',
    "a number": b'{"a":' + b"1" * (MAX_NUMBER_SIZE + 1) + b"}",
    "a number without an end": b'{"a":' + b"1" * 1_000_000,
}


@pytest.mark.parametrize("body", TOO_COMPLEX.values(), ids=TOO_COMPLEX.keys())
def test_a_body_beyond_a_bound_is_refused_and_the_bound_is_named(body: bytes) -> None:
    with pytest.raises(BodyTooComplex, match=r"[0-9]") as caught:
        read(*[body[at : at + 65_536] for at in range(0, len(body), 65_536)])
    assert (caught.value.status, caught.value.code) == (400, "body_too_complex")


LARGE = {
    "2,048 inputs": {"input": ["some text of an input"] * 2_048},
    "2,048 inputs of tokens": {"input": [list(range(500))] * 2_048},
    "a million tokens": {"prompt": list(range(1_000_000))},
    "10,000 documents": {"query": "q", "documents": ["d" * 300] * 10_000},
    "10,000 documents as objects": {"documents": [{"content": [{"type": "text", "text": "d" * 99}]}] * 10_000},
    "1,000 messages of 2 kB": {"messages": [{"role": "user", "content": "text\n" * 400}] * 1_000},
    "1,000 messages with calls of tools": {
        "messages": [
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "x" * 200}],
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}' * 99}}
                ],
            }
        ]
        * 1_000
    },
    "200 tools with large schemas": {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "parameters": {
                        "type": "object",
                        "properties": {f"p{n}": {"type": "string", "description": "d" * 80} for n in range(60)},
                    },
                },
            }
        ]
        * 200
    },
}


@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE.keys())
def test_large_bodies_of_real_clients_are_within_the_bounds(value: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", **value}).encode()
    reader = read(*[body[at : at + 65_536] for at in range(0, len(body), 65_536)])
    check_same({member.key: member.value for member in reader.members}, json.loads(body))


def test_a_piece_is_read_in_steps_by_the_number_of_its_values() -> None:
    assert steps(b'{"a":["' + b"x" * 60_000) == 0
    assert steps(b'{"a":[' + b"[]," * 20_000) >= 80
    assert steps(b'{"a":[' + b"1," * 30_000) >= 1
    assert steps(b'{"a":"' + b"\\n" * 30_000) >= 5


@pytest.mark.parametrize("size", [1_024, 1_025, 100_000])
@pytest.mark.parametrize("cut", [1, 7, 1_000, 65_536])
def test_long_base64_is_a_medium_however_it_is_cut(size: int, cut: int) -> None:
    medium = b";base64," + b"A" * (size - 8)
    body = b'{"a":"data:image/png%b","b":"x;base64,short","c":"%b"}' % (medium, b"x" * 5_000)
    reader = read(*[body[at : at + cut] for at in range(0, len(body), cut)])
    assert (reader.media, reader.media_size) == ((1, size) if size > 1_024 else (0, 0))
