"""A head that was read before is not read again, and nothing that llhttp would refuse passes for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.http.server_harness import House, get, post
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.header_cache import MOST_HEADS, RequestHeaderCache

BODY = b'{"model": "m"}'
FIRST = post(b"/vllm/a?b=1", BODY, b"Authorization: Bearer k", b"X-A: 1", b"x-a: 2")


def outcome(house: House, raw: bytes) -> Any:
    """Send `raw` on a connection of its own; return what the resource saw, what was answered, and if it goes on."""
    before = len(house.streaming.rendered)
    client = house.connect()
    client.send(raw)
    seen = [
        (
            *(request.method, request.uri, request.all_headers(), request.header_names, request.body_received),
            {name: value for name, value in request.head.items() if name != b"content-length"},
        )
        for request in house.streaming.rendered[before:]
    ]
    # an id that is made differs each time
    answered = [
        line for line in client.transport.value().split(b"\r\n") if not line.lower().startswith(b"x-request-id")
    ]
    result = (seen, answered, client.ended, client.channel.is_idle())
    client.leave()
    return result


def test_the_same_head_again_means_the_same() -> None:
    house = House()
    first = outcome(house, FIRST)
    assert len(house.site.known_heads) == 1
    assert outcome(house, FIRST) == first
    assert len(house.site.known_heads) == 1


@pytest.mark.parametrize("body", [b"", b"1", b"x" * 1_000])
def test_only_the_length_and_the_body_may_differ(body: bytes) -> None:
    house, fresh = House(), House()
    outcome(house, FIRST)
    again = FIRST.replace(b"Content-Length: 14", b"Content-Length: %d" % len(body)).replace(BODY, body)
    assert outcome(house, again) == outcome(fresh, again)
    assert len(house.site.known_heads) == 1


def test_requests_without_a_body_are_known_too() -> None:
    house = House()
    first = outcome(house, get())
    assert outcome(house, get()) == first
    assert len(house.site.known_heads) == 1


def test_a_known_head_on_one_connection_with_others_before_and_after() -> None:
    house = House()
    client = house.connect()
    for raw in (FIRST, get(b"/vllm/b"), FIRST, FIRST + get(b"/vllm/c"), FIRST[:50], FIRST[50:], FIRST):
        client.send(raw)
    targets = [request.uri[:7] for request in house.streaming.rendered]
    assert targets == [b"/vllm/" + name for name in (b"a", b"b", b"a", b"a", b"c", b"a", b"a")]
    assert not client.ended


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(get(b"/vllm/a", b"X-Request-Id: 1"), id="an id"),
        pytest.param(get(b"/vllm/a", b"traceparent: 00-1-2-01"), id="a trace"),
        pytest.param(get(b"/vllm/a", b"Connection: close"), id="the last request of its connection"),
        pytest.param(get(b"/vllm/a", b"Transfer-Encoding: chunked", method=b"POST") + b"0\r\n\r\n", id="chunks"),
        pytest.param(get(b"/vllm/a", b"X-Long: " + b"x" * 3_000), id="a long head"),
        pytest.param(get(b"/vllm/a", version=b"HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(get(b"/vllm/a", b"Content-Length:0"), id="a length in another spelling"),
        pytest.param(FIRST + FIRST, id="two requests at once"),
        pytest.param(get(b"/vllm/a", b"Content-Length : 0"), id="a malformed request"),
    ],
)
def test_what_would_not_come_again_or_is_not_plain_is_not_kept(raw: bytes) -> None:
    house = House()
    outcome(house, raw)
    assert len(house.site.known_heads) == 0


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([FIRST, get(b"/vllm/a", b"X-A: 1")]),
    st.integers(0, 200),
    st.integers(0, 3),
    st.sampled_from([b"", b"\0", b"\r\n", b"\n", b" ", b"0", b"9", b"-", b"+", b":", b"x", b"Content-Length: 3\r\n"]),
)
@example(FIRST, FIRST.index(b"14\r\n"), 2, b"")
@example(FIRST, FIRST.index(b"14\r\n"), 2, b"\0")
def test_nothing_but_that_very_head_is_taken_for_it(raw: bytes, at: int, cut: int, put: bytes) -> None:
    changed = raw[:at] + put + raw[at + cut :]
    house, fresh = House(), House()
    outcome(house, raw)
    assert len(house.site.known_heads) == 1
    assert outcome(house, changed) == outcome(fresh, changed)


def test_a_head_whose_body_is_over_the_cap_is_refused_as_ever() -> None:
    house = House(limits=Limits(max_body_bytes=20))
    outcome(house, FIRST)
    again = FIRST.replace(b"Content-Length: 14", b"Content-Length: 21").replace(BODY, b"x" * 21)
    assert b"HTTP/1.1 413 " in outcome(house, again)[1][0]


def test_no_more_are_kept_than_there_is_room_for() -> None:
    house = House()
    for number in range(MOST_HEADS + 10):
        outcome(house, get(b"/vllm/%d" % number))
    assert len(house.site.known_heads) == MOST_HEADS


def test_nothing_is_known_at_first() -> None:
    def begin() -> Any:
        raise AssertionError("no request begins")

    assert RequestHeaderCache(Limits()).recall(FIRST, begin) is False
