"""The cache of response heads: nothing that llhttp would refuse matches a cached head."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.http.upstream_harness import Lab
from twisted_vllm.http.header_cache import MOST_HEADS
from twisted_vllm.http.headers import ResponseHead

FIRST = (
    b"HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 12\r\n"
    b'content-type: application/json\r\n\r\n{"id": "abc"}'
).replace(b'"abc"', b'"ab"')


def outcome(lab: Lab, raw: bytes, method: bytes = b"POST", *, cut: int | None = None) -> Any:
    """Send `raw` as the response on a new connection; return the caller's result and the connection's state."""
    asked, end = lab.asked(method)
    for piece in (raw,) if cut is None else (raw[:cut], raw[cut:]):
        end.send(piece)
    pending = asked.is_pending
    kept = end.is_open and not end.is_cut
    if pending or not kept:
        end.close()
        lab.turn()
        return pending, kept, repr(asked.error), asked.interim
    response = asked.response
    told = (response.code, response.phrase, response.raw_headers, response.length, response.head.relayed)
    whole = asked.reader is not None and asked.reader.is_whole
    body = asked.reader.body if asked.reader is not None else None
    written = response.head.write(b"x-request-id: 1\r\n")
    end.close()
    lab.turn()
    return told, whole, body, written, asked.interim


def known(lab: Lab) -> int:
    return len(lab.agent.header_cache)


def test_the_same_head_again_means_the_same() -> None:
    lab = Lab()
    first = outcome(lab, FIRST)
    assert first[1:3] == (True, b'{"id": "ab"}')
    assert known(lab) == 1
    assert outcome(lab, FIRST) == first
    assert known(lab) == 1


@pytest.mark.parametrize("body", [b"", b"1", b"x" * 1_000])
def test_only_the_length_and_the_body_may_differ(body: bytes) -> None:
    lab, fresh = Lab(), Lab()
    outcome(lab, FIRST)
    again = FIRST.replace(b"content-length: 12", b"content-length: %d" % len(body)).replace(b'{"id": "ab"}', body)
    assert outcome(lab, again) == outcome(fresh, again)
    assert known(lab) == 1


def test_cached_and_new_heads_alternate_on_one_connection() -> None:
    lab = Lab()
    _, end = lab.asked()
    end.send(FIRST)
    other = FIRST.replace(b"200 OK", b"400 Bad Request")
    for raw, status in ((FIRST, 200), (other, 400), (FIRST, 200), (other, 400)):
        asked = lab.ask()
        end.send(raw)
        assert (asked.response.code, asked.body) == (status, b'{"id": "ab"}')
    asked = lab.ask()
    end.send(FIRST[:60])
    assert asked.is_pending
    end.send(FIRST[60:])
    assert asked.body == b'{"id": "ab"}'
    assert lab.attempts == 1


def test_the_response_to_head_does_not_match_one_with_a_body() -> None:
    lab, fresh = Lab(), Lab()
    outcome(lab, FIRST)
    bare = FIRST[: FIRST.index(b"\r\n\r\n") + 4]
    assert outcome(lab, bare, b"HEAD") == outcome(fresh, bare, b"HEAD")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(FIRST.replace(b"server:", b"x-request-id: 1\r\nserver:"), id="an id"),
        pytest.param(FIRST.replace(b"server:", b"connection: close\r\nserver:"), id="the last of its connection"),
        pytest.param(FIRST.replace(b"server:", b"x-long: " + b"x" * 3_000 + b"\r\nserver:"), id="a long head"),
        pytest.param(FIRST.replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(FIRST.replace(b"length: ", b"length:"), id="a length in another spelling"),
        pytest.param(FIRST.replace(b"server:", b"keep-alive: timeout=5\r\nserver:"), id="a header of one connection"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + FIRST, id="an interim response before it"),
        pytest.param(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", id="no content"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="chunks"),
        pytest.param(FIRST[:-1], id="half of it"),
        pytest.param(FIRST + b"x", id="more than it"),
    ],
)
def test_heads_that_do_not_repeat_or_are_not_plain_are_not_cached(raw: bytes) -> None:
    lab = Lab()
    outcome(lab, raw)
    assert known(lab) == 0


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, len(FIRST)),
    st.integers(0, 3),
    st.sampled_from([b"", b"\0", b"\r\n", b"\n", b" ", b"0", b"9", b"-", b"+", b":", b"x", b"content-length: 3\r\n"]),
)
@example(FIRST.index(b"12\r\n"), 2, b"")
@example(FIRST.index(b"12\r\n"), 0, b"0")
@example(FIRST.index(b"12\r\n"), 2, b"+9")
def test_only_an_equal_head_matches_a_cached_one(at: int, cut: int, put: bytes) -> None:
    changed = FIRST[:at] + put + FIRST[at + cut :]
    lab, fresh = Lab(), Lab()
    outcome(lab, FIRST)
    assert known(lab) == 1
    assert outcome(lab, changed) == outcome(fresh, changed)


@given(st.integers(1, len(FIRST) - 1))
def test_a_response_in_two_segments_equals_one_in_one_segment(cut: int) -> None:
    lab, fresh = Lab(), Lab()
    outcome(lab, FIRST)
    assert outcome(lab, FIRST, cut=cut) == outcome(fresh, FIRST)


def test_the_cache_is_bounded() -> None:
    lab = Lab()
    for number in range(MOST_HEADS + 10):
        outcome(lab, FIRST.replace(b"uvicorn", b"%d" % number))
    assert known(lab) == MOST_HEADS


def test_a_head_from_a_template_is_written_as_one_that_was_read() -> None:
    pairs = [(b"A", b"1"), (b"Content-Length", b"10"), (b"a", b"10")]
    made = ResponseHead(200, b"Fine", pairs).as_template().of_length(7)
    read = ResponseHead(200, b"Fine", [(b"A", b"1"), (b"Content-Length", b"7"), (b"a", b"10")])
    for name in ("status", "reason", "headers", "relayed", "length", "coding", "connection", "has_request_id"):
        assert getattr(made, name) == getattr(read, name)
    assert made.write(b"x: 1\r\n") == read.write(b"x: 1\r\n")
