"""The cached authorization of a head is valid for the next request with that head, until anything changes."""

from __future__ import annotations

import attrs
import pytest

from twisted_vllm.api_routes import classify
from twisted_vllm.auth.records import MASTER, Principal
from twisted_vllm.context import Authorization, Peer
from twisted_vllm.http.header_cache import MOST_HEADS
from twisted_vllm.http.headers import HeaderList, write_header_lines
from twisted_vllm.proxy.authorization_cache import AuthorizationCache, CachedAuthorization, HeaderFormat
from twisted_vllm.usage.records import Payer, refer

TENANT = Principal(kind="key", name="team-a", expires=100.0)
HEADERS: HeaderList = [(b"Host", b"gpu-1:8000"), (b"X-A", b"Content-Length: "), (b"X-100%", b"%d %b %%")]
PEER = Peer("192.0.2.1", False)
URL = b"http://gpu-1:8000/v1/completions?a=%2F"


def cached(principal: Principal = TENANT) -> CachedAuthorization:
    path = b"/v1/completions"
    authorization = Authorization(principal, classify(b"POST", path), path, path, False, False, refer(Payer()))
    return CachedAuthorization(authorization, 7, PEER)


@pytest.mark.parametrize(
    ("changes", "now", "peer", "holds"),
    [
        (7, 99.9, PEER, True),
        (7, 99.9, Peer("192.0.2.1", False), True),
        (8, 99.9, PEER, False),
        (7, 100.0, PEER, False),
        (7, 99.9, Peer("192.0.2.2", False), False),
        (7, 99.9, Peer("192.0.2.1", True), False),
    ],
)
def test_an_entry_is_valid_until_a_key_changes_or_expires_or_the_peer_differs(
    changes: int, now: float, peer: Peer, holds: bool
) -> None:
    assert cached().holds(changes, now, peer) is holds


def test_an_entry_without_expiry_stays_valid() -> None:
    assert cached(MASTER).holds(7, 1e12, PEER)
    assert not cached(attrs.evolve(TENANT, expires=0.0)).holds(7, 0.0, PEER)


@pytest.mark.parametrize("length", [0, 9, 12_345])
def test_cached_headers_equal_fresh_ones_with_their_own_length_and_id(length: int) -> None:
    tail = [(b"X-Forwarded-For", b"192.0.2.1"), (b"X-Request-Id", b"")]
    kept = HeaderFormat(URL, [*HEADERS, (b"Content-Length", b""), *tail])
    fresh = [*HEADERS, (b"Content-Length", b"%d" % length), tail[0], (b"X-Request-Id", b"5f0e")]
    assert kept.url == URL
    assert kept.write(length, b"5f0e", {}).lines == write_header_lines(fresh)


def test_cached_headers_without_a_body_get_no_length() -> None:
    kept = HeaderFormat(URL, [*HEADERS, (b"X-Request-Id", b"")])
    assert kept.write(0, b"5f0e", {}).lines == write_header_lines([*HEADERS, (b"X-Request-Id", b"5f0e")])


def test_cached_headers_of_a_traced_client_get_their_own_trace() -> None:
    def headers(trace: bytes, state: bytes, length: bytes, request_id: bytes) -> HeaderList:
        traced = [(b"TraceParent", trace), (b"X-B", b"1"), (b"tracestate", state)]
        return [*HEADERS, *traced, (b"Content-Length", length), (b"X-Request-Id", request_id)]

    kept = HeaderFormat(URL, headers(b"00-1", b"a=1", b"", b""))
    own = {b"traceparent": b"00-2", b"tracestate": b"b=%d", b"x-request-id": b"other"}
    fresh = write_header_lines(headers(b"00-2", b"b=%d", b"7", b"5f0e"))
    assert kept.write(7, b"5f0e", own).lines == fresh


def test_the_cache_is_bounded() -> None:
    cache = AuthorizationCache()
    templates = [object() for _ in range(MOST_HEADS + 3)]
    for template in templates:
        cache.keep(template, cached(), 0)
    assert [cache.get(template) is None for template in templates[:4]] == [True, True, True, False]
    newer = cached()
    cache.keep(templates[-1], newer, 0)
    assert cache.get(templates[-1]) is newer
    assert cache.get(templates[3]) is not None
