"""The cache of request heads: a cached head equals llhttp's result, and only an equal head matches it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.http.server_harness import SiteHarness, get, post
from twisted_vllm.config.settings import Limits
from twisted_vllm.http.header_cache import MOST_HEADS, RequestHeaderCache, RequestTemplate

BODY = b'{"model": "m"}'
FIRST = post(b"/vllm/a?b=1", BODY, b"Authorization: Bearer k", b"X-A: 1", b"x-a: 2")


def outcome(harness: SiteHarness, raw: bytes) -> Any:
    """Send `raw` on a new connection; return the resource's request, the response, and whether it stays open."""
    before = len(harness.streaming.rendered)
    client = harness.connect()
    client.send(raw)
    seen = [
        (
            *(request.method, request.uri, request.head.complete_headers(), request.head.names, request.body_received),
            request.head.length,
            request.head.value(b"content-length"),
            {name: value for name, value in request.head.first.items() if name != b"content-length"},
        )
        for request in harness.streaming.rendered[before:]
    ]
    # an id that is made differs each time
    answered = [
        line for line in client.transport.value().split(b"\r\n") if not line.lower().startswith(b"x-request-id")
    ]
    result = (seen, answered, client.ended, client.channel.is_idle())
    client.leave()
    return result


def test_the_same_head_again_means_the_same() -> None:
    harness = SiteHarness()
    first = outcome(harness, FIRST)
    assert len(harness.site.header_cache) == 1
    assert outcome(harness, FIRST) == first
    assert len(harness.site.header_cache) == 1


@pytest.mark.parametrize("body", [b"", b"1", b"x" * 1_000])
def test_only_the_length_and_the_body_may_differ(body: bytes) -> None:
    harness, fresh = SiteHarness(), SiteHarness()
    outcome(harness, FIRST)
    again = FIRST.replace(b"Content-Length: 14", b"Content-Length: %d" % len(body)).replace(BODY, body)
    assert outcome(harness, again) == outcome(fresh, again)
    assert len(harness.site.header_cache) == 1


TRACED = post(
    b"/vllm/a", BODY, b"traceparent: 00-" + b"a" * 32 + b"-01", b"X-Request-Id: first", b"TraceState: a=1,b=2"
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"a" * 32, b"b" * 32),
        (b": first", b": another-id-of-42-bytes"),
        (b"a=1,b=2", b"c=3"),
        (b"Content-Length: 14\r\n\r\n" + BODY, b"Content-Length: 3\r\n\r\n{ }"),
    ],
)
def test_each_traced_request_has_its_own_values(before: bytes, after: bytes) -> None:
    harness, fresh = SiteHarness(), SiteHarness()
    outcome(harness, TRACED)
    again = TRACED.replace(before, after)
    assert again != TRACED
    assert outcome(harness, again) == outcome(fresh, again)
    assert len(harness.site.header_cache) == 1
    # the first is unchanged
    assert outcome(harness, TRACED) == outcome(SiteHarness(), TRACED)


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer %b",
        b"authorization: bearer %b",
        b"Authorization: %b",
        b"x-api-key: %b",
        b"Api-Key: Bearer %b",
        b"x-litellm-api-key: %b",
    ],
)
def test_callers_that_differ_in_their_credential_share_a_head(line: bytes) -> None:
    harness, fresh = SiteHarness(), SiteHarness()
    outcome(harness, post(b"/vllm/a", BODY, line % b"sk-first"))
    for credential in (b"sk-second", b"k", b"sk-" + b"z" * 1_000, b"!~=%", b"bearer"):
        again = post(b"/vllm/a", BODY, line % credential)
        assert outcome(harness, again) == outcome(fresh, again)
        assert harness.streaming.rendered[-1].head.credential == credential
    assert len(harness.site.header_cache) == 1


def test_two_credentials_of_a_head_are_told_apart_from_one() -> None:
    harness = SiteHarness()
    outcome(harness, get(b"/vllm/a", b"Authorization: Bearer a", b"x-api-key: b"))
    again = get(b"/vllm/a", b"Authorization: Bearer c", b"x-api-key: d")
    assert outcome(harness, again) == outcome(SiteHarness(), again)
    assert harness.streaming.rendered[-1].head.credential == b"c\nd"
    assert len(harness.site.header_cache) == 1


def test_the_key_of_an_entry_has_no_credential() -> None:
    harness = SiteHarness()
    outcome(harness, post(b"/vllm/a", BODY, b"Authorization: Bearer sk-secret", b"x-api-key: sk-secret"))
    cache = harness.site.header_cache
    [(key, template)] = cache._heads.newest_first()
    assert b"sk-secret" not in b"".join(key)
    assert b"sk-secret" not in repr((template.head.headers, template.head.first)).encode()


def test_a_head_that_was_recalled_does_not_change_with_the_next_one() -> None:
    cache = RequestHeaderCache(Limits())
    first = learnt(cache, FIRST)
    other = FIRST.replace(b"Bearer k", b"Bearer other")
    found = cache.recall(other)
    again = cache.recall(FIRST)
    assert found is not None
    assert again is not None
    assert (found[0].first[b"authorization"], found[0].credential) == (b"Bearer other", b"other")
    assert (again[0].first[b"authorization"], again[0].credential) == (b"Bearer k", b"k")
    assert found[0].template is again[0].template is first


def test_other_limits_forget_a_head_also_where_a_connection_knows_it() -> None:
    cache = RequestHeaderCache(Limits())
    template = learnt(cache, FIRST)
    assert cache.recall(FIRST, template) is not None
    cache.reconfigure(Limits(max_body_bytes=20))
    assert cache.recall(FIRST, template) is None


def learnt(cache: RequestHeaderCache, raw: bytes) -> RequestTemplate:
    """Have a cache learn a request as llhttp reads it; return its template."""
    harness = SiteHarness()
    outcome(harness, raw)
    cache.learn(raw, harness.streaming.rendered[-1].head)
    recalled = cache.recall(raw)
    assert recalled is not None
    assert isinstance(recalled[0].template, RequestTemplate)
    return recalled[0].template


def test_heads_that_name_their_ids_elsewhere_are_others() -> None:
    harness = SiteHarness()
    for headers in (
        (b"X-Request-Id: 1",),
        (b"X-Request-Ids: 1",),
        (b"traceparent: 1",),
        (b"X-A: 1", b"X-Request-Id: 1"),
        (b"X-Request-Id: 1", b"X-A: 1"),
    ):
        outcome(harness, get(b"/vllm/a", *headers))
    assert len(harness.site.header_cache) == 5


def test_requests_without_a_body_are_cached_too() -> None:
    harness = SiteHarness()
    first = outcome(harness, get())
    assert outcome(harness, get()) == first
    assert len(harness.site.header_cache) == 1


def test_a_cached_head_on_one_connection_with_others_before_and_after() -> None:
    harness = SiteHarness()
    client = harness.connect()
    for raw in (FIRST, get(b"/vllm/b"), FIRST, FIRST + get(b"/vllm/c"), FIRST[:50], FIRST[50:], FIRST):
        client.send(raw)
    targets = [request.uri[:7] for request in harness.streaming.rendered]
    assert targets == [b"/vllm/" + name for name in (b"a", b"b", b"a", b"a", b"c", b"a", b"a")]
    assert not client.ended


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(get(b"/vllm/a", b"X-Request-Id: 1 2"), id="an id that would not come again"),
        pytest.param(get(b"/vllm/a", b"X-Request-Id: 1", b"x-request-id: 2"), id="two ids"),
        pytest.param(get(b"/vllm/a", b"traceparent:00-1-2-01"), id="a trace in another spelling"),
        pytest.param(get(b"/vllm/a", b"Authorization: Basic a2V5"), id="another scheme"),
        pytest.param(get(b"/vllm/a", b"Authorization: Bearer  k"), id="two spaces before a credential"),
        pytest.param(get(b"/vllm/a", b"Authorization: Bearer k "), id="a space after a credential"),
        pytest.param(get(b"/vllm/a", b"Authorization:Bearer k"), id="no space before a scheme"),
        pytest.param(get(b"/vllm/a", b"Authorization: Bearer\tk"), id="a tab before a credential"),
        pytest.param(get(b"/vllm/a", b"Authorization: Bearer k\xc3\xa4"), id="a credential that is not ASCII"),
        pytest.param(get(b"/vllm/a", b"Authorization: Bearer "), id="an empty credential"),
        pytest.param(get(b"/vllm/a", b"x-api-key: a", b"X-Api-Key: b"), id="two keys in one header"),
        pytest.param(get(b"/vllm/a", b"Authorization: Bearer a", b"authorization: Bearer b"), id="two authorizations"),
        pytest.param(get(b"/vllm/a", b"Authorization: Bearer " + b"k" * 2_000), id="a credential of a whole head"),
        pytest.param(get(b"/vllm/a", b"Authorization: Bearer k\r\n more"), id="a credential that is folded"),
        pytest.param(get(b"/vllm/a", b"Connection: close"), id="the last request of its connection"),
        pytest.param(get(b"/vllm/a", b"Transfer-Encoding: chunked", method=b"POST") + b"0\r\n\r\n", id="chunks"),
        pytest.param(get(b"/vllm/a", b"X-Long: " + b"x" * 3_000), id="a long head"),
        pytest.param(get(b"/vllm/a", version=b"HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(get(b"/vllm/a", b"Content-Length:0"), id="a length in another spelling"),
        pytest.param(FIRST + FIRST, id="two requests at once"),
        pytest.param(get(b"/vllm/a", b"Content-Length : 0"), id="a malformed request"),
    ],
)
def test_heads_that_do_not_repeat_or_are_not_plain_are_not_cached(raw: bytes) -> None:
    harness = SiteHarness()
    outcome(harness, raw)
    assert len(harness.site.header_cache) == 0


KEYED = post(b"/vllm/a", BODY, b"authorization: bearer sk-0", b"X-A: 1", b"api-key: sk-1", b"baggage: a=1")

#: what may stand in place of a credential, and around it
CREDENTIALS = st.one_of(
    st.binary(max_size=12),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40).map(str.encode),
    st.sampled_from(
        [
            b"",
            b" k",
            b"k ",
            b"k\r\nX-B: 1",
            b"k\r\n X",
            b"k\r\n\r\n",
            b"k\r\nContent-Length: 1",
            b"k\r\nauthorization: bearer l",
            b"bearer k",
            b"bearer",
            b"k\0",
            b"k\n",
            b"k\r",
            b"k" * 3_000,
            "ä".encode(),
        ]
    ),
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([b"bearer sk-0", b"sk-0", b"sk-1", b"a=1"]), CREDENTIALS, st.booleans())
def test_whatever_stands_in_place_of_a_credential_means_what_llhttp_reads(
    place: bytes, put: bytes, twice: bool
) -> None:
    changed = KEYED.replace(place, put)
    harness, fresh = SiteHarness(), SiteHarness()
    outcome(harness, KEYED)
    assert len(harness.site.header_cache) == 1
    expected = outcome(fresh, changed)
    assert outcome(harness, changed) == expected
    # on a connection that knows the template
    client, others = harness.connect(), len(harness.streaming.rendered)
    client.send(KEYED)
    assert len(harness.streaming.rendered) == others + 1
    if twice:
        client.send(KEYED)
    before = len(harness.streaming.rendered)
    client.send(changed)
    seen = [request.head.complete_headers() for request in harness.streaming.rendered[before:]]
    assert seen == [each[2] for each in expected[0]]
    client.leave()


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([FIRST, get(b"/vllm/a", b"X-A: 1"), TRACED, KEYED]),
    st.integers(0, 250),
    st.integers(0, 3),
    st.sampled_from(
        [
            b"traceparent: x\r\n",
            b"X-Request-Id: x\r\n",
            b"",
            b"\0",
            b"\r\n",
            b"\n",
            b" ",
            b"0",
            b"9",
            b"-",
            b"+",
            b":",
            b"x",
            b"Content-Length: 3\r\n",
        ]
    ),
)
@example(FIRST, FIRST.index(b"14\r\n"), 2, b"")
@example(FIRST, FIRST.index(b"14\r\n"), 2, b"\0")
def test_only_an_equal_head_matches_a_cached_one(raw: bytes, at: int, cut: int, put: bytes) -> None:
    changed = raw[:at] + put + raw[at + cut :]
    harness, fresh = SiteHarness(), SiteHarness()
    outcome(harness, raw)
    assert len(harness.site.header_cache) == 1
    assert outcome(harness, changed) == outcome(fresh, changed)


def test_a_cached_head_with_a_body_over_the_limit_is_refused() -> None:
    harness = SiteHarness(limits=Limits(max_body_bytes=20))
    outcome(harness, FIRST)
    again = FIRST.replace(b"Content-Length: 14", b"Content-Length: 21").replace(BODY, b"x" * 21)
    assert b"HTTP/1.1 413 " in outcome(harness, again)[1][0]


def test_the_cache_is_bounded() -> None:
    harness = SiteHarness()
    for number in range(MOST_HEADS + 10):
        outcome(harness, get(b"/vllm/%d" % number))
    assert len(harness.site.header_cache) == MOST_HEADS


def test_the_cache_is_empty_at_first() -> None:
    assert RequestHeaderCache(Limits()).recall(FIRST) is None
