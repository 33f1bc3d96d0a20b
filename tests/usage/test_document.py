"""A value is found in JSON of any size and content that arrives in pieces."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.usage.usage_texts import NESTED, PATIENT, TEXTS, pieces, spellings
from twisted_vllm.usage.readers.document import MAX_VALUE, MAX_WHOLE, Document, Shape, ValueScanner


def scan(parts: list[bytes], keys: Sequence[bytes] = (b"usage",), depth: int = 1) -> dict[bytes, Any]:
    scanner = ValueScanner(keys, depth)
    for part in parts:
        scanner.feed(part)
    return {key: json.loads(value) for key, value in scanner.found.items()}


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    members = list(draw(st.dictionaries(TEXTS.filter(lambda key: key != "usage"), NESTED, max_size=4)).items())
    if draw(st.booleans()):
        usage = draw(st.dictionaries(TEXTS, st.integers() | TEXTS, max_size=3) | st.integers() | TEXTS | st.none())
        members.insert(draw(st.integers(0, len(members))), ("usage", usage))
    return dict(members)


@PATIENT
@given(objects(), st.data())
def test_what_is_found_is_what_json_loads_sees(answer: dict[str, Any], data: st.DataObject) -> None:
    body = data.draw(spellings(answer))
    expected = json.loads(body)
    assert scan(data.draw(pieces(body))) == ({b"usage": expected["usage"]} if "usage" in expected else {})


@PATIENT
@given(objects(), st.data())
def test_a_value_within_an_object_is_found_at_its_depth_alone(response: dict[str, Any], data: st.DataObject) -> None:
    body = data.draw(spellings({"type": "response.completed", "response": response, "sequence_number": 7}))
    expected = json.loads(body)["response"]
    found = scan(data.draw(pieces(body)), depth=2)
    assert found == ({b"usage": expected["usage"]} if "usage" in expected else {})


@PATIENT
@given(st.binary(max_size=200), st.data())
def test_bytes_that_are_no_json_do_no_harm(body: bytes, data: st.DataObject) -> None:
    scanner = ValueScanner((b"usage",))
    for part in data.draw(pieces(b'{"usage' + body + b'"usage":{' + body)):
        scanner.feed(part)


def test_several_keys_are_looked_for_at_once() -> None:
    body = b'{"duration":1.5,"text":"\\"usage\\":1","usage":{"seconds":2},"x":[{"duration":9}]}'
    for size in range(1, len(body) + 1):
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        assert scan(parts, (b"usage", b"duration")) == {b"usage": {"seconds": 2}, b"duration": 1.5}


@pytest.mark.parametrize("body", [b'{"usage":"usage"}', b'{"usage":1,"duration":"usage"}', b'{"usage":"usage" ,"x":1}'])
def test_a_value_that_is_spelled_like_a_key_is_none(body: bytes) -> None:
    expected = {key.encode(): value for key, value in json.loads(body).items() if key != "x"}
    for size in range(1, len(body) + 1):
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        assert scan(parts, (b"usage", b"duration")) == expected


def test_a_value_too_large_to_be_one_is_passed() -> None:
    body = b'{"usage":"%b","a":1,"count":3}' % (b"x" * (2 * MAX_VALUE))
    parts = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    assert scan(parts, (b"usage", b"count")) == {b"count": 3}


def test_an_answer_of_a_hundred_megabytes_is_not_kept() -> None:
    piece = b'{"index":0,"object":"embedding","embedding":"%b"},' % (b"QUJD" * 16_000)
    document = Document(Shape((b"usage",)))
    document.feed(b'{"id":"embd-1","data":[')
    tracemalloc.start()
    try:
        for _ in range(1600):
            document.feed(piece)
        document.feed(b'{}],"usage":{"prompt_tokens":5,"total_tokens":5}}')
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert json.loads(document.read()) == {"usage": {"prompt_tokens": 5, "total_tokens": 5}}
    assert peak < 6 * MAX_WHOLE


def test_a_small_value_is_kept_as_it_is() -> None:
    document = Document(Shape((b"usage",)))
    document.feed(b'{"a":')
    document.feed(b"1}")
    assert document.read() == b'{"a":1}'


def test_of_a_large_value_an_inner_object_is_kept() -> None:
    document = Document(Shape((b"usage",), outer=b"response"))
    document.feed(b'{"response":{"output":"')
    document.feed(b"x" * (MAX_WHOLE + 1))
    document.feed(b'","usage":{"input_tokens":3}},"type":"response.completed"}')
    assert document.read() == b'{"response":{"usage":{"input_tokens":3}}}'
