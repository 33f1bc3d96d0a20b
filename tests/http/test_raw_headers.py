"""Serialized headers: raw lines for the agent, ordinary headers for other code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from treq.testing import RequestTraversalAgent
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import Request

from tests.http.upstream_harness import HeaderPairs
from twisted_vllm.http.client.raw_headers import RawHeaders

PAIRS: HeaderPairs = [(b"x-a", b"1"), (b"ACCEPT", b""), (b"X-A", b"2: 3"), (b"Content-MD5", b"x")]


def test_their_lines_keep_order_case_and_repetitions() -> None:
    headers = RawHeaders.from_pairs(PAIRS)
    assert headers.lines == b"x-a: 1\r\nACCEPT: \r\nX-A: 2: 3\r\nContent-MD5: x\r\n"
    assert headers.pairs == PAIRS
    assert (RawHeaders(b"").pairs, RawHeaders.from_pairs([]).lines) == ([], b"")


@pytest.mark.parametrize("name", [b"x-a", b"ACCEPT", b"Content-MD5"])
def test_one_value_is_replaced_and_nothing_else(name: bytes) -> None:
    headers = RawHeaders.from_pairs(PAIRS)
    expected = [(key, b"new" if key == name else value) for key, value in PAIRS]
    assert headers.replacing(name, b"new").pairs == expected
    assert headers.pairs == PAIRS


def test_the_last_of_several_is_replaced_and_no_value_that_looks_like_it() -> None:
    headers = RawHeaders.from_pairs([(b"Id", b"1"), (b"Id", b"2"), (b"X-Id", b"Id: 3"), (b"My-Id", b"4")])
    assert headers.replacing(b"Id", b"new").lines == b"Id: 1\r\nId: new\r\nX-Id: Id: 3\r\nMy-Id: 4\r\n"


def test_they_can_be_read_as_twisteds() -> None:
    headers = RawHeaders.from_pairs(PAIRS)
    assert headers.getRawHeaders(b"x-a") == [b"1", b"2: 3"]
    assert headers.getRawHeaders("accept") == [""]
    assert headers.hasHeader(b"CONTENT-md5")
    assert not headers.hasHeader(b"x-b")
    assert sorted(headers.getAllRawHeaders()) == [
        (b"Accept", [b""]),
        (b"Content-MD5", [b"x"]),
        (b"X-A", [b"1", b"2: 3"]),
    ]
    assert headers == Headers({b"x-a": [b"1", b"2: 3"], b"accept": [b""], b"content-md5": [b"x"]})
    assert "X-A" in repr(headers)


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: headers.setRawHeaders(b"x-a", [b"0"]),
        lambda headers: headers.addRawHeader(b"x-a", b"0"),
        lambda headers: headers.removeHeader(b"x-a"),
    ],
)
def test_only_a_copy_can_be_changed(change: Any) -> None:
    headers = RawHeaders.from_pairs(PAIRS)
    with pytest.raises(TypeError):
        change(headers)
    copied = headers.copy()
    change(copied)
    assert copied != headers
    assert headers.getRawHeaders(b"x-a") == [b"1", b"2: 3"]


def test_twisteds_agent_can_send_them() -> None:
    received: list[Sequence[bytes] | None] = []

    class Leaf(Resource):
        isLeaf = True

        def render(self, request: Request) -> bytes:
            received.append(request.requestHeaders.getRawHeaders(b"x-a"))
            return b""

    RequestTraversalAgent(Leaf()).request(b"GET", b"http://vllm/", RawHeaders.from_pairs(PAIRS))
    assert received == [[b"1", b"2: 3"]]
