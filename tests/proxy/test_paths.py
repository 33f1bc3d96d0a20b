"""The server's target for a target below ``/vllm``."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.errors import InvalidRequest
from twisted_vllm.proxy.paths import Target, target


@pytest.mark.parametrize(
    ("raw", "forwarded"),
    [
        (b"/metrics", b"/metrics"),
        (b"/score", b"/score"),
        (b"/v1/score", b"/v1/score"),
        (b"/rerank", b"/rerank"),
        (b"/classify", b"/classify"),
        (b"/tokenize", b"/tokenize"),
        (b"/v1/chat/completions", b"/v1/chat/completions"),
        (b"/chat/completions", b"/v1/chat/completions"),
        (b"/completions", b"/v1/completions"),
        (b"/embeddings", b"/v1/embeddings"),
        (b"/messages/count_tokens", b"/v1/messages/count_tokens"),
        (b"/models", b"/v1/models"),
        (b"/audio/transcriptions", b"/v1/audio/transcriptions"),
        (b"/realtime?model=x", b"/v1/realtime?model=x"),
        (b"/responses/resp_1?stream=true", b"/v1/responses/resp_1?stream=true"),
        (b"/unload_lora_adapter", b"/v1/unload_lora_adapter"),
        (b"", b"/"),
        (b"/", b"/"),
        (b"?x=1", b"/?x=1"),
        (b"/unknown/", b"/unknown/"),
    ],
)
def test_every_route_of_the_guide_is_reached_through_one_base(raw: bytes, forwarded: bytes) -> None:
    assert target(raw).forwarded == forwarded


def test_path_and_query_keep_their_bytes() -> None:
    raw = b"/a%2Fb/%41//c?x=%2F&x=+&y=1&x=%252F&=?&&a[]=1"
    assert target(raw) == Target(raw.partition(b"?")[0], raw.partition(b"?")[2], raw)


def test_an_empty_query_is_kept_apart_from_none() -> None:
    assert target(b"/chat/completions?") == Target(b"/v1/chat/completions", b"", b"/v1/chat/completions?")
    assert target(b"/chat/completions").query is None


def test_aliases_can_be_switched_off() -> None:
    assert target(b"/chat/completions", False).forwarded == b"/chat/completions"
    assert target(b"/chat/completions", True).forwarded == b"/v1/chat/completions"


@pytest.mark.parametrize(
    "path",
    [
        b"/..",
        b"/../x",
        b"/a/../..",
        b"/a/../../b",
        b"/%2e%2e/x",
        b"/%2E./x",
        b"/.%2e/x",
        b"/a//../../x",
        b"/a/./../../x",
        b"/..%2fx",
        b"/..%5cx",
        b"/..\\x",
        b"/a\\..\\..\\x",
        b"/..;x=1/y",
        b"/%2e%2e%3bx/y",
        b"/a%2fb/../../../x",
        b"/a%2Fb/../..",
        b"/a\\a/../..",
        b"/a%5Ca/..%2F..",
    ],
)
@pytest.mark.parametrize("query", [b"", b"?x=1"])
def test_dot_segments_that_climb_out_are_refused(path: bytes, query: bytes) -> None:
    with pytest.raises(InvalidRequest, match="climb out"):
        target(path + query)


@pytest.mark.parametrize(
    "raw", [b"/a/../b", b"/a/b/%2e%2e/c", b"/...", b"/..a", b"/a..", b"/%252e%252e/x", b"/a?x=../../..", b"/."]
)
def test_dots_that_do_not_climb_pass_as_they_are(raw: bytes) -> None:
    assert target(raw).forwarded == raw


@pytest.mark.parametrize(
    "raw", [b"/a b", b"/a\r\nx: y", b"/a\x00", b"/a\x7f", b"/\xc3\xa9", b"/a#b", b"/a?b#c", b"/a?\t"]
)
def test_bytes_that_a_target_may_not_have_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Percent-encode"):
        target(raw)


@pytest.mark.parametrize("raw", [b"x", b"sleep", b"@evil/x", b":80/x", b"http://evil/x"])
def test_a_path_that_does_not_begin_with_a_slash_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="slash"):
        target(raw)


def test_a_very_long_target_is_treated_as_a_short_one() -> None:
    assert target(b"/responses/" + b"x" * 9000).path == b"/v1/responses/" + b"x" * 9000
    with pytest.raises(InvalidRequest):
        target(b"/a/../../" + b"x/" * 3000)


_PIECES = st.sampled_from(["/", "..", ".", "%2e", "%2f", "a", "%252e", "\\", "%5C", ";", "%3B", "?", "..%2F"])


@given(st.lists(_PIECES, max_size=12).map(lambda pieces: "/" + "".join(pieces)))
def test_no_reading_of_a_forwarded_path_leads_above_the_root(text: str) -> None:
    try:
        found = target(text.encode(), False)
    except InvalidRequest:
        return
    assert found.forwarded == text.encode()
    path = found.path.decode()
    for reading in (path, unquote(path), unquote(path).replace("\\", "/")):
        below = "/root/" + "/".join(piece for piece in reading.split("/") if piece)
        assert (posixpath.normpath(below) + "/").startswith("/root/")
