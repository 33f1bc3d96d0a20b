"""The limit of requests that no ``rpm_limit`` counts."""

from __future__ import annotations

import pytest

from twisted_vllm.auth.records import ANONYMOUS, MASTER, Principal
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.errors import RateLimitExceeded

NOW = 1_000_000.0
ADA = Principal(kind="key", name="ada's", key_id="k1")
BOB = Principal(kind="key", name="bob's", key_id="k2")
MANAGER = Principal(kind="key", name="ops", key_id="k3", allowed_routes=("management",))


def test_the_request_after_the_limit_is_refused_until_the_minute_ends() -> None:
    uncounted = UncountedRequests(2)
    for _ in range(2):
        uncounted.count(ADA, NOW)
    with pytest.raises(RateLimitExceeded) as refused:
        uncounted.count(ADA, NOW + 20)
    assert refused.value.retry_after == 40
    assert "limits.max_uncounted_requests" in refused.value.message
    headers = dict(refused.value.headers())
    assert headers[b"retry-after"] == b"40"
    assert headers[b"x-ratelimit-limit-requests"] == b"2"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert headers[b"x-ratelimit-reset-requests"] == b"40s"
    assert uncounted.refused == 1
    uncounted.count(ADA, NOW + 60)


def test_keys_are_counted_each_for_itself_and_administrators_not_at_all() -> None:
    uncounted = UncountedRequests(1)
    for principal in (ADA, BOB):
        uncounted.count(principal, NOW)
    for principal in (MASTER, ANONYMOUS, MANAGER) * 3:
        uncounted.count(principal, NOW)
    assert uncounted.refused == 0


def test_preflights_are_counted_by_address() -> None:
    uncounted = UncountedRequests(1)
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1"):
        uncounted.count_preflight(address, NOW)
    with pytest.raises(RateLimitExceeded):
        uncounted.count_preflight("2001:db8::2", NOW)
    # a key is no address
    uncounted.count(ADA, NOW)


def test_without_a_limit_nothing_is_refused() -> None:
    uncounted = UncountedRequests(None)
    for _ in range(9):
        uncounted.count(ADA, NOW)
        uncounted.count_preflight("192.0.2.1", NOW)
