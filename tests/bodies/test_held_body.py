"""A held body says, allows and sends what the same body in one piece does."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bodies.json_texts import held, json_bodies, pieces_of
from twisted_vllm.api_routes import ROUTES, BodyFields, ModelPlace
from twisted_vllm.bodies.edits import (
    Edit,
    name_edit,
    priority_edits,
    request_id_edit,
    salt_edit,
    splice,
    usage_edits,
)
from twisted_vllm.bodies.held_body import HeldBody
from twisted_vllm.bodies.held_pieces import BLOCK, PIECE, HeldPieces
from twisted_vllm.bodies.json_body import BodyFacts, is_no_object, read_body
from twisted_vllm.bodies.json_reader import MAX_VALUES
from twisted_vllm.bodies.response_fields import check_repeatable, read_response_fields
from twisted_vllm.errors import FieldNotAllowed, GatewayError, InvalidRequest, ModelUndetermined
from twisted_vllm.field_policy.policy import FieldPolicy, GatewayFields, policy_of
from twisted_vllm.field_policy.rules import NO_RULES, rules_of
from twisted_vllm.usage.estimate import estimate_prompt

FIELDS = {row.path: row.fields for row in ROUTES if row.model is ModelPlace.BODY and not row.audio_uploads}
CHAT = FIELDS["/v1/chat/completions"]
DEFAULT = policy_of(GatewayFields(), NO_RULES, NO_RULES)

#: members that decide something, in spellings of all kinds
_MEMBERS = (
    *('"model":"m"', '"mod\\u0065l":"n"', '"model":null', '"model":"日本"', '"model":1'),
    *('"stream":true', '"stream":"yes"', '"stream_options":{"include_usage":false}', '"stream_options":{}'),
    *('"stream_options":{"a":"日","continuous_usage_stats":true}', '"stream_options":null', '"stream_options":[]'),
    *(
        '"max_tokens":"40"',
        '"max_tokens":7',
        '"n":3',
        '"n":200',
        '"min_tokens":2',
        '"best_of":"2"',
        '"max_tokens":null',
    ),
    *('"prompt":["a","b","c"]', '"prompt":[1,2,3]', '"prompt":"x"', '"prompt":[[1,2],[3]]', '"items":["a","b"]'),
    *('"query":"quelle"', '"queries":["a"]', '"documents":["a","日","c"]', '"data_1":["a","b"]', '"text_2":{"a":1}'),
    *(
        '"user":"u"',
        '"metadata":{"user_id":"v","user_id":"w"}',
        '"cache_salt":"s"',
        '"cache_salt":null',
        '"priority":5',
    ),
    *('"priority":0', '"request_id":"r"', '"previous_response_id":"resp_1"', '"background":true', '"store":true'),
    *('"truncation":null', '"sampling_params":{"n":4,"max_tokens":9}', '"logit_bias":{"1":2}', '"stream_interval":1'),
    *('"messages":[{"role":"user","content":[{"image_url":{"url":"http://127.0.0.1/"}}]}]', '"x":"\\ud800"', '"y":NaN'),
    *('"images":["https://example.com/a"]', '"tools":[{"type":"mcp"}]', '"vllm_xargs":{}', '"vllm_xargs":{"a":1}'),
    '"messages":[{"content":"text","role":"user"},{"content":[{"type":"text","text":"日本"}]}]',
)
bodies = st.one_of(
    st.lists(st.sampled_from(_MEMBERS), max_size=8).map(lambda members: "{" + " , ".join(members) + "}"), json_bodies
).map(str.encode)


def outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the kind of its error."""
    try:
        return call()
    except GatewayError as error:
        return error.code, error.param


def whole_facts(body: bytes, fields: BodyFields, policy: FieldPolicy | None) -> Any:
    """Read a body in one piece, and forget how it was read."""
    facts = outcome(lambda: read_body(body, fields, policy))
    return msgspec.structs.replace(facts, plain=False) if isinstance(facts, BodyFacts) else facts


@settings(deadline=None)
@given(st.data(), bodies, st.sampled_from(sorted(FIELDS)))
def test_the_facts_and_what_is_allowed_are_the_same_in_any_pieces(data: st.DataObject, body: bytes, route: str) -> None:
    fields = FIELDS[route]
    pieces = data.draw(pieces_of(body))
    for policy in (None, DEFAULT):
        found = outcome(lambda: read_body(held(pieces, policy), fields, policy))  # noqa: B023  # called at once
        expected = whole_facts(body, fields, policy)
        if isinstance(expected, BodyFacts) and expected.repeated_bytes and not body.isascii():
            # in one piece, they are counted in characters where the body is read whole
            found = msgspec.structs.replace(found, repeated_bytes=expected.repeated_bytes)
        if found != expected:
            # without a list in a list the server fetches nothing, and a body in one piece is not searched
            assert policy is not None, (found, expected)
            assert body.count(b"[") <= 1, (found, expected)


@settings(deadline=None)
@given(st.data(), bodies)
def test_edits_make_the_same_bytes_in_any_pieces(data: st.DataObject, body: bytes) -> None:
    try:
        facts = read_body(body, CHAT)
    except ModelUndetermined:
        return
    one = held(data.draw(pieces_of(body)))

    def edits(of: bytes | HeldBody) -> list[Edit]:
        found: list[Edit] = priority_edits(of, facts, 7, insert=True)
        found.append(name_edit(of, facts, "renämed"))
        found += usage_edits(of, facts)
        found.append(salt_edit(of, facts, "salt"))
        fields = read_response_fields(of)
        found.append(request_id_edit(of, fields, "resp_2"))
        return found

    expected = outcome(lambda: splice(body, edits(body)))
    found = outcome(lambda: splice(one, edits(one)))
    if isinstance(expected, bytes):
        assert len(found) == len(expected)
        assert b"".join(found) == expected == b"".join(found)
    else:
        assert found == expected


@settings(deadline=None)
@given(st.data(), bodies)
def test_a_stored_response_s_members_and_the_estimate_are_the_same(data: st.DataObject, body: bytes) -> None:
    one = held(data.draw(pieces_of(body)))
    try:
        read_body(body, CHAT)
    except ModelUndetermined:
        assert is_no_object(one) == is_no_object(body)
        return
    assert outcome(lambda: read_response_fields(one)) == outcome(lambda: read_response_fields(body))
    assert outcome(lambda: check_repeatable(one)) == outcome(lambda: check_repeatable(body))
    assert estimate_prompt(one.rope(), 9, tokens=True) == estimate_prompt(body, 9, tokens=True)


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.integers(0, 2 * BLOCK).map(bytes)), max_size=9), st.data())
def test_pieces_give_back_every_byte(pieces: list[bytes], data: st.DataObject) -> None:
    found, whole = HeldPieces(), b""
    for piece in pieces:
        found.append(piece)
        whole += piece
        end = data.draw(st.integers(0, len(whole)))
        start = data.draw(st.integers(0, end))
        assert found.read(start, end) == whole[start:end]
    assert len(found) == len(whole)
    assert all(found.slices(0, len(whole)))


def test_a_body_is_sent_in_small_pieces_as_often_as_need_be() -> None:
    body = HeldBody(is_json=False)
    for _ in range(9):
        body.append(bytes(200_000))
    rope = body.rope(((0, 7), b"new", (9, len(body))))
    for _ in range(2):
        sizes = [len(piece) for piece in rope]
        assert sum(sizes) == len(rope) == len(body) + 1
        assert max(sizes) <= PIECE


def large(**members: Any) -> bytes:
    return json.dumps({"model": "m", **members}).encode()


LONG = "x" * 5_000


@pytest.mark.parametrize(
    ("path", "most", "members", "allowed"),
    [
        ("messages.content", 5_000, {"messages": [{"content": LONG}]}, True),
        ("messages.content", 4_999, {"messages": [{"content": LONG}]}, False),
        ("prompt", 1_000, {"prompt": list(range(1_000))}, True),
        ("prompt", 999, {"prompt": list(range(1_000))}, False),
        ("a.n", 5, {"a": {"n": " " * 300 + "4"}}, False),
        ("user", 10_000, {"user": "ü" * 5_000}, True),
        ("user", 9_999, {"user": "ü" * 5_000}, False),
        ("metadata", 5_020, {"metadata": {"a": LONG}}, True),
        ("metadata", 5_000, {"metadata": {"a": LONG}}, False),
    ],
)
def test_limits_hold_for_what_was_shortened(path: str, most: int, members: dict[str, Any], allowed: bool) -> None:
    policy = policy_of(GatewayFields(), rules_of(limits={path: most}), NO_RULES)
    found = outcome(lambda: held([large(**members)], policy).checked_members())
    assert (found == ("field_not_allowed", path)) is not allowed


@pytest.mark.parametrize(
    ("value", "forbidden"), [("x" * 64, False), (LONG, False), ("y" + LONG, True), ("y" * 64 + LONG, True)]
)
def test_a_forbidden_beginning_is_found_in_a_long_text(value: str, forbidden: bool) -> None:
    policy = policy_of(GatewayFields(), rules_of(["a.b=y*"]), NO_RULES)
    for spelled in (json.dumps(value), '"' + "".join(f"\\u{ord(each):04x}" for each in value) + '"'):
        body = f'{{"model":"m","a":{{"b":{spelled}}}}}'.encode()
        assert (outcome(lambda: held([body], policy).checked_members()) == ("field_not_allowed", "a.b")) is forbidden  # noqa: B023


@pytest.mark.parametrize("name", ["max_tokens", "n", "min_tokens"])
def test_a_long_text_in_place_of_a_number_is_refused(name: str) -> None:
    body = held([large(**{name: "0" * 5_000 + "9"})])
    assert outcome(lambda: read_body(body, CHAT)) == ("body_too_complex", name)


def test_what_is_decisive_and_was_cut_is_refused() -> None:
    policy = policy_of(GatewayFields(), rules_of(["a=5"]), NO_RULES)
    assert outcome(lambda: held([large(a=list(range(64)))], policy).checked_members())[0] == "field_not_allowed"
    assert outcome(lambda: held([large(a=[1] * 99 + [5])], policy).checked_members())[0] == "body_too_complex"
    assert outcome(lambda: read_body(held([large(model=LONG)]), CHAT)) == ("model_not_found", "model")


URLS = {
    "http://127.0.0.1/" + "a" * 500: False,
    "https://example.com/" + "a" * 500: True,
    "https://example.com/" + "a" * 8_172: True,
    "https://example.com/" + "a" * 8_173: False,
    "https://example.com/" + "\u00fc" * 8_172: True,
    "https://example.com/" + "a" * 200_000: False,
    "https://example.com/" + "a" * 7_000 + "\n": False,
    "data:image/png;base64," + "A" * 200_000: True,
    "file:///etc/" + "a" * 200: False,
}


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("escapes", [False, True])
def test_a_long_url_is_judged_as_a_whole(url: str, escapes: bool) -> None:
    spelled = "".join(f"\\u{ord(each):04x}" for each in url) if escapes else json.dumps(url, ensure_ascii=False)[1:-1]
    body = f'{{"model":"m","messages":[{{"content":[{{"image_url":{{"url":"{spelled}"}}}}]}}]}}'.encode()
    found = outcome(lambda: held([body], DEFAULT).checked_members())
    assert (found == ("field_not_allowed", "image_url")) is not URLS[url]


def test_end_users_and_salts_are_read_from_long_texts() -> None:
    facts = read_body(held([large(metadata={"user_id": "u" * 3_000})]), FIELDS["/v1/messages"])
    assert facts.end_user is not None
    assert facts.end_user[:255] == "u" * 255
    body = large(cache_salt="s" * 9_000)
    salted = splice(held([body]), [salt_edit(held([body]), read_body(held([body]), CHAT), "salt")])
    whole = splice(body, [salt_edit(body, read_body(body, CHAT), "salt")])
    assert b"".join(salted) == whole
    long = held([large(cache_salt="s" * 70_000)])
    with pytest.raises(InvalidRequest, match="more than 65,536 bytes"):
        salt_edit(long, read_body(long, CHAT), "salt")


def test_a_check_of_many_values_takes_many_steps() -> None:
    body = HeldBody(is_json=True)
    text = b'{"model":"m","messages":[' + b"{}," * (MAX_VALUES - 10) + b"1]}"
    body.append(text)
    for _ in body.read(text):
        pass
    assert sum(1 for _ in body.check(DEFAULT)) >= MAX_VALUES // 4_000


def test_a_refused_body_is_freed_without_a_garbage_collection() -> None:
    class Watched(HeldBody):
        __slots__ = ("__weakref__",)

    for text in (b'{"a":' + b"[" * 300, b'{"a":nul}', large(priority=1)):
        body = Watched(is_json=True)
        body.append(text)
        gc.disable()
        try:
            for _ in (*body.read(text), *body.check(DEFAULT)):
                pass
            with pytest.raises((ModelUndetermined, FieldNotAllowed)):
                body.checked_members()
            gone = weakref.ref(body)
            del body
            assert gone() is None
        finally:
            gc.enable()
