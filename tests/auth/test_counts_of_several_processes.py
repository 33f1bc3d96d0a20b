"""Failed authentications, uncounted requests and changes, where the count comes later: several processes count."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from twisted_vllm.auth.change_limits import ChangeLimits
from twisted_vllm.auth.records import Principal
from twisted_vllm.auth.throttle import AuthenticationThrottle
from twisted_vllm.auth.uncounted_requests import UncountedRequests
from twisted_vllm.errors import GatewayError, InvalidApiKey, MissingApiKey, RateLimitExceeded, TooManyFailures
from twisted_vllm.ratelimit.minute_counts import MinuteCounts

NOW = 1_000_000.0
WRONG = InvalidApiKey("wrong")
KEY = Principal("key", "a key", key_id="k", user_id="u")


class LaterCounts:
    """Counts that come when the test says so."""

    def __init__(self) -> None:
        self.counts = MinuteCounts()
        self.waiting: list[tuple[Hashable, Deferred[Any]]] = []

    def __len__(self) -> int:
        return len(self.counts)

    def count(self, name: Hashable, now: float) -> int:
        return self.counts.count(name, now)

    def add(self, name: Hashable, now: float) -> Deferred[tuple[int, float]]:
        waiting: Deferred[tuple[int, float]] = Deferred()
        self.waiting.append((name, waiting))
        return waiting

    def come(self) -> None:
        waiting, self.waiting = self.waiting, []
        for name, each in waiting:
            each.callback(self.counts.add(name, NOW))


def result_of(later: Any) -> Any:
    """Return the result or the error, or the Deferred's `NotYet`."""
    assert isinstance(later, Deferred)
    found: list[Any] = []
    later.addCallbacks(found.append, lambda failure: found.append(failure.value))
    return found[0] if found else None


def test_a_failed_authentication_is_answered_once_it_is_counted() -> None:
    counts = LaterCounts()
    throttle = AuthenticationThrottle(1, counts)
    answers = [throttle.record_failure(WRONG, "2001:db8::1", NOW) for _ in range(2)]
    assert [name for name, _ in counts.waiting] == [b"\x20\x01\x0d\xb8\0\0\0\0"] * 2
    counts.come()
    first, second = map(result_of, answers)
    assert first is WRONG
    assert isinstance(second, TooManyFailures)
    assert second.retry_after == 60
    assert throttle.is_over("2001:db8::2", NOW)
    # what is not counted is answered at once
    missing = MissingApiKey("none")
    assert throttle.record_failure(missing, "192.0.2.1", NOW) is missing
    assert isinstance(AuthenticationThrottle(None, counts).record_failure(WRONG, "192.0.2.1", NOW), GatewayError)


@pytest.mark.parametrize(
    "count", [lambda uncounted: uncounted.count(KEY, NOW), lambda uncounted: uncounted.count_preflight("a", NOW)]
)
def test_an_uncounted_request_goes_on_or_fails_once_it_is_counted(count: Callable[[UncountedRequests], Any]) -> None:
    keys, addresses = LaterCounts(), LaterCounts()
    uncounted = UncountedRequests(1, keys, addresses)
    answers = [count(uncounted) for _ in range(2)]
    keys.come()
    addresses.come()
    first, second = map(result_of, answers)
    assert first is None
    assert isinstance(second, RateLimitExceeded)
    assert second.retry_after == 60
    assert uncounted.refused == 1
    uncounted.reconfigure(None)
    assert count(uncounted) is None


def test_a_change_is_counted_in_its_minute_and_then_in_its_day() -> None:
    minutes, days = LaterCounts(), LaterCounts()
    changes = ChangeLimits(2, 1, minutes, days)
    answers = [changes.count(KEY, NOW) for _ in range(3)]
    assert (len(minutes.waiting), len(days.waiting)) == (3, 0)
    minutes.come()
    # the third is over the minute's limit, and is no change of the day
    assert len(days.waiting) == 2
    days.come()
    first, second, third = map(result_of, answers)
    assert first is None
    assert isinstance(second, RateLimitExceeded)
    assert "in a day" in second.message
    assert isinstance(third, RateLimitExceeded)
    assert "in a minute" in third.message
    changes.reconfigure(None, 5)
    last = changes.count(KEY, NOW)
    assert [name for name, _ in days.waiting] == ["u"]
    days.come()
    assert result_of(last) is None
