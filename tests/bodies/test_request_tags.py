"""What clients say of their requests for the ledger."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.api_routes import CHAT_FIELDS
from twisted_vllm.bodies.json_body import read_body
from twisted_vllm.bodies.request_tags import (
    MAX_METADATA,
    MAX_TAG,
    MAX_TAGS,
    NOTHING_SAID,
    Said,
    metadata_of,
    said_in_headers,
    tags_of,
    together,
)


@given(st.lists(st.one_of(st.text(), st.integers(), st.none()), max_size=40))
def test_tags_are_few_short_and_different(values: list[Any]) -> None:
    found = tags_of(values)
    assert len(found) <= MAX_TAGS
    assert len(set(found)) == len(found)
    assert all(tag and len(tag) <= MAX_TAG and tag.isprintable() for tag in found)


@given(st.binary(max_size=3_000))
def test_whatever_a_header_has_it_is_bounded(value: bytes) -> None:
    found = said_in_headers({b"x-litellm-tags": value, b"x-litellm-spend-logs-metadata": value})
    assert len(found.tags) <= MAX_TAGS
    assert not found.metadata or isinstance(json.loads(found.metadata), dict)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b"3", b"{", b'{"a": NaN}', b'"x"', b"[" * 2_000])
def test_metadata_that_is_no_object_is_left_out(raw: bytes) -> None:
    assert metadata_of(raw) == ""


def test_long_metadata_is_left_out() -> None:
    assert metadata_of(json.dumps({"a": "x" * MAX_METADATA}).encode()) == ""


def test_two_places_are_joined() -> None:
    one, other = Said(("a",), '{"x":1}'), Said(("b", "a"), '{"y":1}')
    assert together(one, other) == Said(("a", "b"), '{"x":1}')
    assert together(one, NOTHING_SAID) is together(NOTHING_SAID, one) is one


#: the first is read by the fast path, the others as vLLM's own parser reads them
SPELLINGS = [
    '{"model":"m","metadata":%s}',
    '{"model":"m","m\\u0065tadata":%s}',
    '{"model":"m","odd":NaN,"metadata":%s}',
]


@pytest.mark.parametrize("body", SPELLINGS)
@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"tags": ["a", " b "], "user_id": "u"}, Said(("a", "b"))),
        ({"tags": "a"}, NOTHING_SAID),
        ({"tags": None, "spend_logs_metadata": None}, NOTHING_SAID),
        ({"spend_logs_metadata": {"a": {"b": [1, "x"]}}}, Said((), '{"a":{"b":[1,"x"]}}')),
        ({"tags": ["x"] * 20_000}, None),
        ({}, NOTHING_SAID),
        (None, NOTHING_SAID),
    ],
)
def test_a_body_says_the_same_however_it_is_spelled(body: str, metadata: Any, said: Said | None) -> None:
    facts = read_body((body % json.dumps(metadata)).encode(), CHAT_FIELDS)
    assert facts.model is not None and facts.model.name == "m"
    assert said is None or facts.said == said
